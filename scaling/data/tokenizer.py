"""Tokenizers: bytes, GPT-2's byte-level BPE, sentencepiece; all lossless, all without special tokens in text.

``load(name)`` knows

* ``bytes``: UTF-8 bytes, vocabulary 257;
* ``gpt2``: GPT-2's and GPT-3's byte-level BPE, vocabulary 50,257, through tiktoken's own download;
* ``books``: the sentencepiece model of the embedded corpus;
* a path to a tiktoken ranks file (``*.tiktoken``) that splits text as GPT-2 does;
* a path to a directory with GPT-2's ``vocab.bpe`` and ``encoder.json`` (or ``merges.txt`` and ``vocab.json``);
* a path to a sentencepiece model (``*.model``);
* a path to a ``tokenizer.json`` of Hugging Face (``*.json``), with its ``tokenizer_config.json`` beside it;
* a path to a part of another tokenizer's vocabulary (``*.reduced``, ``reduced_tokenizer``);
* a file of these in an object store, ``gs://`` or ``s3://``;
* any of these with ``+chat`` after it: the same, with control tokens for dialogues (``control_tokenizer``);
* any with ``+task`` after it: the same, with the tokens that surround texts to be classified;
* any with ``+mask`` or ``+sentinels``: the same, with the tokens that stand for hidden tokens, or for hidden spans.

Text that spells ``<|endoftext|>`` is ordinary text: only ``Tokenizer.eot`` ends a document.
"""

import base64
import binascii
import codecs
import contextlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import tiktoken
from etils import epath

from scaling import json_text
from scaling.data import books, json_tokenizer, reduced_tokenizer, sources
from scaling.data.control_tokenizer import ControlTokenizer, suffix_of
from scaling.data.tokenizer_base import END_OF_TEXT, Tokenizer, fingerprint, unpacked
from scaling.object_store import is_remote

log = logging.getLogger(__name__)

SPACE = "\u2581"  # how sentencepiece writes a space

