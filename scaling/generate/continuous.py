"""Continuous batching: texts come and go in one cache, and each step of the model advances all that are there.

A text takes a row as soon as one is free. Its prompt is read alone, in a program for its bucket of lengths, and the
keys and values are copied into the row. Then all rows go on together, ``PIECE`` tokens between two looks for new texts.
What is drawn for a text depends on its seed, its sample and its token, never on the other rows. (Orca, OSDI 2022,
section 3.1, calls this iteration-level scheduling.)
"""

import collections
import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaling.config import schema as cfg
from scaling.generate.generator import Completion, Generator, bucket
from scaling.generate.sampling import Dials, Rules, Sampling, choose, row_keys
from scaling.model import decoder, kv_cache
from scaling.parallel.sharding import BATCH_AXES

ROWS = 8  # of the cache, while more than one text is there
PIECE = 4  # tokens of each row between two looks for texts that came or went
_SMALLEST_ROOM = 64  # slots of a row


Deliver = Callable[[Completion | Exception], object]


class _Program(NamedTuple):
    """What is static in the compiled programs: the ids that may be chosen, whether anything is drawn, and by top-p."""

    network: cfg.Network
    vocab: int
    draws: bool
    nucleus: bool


class _Rows(NamedTuple):
    """What the programs know of each row, apart from the cache."""

    last: Any  # the token that was chosen last, int32 [B]
    slot: Any  # where it is written in the cache, int32 [B]
    tokens: Any  # that were chosen so far, int32 [B]
    keys: Any  # data of the random keys, uint32 [B, 2]
    temperature: Any  # float32 [B]; 0 = greedy
    top_p: Any  # float32 [B]


class Text:
    """A text that grows.

    Args:
        prompt: token ids.
        sampling: how it is continued.
        sample: its number among the texts of the prompt.
        deliver: is given a ``Completion`` whenever there is more of it, the last with a ``finish``, or the exception
            that ended it; called in the thread of ``Engine.step``.
    """

    def __init__(self, prompt: np.ndarray, sampling: Sampling, sample: int, deliver: Deliver):
        self.prompt, self.sampling, self.sample, self.deliver = prompt, sampling, sample, deliver
        self.stopped = threading.Event()  # nobody waits for it any more
        self.ids: list[int] = []  # that were chosen
        self.key = np.zeros(2, np.uint32)  # data of its random key
        self.place = -1  # its row

    @property
    def room(self) -> int:
        """Slots that it needs."""
        return len(self.prompt) + self.sampling.tokens


