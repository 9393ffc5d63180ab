"""What is being done at a replica, and what time it is: each thing as slow as the others make it.

Nothing here has a fixed end. Whenever something begins or ends, all that goes on is as much
slower or quicker from then on as the stages that are at work say.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from service.bench.capacity.replica_model import Stages


@dataclass(eq=False, slots=True)
class Task:
    """Something that is being done: the seconds of all of it as things are, and what is next."""

    seconds: Callable[[Stages], float]
    done: Callable[[], None]
    left: float = 1.0  # share of it


class EventQueue:
    """All that is being done, and what time it is."""

    def __init__(self, busy: Callable[[], Stages]) -> None:
        self.now = 0.0  # seconds
        self.spent = Stages(0.0, 0.0, 0.0)  # seconds of all that were at work
        self._busy = busy
        self._tasks: list[Task] = []

    def begin(self, task: Task) -> None:
        """Do it from now on."""
        self._tasks.append(task)

    def until(self, end: float) -> None:
        """Do all that ends by then; infinity: and all that follows from it."""
        while self._tasks:
            busy = self._busy()
            lasts = [task.seconds(busy) for task in self._tasks]
            lefts = [task.left * last for task, last in zip(self._tasks, lasts, strict=True)]
            first = min(range(len(lefts)), key=lefts.__getitem__)
            if self.now + lefts[first] > end:
                self._pass(end - self.now, busy, lasts)
                break
            self._pass(lefts[first], busy, lasts)
            self._tasks.pop(first).done()
        if end < math.inf:
            self.now = end

    def _pass(self, seconds: float, busy: Stages, lasts: Iterable[float]) -> None:
        if seconds > 0:
            for task, last in zip(self._tasks, lasts, strict=True):
                task.left -= seconds / last
            self.spent = Stages(*(s + seconds * n for s, n in zip(self.spent, busy, strict=True)))
            self.now += seconds
