"""The devices' state: the batches that run on them, and what batches cost."""

from collections.abc import Callable, Iterable

from service.scheduling import policy
from service.scheduling.cost_model import CostModel, Key
from service.scheduling.policy import RunningBatch


class Devices:
    """Tracks running batches and learns from each what it took."""

    def __init__(
        self, numbers: Iterable[int], costs: CostModel, clock: Callable[[], float]
    ) -> None:
        self.numbers = frozenset(numbers)
        self.costs = costs
        self.clock = clock
        self.failures = 0  # batches in a row that failed
        self._running: dict[int, RunningBatch] = {}  # by executor, in the order of their start
        self._freed: dict[int, float] = {}  # by device: when it last finished a batch

    @property
    def idle(self) -> frozenset[int]:
        """The devices that run no batch."""
        return self.numbers - {run.device for run in self._running.values()}

    def is_turn(self, device: int) -> bool:
        """Whether a free executor of this device may run a batch."""
        return policy.is_turn(device, self.numbers - self.idle, self.numbers)

    def work_left(self, now: float) -> float:
        """Predict the seconds of work left in the running batches."""
        return policy.work_left(self._running.values(), self._freed, now)

    def stalled(self, now: float) -> float:
        """Return for how many seconds the oldest batch has been running."""
        return now - min((run.started for run in self._running.values()), default=now)

    def rate(self, key: Key) -> float:
        """Return the rows of a key that all devices compute in a second."""
        return len(self.numbers) * self.costs.rate(key)

    def start(self, executor: int, device: int, key: Key, size: int) -> None:
        """Record that an executor starts a batch."""
        expected = self.costs.seconds(key, size)
        self._running[executor] = RunningBatch(device, self.clock(), expected)

    def finish(self, executor: int, key: Key, size: int, *, failed: bool) -> float:
        """Record that an executor's batch ended; return the seconds that the device had it."""
        now = self.clock()
        run = self._running.pop(executor)
        seconds = now - run.since(self._freed)
        self._freed[run.device] = now
        self.failures = self.failures + 1 if failed else 0
        if not failed:
            self.costs = self.costs.observed(key, size, seconds)
        return seconds

    def exclude(self, key: Key, size: int) -> None:
        """Use only smaller batches of a key from now on: a device has no memory for this size."""
        self.costs = self.costs.below(key, size)