class Engine:
    """The rows of one model. ``submit`` may be called by any thread, and all else by one.

    Args:
        generator: the model; see ``can_serve``.
        rows: of the cache.
    """

    def __init__(self, generator: Generator, rows: int = ROWS):
        assert self.can_serve(generator)
        self._generator, self._most = generator, rows
        self._waiting, self._active = collections.deque[Text](), list[Text]()
        self._cache: kv_cache.Cache | None = None
        self._context = generator.config.context_length

    @staticmethod
    def can_serve(generator: Generator) -> bool:
        """Whether the model can be served so: without a draft, an encoder, or a batch that is spread over devices."""
        spread = math.prod(generator.mesh.shape[axis] for axis in BATCH_AXES) > 1
        return not (generator.has_draft or generator.config.encoder_layers or spread)

    @staticmethod
    def takes(sampling: Sampling) -> bool:
        """Whether texts can be continued so: without beams, top-k or a penalty of repetition."""
        return sampling.beams == 1 and not sampling.top_k and sampling.repetition_penalty == 1

    @property
    def waiting(self) -> int:
        """Texts that have no row yet, and for which somebody waits."""
        return sum(not text.stopped.is_set() for text in tuple(self._waiting))

    @property
    def busy(self) -> bool:
        """Whether ``step`` has something to do."""
        return bool(self._waiting or self._active)

    def submit(self, texts: Sequence[Text]) -> None:
        """Texts to be continued, in order.

        Raises:
            ValueError: a prompt or a sampling that is not possible.
        """
        for text in texts:
            if not self.takes(text.sampling):
                raise ValueError("beams, top_k and repetition_penalty are not served by continuous batching")
            text.prompt = self._generator.checked(0, text.prompt, text.sampling)
        self._waiting.extend(texts)

    def step(self) -> None:
        """Gives free rows to texts that wait, and continues each row by some tokens."""
        with jax.set_mesh(self._generator.mesh):
            self._active = [text for text in self._active if not text.stopped.is_set()]
            try:
                while self._waiting and len(self._active) < self._most:
                    self._admit(self._waiting.popleft())
                if self._active:
                    self._advance()
            except Exception as error:  # programs have taken the cache over, so no row can go on
                for text in self._active:
                    _told(text, error)
                self._active = []
        if not self._active:
            self._cache = None

    def _admit(self, text: Text) -> None:
        if text.stopped.is_set():
            return
        try:
            keys = row_keys(text.sampling.seed, jnp.zeros(1, jnp.int32), jnp.asarray([text.sample]))
            text.key = np.asarray(jax.random.key_data(keys))[0]
            length = bucket(len(text.prompt), largest=self._context)
            start = length - len(text.prompt)
            tokens = np.pad(text.prompt, (start, 0))[None]
            logits, memory = _read(self._program([]), self._generator.params, tokens, np.asarray([start], np.int32))
            text.place = 0
            text.ids = np.asarray(_pick(self._program([text]), logits, self._rows([text], 1))).tolist()
        except Exception as error:  # of this text alone: the others go on
            _told(text, error)
            return
        if self._goes_on(text):
            self._active.append(text)
            self._fit(memory, new=text)
            assert self._cache is not None
            text.place = min(set(range(self._cache[0][0].shape[0])) - {other.place for other in self._active[:-1]})
            self._cache = _insert(self._cache, memory, np.int32(text.place))

    def _advance(self) -> None:
        self._fit()
        assert self._cache is not None
        rows = self._rows(self._active, self._cache[0][0].shape[0])
        chosen, self._cache = _advance(self._program(self._active), self._generator.params, self._cache, rows)
        found = np.asarray(chosen).tolist()
        for text in self._active:
            text.ids += found[text.place]
        self._active = [text for text in self._active if self._goes_on(text)]

    def _goes_on(self, text: Text) -> bool:
        """Tells what a text amounts to so far; whether there will be more of it."""
        try:
            found = self._generator.continued(text.prompt, text.ids[: text.sampling.tokens], text.sampling)
        except Exception as error:  # of this text alone
            _told(text, error)
            return False
        return _told(text, found) and not found.finish

    def _fit(self, like: kv_cache.Cache | None = None, new: Text | None = None) -> None:
        """Makes the cache fit the texts: one row for one text, and as many slots as the longest needs."""
        rows = 1 if len(self._active) == 1 else self._most
        longest = max(text.room for text in self._active)
        slots = bucket(longest, min(_SMALLEST_ROOM, self._context), self._context)
        if self._cache is None:
            self._cache = jax.tree.map(lambda x: jnp.zeros((rows, x.shape[1], slots, *x.shape[3:]), x.dtype), like)
        elif (old := self._cache[0][0].shape)[0] != rows or old[2] < slots:
            places = np.zeros(rows, np.int32)
            for place, text in enumerate(text for text in self._active if text is not new):
                places[place], text.place = text.place, place
            self._cache = _moved(self._cache, places, slots)

    def _rows(self, texts: Sequence[Text], count: int) -> _Rows:
        """The same for each row; those without a text are greedy, and what they write is overwritten."""
        last, slot, tokens = np.zeros((3, count), np.int32)
        temperature, top_p = np.zeros((2, count), np.float32)
        found = _Rows(last, slot, tokens, np.zeros((count, 2), np.uint32), temperature, top_p)
        for text in texts:
            b = text.place
            found.tokens[b], found.keys[b] = len(text.ids), text.key
            found.temperature[b], found.top_p[b] = text.sampling.temperature, text.sampling.top_p
            if text.ids:
                found.last[b], found.slot[b] = text.ids[-1], len(text.prompt) + len(text.ids) - 1
        return found

    def _program(self, texts: Sequence[Text]) -> _Program:
        drawn = [text.sampling for text in texts if text.sampling.temperature]
        nucleus = any(sampling.top_p < 1 for sampling in drawn)
        return _Program(self._generator.network, self._generator.vocab, bool(drawn), nucleus)


