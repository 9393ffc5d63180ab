"""Two clients for the same calls: one that blocks, one for an event loop."""

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, TypeVar, Unpack

import httpx2

from service.client import calls, proxies
from service.client.calls import (
    Patience,
    Read,
    Reply,
    Request,
    Send,
    Sought,
    Steps,
    Time,
    Wait,
    Wanted,
)
from service.client.errors import ClientError, TimedOut, Unreachable
from service.client.reading import ImageInput, read
from service.client.results import Explanation, Models, Ranking

T = TypeVar("T")

TIMEOUT = 30.0  # seconds
LONGEST_TIMEOUT = 7 * 24 * 3600.0  # seconds; a socket's own may not be over 24 days

Waiting = Callable[[ClientError, float], None]
"""Is told of an error that will be tried again, and after how many seconds."""


def _silent(_: ClientError, __: float) -> None:
    pass


class _Asking:
    """What both clients know: whom to ask, as whom, and for how long."""

    def __init__(self, url: str, key: str | None, timeout: float, waiting: Waiting) -> None:
        if key and not _is_sent(key):
            raise ValueError("a key has ASCII characters alone, and no spaces around them")
        self._url = url.rstrip("/")
        self._timeout, self._waiting = _checked(timeout), waiting
        self._headers = {"X-API-Key": key} if key else {}
        self._proxy = proxies.proxy(self._url)

    def _made(self, kind: Callable[..., T]) -> T:
        """Make an httpx2 client that uses the chosen proxy, whatever httpx2 would choose."""
        # Its `trust_env` would choose a proxy again; of TLS the environment is still heeded.
        secured = httpx2.create_ssl_context()
        try:
            return kind(proxy=self._proxy, trust_env=False, verify=secured)
        except (ImportError, ValueError, httpx2.InvalidURL) as error:
            raise ValueError(
                f"the proxy {proxies.shown(self._proxy or '')} of the environment cannot be used:"
                f" {error}"
            ) from error

    def _answered(self, response: httpx2.Response, body: bytes) -> Reply:
        proxy = proxies.shown(self._proxy) if self._proxy else None
        return Reply(response.status_code, response.headers, body, proxy)

    def _time(self, given: Patience) -> Time:
        seconds = _checked(given.get("timeout", self._timeout))
        return Time(time.monotonic() + seconds, time.monotonic, random.random, self._waiting)

    def _sending(self, step: Send) -> dict[str, Any]:
        """Put a request as httpx2 takes it."""
        asked = step.request
        seconds = {"X-Timeout-Ms": str(max(1, int(step.seconds * 1000)))}
        return {
            "method": asked.method,
            "url": self._url + asked.path,
            "params": asked.query,
            "headers": {**self._headers, **asked.headers, **seconds},
            "extensions": {"timeout": _Left(time.monotonic() + step.seconds)},
            **_body(asked),
        }


class Client(_Asking):
    """Asks the service at a URL, and waits for the answer; may be used by several threads.

    `timeout` is in seconds, and for all of a call: its retries, which come when the service says
    so, included; a call may have its own. `waiting` is told of each retry. Every call raises a
    `ClientError`; a timeout over `LONGEST_TIMEOUT`, or nan, a key that no header can hold, and a
    proxy in the environment that cannot be used are a `ValueError`. This machine's own addresses
    are asked directly, whatever proxy is in the environment.

    An answer that comes in drops can outlast the timeout, for it bounds each wait for the network
    by what was left when the head, and when the body, began: a head can so take as long as it
    likes, a body the timeout again. `AsyncClient` ends in time whatever comes.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = TIMEOUT,
        waiting: Waiting = _silent,
    ) -> None:
        super().__init__(url, key, timeout, waiting)
        self._http = self._made(httpx2.Client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def classify(self, image: ImageInput, **wanted: Unpack[Wanted]) -> Ranking:
        """Rank an image's labels."""
        return self._run(calls.classify(image, wanted, self._time(wanted)))

    def classify_all(
        self,
        images: Iterable[ImageInput],
        **wanted: Unpack[Wanted],
    ) -> list[Ranking | ClientError]:
        """Rank each image's labels, or say what is wrong with it; the timeout is for them all."""
        return self._run(calls.classify_all(images, wanted, self._time(wanted)))

    def reach(self, **wanted: Unpack[Patience]) -> None:
        """Wait for the first answer, whatever it is; raises `ClientError` if none comes in time."""
        self._run(calls.reach(self._time(wanted)))

    def models(self, **wanted: Unpack[Patience]) -> Models:
        """Tell what is served."""
        return self._run(calls.models(self._time(wanted)))

    def explain(
        self,
        image: ImageInput,
        **sought: Unpack[Sought],
    ) -> Explanation:
        """Tell where a label, by default the most probable, is seen in an image."""
        return self._run(calls.explain(image, sought, self._time(sought)))

    def heat_map(
        self,
        image: ImageInput,
        **sought: Unpack[Sought],
    ) -> bytes:
        """Show the same over the image, as a PNG."""
        return self._run(calls.heat_map(image, sought, self._time(sought)))

    def _run(self, steps: Steps[T]) -> T:
        came: object = None
        while True:
            try:
                step = steps.send(came)
            except StopIteration as end:
                done: T = end.value
                return done
            came = self._do(step)

    def _do(self, step: Send | Wait | Read) -> object:
        match step:
            case Read(image):
                return read(image)
            case Send():
                return self._send(step)
            case _:
                time.sleep(step.seconds)
                return None

    def _send(self, step: Send) -> Reply | ClientError:
        end = time.monotonic() + step.seconds
        try:
            with self._http.stream(**self._sending(step)) as response:
                # Each part has its own timeout, so that many small ones could take for ever.
                parts = _until(end, response.iter_bytes())
                return self._answered(response, b"".join(parts))
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError) as error:
            return _kept_away(error, self._url, self._proxy)


