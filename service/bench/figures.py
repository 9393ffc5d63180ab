"""The figures of a benchmark, which become JSON or tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from service.bench.load import Run, quantile
from service.bench.process_usage import PerImage
from service.bench.throughput_limit import Rate


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure measured several times: its median, least and greatest."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise values."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Latency:
    """Latencies in seconds; None where there were none."""

    p50: float | None
    p90: float | None
    p99: float | None

    @classmethod
    def of(cls, latencies: Sequence[float]) -> "Latency":
        """Summarise latencies."""
        if not latencies:
            return cls(None, None, None)
        return cls(*(quantile(latencies, share) for share in (0.5, 0.9, 0.99)))


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds until ready: the first time, and again."""

    first: float
    again: float


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed loop: each connection sends its next request after the response."""

    body: str  # form or raw
    connections: int
    rate: Spread  # images a second
    ratio: Spread | None  # of the rate to the limit of the same round
    latency: Latency
    failed: int
    usage: dict[str, PerImage]  # by process; {} if the service runs elsewhere
    tax: Spread | None  # CPU seconds of an image: of all processes, less the limit's

    @classmethod
    def of(cls, body: str, connections: int, rounds: Sequence["Measured"]) -> "Closed":
        """Summarise the runs of all rounds."""
        ratios = [
            measured.run.rate / measured.limit.images for measured in rounds if measured.limit
        ]
        taxes = [
            measured.cpu_seconds - measured.limit.cpu_seconds
            for measured in rounds
            if measured.limit
        ]
        return cls(
            body,
            connections,
            Spread.of([measured.run.rate for measured in rounds]),
            Spread.of(ratios) if ratios else None,
            Latency.of([latency for measured in rounds for latency in measured.run.accepted]),
            sum(len(measured.run.refused) for measured in rounds),
            median_usage([measured.usage for measured in rounds]),
            Spread.of(taxes) if taxes and rounds[0].usage else None,
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of a closed loop, and what was measured with it."""

    run: Run
    usage: dict[str, PerImage]
    limit: Rate | None  # just before

    @property
    def cpu_seconds(self) -> float:
        """The CPU seconds of an image, of all processes."""
        return sum(used.cpu_seconds for used in self.usage.values())


def median_usage(rounds: Sequence[Mapping[str, PerImage]]) -> dict[str, PerImage]:
    """Return each process's median usage, and its most memory."""
    return {
        name: PerImage(
            median(usage[name].cpu_seconds for usage in rounds),
            median(usage[name].switches for usage in rounds),
            max(usage[name].nbytes for usage in rounds),
        )
        for name in rounds[0]
    }


@dataclass(frozen=True, slots=True)
class Lone:
    """A single client's median latency, and that of decoding and inference alone, in seconds."""

    latency: Spread
    alone: Spread
    ratio: Spread


@dataclass(frozen=True, slots=True)
class Level:
    """An open loop at a rate, with deadlines; latencies count from when a request was due."""

    load: float  # arrivals a second, as a share of the closed loop's maximum
    offered: float  # arrivals a second
    goodput: float  # responses within the deadline, a second
    ratio: float  # of the goodput to the maximum measured just before
    late: int  # accepted, but with a response after the deadline
    accepted: Latency
    refused: Latency
    refused_share: float


@dataclass(frozen=True, slots=True)
class Sustained:
    """The largest rate of random arrivals that keeps the 99th percentile within an objective."""

    objective: float  # seconds
    rate: float  # a second; 0 if no rate does
    p99: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory, in bytes, after some requests and after more."""

    requests: tuple[int, int]
    nbytes: tuple[float, float]

    @property
    def growth(self) -> float:
        """The growth, as a share."""
        return self.nbytes[1] / self.nbytes[0] - 1


@dataclass(frozen=True, slots=True)
class Report:
    """All figures; those with a default need a service that the benchmark has started."""

    subject: dict[str, str]
    closed: list[Closed]
    stages: dict[int, dict[str, float]]  # by connections: mean seconds
    sustained: Sustained
    levels: list[Level]
    memory: Memory | None = None
    start: Start | None = None
    forwards: dict[int, float] | None = None  # views a second by batch size
    limit: Spread | None = None  # images a second
    lone: Lone | None = None
    views: dict[str, float] | None = None  # cost of an image, relative to `single`
