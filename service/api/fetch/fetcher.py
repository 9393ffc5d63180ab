"""The fetcher: a URL to the bytes behind it, within the policy and the bounds of a request."""

import asyncio
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager
from http import HTTPStatus

from service.api.fetch.fetch_policy import FetchPolicy
from service.api.fetch.http_client import Answer, HttpClient, NoAnswer
from service.api.fetch.image_url import ImageUrl
from service.api.fetch.images import Fetch, Quota, disabled
from service.errors import FetchFailed, FetchRefused, TooLarge
from service.serving.metrics.metrics import Metrics
from service.settings import Settings

MOST_AT_ONCE = 32  # fetches of a process; others wait, within their time
MOST_REDIRECTS = 3
_LOOKUPS = 16  # threads that look up names, each of which may take long

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_FAILED = (
    "the image could not be fetched: its URL has to answer 200 with the image itself, from a public"
    " address, in time and uncompressed"
)

_Get = Callable[[ImageUrl, Sequence[str]], AbstractAsyncContextManager[Answer]]
_Lookup = Callable[[str, int], Sequence[str]]


class _NotAllowed(Exception):
    """The name has an address, or the response a redirect, that is not allowed."""


_OUTCOMES: Mapping[type[BaseException], str] = {
    FetchRefused: "refused",
    _NotAllowed: "refused",
    TooLarge: "too_large",
    TimeoutError: "timeout",
    asyncio.CancelledError: "cancelled",
}  # as metrics count them; all else failed


def lookup(host: str, port: int) -> Sequence[str]:
    """Look up the addresses of a host, blocking; raises `OSError`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [*dict.fromkeys(str(address[0]) for *_, address in found)]


def of(settings: Settings, metrics: Metrics) -> Fetch:
    """Give what fetches images by these settings, or refuses to."""
    if not settings.fetch_images:
        return disabled
    policy, seconds = FetchPolicy.of(settings), settings.fetch_timeout_seconds
    return Fetcher(policy, seconds, metrics, HttpClient().get).fetch


class Fetcher:
    """Fetches images by URL, a bounded number at once, each within `seconds`.

    A name is looked up once for each request, in a thread, and connected to at the addresses that
    were found and checked: it cannot change its mind in between. All of them have to be allowed.
    """

    def __init__(
        self,
        policy: FetchPolicy,
        seconds: float,
        metrics: Metrics,
        get: _Get,
        lookup: _Lookup = lookup,
    ) -> None:
        self._policy, self._seconds, self._metrics = policy, seconds, metrics
        self._get, self._lookup = get, lookup
        self._slots = asyncio.Semaphore(MOST_AT_ONCE)
        self._threads = ThreadPoolExecutor(_LOOKUPS, "lookup")

    async def fetch(self, text: str, quota: Quota) -> bytes:
        """Fetch a URL; raises `FetchRefused`, `FetchFailed`, `TooLarge` or `Overloaded`."""
        with self._counted():
            url = ImageUrl.parse(text)
            self._policy.check(url)
            async with asyncio.timeout(self._seconds), self._slots:
                return await self._followed(url, quota)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count an outcome, and tell the client no more than it needs.

        A sentence that told a refused address from a closed port, or either from a timeout, would
        make the service a scanner of the networks that it is in (OWASP: SSRF prevention).
        """
        try:
            yield
        except BaseException as error:
            self._metrics.fetched(_OUTCOMES.get(type(error), "failed"))
            if isinstance(error, _NotAllowed | NoAnswer | TimeoutError):
                raise FetchFailed(_FAILED) from error
            raise
        self._metrics.fetched("ok")

    async def _followed(self, url: ImageUrl, quota: Quota) -> bytes:
        """Read a URL, or what it redirects to, each of which is checked like the first."""
        for _ in range(1 + MOST_REDIRECTS):
            async with self._get(url, await self._addresses(url)) as answer:
                if answer.status not in _REDIRECTS:
                    return await _read(answer, quota)
            try:
                url = url.redirected(answer.headers.get("location", ""))
                self._policy.check(url)
            except FetchRefused as error:
                raise _NotAllowed from error
        raise NoAnswer

    async def _addresses(self, url: ImageUrl) -> Sequence[str]:
        """Look up the addresses of a URL's host; raises `_NotAllowed` or `NoAnswer`."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._threads, self._lookup, url.host, url.port)
        except OSError as error:
            raise NoAnswer from error
        if not all(map(self._policy.allows, found)):
            raise _NotAllowed
        return found


async def _read(answer: Answer, quota: Quota) -> bytes:
    """Read the body of a 200; raises `NoAnswer` for any other response, `TooLarge` early."""
    coding = answer.headers.get("content-encoding", "identity")
    if answer.status != HTTPStatus.OK or coding.lower() != "identity":
        raise NoAnswer
    quota.check(int(answer.headers.get("content-length", "0")))
    chunks = []
    async for chunk in answer.body:
        quota.add(len(chunk))
        chunks.append(chunk)
    return b"".join(chunks)
