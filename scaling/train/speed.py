"""How fast a run is: tokens a second, MFU, and the time that is left."""

import contextlib
import time
from collections.abc import Iterator

from scaling.catalog import flops
from scaling.train.run import Run

_WINDOW_SECONDS = 0.5  # speeds are measured over at least this long


class Speed:
    """The speed of a run between two logged lines, without the time of validations and saves."""

    def __init__(self, run: Run, peak_flops: float):
        """Args: the run; FLOP/s of all of its devices."""
        self._schedule, self._peak = run.schedule, peak_flops
        self._flops = flops.of_pretraining(run.config)
        self.start(0)

    def start(self, step: int) -> None:
        """The clock starts after so many steps."""
        self._started = self._window_start = time.monotonic()
        self._first_step = self._window_step = step
        self._paused = 0.0  # seconds of the window that do not count

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside does not count."""
        start = time.monotonic()
        yield
        self._paused += time.monotonic() - start

    def measure(self, step: int) -> tuple[dict[str, float], float | None]:
        """What the line of a step says of speed, and the seconds to the end of the run; None = not known yet."""
        now, tokens = time.monotonic(), self._schedule.tokens(step)
        seconds = max(now - self._window_start - self._paused, 1e-9)
        rate = (tokens - self._schedule.tokens(self._window_step)) / seconds
        record = {
            "tokens_per_second": rate,
            "mfu": rate * self._flops / self._peak,
            "flops": tokens * self._flops,
            "seconds": now - self._started,
        }
        compiled = self._window_step == self._first_step  # the first window holds the compilation
        if compiled or seconds > _WINDOW_SECONDS:
            self._window_start, self._window_step, self._paused = now, step, 0.0
        left = self._schedule.tokens(self._schedule.num_steps) - tokens
        return record, None if compiled else left / rate
