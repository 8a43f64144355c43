"""The small model of speculative decoding: what it must have, and where it comes from."""

import os
from typing import NamedTuple

import numpy as np

from scaling.config import schema as cfg
from scaling.data.control_tokenizer import ControlTokenizer
from scaling.data.reduced_tokenizer import ReducedTokenizer
from scaling.data.tokenizer_base import Tokenizer
from scaling.interop.served import Served, load_served
from scaling.model import decoder
from scaling.runs.config_json import read_config_json


class Draft(NamedTuple):
    """A small model that proposes tokens to a large one.

    Attributes:
        network: resolved.
        params: parameter tree as training or ``load_model`` gives it.
        tokens: that it proposes in a round, K.
        vocabulary: ids of the model that its own stand for, if it has a part of the model's vocabulary, int32 [n]; its
            id n stands for all others. None = it has the model's ids.
    """

    network: cfg.Network
    params: decoder.Params
    tokens: int = 4
    vocabulary: np.ndarray | None = None

    def check(self, model: cfg.Model, vocab: int) -> None:
        """Refuses, with a ValueError, what cannot propose the ``vocab`` tokens of a model."""
        mine = self.network.model
        if model.encoder_layers or mine.encoder_layers:
            whose = "the model" if model.encoder_layers else "the draft"
            raise ValueError(f"{whose} has an encoder beside its decoder; speculative decoding is for decoders alone")
        if not mine.causal or mine.outputs:
            kind = "rates texts" if mine.causal else "is an encoder"
            raise ValueError(f"the draft {kind} and continues none; it must be a decoder")
        known = self.vocabulary
        if known is not None and (mine.vocab_size <= len(known) or not 0 <= known.min() <= known.max() < vocab):
            raise ValueError(
                f"the draft has a vocabulary of {mine.vocab_size}, which must have {len(known)} of the model's {vocab} "
                "tokens, and one that stands for all others"
            )
        if known is None and mine.vocab_size < vocab:
            raise ValueError(
                f"the draft has a vocabulary of {mine.vocab_size}, and the model one of {vocab}; "
                "both must have the same tokenizer"
            )
        if mine.context_length < model.context_length:
            raise ValueError(
                f"the draft has a context of {mine.context_length}, which must be at least the model's, "
                f"{model.context_length}"
            )
        if self.tokens < 1:
            raise ValueError(f"the draft must propose 1 or more tokens in a round, not {self.tokens}")


def load_draft(
    path: str | os.PathLike[str],
    served: Served,
    tokens: int,
    tokenizer_name: str | None = None,
    axes: str = "",
    dtype: str = "float32",
    int8: str = "none",
) -> Draft:
    """The draft of a run directory or a Hugging Face folder.

    Args:
        path: of the draft.
        served: the model, loaded with the same ``tokenizer_name``, ``axes``, ``dtype`` and ``int8``.
        tokens: that the draft proposes in a round.
        tokenizer_name: of a Hugging Face folder, as of ``load_served``; and so are ``axes``, ``dtype`` and ``int8``.
        axes: see there.
        dtype: see there.
        int8: see there.

    Raises:
        FileNotFoundError: no model there.
        ValueError: another tokenizer, or what ``load_served`` and ``Draft.check`` refuse.
    """
    if tokens < 1:
        raise ValueError(f"--draft_tokens={tokens} must be 1 or more")
    is_run = "config" in read_config_json(path)  # which knows its tokenizer, perhaps a part of the model's
    found = load_served(path, None if is_run else tokenizer_name, axes, dtype, int8)
    draft = Draft(found.network, found.params, tokens, _known(found.words, served.words, f"--draft={os.fspath(path)}"))
    try:
        draft.check(served.network.model, served.words.vocab_size)
    except ValueError as error:
        raise ValueError(f"--draft={os.fspath(path)}: {error}") from None
    return draft


def _known(words: Tokenizer, whole: Tokenizer, where: str) -> np.ndarray | None:
    """The ids of the model's tokenizer, ``whole``, that the draft's has, if that is a part of it; None = all.

    Raises:
        ValueError: it is another one.
    """
    if words.fingerprint == whole.fingerprint:
        return None
    before = [whole]  # control tokens come after the ids of the tokenizer that they were given to
    while isinstance(before[-1], ControlTokenizer):
        before.append(before[-1].base)
    if isinstance(words, ReducedTokenizer) and words.base.fingerprint in [each.fingerprint for each in before]:
        return words.kept
    raise ValueError(
        f"{where} has the tokenizer {words.name!r}, which is neither the model's, {whole.name!r}, nor a part of that; "
        "`scaling tokenizer reduce` makes a part"
    )
