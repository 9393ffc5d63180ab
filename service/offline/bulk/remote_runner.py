"""Bulk classification by a running service, with as many concurrent requests as it accepts."""

import asyncio
import importlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from service.errors import BulkError, DeadlineExceeded, NotReady, RateLimited, ServiceError
from service.imaging.archives import Source
from service.offline.bulk import local_runner, ordered_tasks
from service.offline.bulk.aimd_window import AimdWindow
from service.offline.bulk.local_runner import Put
from service.offline.bulk.results_file import Origin, Row

RETRY_SECONDS = 600.0  # that a request is retried for, after the service has answered once
SILENCE = 1.0  # seconds without a first response before a message says so

_BAD_CODES = {"malformed", *(error.code for error in local_runner.BAD)}  # the first: an empty file

# Error codes that are printed; `overloaded` only slows requests down.
_OUTAGES = {"unreachable", "invalid_answer", NotReady.code, RateLimited.code}


@dataclass(frozen=True, slots=True)
class Service:
    """A service and the parameters of its requests."""

    url: str
    key: str | None
    wait: float  # seconds for its first response
    say: Callable[[str], None]  # prints a sentence
    parameters: Mapping[str, Any]  # of each request


def rank(service: Service, sources: Iterator[Source], put: Put) -> float:
    """Classify the images by a service, and put a row for each; returns the seconds.

    Raises `BulkError` where it cannot be reached, or for an error that is not an image's own.
    """
    return asyncio.run(_Remote(service, _client()).rank(sources, put))


def _client() -> Any:
    try:
        return importlib.import_module("service.client")
    except ImportError as error:
        raise BulkError("--url needs httpx2: pip install 'googlenet-service[client]'") from error


@dataclass(slots=True)
class _Outage:
    """Prints one message for each outage of the service."""

    seconds: float  # that requests are retried for
    print: Callable[[str], None]
    printed: bool = False

    def retried(self, error: Any) -> None:
        """Print that a request is retried, unless the service is only busy."""
        if error.code in _OUTAGES:
            self.say(f"{error}; retrying for up to {self.seconds:g} s")

    def say(self, sentence: str) -> None:
        """Print a message, unless one was printed for this outage."""
        if not self.printed:
            self.print(sentence)
        self.printed = True

    def over(self) -> None:
        """End the outage."""
        self.seconds, self.printed = RETRY_SECONDS, False


@dataclass(slots=True)
class _Remote:
    """Sends the requests to one service."""

    service: Service
    client: Any  # the module
    window: AimdWindow = field(default_factory=AimdWindow)
    outage: _Outage = field(init=False)
    is_background: bool = True  # priority, until the deadline leaves it too little time

    def __post_init__(self) -> None:
        self.outage = _Outage(self.service.wait, self.service.say)

    async def rank(self, sources: Iterator[Source], put: Put) -> float:
        async with self._connected() as client:
            await self._reach(client)

            async def row(source: Source) -> Row:
                return await self._row(client, source)

            started = time.monotonic()
            await ordered_tasks.run(sources, row, put, lambda: self.window.most)
            return time.monotonic() - started

    def _connected(self) -> Any:
        url, key = self.service.url, self.service.key
        try:
            return self.client.AsyncClient(
                url, key=key, timeout=RETRY_SECONDS, on_retry=self._on_retry
            )
        except ValueError as error:
            raise BulkError(f"{error}") from error

    def _on_retry(self, error: Exception, seconds: float) -> None:
        self.window = self.window.refused(time.monotonic(), seconds)
        self.outage.retried(error)

    async def _reach(self, client: Any) -> None:
        """Wait for the first response. Raises `BulkError` if none comes in time."""
        seconds = self.service.wait
        first = asyncio.create_task(client.wait_reachable(timeout=seconds))
        await asyncio.wait([first], timeout=SILENCE)
        if not first.done():
            self.outage.say(
                f"{self.service.url} has not answered yet; waiting for up to {seconds:g} s"
            )
        try:
            await first
        except self.client.ClientError as error:
            if getattr(error, "is_permanent", False):
                raise BulkError(f"{error}") from error
            raise BulkError(
                f"{error}; gave up after {seconds:g} s (--wait SECONDS waits longer)"
            ) from error
        self.outage.over()

    async def _row(self, client: Any, source: Source) -> Row:
        try:
            data = await asyncio.to_thread(source.read)
            answer = await self._classify(client, data)
        except ServiceError as error:
            return Row(source.name, error=str(error))
        except self.client.ClientError as error:
            if error.code in _BAD_CODES:
                return Row(source.name, error=error.detail)
            raise BulkError(f"{source.name}: {error.detail}") from error
        self.window = self.window.answered()
        self.outage.over()
        origin = Origin(answer.model, answer.version, answer.views)
        return Row(source.name, local_runner.plain(answer.predictions), origin=origin)

    async def _classify(self, client: Any, data: bytes) -> Any:
        """Send a background request, or an interactive one once a background one is too slow."""
        background = self.is_background  # of this request; others may change it meanwhile
        try:
            return await client.classify(data, background=background, **self.service.parameters)
        except self.client.ClientError as error:
            if not background or error.code != DeadlineExceeded.code:
                raise
        self.is_background = False
        return await self._classify(client, data)
