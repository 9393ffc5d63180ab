"""Bulk classification by a running service, as many requests at a time as it takes."""

import asyncio
import importlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from service.errors import BulkError, DeadlineExceeded, NotReady, RateLimited, ServiceError
from service.offline.bulk import local_runner, ordered_tasks
from service.offline.bulk.aimd_window import AimdWindow
from service.offline.bulk.image_source import Source
from service.offline.bulk.local_runner import Put
from service.offline.bulk.results_file import Origin, Row

PATIENCE = 600.0  # seconds that a service may refuse an image, or be away after it has answered
SILENCE = 1.0  # seconds without a first answer before a message says so

_BAD_CODES = {"malformed", *(error.code for error in local_runner.BAD)}  # the first: it is empty

# Codes of the client's errors, which are shown to the user; `overloaded` only slows requests down.
_OUTAGES = {"unreachable", "invalid_answer", NotReady.code, RateLimited.code}


@dataclass(frozen=True, slots=True)
class Service:
    """Where a service is, and what is asked of it."""

    url: str
    key: str | None
    wait: float  # seconds for its first answer
    say: Callable[[str], None]  # prints a sentence
    asked: Mapping[str, Any]  # with each image


def rank(service: Service, found: Iterator[Source], put: Put) -> float:
    """Have a service classify all that is found, and put a row for each; gives the seconds.

    Raises `BulkError` where it cannot be reached, or with an error that is not an image's own.
    """
    return asyncio.run(_Remote(service, _client()).rank(found, put))


def _client() -> Any:
    try:
        return importlib.import_module("service.client")
    except ImportError as error:
        raise BulkError("--url needs httpx2: pip install 'googlenet-service[client]'") from error


@dataclass(slots=True)
class _Outage:
    """Prints one message for each time in which a service does not answer."""

    seconds: float  # that requests are retried for
    print: Callable[[str], None]
    said: bool = False

    def retried(self, error: Any) -> None:
        """Print that a request is retried, unless the service is only busy."""
        if error.code in _OUTAGES:
            self.say(f"{error}; retrying for up to {self.seconds:g} s")

    def say(self, sentence: str) -> None:
        """Print a message, unless there was one of this outage."""
        if not self.said:
            self.print(sentence)
        self.said = True

    def over(self) -> None:
        """Begin anew after an answer."""
        self.seconds, self.said = PATIENCE, False


@dataclass(slots=True)
class _Remote:
    """Asks one service."""

    service: Service
    client: Any  # the module
    window: AimdWindow = field(default_factory=AimdWindow)
    outage: _Outage = field(init=False)
    is_background: bool = True  # others may pass, unless too little time is left for one image then

    def __post_init__(self) -> None:
        self.outage = _Outage(self.service.wait, self.service.say)

    async def rank(self, found: Iterator[Source], put: Put) -> float:
        async with self._connected() as asked:
            await self._reach(asked)

            async def row(source: Source) -> Row:
                return await self._row(asked, source)

            started = time.monotonic()
            await ordered_tasks.run(found, row, put, lambda: self.window.most)
            return time.monotonic() - started

    def _connected(self) -> Any:
        url, key = self.service.url, self.service.key
        try:
            return self.client.AsyncClient(url, key=key, timeout=PATIENCE, waiting=self._waiting)
        except ValueError as error:
            raise BulkError(f"{error}") from error

    def _waiting(self, error: Exception, seconds: float) -> None:
        self.window = self.window.refused(time.monotonic(), seconds)
        self.outage.retried(error)

    async def _reach(self, asked: Any) -> None:
        """Wait for the first answer. Raises `BulkError` if none comes in time."""
        seconds = self.service.wait
        answer = asyncio.create_task(asked.reach(timeout=seconds))
        await asyncio.wait([answer], timeout=SILENCE)
        if not answer.done():
            self.outage.say(
                f"{self.service.url} has not answered yet; waiting for up to {seconds:g} s"
            )
        try:
            await answer
        except self.client.ClientError as error:
            if getattr(error, "is_final", False):
                raise BulkError(f"{error}") from error
            raise BulkError(
                f"{error}; gave up after {seconds:g} s (--wait SECONDS waits longer)"
            ) from error
        self.outage.over()

    async def _row(self, asked: Any, source: Source) -> Row:
        try:
            data = await asyncio.to_thread(source.read)
            answer = await self._answer(asked, data)
        except ServiceError as error:
            return Row(source.name, error=str(error))
        except self.client.ClientError as error:
            if error.code in _BAD_CODES:
                return Row(source.name, error=error.detail)
            raise BulkError(f"{source.name}: {error.detail}") from error
        self.window = self.window.answered()
        self.outage.over()
        made = Origin(answer.model, answer.version, answer.views)
        return Row(source.name, local_runner.plain(answer.predictions), origin=made)

    async def _answer(self, asked: Any, data: bytes) -> Any:
        """Ask in the background, or, once that leaves too little time for one image, as others."""
        background = (
            self.is_background
        )  # as it was asked for, whatever other requests find meanwhile
        try:
            return await asked.classify(data, background=background, **self.service.asked)
        except self.client.ClientError as error:
            if not background or error.code != DeadlineExceeded.code:
                raise
        self.is_background = False
        return await self._answer(asked, data)
