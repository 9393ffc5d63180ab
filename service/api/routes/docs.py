"""GET /docs, /redoc and /openapi.json: the API's documentation, without files of other hosts."""

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from service.api.middleware import security_headers
from service.api.routes.page import sending

OPENAPI = "/openapi.json"

_FOLDER = Path(__file__).parents[1] / "static/docs"
FILES = {
    "/docs": ("docs.html", "text/html"),
    "/docs/swagger.js": ("swagger.js", "text/javascript"),
    "/docs/swagger-ui-bundle.js": ("swagger-ui-bundle.js", "text/javascript"),
    "/docs/swagger-ui.css": ("swagger-ui.css", "text/css"),
    "/redoc": ("redoc.html", "text/html"),
    "/docs/redoc.js": ("redoc.js", "text/javascript"),
    "/docs/redoc.standalone.js": ("redoc.standalone.js", "text/javascript"),
}
PATHS = frozenset({OPENAPI, *FILES})


def router() -> APIRouter:
    """Make the routes, which OpenAPI does not describe."""
    routes = APIRouter(include_in_schema=False)
    for path, (name, media_type) in FILES.items():
        send = sending((_FOLDER / name).read_bytes(), media_type, security_headers.DOCS_PAGE)
        routes.add_api_route(path, send, methods=["GET"], name=name)
    routes.add_api_route(OPENAPI, _openapi, methods=["GET"])
    return routes


async def _openapi(request: Request) -> Response:
    """Give the OpenAPI document; a root path becomes its server."""
    schema = request.app.openapi()
    if root_path := request.scope.get("root_path"):
        schema = {**schema, "servers": [{"url": root_path}]}
    return JSONResponse(schema)
