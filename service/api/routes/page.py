"""GET /: the playground page, whose files are read once, and which loads nothing else."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.middleware import security_headers

_FOLDER = Path(__file__).parents[1] / "static/playground"
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/card.js": ("card.js", "text/javascript"),
    "/service.js": ("service.js", "text/javascript"),
}
PATHS = frozenset(_FILES)


def router() -> APIRouter:
    """Make the routes, which OpenAPI does not describe."""
    routes = APIRouter(include_in_schema=False)
    for path, (name, media_type) in _FILES.items():
        send = sending((_FOLDER / name).read_bytes(), media_type, security_headers.OWN_PAGE)
        routes.add_api_route(path, send, methods=["GET"], name=name)
    return routes


def sending(
    content: bytes, media_type: str, policy: Mapping[str, str]
) -> Callable[[Request], Awaitable[Response]]:
    """Make the handler of a file, which a browser caches and revalidates by its ETag."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache", **policy}

    async def send(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        # A compressing proxy makes the ETag weak.
        if tag in {value.strip().removeprefix("W/") for value in known.split(",")}:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return send
