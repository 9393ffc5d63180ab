"""Metrics of connections, requests and their images."""

from collections.abc import Callable, Iterable
from functools import cache
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.errors import ServiceError
from service.imaging import crops
from service.serving.metrics.labels import BACKGROUND, INTERACTIVE, LATENCY, STAGES, priority

_KEY_OUTCOMES = ("admitted", "rate_limited")  # of a request that has a key
_FETCH_OUTCOMES = ("ok", "refused", "failed", "timeout", "too_large", "cancelled")


class ConnectionMetrics:
    """Open and closed connections."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._connections = Gauge("googlenet_connections", "Connections open.", registry=registry)
        self._closed = Counter(
            "googlenet_connections_closed",
            "Connections closed without a response: idle, evicted, silent, stalled, or full.",
            ["reason"],
            registry=registry,
        )
        for reason in ("idle", "evicted", "silent", "stalled", "full"):
            self._closed.labels(reason)

    def connected(self, count: Callable[[], int]) -> None:
        """Call `count` at every scrape for the number of open connections."""
        self._connections.set_function(count)

    def closed(self, reason: str) -> None:
        """Count a connection that was closed without a response."""
        self._closed.labels(reason).inc()


class RequestMetrics:
    """Requests by route, and requests by API key."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "googlenet_requests",
            "HTTP requests answered, by route template, method, status and priority.",
            ["route", "method", "code", "priority"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "googlenet_request_duration_seconds",
            "From a request's first byte received to its response's last byte sent.",
            ["route", "code", "priority"],
            buckets=LATENCY,
            registry=registry,
        )
        self._in_flight = Gauge(
            "googlenet_requests_in_flight", "HTTP requests being answered.", registry=registry
        )
        self._key_requests = Counter(
            "googlenet_key_requests",
            "Requests with an API key, by its name: admitted, or over its limits (rate_limited).",
            ["key", "outcome"],
            registry=registry,
        )
        self._key_names: frozenset[str] = frozenset()
        # Looking up a series takes longer than counting, and these are never removed.
        self._requests_of = cache(self._requests.labels)
        self._request_seconds_of = cache(self._request_seconds.labels)

    def request(  # noqa: PLR0913 - each is a label, or what is counted
        self,
        route: str,
        method: str,
        code: int,
        seconds: float,
        traced: dict[str, str],
        *,
        background: bool,
    ) -> None:
        """Count an answered request; `traced` is its exemplar, empty if it is not traced."""
        label = priority(background=background)
        self._requests_of(route, method, code, label).inc()
        self._request_seconds_of(route, code, label).observe(seconds, traced or None)

    def expect(self, route: str, method: str, codes: Iterable[int]) -> None:
        """Start a route's statuses at zero: `rate()` does not see a series' first event."""
        for code in codes:
            self._requests.labels(route, method, code, INTERACTIVE)

    def in_flight(self, change: int) -> None:
        """Count a request that starts (1) or ends (-1)."""
        self._in_flight.inc(change)

    def callers(self, names: Iterable[str]) -> None:
        """Count requests by these keys' names from now on, and remove all other names."""
        before, self._key_names = self._key_names, frozenset(names)
        for outcome in _KEY_OUTCOMES:
            for removed in before - self._key_names:
                self._key_requests.remove(removed, outcome)
            for name in self._key_names:
                self._key_requests.labels(name, outcome)

    def called(self, name: str, outcome: str) -> None:
        """Count a request by its key's name: `admitted` or `rate_limited`."""
        self._key_requests.labels(name, outcome).inc()


class ImageMetrics:
    """Images by outcome, the seconds of their stages, fetches, refusals, and the result cache."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._stages = Histogram(
            "googlenet_stage_duration_seconds",
            "Seconds of each stage of a request or of one of its images.",
            ["stage", "priority"],
            buckets=LATENCY,
            registry=registry,
        )
        self._images = Counter(
            "googlenet_images",
            "Images by views requested and outcome: ok, or the code of the error.",
            ["views", "outcome"],
            registry=registry,
        )
        self._views = Counter(
            "googlenet_views",
            "Views computed for images that are ok, by views requested.",
            ["views"],
            registry=registry,
        )
        self._rejected = Counter(
            "googlenet_rejected",
            "Requests and images refused or failed, by the code of the error.",
            ["reason", "priority"],
            registry=registry,
        )
        self._cache_hits = Counter(
            "googlenet_cache_hits",
            "Images answered from the cache; they are among those that are ok.",
            registry=registry,
        )
        self._cache_bytes = Gauge(
            "googlenet_cache_bytes", "Bytes of cached results.", registry=registry
        )
        self._fetches = Counter(
            "googlenet_fetches",
            "Images to be fetched by URL, by outcome; refused: the URL, its address or redirect.",
            ["outcome"],
            registry=registry,
        )
        # Looking up a series takes longer than counting, and these are never removed.
        self._seconds_of = cache(self._stages.labels)
        self._images_of, self._views_of = cache(self._images.labels), cache(self._views.labels)
        self._rejected_of = cache(self._rejected.labels)
        self._start_series()

    def _start_series(self) -> None:
        """Start series at zero: `rate()` does not see a series' first event."""
        for labels in product(STAGES, (INTERACTIVE, BACKGROUND)):
            self._stages.labels(*labels)
        for outcome in _FETCH_OUTCOMES:
            self._fetches.labels(outcome)
        for error in _leaves(ServiceError):
            self._rejected.labels(error.code, INTERACTIVE)
        for plan in crops.NAMES:
            self._images.labels(plan, "ok")
            self._views.labels(plan)

    def stage(self, stage: str, seconds: float, *, background: bool) -> None:
        """Record how long a stage of a request took."""
        self._seconds_of(stage, priority(background=background)).observe(seconds)

    def image(self, plan: str, error: ServiceError | None = None) -> None:
        """Count an image that was answered, or refused."""
        self._images_of(plan, error.code if error else "ok").inc()

    def views(self, plan: str, count: int) -> None:
        """Count the views that were computed for an image."""
        self._views_of(plan).inc(count)

    def cache_hit(self) -> None:
        """Count an image that was answered from the cache."""
        self._cache_hits.inc()

    def fetched(self, outcome: str) -> None:
        """Count an image that was fetched by URL (`ok`), or was not."""
        self._fetches.labels(outcome).inc()

    def rejected(self, error: ServiceError, *, background: bool = False) -> None:
        """Count a request or an image that was refused."""
        self._rejected_of(error.code, priority(background=background)).inc()


def _leaves(error: type[ServiceError]) -> list[type[ServiceError]]:
    below = error.__subclasses__()
    return [leaf for child in below for leaf in _leaves(child)] if below else [error]