def _told(text: Text, found: Completion | Exception) -> bool:
    """Delivers; whether somebody was there to take it."""
    try:
        text.deliver(found)
    except RuntimeError:  # the loop that waited for it is closed
        return False
    return True


@functools.partial(jax.jit, static_argnums=0)
@jax.default_matmul_precision("highest")
def _read(
    program: _Program, params: decoder.Params, tokens: jax.Array, starts: jax.Array
) -> tuple[jax.Array, kv_cache.Cache]:
    """Logits [1, V] after a prompt that is padded at the front, and its cache, whose first slot is the first token."""
    network = program.network
    hidden, memory = kv_cache.prefill(network, params, tokens, starts, tokens.shape[1])
    logits = kv_cache.next_logits(network, params, hidden[:, -1], program.vocab)
    return logits, jax.tree.map(lambda x: jnp.roll(x, -starts[0], axis=2), memory)


@functools.partial(jax.jit, donate_argnums=0)
def _insert(cache: kv_cache.Cache, memory: kv_cache.Cache, row: jax.Array) -> kv_cache.Cache:
    """Copies a prompt's keys and values into the first slots of a row. Later slots are not seen until they are set."""

    def inserted(old: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(old, new, (row, 0, 0, 0)[: old.ndim])

    return jax.tree.map(inserted, cache, memory)


@functools.partial(jax.jit, static_argnums=2)
def _moved(cache: kv_cache.Cache, places: jax.Array, slots: int) -> kv_cache.Cache:
    """The rows at these places, with so many slots."""

    def moved(x: jax.Array) -> jax.Array:
        kept = x[places, :, :slots]
        return jnp.pad(kept, [(0, 0), (0, 0), (0, slots - kept.shape[2]), (0, 0)][: kept.ndim])

    return jax.tree.map(moved, cache)


@functools.partial(jax.jit, static_argnums=0)
def _pick(program: _Program, logits: jax.Array, rows: _Rows) -> jax.Array:
    """The next token of each row, int32 [B], of logits [B, V]: as ``choose``, with temperature and top-p by row."""
    likeliest = jnp.argmax(logits, -1).astype(jnp.int32)
    if not program.draws:
        return likeliest
    greedy = rows.temperature == 0
    # A row without top-p has a bound that no sum of probabilities reaches, so that nothing is left out.
    bound = jnp.where(rows.top_p < 1, rows.top_p, 2)
    dials = Dials(jnp.where(greedy, 1, rows.temperature)[:, None], bound, 1.0, np.zeros(0, np.int32))
    keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(rows.keys), rows.tokens)
    rules = Rules(program.vocab, 0, greedy=False, top_k=0, nucleus=program.nucleus, penalised=False)
    return jnp.where(greedy, likeliest, choose(logits, keys, rules, dials))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
@jax.default_matmul_precision("highest")
def _advance(
    program: _Program, params: decoder.Params, cache: kv_cache.Cache, rows: _Rows
) -> tuple[jax.Array, kv_cache.Cache]:
    """``PIECE`` more tokens of every row, int32 [B, PIECE], and the cache."""
    batch, network = len(rows.last), program.network

    def body(i: jax.Array, carry: tuple[_Rows, jax.Array, kv_cache.Cache]) -> tuple[_Rows, jax.Array, kv_cache.Cache]:
        rows, chosen, cache = carry
        slot = rows.slot[0] if batch == 1 else rows.slot  # one slot for all rows is faster
        starts = jnp.zeros(batch, jnp.int32)
        hidden, cache = kv_cache.extend(network, params, rows.last[:, None], cache, slot, starts)
        ids = _pick(program, kv_cache.next_logits(network, params, hidden[:, 0], program.vocab), rows)
        rows = rows._replace(last=ids, slot=rows.slot + 1, tokens=rows.tokens + 1)
        return rows, jax.lax.dynamic_update_slice_in_dim(chosen, ids[:, None], i, axis=1), cache

    rows = jax.tree.map(jnp.asarray, rows)
    _, chosen, cache = jax.lax.fori_loop(0, PIECE, body, (rows, jnp.zeros((batch, PIECE), jnp.int32), cache))
    return chosen, cache
