"""What an encoder would put in the place of hidden tokens of a text."""

from typing import NamedTuple

import numpy as np

from scaling.config import schema as cfg
from scaling.data.tokenizer import Tokenizer
from scaling.data.tokenizer_base import MASK
from scaling.interop.logits import compute
from scaling.model import decoder


class Candidate(NamedTuple):
    """A token for a hidden place: its text, its id, and its probability."""

    text: str
    id: int
    probability: float


def fill(
    network: cfg.Network, params: decoder.Params, words: Tokenizer, text: str, top: int = 5
) -> list[list[Candidate]]:
    """The most likely tokens for each hidden place of a text, each place by itself.

    Args:
        network: resolved, an encoder with logits, or a discriminator with its generator, which fills.
        params: as ``decoder.initialize`` makes them.
        words: tokenizer.
        text: with ``<|mask|>``, or the tokenizer's own spelling of it, where tokens are hidden.
        top: tokens of each place.

    Raises:
        ValueError: nothing is hidden, the text does not fit the model, or the model or tokenizer cannot do it.
    """
    model = network.model
    if model.causal:
        raise ValueError("only an encoder fills hidden places; this model continues texts")
    if model.positions == "xlnet":
        raise ValueError("the model has XLNet's positions, and `fill` does not ask its query stream")
    if model.generates:
        return fill(network.of_generator, decoder.generator(params), words, text, top)
    if model.discriminates:
        raise ValueError("the model is a discriminator without its generator, and predicts no tokens")
    if not model.has_logits:
        raise ValueError("the model is an encoder without logits")
    mask, own = words.special(MASK), words.spelling(MASK)
    parts = text.replace(own, MASK).split(MASK)
    if len(parts) == 1:
        raise ValueError(f"nothing is hidden; write {own} in the place of a token")
    if not 1 <= top <= model.vocab_size:
        raise ValueError(f"top={top} must be in [1, {model.vocab_size}]")
    frame, _ = words.framed("")
    inside: list[int] = []
    for number, part in enumerate(parts):
        # A token begins with the blank before its word, so the mask stands for both.
        before = part.removesuffix(" ") if number < len(parts) - 1 and words.blank_first else part
        inside += [*words.encode(before).tolist(), *[mask] * (number < len(parts) - 1)]
    ids = np.asarray([[*frame[:1], *inside, *frame[1:]]], np.int32)
    if ids.shape[1] > model.context_length:
        raise ValueError(f"the text has {ids.shape[1]} tokens; the model reads {model.context_length}")
    logits = compute(network, params, ids)[0]
    found = []
    for place in np.flatnonzero(ids[0] == mask):
        row = logits[place, : words.vocab_size].astype(np.float64)
        weights = np.exp(row - row.max())
        probabilities = weights / weights.sum()
        best = np.argsort(-row, kind="stable")[:top]
        found.append([Candidate(words.decode([i]), int(i), float(probabilities[i])) for i in best])
    return found
