"""A tokenizer with the most frequent tokens of another one, for a draft of speculative decoding.

The table of the vocabulary is most of the weights of a small model, and its product with the states most of the time. A
draft may propose from a part of the vocabulary instead (FR-Spec: arXiv 2502.14856): whatever it never proposes, the
model still says by itself, so its texts keep their distribution. All tokens that are left out are one here, RARE.

The file of such a tokenizer, ``*.reduced``, is JSON that contains the whole tokenizer, as one file and what lies beside
it, and the ids that are kept. So it can be moved, and copied into the directories of runs.
"""

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scaling import json_text
from scaling.data.control_tokenizer import plain
from scaling.data.tokenizer_base import NAMES, Tokenizer, fingerprint, unpacked

SUFFIX = ".reduced"
RARE = "\ufffd"  # how the token of all that is left out reads


class ReducedTokenizer(Tokenizer):
    """See the module.

    Args:
        name: its name.
        base: the whole tokenizer.
        kept: ids of ``base`` that this one has, ascending integers [n]; its own are their places, and n is RARE.

    Raises:
        ValueError: ids that are not of ``base``, not in order, or without its control tokens.
    """

    def __init__(self, name: str, base: Tokenizer, kept: np.ndarray) -> None:
        if not len(kept) or kept[0] < 0 or kept[-1] >= base.vocab_size or (np.diff(kept) <= 0).any():
            raise ValueError(f"tokenizer {name}: its ids must ascend within [0, {base.vocab_size})")
        if missing := sorted(required(base).difference(kept.tolist())):
            raise ValueError(f"tokenizer {name}: it must keep the control token {missing[0]} of {base.name}")
        self.name, self.base, self.kept = name, base, kept.astype(np.int32)
        self.blank_first = base.blank_first
        self.vocab_size, self.rare = len(kept) + 1, len(kept)
        self.places = np.full(base.vocab_size, self.rare, np.int32)  # id of ``base`` -> id here
        self.places[kept] = np.arange(len(kept))
        self.eot = int(self.places[base.eot])
        self.template = tuple(map(int, self.places[list(base.template)]))
        self.fingerprint = fingerprint(b"reduced", base.fingerprint.encode(), kept.astype("<i4").tobytes())

    @property
    def start(self) -> tuple[int, ...]:
        """See ``Tokenizer``."""
        return tuple(map(int, self.places[list(self.base.start)]))

    @property
    def bos(self) -> int:
        """See ``Tokenizer``."""
        return int(self.places[self.base.bos])

    @property
    def controls(self) -> dict[str, int]:
        """See ``Tokenizer``."""
        return {token: int(self.places[i]) for token, i in self.base.controls.items()}

    @property
    def chat_template(self) -> str:
        """See ``Tokenizer``."""
        return self.base.chat_template

    @property
    def named_tokens(self) -> dict[str, str]:
        """See ``Tokenizer``."""
        return self.base.named_tokens

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See ``Tokenizer``."""
        return [self.places[ids] for ids in self.base.encode_batch(texts)]

    def encode_stream(self, texts: Sequence[str]) -> np.ndarray:
        """See ``Tokenizer``."""
        return self.places[self.base.encode_stream(texts)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """See ``Tokenizer``; RARE is U+FFFD, and what stands between two of it is decoded by itself."""
        array = np.asarray(ids, np.int64)
        parts = np.split(array, np.flatnonzero(array == self.rare))
        return RARE.join(self.base.decode(self.kept[part[part != self.rare]]) for part in parts)

    def file(self) -> tuple[str, bytes]:
        """See ``Tokenizer``."""
        of: dict[str, Any] = {"name": self.base.name}
        bare = plain(self.base.name)
        try:
            suffix, content = self.base.file()
        except NotImplementedError:  # known by its name
            pass
        else:
            files = {f"tokenizer{suffix}": content, **self.base.beside()}
            spelled = {name: base64.b64encode(content).decode() for name, content in sorted(files.items())}
            of = {"name": f"tokenizer{suffix}{self.base.name.removeprefix(bare)}", "files": spelled}
        return SUFFIX, json.dumps({"tokenizer": of, "ids": self.kept.tolist()}).encode()


def required(base: Tokenizer) -> set[int]:
    """Ids that every part of a tokenizer has: its control tokens, and what begins and ends texts."""
    return {*base.controls.values(), *base.template, *base.start, base.bos, base.eot}


def load(name: str, content: bytes, tokenizer: Callable[[str], Tokenizer]) -> ReducedTokenizer:
    """Reads the file of a reduced tokenizer.

    Args:
        name: of the file.
        content: of the file.
        tokenizer: makes the whole one from its name or path.

    Raises:
        ValueError: damaged, or what ``tokenizer`` and ReducedTokenizer refuse.
        OSError: ``gpt2`` could not be downloaded.
    """
    values = json_text.parse(content, name)
    try:
        of = values["tokenizer"]
        kept = np.asarray(values["ids"])
        files = {str(key): base64.b64decode(value, validate=True) for key, value in of.get("files", {}).items()}
        base = str(of["name"])
        in_a_folder = all(key == Path(key).name not in ("", "..") and key.isprintable() for key in files)
        if kept.ndim != 1 or kept.dtype.kind != "i" or not in_a_folder or plain(base) not in (files or NAMES):
            raise ValueError
    except (KeyError, TypeError, AttributeError, ValueError, binascii.Error):
        raise ValueError(f"tokenizer {name}: not what `scaling tokenizer reduce` writes, a tokenizer and ids") from None
    if files:
        base = str(unpacked(files) / base)
    return ReducedTokenizer(name, tokenizer(base), kept)
