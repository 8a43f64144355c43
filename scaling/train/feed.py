"""The batches of a run on its devices, and what a logged line says of them."""

from typing import Any

from scaling.data import loader
from scaling.data.batch import Batch
from scaling.parallel.distributed import total_of_processes
from scaling.parallel.sharding import batch_sharding
from scaling.train.batch_hash import BatchHashes
from scaling.train.placement import local_rows, prefetched
from scaling.train.reliability.rollbacks import Rollbacks
from scaling.train.run import Run


class Feed:
    """Iterates over the batches from a step on, each with its host's copy if that is still needed, else None."""

    def __init__(self, run: Run, rollbacks: Rollbacks, first_step: int):
        """Args: the run; which data it leaves out; steps done."""
        schedule, sharding = run.schedule, batch_sharding(run.mesh)
        rows = local_rows(sharding, schedule.microbatch)
        steps = loader.Steps(
            run.data.training,
            rollbacks.span,
            rows,
            schedule.microbatch,
            schedule.max_microbatches,
            run.data.separator,
        )
        data = run.config.data
        batches = loader.batches(steps, first_step, schedule.num_steps, data.workers, data.prefetch)
        self._hashes = BatchHashes(rows, schedule.microbatch) if run.config.log.batch_hash else None
        watched = self._hashes.watched(batches) if self._hashes else batches
        self._placed = prefetched(watched, rows, schedule.microbatch, sharding)
        self._bad_records = run.data.bad_records

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> tuple[Batch, Batch | None]:
        batch = next(self._placed)
        return batch, self._hashes.popped() if self._hashes else None

    def logged(self, batch: Batch | None) -> dict[str, Any]:
        """What the line of a step says of its batch; a collective where there are several processes."""
        line: dict[str, Any] = {}
        if self._bad_records:
            line["bad_records"] = self._bad_records.known + total_of_processes(self._bad_records.new)
        if self._hashes and batch is not None:
            line["batch_hash"] = self._hashes.combined(batch)
        return line