# Radford et al. 2019 (github.com/openai/gpt-2, src/encoder.py), in the equivalent, faster form that tiktoken uses.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
_WHITE_SPACE = re.compile(r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")  # \s of the pattern
_LONG_RUN = 10_000  # characters of white space in a row; the pattern of a million would overflow tiktoken's stack
# Ranks files of later models, which split text by other patterns: number of ranks -> name.
_OTHER_PATTERNS = {100_256: "cl100k_base", 199_998: "o200k_base"}


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes; id 256 is the end of text."""

    def __init__(self) -> None:
        self.name = "bytes"
        self.blank_first = False
        self.vocab_size, self.eot = 257, 256
        self.fingerprint = fingerprint(b"bytes")

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See ``Tokenizer``."""
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """See ``Tokenizer``."""
        array = np.asarray(ids, np.int64)
        documents = np.split(array, np.flatnonzero(array == self.eot))
        return END_OF_TEXT.join(bytes(part[part != self.eot].tolist()).decode(errors="replace") for part in documents)


class BPETokenizer(Tokenizer):
    """Byte-level BPE by ranks, split by GPT-2's pattern; the end of text is the lowest id that no rank has.

    Args:
        name: its name.
        ranks: bytes of a token -> id; a merge has a lower id than those learned after it.
    """

    def __init__(self, name: str, ranks: dict[bytes, int]) -> None:
        used = set(ranks.values())
        self.name = name
        self.eot = next(i for i in range(len(ranks) + 1) if i not in used)
        self.vocab_size = max(max(used), self.eot) + 1
        table = json.dumps([[rank, token.hex()] for token, rank in sorted(ranks.items(), key=lambda item: item[1])])
        self.fingerprint = fingerprint(b"bpe", GPT2_PATTERN.encode(), str(self.eot).encode(), table.encode())
        self.ranks = ranks
        self._encoding = tiktoken.Encoding(
            name=name, pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: self.eot}
        )

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See ``Tokenizer``."""
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> np.ndarray:
        parts, done = [], 0
        for start, stop in _long_pieces(text):
            parts += [self._ordinary(text[done:start]), self._encoding._encode_single_piece(text[start:stop])]
            done = stop
        last = self._ordinary(text[done:])
        return (np.concatenate([*parts, last]) if parts else last).astype(np.int32)

    def encode_stream(self, texts: Sequence[str]) -> np.ndarray:
        """See ``Tokenizer``. One call for many short texts, as each call takes as long as a hundred letters."""
        joined = END_OF_TEXT.join([*texts, ""])
        if joined.count(END_OF_TEXT) > len(texts) or next(_long_pieces(joined), None):
            return super().encode_stream(texts)
        try:
            return self._encoding.encode_to_numpy(joined, allowed_special={END_OF_TEXT}).astype(np.int32)
        except UnicodeEncodeError:  # half of a surrogate pair
            return super().encode_stream(texts)

    def _ordinary(self, text: str) -> np.ndarray:
        try:  # an array without a list before it, which is a sixth faster
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:  # half of a surrogate pair
            return np.asarray(self._encoding.encode_ordinary(text), np.uint32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """See ``Tokenizer``."""
        return self._encoding.decode(np.asarray(ids).tolist())

    def file(self) -> tuple[str, bytes]:
        """See ``Tokenizer``."""
        lines = (b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in self.ranks.items())
        return ".tiktoken", b"".join(lines)


def _long_pieces(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of the pieces that GPT-2's pattern makes of long runs of white space.

    At the end of the text such a piece is the whole run. Elsewhere it is the run without its last character, which
    belongs to the next piece.
    """
    done = 0
    for inside in range(0, len(text), _LONG_RUN):  # every long run holds one of these
        found = _WHITE_SPACE.match(text, inside) if inside >= done else None
        if found is None:
            continue
        start, stop = inside, found.end()
        while start > done and _WHITE_SPACE.match(text, start - 1, start):
            start -= 1
        if stop - start >= _LONG_RUN:
            done = stop if stop == len(text) else stop - 1
            yield start, done


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model that has an end-of-text piece: ``<|endoftext|>``, else its end-of-sentence piece.

    Args:
        name: its name.
        model: the bytes of the ``.model`` file.
        settings: of the ``tokenizer_config.json`` of Hugging Face beside it; empty = none. A text follows the token
            that they name as its beginning, unless they say ``"add_bos_token": false``.
    """

    def __init__(self, name: str, model: bytes, settings: bytes = b"") -> None:
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise ValueError(f"tokenizer {name}: not a sentencepiece model") from None
        piece = self._processor.piece_to_id(END_OF_TEXT)
        self.name, self.settings = name, settings
        self.vocab_size = self._processor.vocab_size()
        self.eot = piece if self._processor.is_control(piece) else self._processor.eos_id()
        if self.eot < 0:
            raise ValueError(f"tokenizer {name}: the model has neither {END_OF_TEXT} nor an end-of-sentence piece")
        self.fingerprint = fingerprint(b"sentencepiece", model)
        token = json_tokenizer.named(name, settings, "bos_token")
        begin = self.eot if token is None else self._processor.piece_to_id(token)
        if token is not None and self._processor.is_unknown(begin):
            raise json_tokenizer.not_there(name, "bos_token", token)
        self._bos = begin
        adds = json_tokenizer.parsed(name, settings).get("add_bos_token")
        if not isinstance(adds, bool | None):
            raise ValueError(
                f"tokenizer {name}: {json_tokenizer.SETTINGS}: add_bos_token must be true or false, got {adds!r}"
            )
        self.template = (begin,) if token is not None and adds is not False else ()
        # sentencepiece writes a space as U+2581, so a real U+2581 must go in by its bytes, if the model has them.
        bytes_of_mark = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self._mark = bytes_of_mark if all(map(self._processor.is_byte, bytes_of_mark)) else None
        if self._processor.is_unknown(self._processor.piece_to_id(SPACE)):
            log.warning(
                "tokenizer %s has no piece for a space, so spaces do not survive: 'a b' comes back as %r; "
                "`scaling tokenizer train` makes one that has it",
                name,
                self.decode(self.encode("a b")),
            )

    @property
    def start(self) -> tuple[int, ...]:
        """See ``Tokenizer``."""
        return self.template if self.settings else super().start

    @property
    def bos(self) -> int:
        """See ``Tokenizer``."""
        return self._bos

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See ``Tokenizer``."""
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> np.ndarray:
        if self._mark is None or SPACE not in text:
            return np.asarray(self._processor.encode(text), np.int32)
        first, *rest = self._processor.encode(text.split(SPACE))
        return np.asarray(first + [i for part in rest for i in self._mark + part], np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """See ``Tokenizer``."""
        array = np.asarray(ids, np.int64)
        documents = np.split(array, np.flatnonzero(array == self.eot))
        return END_OF_TEXT.join(self._processor.decode(part[part != self.eot].tolist()) for part in documents)

    def file(self) -> tuple[str, bytes]:
        """See ``Tokenizer``."""
        return ".model", self._processor.serialized_model_proto()

    def beside(self) -> dict[str, bytes]:
        """See ``Tokenizer``."""
        return {json_tokenizer.SETTINGS: self.settings} if self.settings else {}


def load(name: str) -> Tokenizer:
    """Makes the tokenizer of a name or path (see the module).

    Raises:
        FileNotFoundError: no such name, file or directory.
        ValueError: a file is not what its name says.
        OSError: ``gpt2`` could not be downloaded.
    """
    if not name:
        raise ValueError("config.data.tokenizer names no tokenizer; must be gpt2, bytes, books or a path")
    if suffix := suffix_of(name):
        return ControlTokenizer(load(name.removesuffix(suffix)), suffix)
    if name == "bytes":
        return ByteTokenizer()
    if name == "gpt2":
        return _download_gpt2()
    if name == "books":
        return SentencePieceTokenizer(name, books.TOKENIZER.read_bytes())
    if is_remote(name):
        return load(str(_here(epath.Path(name))))
    fs, path = sources.filesystem(name)
    if fs.isdir(path):
        return BPETokenizer(name, _gpt2_directory(name))
    if not fs.isfile(path):
        raise FileNotFoundError(
            f"tokenizer {name!r} is none of gpt2, bytes, books, and no such file or directory exists"
        )
    if name.endswith(".tiktoken"):
        return BPETokenizer(name, _tiktoken_ranks(name))
    if name.endswith(".model"):
        return SentencePieceTokenizer(name, sources.read_bytes(name), json_tokenizer.beside(name))
    if name.endswith(".json"):
        return json_tokenizer.load(name)
    if name.endswith(reduced_tokenizer.SUFFIX):
        return reduced_tokenizer.load(name, sources.read_bytes(name), load)
    raise ValueError(
        f"tokenizer {name}: a file must end in .tiktoken, .model, .json or .reduced, a directory hold GPT-2's two files"
    )


def _here(path: epath.Path) -> Path:
    """Copies a tokenizer's file in an object store, and those beside it, into the cache; returns where it is.

    Raises:
        FileNotFoundError: there is no such file.
    """
    files = {path.name: path.read_bytes()}
    for name in (json_tokenizer.SETTINGS, json_tokenizer.TEMPLATE):
        with contextlib.suppress(FileNotFoundError):
            files[name] = (path.parent / name).read_bytes()
    return unpacked(files) / path.name


def _download_gpt2() -> BPETokenizer:
    """GPT-2's ranks by tiktoken, which keeps them in $TIKTOKEN_CACHE_DIR or the temporary directory."""
    try:
        encoding = tiktoken.get_encoding("r50k_base")  # one file, same ids as "gpt2", which is two
    except Exception as error:  # whatever the network library raises
        raise OSError(
            f"tokenizer 'gpt2' could not be downloaded ({type(error).__name__}); offline, set config.data.tokenizer to "
            "a local r50k_base.tiktoken or to a directory with GPT-2's vocab.bpe and encoder.json"
        ) from error
    return BPETokenizer("gpt2", {encoding.decode_single_token_bytes(i): i for i in range(encoding.eot_token)})


def _tiktoken_ranks(path: str) -> dict[bytes, int]:
    ranks = {}
    for number, line in enumerate(sources.read_bytes(path).removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"{path}:{number}: not a line of a tiktoken file (base64 token, space, rank)") from None
    if len(ranks) in _OTHER_PATTERNS:
        raise ValueError(f"{path}: {_OTHER_PATTERNS[len(ranks)]} splits text by another pattern than GPT-2's")
    return _checked(ranks, path)


def _checked(ranks: dict[bytes, int], path: str) -> dict[bytes, int]:
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(f"{path}: no token for the byte 0x{missing[0]:02x}; the file is cut short or not byte-level")
    if len(set(ranks.values())) != len(ranks) or min(ranks.values()) != 0:
        raise ValueError(f"{path}: ranks must be distinct and start from 0")
    return ranks


def byte_of_character() -> dict[str, int]:
    """GPT-2's spelling of bytes by printable characters (encoder.py, bytes_to_unicode), inverted."""
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _gpt2_directory(path: str) -> dict[bytes, int]:
    """Ranks from GPT-2's two files: the ids of the vocabulary, which must be in the order of the merges."""
    fs, root = sources.filesystem(path)
    for merges_name, vocabulary_name in (("vocab.bpe", "encoder.json"), ("merges.txt", "vocab.json")):
        if fs.exists(f"{root}/{merges_name}") and fs.exists(f"{root}/{vocabulary_name}"):
            break
    else:
        raise FileNotFoundError(
            f"tokenizer {path}: neither vocab.bpe and encoder.json nor merges.txt and vocab.json there"
        )
    merges_file, vocabulary_file = f"{path.rstrip('/')}/{merges_name}", f"{path.rstrip('/')}/{vocabulary_name}"
    byte_of = byte_of_character()
    values = json_text.parse(sources.read_bytes(vocabulary_file), vocabulary_file)
    try:
        vocabulary = {k: int(v) for k, v in values.items() if k != END_OF_TEXT}
        ranks = {bytes(byte_of[c] for c in token): rank for token, rank in vocabulary.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{vocabulary_file}: not a vocabulary of GPT-2's byte-level BPE") from None
    last = -1
    try:
        lines = sources.read_bytes(merges_file).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{merges_file}: not UTF-8, so no merges of GPT-2's byte-level BPE") from None
    merges = [line.split() for line in lines if line and not line.startswith("#version")]
    for number, merge in enumerate(merges, start=1):
        rank = vocabulary.get("".join(merge), -1)
        if len(merge) != 2 or rank <= last:
            raise ValueError(f"{merges_file}: merge {number} does not agree with the ids of {vocabulary_name}")
        last = rank
    if len(merges) + 256 != len(ranks):
        raise ValueError(f"{path}: {len(merges)} merges and 256 bytes, but {len(ranks)} tokens in {vocabulary_name}")
    return _checked(ranks, vocabulary_file)
