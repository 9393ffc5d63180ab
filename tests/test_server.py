"""Leaving in order: requests are let in for a while after the signal, then no more."""

import signal
import socket
import threading
import time
from contextlib import closing

import httpx2
import pytest
import uvicorn
from conftest import fake_backend, wait_ready

from service.app import create_app
from service.server import Server
from service.settings import Settings


@pytest.mark.parametrize("drain", [0.0, 1.0])
def test_it_lets_requests_in_until_the_time_is_over(
    drain: float, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(
        Settings(model="fake"),
        load=lambda _: fake_backend(),
        is_leaving=lambda: server.is_leaving,
    )
    server = Server(uvicorn.Config(app, log_config=None, access_log=False), drain)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener, caplog.at_level("INFO"):
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        with httpx2.Client(base_url=base) as client:
            wait_ready(client)
            assert not server.is_leaving
            server.handle_exit(signal.SIGTERM, None)
            told = time.monotonic()
            assert server.is_leaving
            if drain:
                answer = client.get("/readyz?verbose")
                assert answer.status_code == 503
                assert "[-]stop the service is stopping" in answer.text
                assert answer.headers["connection"] == "close"
                assert client.get("/models").status_code == 200
        thread.join(20)
    assert not thread.is_alive()
    assert drain <= time.monotonic() - told
    assert caplog.messages.count(f"stopping; requests are let in for {drain:g} s more") == 1
