"""Continuing prompts with a model: batches of like lengths, bucketed shapes, stop strings, streaming."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from scaling.config import schema as cfg
from scaling.data.tokenizer import Tokenizer
from scaling.generate import beam, decode, speculative
from scaling.generate.draft import Draft
from scaling.generate.sampling import Dials, Rules, Sampling, row_keys, rules
from scaling.model import decoder, kv_cache
from scaling.parallel.mesh import one_device
from scaling.parallel.sharding import BATCH_AXES, on_every_device

SMALLEST_BUCKET = 16  # tokens
STOP_CHECK = 16  # tokens decoded between two looks for stop strings

_State = Any  # of ``decode`` or of ``speculative``


@dataclasses.dataclass(frozen=True)
class Completion:
    """One continuation of a prompt."""

    ids: tuple[int, ...]  # new tokens, without the one that ended the text
    text: str  # of the new tokens, cut before a stop string; empty without a tokenizer
    finish: str  # "end" (a token that ends texts), "stop" (a stop string), "length"; "" = it goes on
    score: float | None = None  # beam search: log-likelihood / length ** length_penalty
    passes: int | None = None  # with a draft: of the model over the text, that over the prompt included


@dataclasses.dataclass(frozen=True)
class _Row:
    prompt: int  # its place among the prompts
    sample: int
    ids: np.ndarray
    number: int  # of the prompt, by which it is drawn
    source: np.ndarray | None = None  # what an encoder reads


def bucket(size: int, smallest: int = SMALLEST_BUCKET, largest: int | None = None) -> int:
    """The next power of two, at least ``smallest``, at most ``largest``: one compiled program for a range of sizes."""
    assert largest is None or size <= largest
    rounded = max(smallest, 1 << max(0, size - 1).bit_length())
    return rounded if largest is None else min(rounded, largest)


def batch_shape(rows: int, longest: int, context: int, mesh: Mesh) -> tuple[int, int]:
    """Rows and prompt slots (B, P) of the program that continues ``rows`` prompts of at most ``longest`` tokens."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    return -(-bucket(rows, smallest=1) // shards) * shards, bucket(longest, largest=context)


