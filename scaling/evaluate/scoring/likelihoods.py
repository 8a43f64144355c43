"""Log-likelihoods of completions: batched, bucketed by length, each shared context computed once.

A row holds a context and, after it, all its completions side by side. Each completion sees the context and itself
(``AttentionContext.branches``), so one forward pass scores them all, on any mesh, with the parameters of training.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from scaling.config import schema as cfg
from scaling.data.pairs import framed
from scaling.data.tokenizer import Tokenizer
from scaling.model import decoder
from scaling.model.context import AttentionContext
from scaling.parallel.mesh import one_device
from scaling.parallel.sharding import BATCH_AXES, on_every_device

_BATCH_TOKENS = 8192  # computed in one forward pass
_SMALLEST = 16


@dataclasses.dataclass(frozen=True)
class Group:
    """A context and the completions to be scored after it, as token ids; neither is empty."""

    context: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Score:
    """The score of one completion.

    Attributes:
        logprob: natural logarithm of its probability after the context.
        tokens: its length.
        greedy: whether greedy decoding would have given it.
    """

    logprob: float
    tokens: int
    greedy: bool


@dataclasses.dataclass
class Work:
    """Tokens that the model has read, and those among them that were padding."""

    real: int = 0
    padded: int = 0

    @property
    def ratio(self) -> float:
        """Tokens computed for each real one."""
        return self.padded / self.real if self.real else 1.0


class Scorer:
    """Scores groups with one model.

    Attributes:
        work: what it has computed so far.
    """

    def __init__(
        self,
        network: cfg.Network,
        params: decoder.Params,
        mesh: Mesh | None = None,
        batch_tokens: int = _BATCH_TOKENS,
        words: Tokenizer | None = None,
    ):
        """Makes one.

        Args:
            network: resolved.
            params: as training holds them.
            mesh: where they lie; None = on one device.
            batch_tokens: of one forward pass.
            words: tokenizer, which a model with an encoder needs: the encoder reads a context with the end of a text
                behind it, and the decoder begins each completion with its start token.
        """
        assert words is not None or not network.model.encoder_layers
        self.network = network
        self.work = Work()
        self._words = words
        self._params, self._batch_tokens = params, batch_tokens
        self._mesh = one_device() if mesh is None else mesh

    def score(self, groups: Iterable[Group], watch: Callable[[int], Any] = lambda done: None) -> list[list[Score]]:
        """Scores of every completion of every group, in order.

        A context and a completion that are longer together than the model's context lose tokens at the front of the
        context; a completion that is longer alone is refused. Calls with more groups have less padding, since each
        length has one batch that is not full. Of a generator's groups 4 bytes a token are kept.

        Args:
            groups: read once, before anything is computed.
            watch: is told how many groups are done.

        Raises:
            ValueError: an empty context or completion, or one too long.
        """
        rows: list[_Row] = []
        results: list[list[Score | None]] = []
        for number, group in enumerate(groups):
            rows.extend(self._rows(number, group))
            results.append([None] * len(group.completions))
        waiting = collections.Counter(row.group for row in rows)
        done = 0
        for batch, length in self._batches(rows):
            for row, scores in zip(batch, self._run(batch, length), strict=True):
                for place, score in zip(row.places, scores, strict=True):
                    results[row.group][place] = score
                waiting[row.group] -= 1
                done += not waiting[row.group]
            watch(done)
        return [[score for score in scores if score is not None] for scores in results]

    def _rows(self, number: int, group: Group) -> Iterator["_Row"]:
        """One row for all completions, or several if they do not fit one row or need contexts of different lengths."""
        limit, source = self.network.model.context_length, None
        if self.network.model.encoder_layers:
            source, group = self._read(group, limit)
        if not group.context or not all(group.completions):
            raise ValueError("a context and a completion must each have at least one token")
        if (longest := max(map(len, group.completions))) > limit:
            raise ValueError(f"a completion of {longest} tokens does not fit the model's context of {limit}")
        alike: dict[int, list[int]] = {}  # tokens of the context that are kept -> places of completions
        for place, completion in enumerate(group.completions):
            # The last token of a completion is only a target.
            alike.setdefault(min(len(group.context), limit - len(completion) + 1), []).append(place)
        for kept, candidates in alike.items():
            places: list[int] = []
            used = 0
            for place in candidates:
                size = len(group.completions[place]) - 1
                if places and kept + used + size > max(limit, _SMALLEST):
                    yield _Row.of(number, group, kept, places, source)
                    places, used = [], 0
                places.append(place)
                used += size
            yield _Row.of(number, group, kept, places, source)

    def _read(self, group: Group, limit: int) -> tuple[np.ndarray, Group]:
        """What an encoder reads of a group, int32 [at most ``limit``], and what is left for the decoder."""
        assert self._words is not None
        opening = Group(tuple(self._words.decoder_opening), group.completions)
        return read_by_encoder(self._words, group.context, limit), opening

    def _batches(self, rows: Sequence["_Row"]) -> Iterator[tuple[list["_Row"], int]]:
        """Rows of like length, and the length to which they are padded."""
        waiting: dict[int, list[_Row]] = {}
        for row in sorted(rows, key=lambda row: row.targets):
            waiting.setdefault(bucket(row.length), []).append(row)
        for length, rows in sorted(waiting.items(), reverse=True):
            size = max(1, self._batch_tokens // length)
            for start in range(0, len(rows), size):
                yield rows[start : start + size], length

    def _run(self, rows: list["_Row"], length: int) -> list[list[Score]]:
        count = self._row_count(rows, length)
        targets = bucket(max(row.targets for row in rows), smallest=2)
        has_sources = rows[0].source is not None
        decoded = bucket(max(row.decoded for row in rows)) if has_sources else length
        sizes = [decoded, decoded, decoded, targets, targets, *([length, length] if has_sources else [])]
        batch = _Batch(*(np.zeros((count, size), np.int32) for size in sizes))
        for b, row in enumerate(rows):
            row.write(_Batch(*(None if array is None else array[b] for array in batch)))
        self.work.real += sum(row.length for row in rows)
        self.work.padded += count * length
        with jax.set_mesh(self._mesh):
            found = _score(self.network, self._params, jax.tree.map(self._put, batch))
        logprobs, greedy = (np.asarray(jax.device_get(x)) for x in found)
        return [row.read(logprobs[b], greedy[b]) for b, row in enumerate(rows)]

    def _row_count(self, rows: list["_Row"], length: int) -> int:
        """Rows with padding: a full batch, or a power of two; a multiple of the shards of the batch."""
        shards = math.prod(self._mesh.shape[axis] for axis in BATCH_AXES)
        full = max(1, self._batch_tokens // length)
        count = full if len(rows) == full else 2 ** (len(rows) - 1).bit_length()
        return -(-count // shards) * shards

    def _put(self, x: np.ndarray) -> jax.Array:
        return on_every_device(x, self._mesh)


class _Batch(NamedTuple):
    """Arrays [B, T] of inputs and [B, S] of targets; or one row of each."""

    tokens: Any
    positions: Any
    branches: Any  # of ``AttentionContext``
    where: Any  # for each target the place of the input that predicts it
    wanted: Any  # targets
    source: Any = None  # [B, R], of an encoder, with its padding
    padding: Any = None


@dataclasses.dataclass(frozen=True)
class _Row:
    """A context and completions of one group; ``places`` are their numbers in it."""

    group: int
    context: np.ndarray  # int32, as the completions are
    places: tuple[int, ...]
    completions: tuple[np.ndarray, ...]
    source: np.ndarray | None = None

    @classmethod
    def of(
        cls, number: int, group: Group, kept: int, places: Sequence[int], source: np.ndarray | None = None
    ) -> "_Row":
        """Some completions of a group after the last ``kept`` tokens of its context, and what an encoder reads."""
        completions = tuple(np.asarray(group.completions[place], np.int32) for place in places)
        return cls(number, np.asarray(group.context[-kept:], np.int32), tuple(places), completions, source)

    @property
    def decoded(self) -> int:
        return len(self.context) + sum(len(c) - 1 for c in self.completions)

    @property
    def length(self) -> int:
        return self.decoded if self.source is None else max(self.decoded, len(self.source))

    @property
    def targets(self) -> int:
        return sum(map(len, self.completions))

    def write(self, row: "_Batch") -> None:
        """Fills one row of each array."""
        tokens, positions, branches, where, wanted, source, padding = row
        if self.source is not None:
            source[: len(self.source)], padding[len(self.source) :] = self.source, 1
        end = len(self.context)
        tokens[:end], positions[:end] = self.context, np.arange(end)
        target, at = 0, end
        for number, completion in enumerate(self.completions, 1):
            size = len(completion)
            stop = at + size - 1
            tokens[at:stop], branches[at:stop] = completion[:-1], number
            positions[at:stop] = np.arange(end, end + size - 1)
            where[target], where[target + 1 : target + size] = end - 1, np.arange(at, stop)
            wanted[target : target + size] = completion
            target, at = target + size, stop
        branches[at:] = -1  # padding belongs to no branch, so nothing sees it
        positions[at:] = 0

    def read(self, logprobs: np.ndarray, greedy: np.ndarray) -> list[Score]:
        ends = np.cumsum([len(c) for c in self.completions])
        parts = zip(np.split(logprobs, ends)[:-1], np.split(greedy, ends)[:-1], strict=True)
        return [Score(float(p.sum(dtype=np.float64)), len(p), bool(g.all())) for p, g in parts]


def read_by_encoder(words: Tokenizer, ids: Sequence[int] | np.ndarray, limit: int) -> np.ndarray:
    """A context as an encoder reads it, int32 [at most ``limit``]: what does not fit is left out at its front."""
    kept = ids[max(0, len(ids) + len(words.template) + 1 - limit) :]
    return framed(np.asarray(kept, np.int32), words)


def bucket(size: int, smallest: int = _SMALLEST) -> int:
    """The next of 16, 24, 32, 48, 64, 96, ...: few shapes are compiled, and a sixth is padding on average."""
    power = max(smallest, 2 ** (size - 1).bit_length() if size > 1 else 1)
    return power * 3 // 4 if power > smallest and size <= power * 3 // 4 else power


@functools.partial(jax.jit, static_argnums=0)
def _score(network: cfg.Network, params: decoder.Params, batch: _Batch) -> tuple[jax.Array, jax.Array]:
    """Log-probability float32 [B, S] of each wanted token, and whether it is the most likely.

    Logits are computed only at positions that predict a target.
    """
    model = decoder.merge(network, params)
    source = None if batch.source is None else model.encode(batch.source, batch.padding)
    hidden = model(batch.tokens, AttentionContext(batch.positions, branches=batch.branches, source=source))
    logits = model.logits(jnp.take_along_axis(hidden, batch.where[..., None], axis=1))
    chosen = jnp.take_along_axis(logits, batch.wanted[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1), batch.wanted == jnp.argmax(logits, axis=-1)
