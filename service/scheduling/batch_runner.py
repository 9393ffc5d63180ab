"""Runs batches on executors, in smaller pieces where a device has no memory."""

import logging
from collections.abc import Callable, Sequence
from typing import Generic

from service.errors import OutOfMemory
from service.scheduling.devices import Devices
from service.scheduling.reservation import Parts, Reservation, split
from service.scheduling.types import Batch, BatchReport, Executor, P, R, Report

logger = logging.getLogger(__name__)


class BatchRunner(Generic[P, R]):
    """Runs batches, adds their results to reservations, and reports them.

    `changed` is called when a batch has started and when it has ended.
    """

    def __init__(self, devices: Devices, report: Report, changed: Callable[[], None]) -> None:
        self._devices, self._report, self._changed = devices, report, changed

    async def run(
        self,
        number: int,
        executor: Executor[P, R],
        batch: Batch[P],
        reservations: Sequence[Reservation[P, R]],
    ) -> None:
        """Run a batch, or smaller ones in its place if the device has no memory for it."""
        try:
            await self._run_once(number, executor, batch, reservations)
        except OutOfMemory:
            if self._devices.costs.largest(batch.key) >= batch.size:
                raise
            left: Parts[P, R] = [*zip(reservations, batch.slices, strict=True)]
            while left:
                piece, left = split(left, self._devices.costs.largest(batch.key))
                slices = tuple(part for _, part in piece)
                rows = sum(part.rows for part in slices)
                size = self._devices.costs.curves[batch.key].fitting(rows)
                smaller = Batch(batch.key, size, slices, batch.reason)
                await self.run(number, executor, smaller, [reservation for reservation, _ in piece])

    async def _run_once(
        self,
        number: int,
        executor: Executor[P, R],
        batch: Batch[P],
        reservations: Sequence[Reservation[P, R]],
    ) -> None:
        devices = self._devices
        devices.start(number, executor.device, batch.key, batch.size)
        self._changed()  # if no device is idle now, second executors may start
        failed = True
        try:
            results = await executor.run(batch)
            # Match all results before adding the first: a wrong number fails the whole batch.
            for reservation, part, result in [
                *zip(reservations, batch.slices, results, strict=True)
            ]:
                reservation.add_result(part, result, batch.rows)
            failed = False
        except OutOfMemory:
            devices.exclude(batch.key, batch.size)
            logger.warning(
                "out of device memory for a batch of %d views of %d pixels, now at most %d views",
                *(batch.size, batch.key.side, devices.costs.largest(batch.key)),
            )
            raise
        finally:
            seconds = devices.finish(number, batch.key, batch.size, failed=failed)
            self._changed()
            self._report_batch(batch, reservations, seconds, failed=failed)

    def _report_batch(
        self,
        batch: Batch[P],
        reservations: Sequence[Reservation[P, R]],
        seconds: float,
        *,
        failed: bool,
    ) -> None:
        waits = tuple(
            reservation.wait()
            for reservation, part in zip(reservations, batch.slices, strict=True)
            if part.start == reservation.spec.start
        )
        self._report(
            BatchReport(
                *(batch.key, batch.size, batch.rows, batch.reason, seconds, waits),
                self._devices.rate(batch.key),
                failed,
            )
        )