class Generator:
    """A model that continues prompts.

    Args:
        network: resolved.
        params: parameter tree as training or ``load_model`` gives it; a copy in the compute dtype is made.
        words: tokenizer, for texts and the end of text; None = ids only.
        mesh: devices to lay model and batch over; None = one device.
        draft: a small model that proposes tokens (``generate.speculative``); None = plain decoding.
    """

    def __init__(
        self,
        network: cfg.Network,
        params: decoder.Params,
        words: Tokenizer | None,
        mesh: Mesh | None = None,
        draft: Draft | None = None,
    ):
        self.network, self.config = network, network.model
        if self.config.outputs:
            raise ValueError(
                f"the model has config.model.outputs={self.config.outputs}, so it rates texts and writes none"
            )
        if words is not None and words.vocab_size > self.config.vocab_size:
            raise ValueError(
                f"tokenizer {words.name!r} has {words.vocab_size} tokens, but the model only {self.config.vocab_size}; "
                "it must be the one that the model was trained with"
            )
        self.words, self.mesh = words, one_device() if mesh is None else mesh
        self._draft = draft
        self._vocabulary: speculative.Vocabulary | None = None
        if draft is not None:
            draft.check(self.config, self.vocab)
        with jax.set_mesh(self.mesh):
            self.params = kv_cache.split_layers(self.network, params, self.mesh)
            if draft is not None:
                small = kv_cache.split_layers(draft.network, draft.params, self.mesh)
                self._draft = draft._replace(params=small)
                if draft.vocabulary is not None:
                    known = speculative.Vocabulary.of(draft.vocabulary, self.config.vocab_size)
                    self._vocabulary = jax.tree.map(self._put, known)

    def generate(
        self,
        prompts: Sequence[Sequence[int] | np.ndarray],
        sampling: Sampling,
        batch_size: int = 8,
        numbers: Sequence[int] | None = None,
        sources: Sequence[Sequence[int] | np.ndarray] | None = None,
    ) -> list[list[Completion]]:
        """Continues each prompt; which batch it is in changes nothing but the time.

        Args:
            prompts: token ids.
            sampling: how.
            batch_size: texts that are continued at a time, a power of two; beams count.
            numbers: of the prompts, on which their draws depend; None = 0, 1, 2, ...
            sources: token ids that an encoder reads for each prompt, which is then the beginning of what the decoder
                writes; None = the model has no encoder.

        Returns:
            For each prompt ``num_samples`` completions; those of a beam search best first, and fewer where there are
            not as many texts.

        Raises:
            ValueError: a prompt that is empty, has ids outside the vocabulary, or leaves no room in the context.
        """
        if self._draft and sampling.beams > 1:
            raise ValueError(f"beam search (beams={sampling.beams}) and a draft exclude each other")
        arrays = [self.checked(number, ids, sampling) for number, ids in enumerate(prompts)]
        read = self._sources(sources, len(arrays))
        samples = 1 if sampling.beams > 1 else sampling.num_samples
        drawn = range(len(arrays)) if numbers is None else numbers
        rows = [
            _Row(place, sample, ids, number, read[place])
            for place, (ids, number) in enumerate(zip(arrays, drawn, strict=True))
            for sample in range(samples)
        ]
        # Like lengths together: little padding.
        rows.sort(key=lambda row: (len(row.ids), 0 if row.source is None else len(row.source)))
        size = max(1, batch_size // sampling.beams)
        found: dict[tuple[int, int], Completion] = {}
        for first in range(0, len(rows), size):
            batch = rows[first : first + size]
            if sampling.beams > 1:
                for row, best in zip(batch, self._beam_search(batch, sampling), strict=True):
                    found.update({(row.prompt, i): completion for i, completion in enumerate(best)})
                continue
            every = STOP_CHECK if sampling.stop else sampling.tokens
            *_, last = self._sample(batch, sampling, every)
            found.update({(row.prompt, row.sample): completion for row, completion in zip(batch, last, strict=True)})
        return [[found[n, s] for s in range(sampling.num_samples) if (n, s) in found] for n in range(len(arrays))]

    def stream(
        self,
        prompt: Sequence[int] | np.ndarray,
        sampling: Sampling,
        every: int = 4,
        source: Sequence[int] | np.ndarray | None = None,
    ) -> Iterator[Completion]:
        """The first sample of one prompt as it grows, ``every`` tokens at a time; the last has a ``finish``.

        Text only ever grows: what may still become a stop string, or is half a character, is held back.

        Raises:
            ValueError: as in ``generate``, and for beam search, which knows its text only at the end.
        """
        for (completion,) in self.streams(prompt, dataclasses.replace(sampling, num_samples=1), every, source):
            yield completion

    def streams(
        self,
        prompt: Sequence[int] | np.ndarray,
        sampling: Sampling,
        every: int = 4,
        source: Sequence[int] | np.ndarray | None = None,
    ) -> Iterator[list[Completion]]:
        """All samples of one prompt as they grow together; what is finished is repeated until the last one is.

        Raises:
            ValueError: as ``stream``.
        """
        if sampling.beams > 1:
            raise ValueError(f"beam search (beams={sampling.beams}) cannot be streamed")
        ids = self.checked(0, prompt, sampling)
        (read,) = self._sources(None if source is None else [source], 1)
        rows = [_Row(0, sample, ids, 0, read) for sample in range(sampling.num_samples)]
        for completions in self._sample(rows, sampling, every):
            yield [
                found if found.finish else dataclasses.replace(found, text=_settled(found.text, sampling.stop))
                for found in completions
            ]

    def continued(self, prompt: np.ndarray, ids: Sequence[int], sampling: Sampling) -> Completion:
        """What these new tokens of a prompt amount to; of a text that goes on, without what may still change."""
        row, chosen = _Row(0, 0, prompt, 0), np.asarray(ids, np.int32)
        found = self._completion(row, chosen, self._rules(sampling)[1], sampling)
        return found if found.finish else dataclasses.replace(found, text=_settled(found.text, sampling.stop))

    @property
    def has_draft(self) -> bool:
        """Whether a small model proposes tokens."""
        return self._draft is not None

    def _sources(self, sources: Sequence[Sequence[int] | np.ndarray] | None, count: int) -> Sequence[np.ndarray | None]:
        """The sources of so many prompts; None each without an encoder."""
        if (sources is not None) != bool(self.config.encoder_layers):
            has = "an encoder, so each prompt needs a" if sources is None else "no encoder, so prompts have no"
            raise ValueError(f"the model has {has} source")
        if sources is None:
            return [None] * count
        assert len(sources) == count, (len(sources), count)
        found = [self._ids(f"source {number + 1}", ids) for number, ids in enumerate(sources)]
        for number, ids in enumerate(found):
            if len(ids) > self.config.context_length:
                raise ValueError(
                    f"source {number + 1} has {len(ids)} tokens, more than the model's context of "
                    f"{self.config.context_length}"
                )
        return found

    def _ids(self, where: str, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        array, vocab = np.asarray(ids), self.config.vocab_size
        if self._draft and self._draft.vocabulary is None:
            vocab = min(vocab, self._draft.network.model.vocab_size)  # which reads the prompt, too
        if array.ndim != 1 or not array.size:
            raise ValueError(f"{where} is empty; it must have at least one token")
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{where} must hold token ids, integers, not {array.dtype}")
        outside = array[(array < 0) | (array >= vocab)]
        if outside.size:
            raise ValueError(f"{where} holds token {outside[0]}, outside the vocabulary of {vocab} (0 to {vocab - 1})")
        return array.astype(np.int32)

    def checked(self, number: int, ids: Sequence[int] | np.ndarray, sampling: Sampling) -> np.ndarray:
        """The ids of a prompt, int32; ``number`` is for the message. Raises ``ValueError`` as ``generate``."""
        where, context = f"prompt {number + 1}", self.config.context_length
        if sampling.stop and self.words is None:
            raise ValueError("stop strings need a tokenizer")
        array = self._ids(where, ids)
        if len(array) >= context:
            raise ValueError(
                f"{where} has {len(array)} tokens, which leaves no room in the model's context of {context}; "
                f"it must have at most {context - 1}"
            )
        if len(array) + sampling.tokens > context:
            raise ValueError(
                f"{where} has {len(array)} tokens, and {sampling.tokens} new ones make {len(array) + sampling.tokens}, "
                f"more than the model's context of {context}; ask for at most {context - len(array)} new ones"
            )
        return array

    def _sample(self, rows: list[_Row], sampling: Sampling, every: int) -> Iterator[list[Completion]]:
        """Completions of a batch after every ``every`` tokens; the last time all are finished."""
        static, dials = self._rules(sampling)
        with jax.set_mesh(self.mesh):
            batch = self._padded(rows)
            padding = [0] * (len(batch.tokens) - len(rows))
            keys = row_keys(
                sampling.seed,
                self._put(np.asarray([row.number for row in rows] + padding, np.int32)),
                self._put(np.asarray([row.sample for row in rows] + padding, np.int32)),
            )
            batch = batch._replace(keys=keys)
            state, proceed = self._started(static, dials, batch, bucket(sampling.tokens))
        step, completions = 1, [Completion((), "", "")] * len(rows)
        while True:
            until = min(sampling.tokens, (step - 1) // every * every + every)
            with jax.set_mesh(self.mesh):
                state = proceed(state, np.int32(until))
            chosen = np.asarray(state.chosen)
            passes = np.asarray(state.passes).tolist() if self._draft else [None] * len(chosen)
            step = until + 1
            completions = [
                old if old.finish else self._completion(row, ids[:until], dials, sampling, passes=count)
                for row, ids, count, old in zip(rows, chosen, passes, completions, strict=False)
            ]
            yield completions
            finished = np.asarray([bool(completion.finish) for completion in completions])
            if finished.all():
                return
            done = np.concatenate([finished, np.ones(len(padding), bool)])
            state = state._replace(done=self._put(done | np.asarray(state.done)))

    def _started(
        self, static: Rules, dials: Dials, batch: decode.Rows, room: int
    ) -> tuple[_State, Callable[[_State, np.int32], _State]]:
        """The state after the first token of each row, and what goes on until each has so many."""
        if self._draft is None:
            plain = decode.Program(self.network, static, room)
            return decode.start(plain, self.params, dials, batch), functools.partial(
                decode.proceed, plain, self.params, dials, batch
            )
        program = speculative.Program(self.network, self._draft.network, static, room, self._draft.tokens)
        params = speculative.Params(self.params, self._draft.params, self._vocabulary)
        return speculative.start(program, params, dials, batch), functools.partial(
            speculative.proceed, program, params, dials, batch
        )

    def _beam_search(self, rows: list[_Row], sampling: Sampling) -> list[list[Completion]]:
        static, dials = self._rules(sampling)
        room = bucket(sampling.tokens)
        lengths = np.maximum(1, np.arange(room + 1, dtype=np.float64))
        with jax.set_mesh(self.mesh):
            ends = beam.Ends(
                np.int32(sampling.tokens),
                self._put((lengths**sampling.length_penalty).astype(np.float32)),
                dials.end_ids,
                np.asarray(sampling.early_stopping),
            )
            program = decode.Program(self.network, static, room)
            texts, scores = beam.search(program, sampling.beams, self.params, self._padded(rows), ends)
        texts, scores = np.asarray(texts), np.asarray(scores)
        return [
            [
                dataclasses.replace(
                    self._completion(row, texts[b, i][texts[b, i] >= 0], dials, sampling, complete=True),
                    score=float(scores[b, i]),
                )
                for i in range(sampling.num_samples)
                if (texts[b, i] >= 0).any()  # there may be fewer texts of one token than beams
            ]
            for b, row in enumerate(rows)
        ]

    def _rules(self, sampling: Sampling) -> tuple[Rules, Dials]:
        return rules(sampling, self.vocab, None if self.words is None else self.words.eot)

    @property
    def vocab(self) -> int:
        """Ids from here on are never chosen."""
        # A model may have rows beyond its tokenizer's ids (GPT-1's shape with another tokenizer).
        return self.config.vocab_size if self.words is None else self.words.vocab_size

    def _padded(self, rows: list[_Row]) -> decode.Rows:
        """Prompts padded at the front to one bucket, sources at the end; rows of padding fill the batch."""
        longest = max(len(row.ids) for row in rows)
        batch, length = batch_shape(len(rows), longest, self.config.context_length, self.mesh)
        tokens, starts = np.zeros((batch, length), np.int32), np.full(batch, length, np.int32)
        for b, row in enumerate(rows):
            starts[b] = length - len(row.ids)
            tokens[b, starts[b] :] = row.ids
        found = decode.Rows(self._put(tokens), self._put(starts))
        if not self.config.encoder_layers:
            return found
        sources = [row.source for row in rows if row.source is not None]
        room = bucket(max(map(len, sources)), largest=self.config.context_length)
        source, segments = np.zeros((batch, room), np.int32), np.ones((batch, room), np.int32)
        for b, ids in enumerate(sources):
            source[b, : len(ids)], segments[b, : len(ids)] = ids, 0
        return found._replace(source=self._put(source), source_segments=self._put(segments))

    def _completion(
        self,
        row: _Row,
        ids: np.ndarray,
        dials: Dials,
        sampling: Sampling,
        complete: bool = False,
        passes: int | None = None,
    ) -> Completion:
        """What a row's new tokens amount to; -1 = nothing was chosen."""
        chosen: list[int] = ids[ids >= 0].tolist()
        finish = "length" if complete or len(chosen) >= sampling.tokens else ""
        ending = next((i for i, token in enumerate(chosen) if token in dials.end_ids), None)
        if ending is not None:
            chosen, finish = chosen[:ending], "end"
        text = self._text(row.ids, chosen)
        if any(stop in text for stop in sampling.stop):
            # The token that completes the first stop string is the last.
            count = next(n for n in range(1, len(chosen) + 1) if _cut(self._text(row.ids, chosen[:n]), sampling.stop))
            chosen, finish = chosen[:count], "stop"
            text = self._text(row.ids, chosen)
            text = text[: min(at for stop in sampling.stop if (at := text.find(stop)) >= 0)]
        return Completion(tuple(chosen), text, finish, passes=passes)

    def _text(self, prompt: np.ndarray, ids: list[int]) -> str:
        """Text of new tokens as it reads behind the prompt (sentencepiece drops a space at the front of a text)."""
        if self.words is None:
            return ""
        before = self.words.decode(prompt)
        whole = self.words.decode(np.concatenate([prompt, np.asarray(ids, np.int32)]))
        return whole[len(before) :] if whole.startswith(before) else self.words.decode(ids)

    def _put(self, x: np.ndarray) -> jax.Array:
        return on_every_device(x, self.mesh)


def _cut(text: str, stops: Sequence[str]) -> bool:
    return any(stop in text for stop in stops)


def _settled(text: str, stops: Sequence[str]) -> str:
    """The part of a growing text that cannot change any more."""
    text = text.rstrip("\ufffd")  # half a character
    held = max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
    return text[: len(text) - held]
