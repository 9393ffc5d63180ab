"""A Prometheus process with the shipped rules that scrapes one port."""

import http.client
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from service.bench.process import free_port

SHIPPED = Path(__file__).parents[1] / "deploy/prometheus"

_DURATION = re.compile(r"(?<=\[)(\d+)([smhd])(?=\])|(?<=for: )(\d+)([smhd])$", re.MULTILINE)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_START_SECONDS = 30  # it takes 5 until it discovers targets


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus and its port."""

    port: int

    def get(self, path: str, **parameters: str | float) -> Any:
        """Call its HTTP API; raises `ValueError` with its error message."""
        status, body = _get(self.port, f"/api/v1/{path}?{urlencode(parameters)}")
        answer = json.loads(body)
        if status != http.client.OK:
            raise ValueError(answer["error"])
        return answer["data"]


@contextmanager
def watching(
    port: int, folder: Path, *, every: float = 1, faster: float = 1
) -> Iterator[Prometheus]:
    """Scrape a local port every `every` seconds; yields after the first scrape.

    `folder` holds configuration, data and log. `faster` divides the windows and the `for:` of all
    rules.
    """
    config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    pause = f"{every * 1000:.0f}ms"
    config["global"] = {"scrape_interval": pause, "scrape_timeout": pause}
    config["global"]["evaluation_interval"] = pause
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    for name in config["rule_files"]:
        (folder / name).write_text(hurried((SHIPPED / name).read_text(), faster))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    own = free_port()
    command = [
        *("prometheus", f"--config.file={folder / 'prometheus.yml'}"),
        *(f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{own}"),
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log)  # noqa: S603 - our own arguments
        try:
            prometheus = Prometheus(own)
            _wait(lambda: _is_ready(own), process, folder / "log")
            _wait(
                lambda: bool(prometheus.get("query", query="up")["result"]), process, folder / "log"
            )
            yield prometheus
        finally:
            process.terminate()
            process.wait(timeout=30)


def hurried(rules: str, faster: float) -> str:
    """Divide every window and every `for:` of a rule file."""

    def divide(match: re.Match[str]) -> str:
        count, unit = filter(None, match.groups())
        return f"{int(count) * _SECONDS[unit] * 1000 / faster:.0f}ms"

    return _DURATION.sub(divide, rules)


def _wait(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    raise RuntimeError(f"Prometheus does not scrape:\n{log.read_text()}")


def _is_ready(port: int) -> bool:
    with suppress(ConnectionError):  # it does not listen yet
        return _get(port, "/-/ready")[0] == http.client.OK
    return False


def _get(port: int, path: str) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
