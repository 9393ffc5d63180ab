"""HEAD: the response to GET without its body, on every path that has GET."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadMethod:
    """Passes HEAD to the app as GET, and sends the head of the response only."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        get_scope = {**scope, "method": "GET"}

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(get_scope, receive, send_head)
        finally:
            scope.update(get_scope, method="HEAD")  # the route, for metrics and the log
