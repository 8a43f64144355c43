"""What a tokenizer is, whatever its file."""

import abc
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from scaling import cache, durable

NAMES = ("gpt2", "bytes", "books")  # tokenizers that every machine has or can get
END_OF_TEXT = "<|endoftext|>"
MASK, BEGIN, SEPARATOR = "<|mask|>", "<|begin|>", "<|separator|>"  # of encoders: BERT's [MASK], [CLS], [SEP]
SENTINELS = tuple(f"<|sentinel_{i}|>" for i in range(100))  # stand for hidden spans (T5)
_T5_SENTINEL, _T5_PAD = "<extra_id_{}>", "<pad>"  # as T5's own tokenizers spell them, and the token before a target
_NAMED = {MASK: "mask_token", BEGIN: "cls_token", SEPARATOR: "sep_token"}  # in the files of imported tokenizers


class Tokenizer(abc.ABC):
    """Converts text to token ids and back.

    Attributes:
        name: what ``load`` was given.
        vocab_size: ids are in [0, vocab_size).
        eot: id of the end-of-text token, which the ids of a text never contain.
        fingerprint: hash of everything that decides the ids; equal for equal tokenizers, whatever their name.
        template: ids that the tokenizer's own files put before a text, as transformers does; ours put nothing.
        controls: ids of tokens that no text has, by their spelling in a chat template.
        chat_template: how a dialogue becomes text and control tokens, in jinja2; empty = it has none.
        blank_first: a token begins with the blank before its word, as of sentencepiece and GPT-2.
        named_tokens: what a chat template may refer to, such as ``bos_token``: their spelling.
    """

    name: str
    vocab_size: int
    eot: int
    fingerprint: str
    template: tuple[int, ...] = ()
    blank_first: bool = True

    @property
    def start(self) -> tuple[int, ...]:
        """Ids that stand before a text in evaluation, and before a prompt: the end of the text before, as in training.

        Of a tokenizer that was imported they are the template, which may be empty.
        """
        return self.template or (self.eot,)

    @property
    def bos(self) -> int:
        """Id of the token before an empty context, where something must stand: it begins a text, or else ends one."""
        return self.eot

    @property
    def controls(self) -> dict[str, int]:
        """See the class."""
        return {END_OF_TEXT: self.eot}

    @property
    def chat_template(self) -> str:
        """See the class."""
        return ""

    @property
    def named_tokens(self) -> dict[str, str]:
        """See the class."""
        return {}

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int32, without ``eot``."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of the ids; ``eot`` becomes ``<|endoftext|>``, and an invalid UTF-8 sequence becomes U+FFFD."""

    def encode_stream(self, texts: Sequence[str]) -> np.ndarray:
        """Ids of the texts, each followed by ``eot``, as one array: int32 [tokens]."""
        end = np.array([self.eot], np.int32)
        return np.concatenate(
            [np.empty(0, np.int32), *(ids for text in self.encode_batch(texts) for ids in (text, end))]
        )

    def special(self, token: str) -> int:
        """The id of MASK, BEGIN or SEPARATOR.

        Raises:
            ValueError: the tokenizer has no such token.
        """
        spelling = self.spelling(token)
        if spelling not in self.controls:
            raise ValueError(
                f"the tokenizer {self.name!r} has no token {token}; a name that ends in +mask gives it one"
            )
        return self.controls[spelling]

    @property
    def sentinels(self) -> np.ndarray:
        """Ids of the tokens that stand for hidden spans, the first span's first, int32 [n].

        Raises:
            ValueError: the tokenizer has none.
        """
        known = self.controls
        for spelled in (SENTINELS, [_T5_SENTINEL.format(i) for i in range(len(known))]):
            found = list(itertools.takewhile(lambda i: i is not None, map(known.get, spelled)))
            if found:
                return np.asarray(found, np.int32)
        raise ValueError(f"the tokenizer {self.name!r} has no sentinels; a name that ends in +sentinels gives it some")

    @property
    def decoder_start(self) -> int:
        """Id of the token that a decoder beside an encoder reads before its target.

        It is the end of the text, as BART has it, and for T5's own tokenizers padding.
        """
        known = self.controls
        return known.get(_T5_PAD, self.eot) if _T5_SENTINEL.format(0) in known else self.eot

    @property
    def decoder_opening(self) -> list[int]:
        """Ids that a decoder beside an encoder reads before it writes: its start, and what stands before a text."""
        return [self.decoder_start, *map(int, self.template)]

    def spelling(self, token: str) -> str:
        """How the tokenizer spells a control token: of MASK, BEGIN and SEPARATOR, an imported one says it."""
        return self.named_tokens.get(_NAMED.get(token, ""), token)

    def framed(self, first: str, second: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """One text or two as an encoder reads them: BEGIN, and SEPARATOR after each.

        Returns:
            Ids, and for each of them the number of its text, int32 [n] both.

        Raises:
            ValueError: as ``special``.
        """
        begin, end = self.special(BEGIN), np.array([self.special(SEPARATOR)], np.int32)
        parts = [
            np.concatenate([ids, end]) for ids in self.encode_batch([first] if second is None else [first, second])
        ]
        parts[0] = np.concatenate([[begin], parts[0]])
        types = [np.full(len(part), number) for number, part in enumerate(parts)]
        return np.concatenate(parts).astype(np.int32), np.concatenate(types).astype(np.int32)

    def file(self) -> tuple[str, bytes]:
        """Suffix and content of a file from which ``load`` makes this tokenizer again, with this fingerprint."""
        raise NotImplementedError(f"{self.name} is known by its name")

    def beside(self) -> dict[str, bytes]:
        """Other files that must lie beside that file, by name."""
        return {}

    def encode(self, text: str) -> np.ndarray:
        """Ids of one text, int32, without ``eot``."""
        return self.encode_batch([text])[0]


def fingerprint(*parts: bytes) -> str:
    """Hash of what decides a tokenizer's ids."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def unpacked(files: Mapping[str, bytes]) -> Path:
    """Writes the files of a tokenizer, by name, into a folder of the cache that equal files share; returns it."""
    digest = hashlib.sha256(b"\0".join(part for name in sorted(files) for part in (name.encode(), files[name])))
    folder = cache.root() / "tokenizers" / digest.hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with durable.replaced(folder / name) as partial:
            partial.write_bytes(content)
    return folder
