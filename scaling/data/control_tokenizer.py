"""A tokenizer with control tokens after its own ids.

``books+chat`` has those of dialogues, ``books+mask`` of hidden tokens, ``books+sentinels`` of hidden spans.
The ids of text are those of the tokenizer before the ``+``, so a model that was trained with that one can be trained on
with this one. No text has a control token: only a chat template, or the layout of a task, puts them there. Suffixes may
follow one another, as in ``books+chat+task``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scaling.data import chat_tokenizer
from scaling.data.tokenizer_base import BEGIN, END_OF_TEXT, MASK, SENTINELS, SEPARATOR, Tokenizer, fingerprint

TASK = "+task"
MASKS = "+mask"
SPANS = "+sentinels"
START, DELIMITER, EXTRACT = "<|start|>", "<|delimiter|>", "<|extract|>"  # Radford et al. 2018, section 3.3


class Controls(NamedTuple):
    """What a suffix stands for: control tokens in the order of their ids; a chat template with what it refers to."""

    tokens: tuple[str, ...]
    chat_template: str = ""
    named_tokens: tuple[tuple[str, str], ...] = ()


SUFFIXES = {
    chat_tokenizer.SUFFIX: Controls(
        chat_tokenizer.CONTROLS, chat_tokenizer.TEMPLATE, tuple(chat_tokenizer.NAMED.items())
    ),
    TASK: Controls((START, DELIMITER, EXTRACT)),
    MASKS: Controls((MASK, BEGIN, SEPARATOR)),
    SPANS: Controls(SENTINELS),
}


def plain(name: str) -> str:
    """The name of a tokenizer without its suffixes."""
    while suffix := suffix_of(name):
        name = name.removesuffix(suffix)
    return name


def suffix_of(name: str) -> str:
    """The last suffix of a tokenizer's name; "" if it has none."""
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


class ControlTokenizer(Tokenizer):
    """See the module.

    Args:
        base: the tokenizer of the text.
        suffix: of SUFFIXES.
    """

    def __init__(self, base: Tokenizer, suffix: str) -> None:
        self.base, self._added = base, SUFFIXES[suffix]
        self.name = f"{base.name}{suffix}"
        self.template, tokens = base.template, self._added.tokens
        self.blank_first = base.blank_first
        self.vocab_size, self.eot = base.vocab_size + len(tokens), base.eot
        kind = suffix.removeprefix("+").encode()
        self.fingerprint = fingerprint(kind, base.fingerprint.encode(), *(token.encode() for token in tokens))

    @property
    def start(self) -> tuple[int, ...]:
        """See ``Tokenizer``."""
        return self.base.start

    @property
    def bos(self) -> int:
        """See ``Tokenizer``."""
        return self.base.bos

    @property
    def controls(self) -> dict[str, int]:
        """See ``Tokenizer``."""
        added = {token: self.base.vocab_size + i for i, token in enumerate(self._added.tokens)}
        return added | self.base.controls | {END_OF_TEXT: self.eot}

    @property
    def chat_template(self) -> str:
        """See ``Tokenizer``."""
        return self._added.chat_template or self.base.chat_template

    @property
    def named_tokens(self) -> dict[str, str]:
        """See ``Tokenizer``."""
        return dict(self._added.named_tokens) or self.base.named_tokens

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See ``Tokenizer``."""
        return self.base.encode_batch(texts)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """See ``Tokenizer``; control tokens are spelled out."""
        array = np.asarray(ids, np.int64)
        texts = list[str]()
        for part in np.split(array, np.flatnonzero(np.diff(array >= self.base.vocab_size, prepend=False))):
            if len(part) and part[0] >= self.base.vocab_size:
                texts += [self._added.tokens[i - self.base.vocab_size] for i in part]
            else:
                texts.append(self.base.decode(part))
        return "".join(texts)

    def file(self) -> tuple[str, bytes]:
        """See ``Tokenizer``: the file of the text's tokenizer."""
        return self.base.file()

    def beside(self) -> dict[str, bytes]:
        """See ``Tokenizer``."""
        return self.base.beside()
