"""How fast batches come from the data, without a model: what ``scaling bench data`` measures."""

import time
from collections.abc import Iterator

import numpy as np

from scaling.config import schema as cfg
from scaling.config.resolve import resolve
from scaling.data import loader, tokenizer
from scaling.train.schedule import BatchSchedule


def data(config: cfg.Config, steps: int) -> Iterator[str]:
    """Times the loader of a config: whole batches of one process, tokens counted.

    Args:
        config: not necessarily resolved.
        steps: batches that are read.

    Yields:
        Lines of text.

    Raises:
        FileNotFoundError: no such data.
        ValueError: data that cannot be used, or a run of one batch.
    """
    start = time.monotonic()
    words = tokenizer.load(config.data.tokenizer)
    config = resolve(config, vocab_size=words.vocab_size, device_count=1)
    found = loader.training_set(config.data, words, config.train.sequence_length, config.seed)
    yield f"data: ready after {time.monotonic() - start:.1f} s (tokenized the first time, then kept)"
    schedule = BatchSchedule.from_config(config.train)
    count = min(steps, schedule.num_steps)
    if count < 2:  # the first is not timed
        raise ValueError(f"config.train.tokens={config.train.tokens} is one batch; at least 2 are needed")
    rows = np.arange(schedule.microbatch)
    contents = loader.Steps(found, schedule.span, rows, schedule.microbatch, schedule.max_microbatches)
    batches = loader.batches(contents, 0, count, config.data.workers, config.data.prefetch)
    next(batches)  # threads are up
    start, tokens = time.monotonic(), 0
    for step, _ in enumerate(batches, 1):
        tokens += schedule.span(step)[1] * config.train.sequence_length
    seconds = time.monotonic() - start
    yield (
        f"data: {tokens / seconds:,.0f} tokens/s, {1e3 * seconds / (count - 1):.1f} ms a batch "
        f"({count - 1} batches, {config.data.workers} threads)"
    )
