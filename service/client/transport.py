"""What the blocking and the asyncio client share: options, the HTTP client, requests and errors."""

import random
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import httpx2

from service.client import proxies
from service.client.errors import ClientError, TimedOut, Unreachable
from service.client.options import CallOptions
from service.client.steps import CallContext, Request, Response, Send

H = TypeVar("H", httpx2.Client, httpx2.AsyncClient)

DEFAULT_TIMEOUT = 30.0  # seconds
MAX_TIMEOUT = 7 * 24 * 3600.0  # seconds; a socket's own may not be over 24 days

OK = 200  # HTTP's
SEND_ERRORS = (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError)

OnRetry = Callable[[ClientError, float], None]
"""Is called before each retry with the error and the seconds until the retry."""


def _ignore(_: ClientError, __: float) -> None:
    pass


class BaseClient(ABC, Generic[H]):
    """A URL, an API key, a timeout, and the HTTP client."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        on_retry: OnRetry = _ignore,
    ) -> None:
        if key and not _fits_header(key):
            raise ValueError("an API key is printable ASCII without spaces around it")
        self._url = url.rstrip("/")
        self._timeout, self._on_retry = _checked_timeout(timeout), on_retry
        self._headers = {"X-API-Key": key} if key else {}
        self._proxy = proxies.proxy(self._url)
        # `trust_env` would make httpx2 choose a proxy again; the context still reads the
        # environment's TLS variables.
        tls = httpx2.create_ssl_context()
        try:
            self._http: H = self._open(proxy=self._proxy, trust_env=False, verify=tls)
        except (ImportError, ValueError, httpx2.InvalidURL) as error:
            proxy = proxies.redacted(self._proxy or "")
            raise ValueError(f"cannot use the environment's proxy {proxy}: {error}") from error

    @abstractmethod
    def _open(self, **options: Any) -> H:
        """Make the HTTP client."""

    def _context(self, options: CallOptions) -> CallContext:
        seconds = _checked_timeout(options.get("timeout", self._timeout))
        return CallContext(
            time.monotonic() + seconds, time.monotonic, random.random, self._on_retry
        )

    def _request_options(self, step: Send) -> dict[str, Any]:
        """Return a request as keyword arguments for httpx2."""
        request = step.request
        timeout = {"X-Timeout-Ms": str(max(1, int(step.seconds * 1000)))}
        return {
            "method": request.method,
            "url": self._url + request.path,
            "params": request.query,
            "headers": {**self._headers, **request.headers, **timeout},
            "extensions": {"timeout": _RemainingTimeout(time.monotonic() + step.seconds)},
            **_body(request),
        }

    def _response(self, response: httpx2.Response, body: bytes) -> Response:
        proxy = proxies.redacted(self._proxy) if self._proxy else None
        return Response(response.status_code, response.headers, body, proxy)

    def _send_error(self, error: Exception) -> ClientError:
        """Convert an error of httpx2, naming the proxy if one is used."""
        url, proxy = self._url, self._proxy
        if isinstance(
            error, httpx2.InvalidURL | httpx2.UnsupportedProtocol | httpx2.LocalProtocolError
        ):
            return Unreachable(f"cannot send a request to {url!r}: {error}", is_permanent=True)
        where = f"{url} through the proxy {proxies.redacted(proxy)}" if proxy else url
        if isinstance(error, TimeoutError | httpx2.TimeoutException):
            return TimedOut(f"{where} did not answer in time", code="deadline_exceeded")
        if isinstance(error, httpx2.ConnectError | httpx2.ProxyError):
            detail = f"cannot connect to {where}: {error}"
            return Unreachable(detail, is_permanent=_is_tls(error))
        return Unreachable(f"{where} closed the connection: {error}", disconnected=True)


class _RemainingTimeout(dict[str, float]):
    """Timeouts of httpx2's phases: each gets the seconds that remain when it begins."""

    def __init__(self, deadline: float) -> None:
        super().__init__()
        self._deadline = deadline

    def get(self, _: str, __: object = None) -> float:
        return max(0.001, self._deadline - time.monotonic())


def _fits_header(key: str) -> bool:
    return key.isascii() and key.isprintable() and key == key.strip()


def _checked_timeout(seconds: float) -> float:
    if not seconds <= MAX_TIMEOUT:  # which nan is not, either
        raise ValueError(f"timeout must be a number of seconds up to {MAX_TIMEOUT:.0f}")
    return seconds


def _body(request: Request) -> dict[str, Any]:
    if len(request.images) == 1:
        return {"content": request.images[0]}
    if request.images:
        return {"files": [("file", (str(n), data)) for n, data in enumerate(request.images)]}
    return {"json": request.json} if request.json else {}


def _is_tls(error: BaseException | None) -> bool:
    """Return whether TLS failed, as for a certificate, which a retry does not change."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False
