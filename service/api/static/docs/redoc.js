// Shows the service's own OpenAPI document with Redoc.

Redoc.init("openapi.json", { disableSearch: true }, document.getElementById("redoc"));