class AsyncClient(_Asking):
    """The same for an event loop; as many calls at a time as are made."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = TIMEOUT,
        waiting: Waiting = _silent,
    ) -> None:
        super().__init__(url, key, timeout, waiting)
        self._http = self._made(httpx2.AsyncClient)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def classify(self, image: ImageInput, **wanted: Unpack[Wanted]) -> Ranking:
        """Rank an image's labels."""
        return await self._run(calls.classify(image, wanted, self._time(wanted)))

    async def classify_all(
        self,
        images: Iterable[ImageInput],
        **wanted: Unpack[Wanted],
    ) -> list[Ranking | ClientError]:
        """Rank each image's labels, or say what is wrong with it; the timeout is for them all."""
        return await self._run(calls.classify_all(images, wanted, self._time(wanted)))

    async def reach(self, **wanted: Unpack[Patience]) -> None:
        """Wait for the first answer, whatever it is; raises `ClientError` if none comes in time."""
        await self._run(calls.reach(self._time(wanted)))

    async def models(self, **wanted: Unpack[Patience]) -> Models:
        """Tell what is served."""
        return await self._run(calls.models(self._time(wanted)))

    async def explain(
        self,
        image: ImageInput,
        **sought: Unpack[Sought],
    ) -> Explanation:
        """Tell where a label, by default the most probable, is seen in an image."""
        return await self._run(calls.explain(image, sought, self._time(sought)))

    async def heat_map(
        self,
        image: ImageInput,
        **sought: Unpack[Sought],
    ) -> bytes:
        """Show the same over the image, as a PNG."""
        return await self._run(calls.heat_map(image, sought, self._time(sought)))

    async def _run(self, steps: Steps[T]) -> T:
        came: object = None
        while True:
            try:
                step = steps.send(came)
            except StopIteration as end:
                done: T = end.value
                return done
            came = await self._do(step)

    async def _do(self, step: Send | Wait | Read) -> object:
        match step:
            case Read(bytes() as data):
                return data  # a thread would cost more
            case Read(image):
                return await asyncio.to_thread(read, image)
            case Send():
                return await self._send(step)
            case _:
                await asyncio.sleep(step.seconds)
                return None

    async def _send(self, step: Send) -> Reply | ClientError:
        try:
            async with asyncio.timeout(step.seconds):
                response = await self._http.request(**self._sending(step))
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError) as error:
            return _kept_away(error, self._url, self._proxy)
        return self._answered(response, response.content)


class _Left(dict[str, float]):
    """Timeouts of a request's phases: whichever begins has the seconds that are left by then."""

    def __init__(self, end: float) -> None:
        super().__init__()
        self._end = end

    def get(self, _: str, __: object = None) -> float:
        """Give a phase's timeout."""
        return max(0.001, self._end - time.monotonic())


def _is_sent(key: str) -> bool:
    """Tell whether a header can hold a key."""
    return key.isascii() and key.isprintable() and key == key.strip()


def _checked(seconds: float) -> float:
    if not seconds <= LONGEST_TIMEOUT:  # which nan is not, either
        raise ValueError(f"a timeout is a number of seconds up to {LONGEST_TIMEOUT:.0f}")
    return seconds


def _body(asked: Request) -> dict[str, Any]:
    if len(asked.images) == 1:
        return {"content": asked.images[0]}
    if asked.images:
        return {"files": [("file", (str(n), data)) for n, data in enumerate(asked.images)]}
    return {}


def _until(end: float, parts: Iterator[bytes]) -> Iterator[bytes]:
    for part in parts:
        if time.monotonic() >= end:
            raise TimeoutError
        yield part


def _kept_away(error: Exception, url: str, proxy: str | None) -> ClientError:
    """Say why there is no answer, and which proxy it would have come through."""
    if isinstance(
        error, httpx2.InvalidURL | httpx2.UnsupportedProtocol | httpx2.LocalProtocolError
    ):
        return Unreachable(f"{url!r} cannot be asked: {error}", is_final=True)
    where = f"{url}, asked through the proxy {proxies.shown(proxy)}," if proxy else url
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return TimedOut(f"{where} did not answer in time", code="deadline_exceeded")
    if isinstance(error, httpx2.ConnectError | httpx2.ProxyError):
        return Unreachable(f"{where} does not answer: {error}", is_final=_is_tls(error))
    return Unreachable(f"{where} has hung up: {error}", hung_up=True)


def _is_tls(error: BaseException | None) -> bool:
    """Tell whether a connection failed for a certificate or the like, which will not change."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False
