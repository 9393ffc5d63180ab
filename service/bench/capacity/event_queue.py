"""The event queue of the simulator: tasks that slow each other down, and the simulated time.

A task has no fixed end: whenever a task begins or ends, the speed of all others changes with the
number of busy stages.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from service.bench.capacity.replica_model import Stages


@dataclass(eq=False, slots=True)
class Task:
    """A running task: its duration by what is busy, and what to call at its end."""

    seconds: Callable[[Stages], float]
    done: Callable[[], None]
    left: float = 1.0  # share of the work


class EventQueue:
    """Running tasks and the simulated time."""

    def __init__(self, busy: Callable[[], Stages]) -> None:
        self.now = 0.0  # seconds
        self.spent = Stages(0.0, 0.0, 0.0)  # busy seconds, by stage
        self._busy = busy
        self._tasks: list[Task] = []

    def begin(self, task: Task) -> None:
        """Begin a task now."""
        self._tasks.append(task)

    def advance(self, end: float) -> None:
        """Advance to the time `end`; infinity: until no task is left."""
        while self._tasks:
            busy = self._busy()
            durations = [task.seconds(busy) for task in self._tasks]
            remaining = [
                task.left * duration for task, duration in zip(self._tasks, durations, strict=True)
            ]
            first = min(range(len(remaining)), key=remaining.__getitem__)
            if self.now + remaining[first] > end:
                self._elapse(end - self.now, busy, durations)
                break
            self._elapse(remaining[first], busy, durations)
            self._tasks.pop(first).done()
        if end < math.inf:
            self.now = end

    def _elapse(self, seconds: float, busy: Stages, durations: Iterable[float]) -> None:
        if seconds > 0:
            for task, duration in zip(self._tasks, durations, strict=True):
                task.left -= seconds / duration
            self.spent = Stages(*(s + seconds * n for s, n in zip(self.spent, busy, strict=True)))
            self.now += seconds
