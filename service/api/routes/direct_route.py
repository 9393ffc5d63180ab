"""A route for the requests that have to be quick: FastAPI documents it, and is not run.

Solving dependencies and FastAPI's exit stacks take as long as everything else that the listening
process does for an image.
"""

from collections.abc import Callable
from typing import Any, get_type_hints

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from service.api import parameters


class DirectRoute(APIRoute):
    """Calls an endpoint with the request, its validated query and its validated headers.

    The endpoint's parameters are `request`, `query` and `headers`; the last two are annotated as
    FastAPI's models of parameters. Unknown or repeated names in the query are refused.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        hints = get_type_hints(endpoint)
        self._query, self._headers = hints["query"], hints["headers"]

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond; errors are for the application's handlers."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)  # 405
            return
        request = Request(scope, receive, send)
        query = parameters.parse_query(self._query, request.query_params)
        headers = parameters.parse_headers(self._headers, request.headers)
        response = await self.endpoint(request, query, headers)
        await response(scope, receive, send)
