"""Batch size by step and learning rate by tokens: pure functions, known before the run starts."""

import dataclasses
import functools
import math

import numpy as np

from scaling.config import schema as cfg


@dataclasses.dataclass(frozen=True)
class BatchSchedule:
    """How many sequences each step takes (GPT-3, arXiv 2005.14165, appendix B: a linear ramp in tokens).

    The ramp moves in whole microbatches, so one compiled step serves all of it: only the number of
    microbatches changes. All counts are in sequences of ``sequence_length`` tokens.
    """

    full: int
    microbatch: int
    sequence_length: int
    start: int
    ramp_tokens: int
    total_tokens: int

    @classmethod
    def from_config(cls, train: cfg.Train) -> "BatchSchedule":
        """From a resolved config."""
        return cls(
            full=train.batch_tokens // train.sequence_length,
            microbatch=train.microbatch_sequences,
            sequence_length=train.sequence_length,
            start=(train.ramp_start_tokens if train.ramp_tokens else train.batch_tokens) // train.sequence_length,
            ramp_tokens=train.ramp_tokens,
            total_tokens=train.tokens,
        )

    @property
    def max_microbatches(self) -> int:
        return self.full // self.microbatch

    @functools.cached_property
    def _ramp(self) -> np.ndarray:
        """Sequences consumed before steps 0, 1, ... up to the first step at full size, int64."""
        consumed = [0]
        while (tokens := consumed[-1] * self.sequence_length) < self.ramp_tokens:
            size = self.start + (self.full - self.start) * tokens / self.ramp_tokens
            consumed.append(consumed[-1] + max(1, int(size // self.microbatch)) * self.microbatch)
        return np.asarray(consumed, np.int64)

    def first_sequence(self, step: int) -> int:
        """Sequences consumed before ``step``."""
        ramp_steps = len(self._ramp) - 1
        if step <= ramp_steps:
            return int(self._ramp[step])
        return int(self._ramp[-1]) + (step - ramp_steps) * self.full

    def span(self, step: int) -> tuple[int, int]:
        """(first sequence, number of sequences) of a step's batch."""
        first = self.first_sequence(step)
        return first, self.first_sequence(step + 1) - first

    def tokens(self, step: int) -> int:
        """Tokens consumed before ``step``."""
        return self.first_sequence(step) * self.sequence_length

    @functools.cached_property
    def num_steps(self) -> int:
        """Steps of the whole run: ``total_tokens`` to the nearest whole batch, at least one step."""
        ramp = self._ramp * self.sequence_length
        if ramp[-1] >= self.total_tokens:
            return max(1, int(np.searchsorted(ramp, self.total_tokens)))
        rest = (self.total_tokens - int(ramp[-1])) / (self.full * self.sequence_length)
        return max(1, len(ramp) - 1 + round(rest))


def learning_rate(optimizer: cfg.Optimizer, tokens: int, total_tokens: int) -> float:
    """Learning rate of the step that ends at ``tokens``.

    ``cosine`` and ``linear`` fall from the end of warm-up to ``final_fraction`` at ``decay_tokens``, then stay
    (GPT-3: cosine to 10 % over 260B tokens, appendix B). ``wsd`` stays at the peak and falls linearly over the
    last ``decay_tokens`` of the run (arXiv 2404.06395, section 4). ``inverse_sqrt`` stays at the peak until
    ``decay_tokens`` and falls with the root of the tokens (T5, arXiv 1910.10683, section 3.1.2; PaLM).
    """
    peak, warmup, decay = optimizer.peak_lr, optimizer.warmup_tokens, optimizer.decay_tokens
    if tokens < warmup:
        return peak * tokens / warmup
    start = total_tokens - decay if optimizer.schedule == "wsd" else warmup
    length = decay if optimizer.schedule == "wsd" else decay - warmup
    progress = min(1.0, max(0.0, (tokens - start) / max(1, length)))
    final = optimizer.final_fraction
    if optimizer.schedule == "constant":
        return peak
    if optimizer.schedule == "inverse_sqrt":
        return peak * math.sqrt(min(1.0, decay / max(tokens, 1)))
    if optimizer.schedule == "cosine":
        return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))
    return peak * (1 - (1 - final) * progress)
