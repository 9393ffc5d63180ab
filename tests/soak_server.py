"""The service as a process of its own, real but for faults at random in its backend.

Says at its end, on standard output, which faults there were.
"""

import argparse
import json
import sys
from concurrent.futures import Future
from pathlib import Path

from faults import Faulty, Rates

from service.server import app, http_server, log_config
from service.server.uvicorn_server import Server
from service.serving.metrics.metrics import Metrics
from service.settings import Settings
from service.worker import client

RATES = Rates(
    failing=0.003,
    losing=0.003,
    miscounting=0.003,
    slow=0.01,
    broken_decoder=0.002,
    slow_decoder=0.01,
)


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--model-store", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    settings = Settings(
        model=given.model,
        model_store=given.model_store,
        port=0,
        header_timeout_seconds=2,
        upload_timeout_seconds=3,
        send_timeout_seconds=2,
        log_level="error",
    )
    log_config.configure(settings)
    told: list[Faulty] = []

    def load(chosen: Settings, cancelled: Future[None]) -> Faulty:
        told.append(Faulty(client.load(chosen, cancelled), RATES, given.seed))
        return told[0]

    metrics = Metrics()
    ours = app.create_app(
        settings, load=load, is_leaving=lambda: server.is_leaving, metrics=metrics
    )
    server = Server(http_server.configure(settings, ours, metrics), 0.0, None)
    config = server.config
    listener = config.bind_socket()
    print(listener.getsockname()[1], flush=True)
    server.run(sockets=[listener])
    json.dump(told[0].injected, sys.stdout)


if __name__ == "__main__":
    main()
