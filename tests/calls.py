"""Requests straight to the application, without sockets or clients in between."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI


@dataclass
class Call:
    """A request straight to the application, as a server passes it on."""

    body: bytes = b""
    views: str = "single"
    status: int = 0
    answer: bytes = b""

    @property
    def retry_after(self) -> float:
        """In how many seconds a refused caller may come again."""
        return float(json.loads(self.answer)["retry_after_ms"]) / 1000

    async def make(self, app: FastAPI, path: str = "/classify", leave: float | None = None) -> None:
        """Ask, and hang up after `leave` seconds if there is no answer by then."""
        unread = [{"type": "http.request", "body": self.body}]

        async def receive() -> dict[str, Any]:
            if unread:
                return unread.pop()
            await asyncio.sleep(600 if leave is None else leave)
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            self.status = message.get("status", self.status)
            self.answer += message.get("body", b"")

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST" if self.body else "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": f"views={self.views}&top_k=10".encode() if self.body else b"",
            "headers": [
                (b"content-type", b"image/png"),
                (b"content-length", b"%d" % len(self.body)),
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
            "scheme": "http",
        }
        await app(scope, receive, send)  # type: ignore[arg-type]


async def ready(app: FastAPI) -> None:
    """Wait for the model."""
    while True:
        call = Call()
        await call.make(app, "/readyz")
        if call.status == 200:
            return
        await asyncio.sleep(0.05)
