"""Denoising (BART: arXiv 1910.13461, section 2.2): the source is a text with noise, and the target is the text.

There are five kinds of noise. Documents of a row stay where they are, each with its end: their sentences are permuted,
they are rotated, and their tokens are deleted, masked and infilled, in this order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scaling.config.refusal import refused
from scaling.config.schema import Config
from scaling.config.schema import Noise as Knobs
from scaling.data.batch import Batch
from scaling.data.noise.row import Noise, sequence_to_sequence, special_ids
from scaling.data.tokenizer_base import MASK, Tokenizer


def full_stops(words: Tokenizer) -> np.ndarray:
    """Sorted ids of the tokens that end with a full stop, which end a sentence (section 2.2), int32 [n]."""
    special = special_ids(words)
    ids = np.setdiff1d(np.arange(words.vocab_size, dtype=np.int32), special)
    return np.asarray([i for i in ids if words.decode([i]).rstrip().endswith(".")], np.int32)


def permuted(ids: np.ndarray, stops: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """The text with its sentences in a random order; the last one may have no full stop.

    Args:
        ids: int32 [n].
        stops: ids that end a sentence.
        share: of the sentences, rounded, that change places among themselves.
        rng: what is drawn.
    """
    ends = np.flatnonzero(np.isin(ids, stops)) + 1
    sentences = [part for part in np.split(ids, ends) if len(part)]
    moved = np.sort(rng.choice(len(sentences), round(share * len(sentences)), replace=False))
    order = np.arange(len(sentences))
    order[moved] = rng.permutation(moved)
    return np.concatenate([sentences[i] for i in order])


def rotated(ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The text from a token on that is drawn, each as likely as any other, with what was before it at the end."""
    return np.roll(ids, -int(rng.integers(len(ids))))


def deleted(ids: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """The text without a share of its tokens, rounded; which ones are missing is not shown."""
    lost = rng.choice(len(ids), round(share * len(ids)), replace=False)
    return np.delete(ids, lost)


def token_masked(ids: np.ndarray, share: float, mask: int, rng: np.random.Generator) -> np.ndarray:
    """The text with a share of its tokens, rounded, each replaced by the mask."""
    noisy = ids.copy()
    noisy[rng.choice(len(ids), round(share * len(ids)), replace=False)] = mask
    return noisy


class Infilled(NamedTuple):
    """A text with masks in the place of spans, int32 [m], and the length of the span of each mask, int [spans]."""

    ids: np.ndarray
    spans: np.ndarray


def infilled(ids: np.ndarray, knobs: Knobs, mask: int, rng: np.random.Generator) -> Infilled:
    """The text with spans replaced by one mask each; where the span has no token, the mask is inserted.

    Lengths are drawn from a Poisson distribution of mean ``knobs.span``, as many as hide the share ``knobs.infilling``
    of the tokens in the mean. All places of the spans among the tokens that stay are equally likely. The last spans
    are left out if they have more tokens than the text.
    """
    expected = knobs.infilling * len(ids) / knobs.span
    spans = rng.poisson(knobs.span, int(expected + rng.random()))
    spans = spans[np.cumsum(spans) <= len(ids)]
    shown = len(ids) - int(spans.sum())
    is_span = np.zeros(shown + len(spans), bool)
    is_span[rng.choice(len(is_span), len(spans), replace=False)] = True
    taken = np.ones(len(is_span), int)
    taken[is_span] = spans
    noisy = np.full(len(is_span), mask, np.int32)
    noisy[~is_span] = ids[(np.cumsum(taken) - taken)[~is_span]]
    return Infilled(noisy, spans)


def denoising(config: Config, words: Tokenizer) -> Noise:
    """Rows of a text of ``config.train.sequence_length`` tokens, with its end, and of the noisy text as their source.

    A noisy text that is longer than the source, which inserted masks may make it, is cut.

    Raises:
        ValueError: the tokenizer has no mask, or the source is shorter than the text.
    """
    knobs, room = config.noise, config.train.sequence_length
    source_room = config.data.source_length or room
    if source_room < room:
        raise refused("data.source_length", source_room, f"must be at least config.train.sequence_length={room}")
    mask, special = words.special(MASK), special_ids(words)
    stops = full_stops(words) if knobs.permuted else special[:0]
    before, end = np.asarray(words.template, np.int32), np.array([words.eot], np.int32)

    def noisy(ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if knobs.permuted:
            ids = permuted(ids, stops, knobs.permuted, rng)
        if rng.random() < knobs.rotated:
            ids = rotated(ids, rng)
        ids = token_masked(deleted(ids, knobs.deleted, rng), knobs.masked, mask, rng)
        return infilled(ids, knobs, mask, rng).ids if knobs.infilling else ids

    def row(sequences: Sequence[np.ndarray], index: int, rng: np.random.Generator) -> Batch:
        text = sequences[index][:-1]
        ends = np.flatnonzero(np.isin(text, special))
        parts = []
        for start, stop in zip([0, *(ends + 1)], [*ends, len(text)], strict=True):
            parts += [noisy(text[start:stop], rng) if stop > start else text[:0], text[stop : stop + 1]]
        source = np.concatenate([before, *parts])[: source_room - 1]
        whole = [np.concatenate([ids, end]) for ids in (source, np.concatenate([before, text]))]
        return sequence_to_sequence(whole[0], whole[1], words.decoder_start, source_room, room)

    kinds = ("permuted", "rotated", "deleted", "masked", "infilling", "span")
    name = f"denoising {source_room} " + " ".join(f"{kind}={getattr(knobs, kind)}" for kind in kinds)
    return Noise(name, room - 1 - len(before), room, row, config.seed)
