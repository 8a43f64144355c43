"""Batches of token sequences: shuffled, mixed, split by process, read ahead; a pure function of seed and step."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from scaling.config.schema import Data
from scaling.data import manifest, prepare
from scaling.data.bad_records import BadRecords, Replacing
from scaling.data.batch import Batch, filled
from scaling.data.noise.row import Noise
from scaling.data.shards import TokenDataset
from scaling.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """Endless, random-access stream of training sequences; element i is a function of (seed, i) alone.

    Attributes:
        stream: the grain dataset behind it.
        tokens: tokens in one pass over all sources.
        parts: (share of the sequences, tokens) of each source.
        sequences: sequences in one pass over all sources.
        fingerprint: hash of everything that decides the stream: tokens, weights, sequence length, seed and noise.
        noise: what is made of the sequences; None = they are the elements.
    """

    stream: grain.MapDataset
    tokens: int
    parts: tuple[tuple[float, int], ...]
    sequences: int
    fingerprint: str
    noise: Noise | None = None

    def unique(self, tokens: int) -> int:
        """Tokens that a training of ``tokens`` sees at least once: of each source its share, or all that it has."""
        if self.noise is not None:
            tokens = tokens * self.noise.taken // self.noise.room
        return round(sum(min(share * tokens, there) for share, there in self.parts))

    def __getitem__(self, i: int) -> Any:
        """Sequence i, int32 [T+1], or the row that noise makes of it, for any i >= 0."""
        return self.stream[i] if self.noise is None else self.noise(self.stream, i)

    def with_noise(self, noise: Noise) -> "TrainingSet":
        """The rows that noise makes of the sequences."""
        print_of = hashlib.sha256(f"{self.fingerprint} {noise.name}".encode()).hexdigest()
        return dataclasses.replace(self, noise=noise, fingerprint=print_of)


def training_set(
    data: Data, tokenizer: Tokenizer, sequence_length: int, seed: int, bad: BadRecords | None = None
) -> TrainingSet:
    """The training data: every source shuffled without replacement, anew each epoch, then mixed by weight.

    Args:
        data: sources; tokenized now if they are not in the cache.
        tokenizer: for text sources; token directories must have been made with it.
        sequence_length: T, in tokens.
        seed: of the order.
        bad: replaces sequences that cannot be read; None = reading them is an error.

    Raises:
        FileNotFoundError, ValueError: bad or too little data (see ``prepare.cached``).
    """
    weights = _weights(data)
    streams, parts = [], []
    for number, source in enumerate(weights):
        part = _dataset(data, tokenizer, sequence_length, "train", source)
        parts.append(part)
        # grain adds the epoch to the seed, so nearby seeds would share orders: spread them.
        order = int.from_bytes(hashlib.blake2b(f"{seed} {number}".encode(), digest_size=4).digest())
        streams.append(grain.MapDataset.source(_replacing(part, bad)).shuffle(seed=order).repeat())
    stream = streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, list(weights.values()))
    shares = [weight / sum(weights.values()) for weight in weights.values()]
    facts = [part.fingerprint for part in parts], list(weights.values()), sequence_length, seed
    return TrainingSet(
        stream=stream,
        tokens=sum(part.tokens for part in parts),
        parts=tuple(zip(shares, (part.tokens for part in parts), strict=True)),
        sequences=sum(map(len, parts)),
        fingerprint=hashlib.sha256(repr(facts).encode()).hexdigest(),
    )


def validation_set(
    data: Data, tokenizer: Tokenizer, sequence_length: int, bad: BadRecords | None = None
) -> Sequence[np.ndarray]:
    """The held-out sequences in a fixed order, int32 [T+1] each; ``bad`` as in ``training_set``.

    With a mixture and no ``data.validation``, the held-out parts of the sources are mixed by the same weights,
    as long as none runs out.

    Raises:
        FileNotFoundError, ValueError: bad or too little data (see ``prepare.cached``).
    """
    weights = {data.train: 1.0} if data.validation else _weights(data)
    parts = [_dataset(data, tokenizer, sequence_length, "validation", source) for source in weights]
    wanted = [_replacing(part, bad) for part in parts]
    if len(wanted) == 1:
        return wanted[0]
    return grain.MapDataset.mix([grain.MapDataset.source(part) for part in wanted], list(weights.values()))


def _replacing(part: TokenDataset, bad: BadRecords | None) -> Sequence[np.ndarray]:
    return part if bad is None else Replacing(part, bad)


def _weights(data: Data) -> dict[str, float]:
    """Sources and their weights."""
    if not data.mixture:
        return manifest.mixture(data.train) or {data.train: 1.0}
    if data.train:
        raise ValueError(f"config.data.train must be '' when config.data.mixture is set, not {data.train!r}")
    weights = dict(data.mixture)
    if len(weights) < len(data.mixture):
        raise ValueError("config.data.mixture names a source twice; add up its weights")
    for source, weight in weights.items():
        if not weight > 0:
            raise ValueError(f"config.data.mixture: the weight of {source} must be positive, not {weight}")
    return weights


def _dataset(data: Data, tokenizer: Tokenizer, sequence_length: int, split: str, source: str) -> TokenDataset:
    directory, part = prepare.cached(data, tokenizer, split, source)
    whole, cure = data.bad_records == "error", prepare.cure(directory, data)
    dataset = TokenDataset(directory, sequence_length, part, whole, cure)
    if len(dataset) == 0:
        held_out = split == "validation" and not data.validation
        name = source if split == "train" or held_out else data.validation
        raise ValueError(
            f"{name}: {dataset.tokens} {split} tokens are too few for one sequence of {sequence_length} + 1; give more "
            f"text{', raise config.data.validation_fraction' * held_out} or lower config.train.sequence_length"
        )
    return dataset


@dataclasses.dataclass(frozen=True)
class Steps:
    """Which sequences are in the batch of a step.

    Sequence j of a step is row ``j % microbatch`` of microbatch ``j // microbatch``; it is the same whatever the
    number of processes, of which each reads only its own rows.

    Attributes:
        dataset: sequences int32 [T+1] by index, such as a ``TrainingSet``, or rows, as of ``batch.filled``.
        span: step -> (index of its first sequence, number of sequences, a multiple of ``microbatch``).
        rows: rows of a microbatch that this process reads.
        microbatch: sequences in a microbatch, over all processes.
        num_microbatches: microbatches in a step at most; those beyond the step's count are zeros with weight 0, and
            their sequences are not read.
        separator: as of ``of_sequences``.
    """

    dataset: Any
    span: Callable[[int], tuple[int, int]]
    rows: np.ndarray
    microbatch: int
    num_microbatches: int
    separator: int | None = None

    def batch(self, step: int) -> Batch:
        """Arrays [num_microbatches, len(rows), ...]."""
        first, count = self.span(int(step))
        assert count % self.microbatch == 0 and count <= self.microbatch * self.num_microbatches, count
        items = {
            (number, slot): self.dataset[first + number * self.microbatch + int(row)]
            for number in range(count // self.microbatch)
            for slot, row in enumerate(self.rows)
        }
        made: Batch = filled((self.num_microbatches, len(self.rows)), items, self.separator)
        return made


def batches(steps: Steps, start_step: int, stop_step: int, workers: int, prefetch: int) -> grain.DatasetIterator:
    """Iterates over the batches of steps ``start_step`` to ``stop_step`` (not included), read ahead by threads.

    Args:
        steps: what is in them.
        start_step: first step.
        stop_step: end of the steps.
        workers: threads; 0 reads when asked.
        prefetch: batches kept ready.

    Returns:
        An iterator of ``Batch``. ``close()`` or losing it
        stops its threads. An error in reading is raised at the batch that it hits.
    """
    options = grain.ReadOptions(num_threads=min(workers, prefetch), prefetch_buffer_size=prefetch)
    return iter(
        grain.MapDataset.range(start_step, max(start_step, stop_step)).map(steps.batch).to_iter_dataset(options)
    )


def evaluation_batches(
    dataset: Sequence[Any],
    num_sequences: int,
    batch_sequences: int,
    rows: np.ndarray,
    separator: int | None = None,
) -> Iterator[Batch]:
    """Iterates over the first ``num_sequences`` sequences in order.

    Args:
        dataset: as of ``Steps``.
        num_sequences: number of sequences, limited to the length of the dataset.
        batch_sequences: sequences in a batch, over all processes.
        rows: rows of a batch that this process reads.
        separator: as of ``of_sequences``.

    Yields:
        Batches of arrays [1, len(rows), ...]; rows past the end are zeros that do not count.
    """
    num_sequences = min(num_sequences, len(dataset))
    for first in range(0, num_sequences, batch_sequences):
        items = {
            (0, slot): dataset[first + int(row)] for slot, row in enumerate(rows) if first + int(row) < num_sequences
        }
        yield filled((1, len(rows)), items, separator) if items else _nothing(dataset[first], len(rows), separator)


def _nothing(like: Any, rows: int, separator: int | None) -> Batch:
    """Rows of zeros that do not count."""
    made: Batch = filled((1, rows), {(0, 0): like}, separator)
    return type(made)(*(None if array is None else np.zeros_like(array) for array in made))
