"""``tokenizer.json`` of Hugging Face, by the package ``tokenizers`` (the extra ``hf``)."""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from scaling import json_text
from scaling.data import sources
from scaling.data.tokenizer_base import END_OF_TEXT, SEPARATOR, Tokenizer, fingerprint

SETTINGS = "tokenizer_config.json"  # lies beside it, and names the token that ends a text
TEMPLATE = "chat_template.jinja"  # lies beside it where the settings do not hold it
_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")  # where it does not


class JsonTokenizer(Tokenizer):
    """A ``tokenizer.json``. Special tokens are only ids: text that spells one is ordinary text.

    ``encode`` puts nothing before or after a text; ``start`` is what the file's own template puts before one, often a
    token that begins texts, or nothing.

    Args:
        name: its name.
        content: of ``tokenizer.json``.
        settings: of ``tokenizer_config.json``; empty = none.
        jinja: of ``chat_template.jinja``; empty = none.
    """

    def __init__(self, name: str, content: bytes, settings: bytes = b"", jinja: bytes = b"") -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise ValueError(
                f"tokenizer {name} needs the package tokenizers: pip install 'scaling[hf]', or name another with "
                "--tokenizer"
            ) from error
        json_text.parse(content, name)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the package raises nothing more special
            raise ValueError(f"tokenizer {name}: not a tokenizer.json ({error})") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.name, self.content, self.settings, self.jinja = name, content, settings, jinja
        self.vocab_size = max(ids.values()) + 1
        self.eot_token = _end_of_text(name, ids, settings)
        self.eot = ids[self.eot_token]
        self.fingerprint = fingerprint(b"tokenizer.json", content, str(self.eot).encode())
        bare, framed = (self._tokenizer.encode("a", add_special_tokens=framed).ids for framed in (False, True))
        places = (i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
        self.template = tuple(framed[: next(places, 0)])
        begin = named(name, settings, "bos_token")
        if begin is not None and begin not in ids:
            raise not_there(name, "bos_token", begin)
        self._bos = self.eot if begin is None else ids[begin]

    @property
    def start(self) -> tuple[int, ...]:
        """See ``Tokenizer``."""
        return self.template

    @property
    def bos(self) -> int:
        """See ``Tokenizer``."""
        return self._bos

    @property
    def controls(self) -> dict[str, int]:
        """See ``Tokenizer``: the special ones among the added tokens."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: i for i, token in added.items() if token.special} | {self.eot_token: self.eot}

    @property
    def chat_template(self) -> str:
        """See ``Tokenizer``; of several, that of the name ``default``."""
        if self.jinja:
            return self.jinja.decode()
        found = parsed(self.name, self.settings).get("chat_template") or ""
        if isinstance(found, list):
            named = {each.get("name"): each.get("template", "") for each in found if isinstance(each, dict)}
            found = named.get("default", "")
        return found if isinstance(found, str) else ""

    @property
    def named_tokens(self) -> dict[str, str]:
        """See ``Tokenizer``."""
        keys = [key for key in parsed(self.name, self.settings) if key.endswith("_token")]
        spelled = {key: named(self.name, self.settings, key) for key in keys}
        return {key: value for key, value in spelled.items() if isinstance(value, str)}

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See ``Tokenizer``."""
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(each.ids, np.int32) for each in found]

    def framed(self, first: str, second: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See ``Tokenizer``: as the file's own template has it."""
        self.special(SEPARATOR)
        found = self._tokenizer.encode(first, second, add_special_tokens=True)
        return np.asarray(found.ids, np.int32), np.asarray(found.type_ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """See ``Tokenizer``."""
        array = np.asarray(ids, np.int64)
        documents = np.split(array, np.flatnonzero(array == self.eot))
        parts = [part[part != self.eot].tolist() for part in documents]
        return END_OF_TEXT.join(self._tokenizer.decode(part, skip_special_tokens=False) for part in parts)

    def file(self) -> tuple[str, bytes]:
        """See ``Tokenizer``."""
        return ".json", self.content

    def beside(self) -> dict[str, bytes]:
        """See ``Tokenizer``."""
        return {name: content for name, content in ((SETTINGS, self.settings), (TEMPLATE, self.jinja)) if content}


def load(path: str) -> JsonTokenizer:
    """A file that ends in .json, with the settings beside it.

    Raises:
        ValueError: it is not a tokenizer.json, no token ends a text, or the package is missing.
    """
    return JsonTokenizer(path, sources.read_bytes(path), beside(path), beside(path, TEMPLATE))


def beside(path: str, name: str = SETTINGS) -> bytes:
    """Content of the file of a name that lies beside a file; empty = there is none."""
    fs, local = sources.filesystem(path)
    file = os.path.basename(path)  # noqa: PTH119 - may be remote
    there = fs.exists(local.removesuffix(file) + name)
    return sources.read_bytes(path.removesuffix(file) + name) if there else b""


def parsed(name: str, settings: bytes) -> dict[str, Any]:
    """Settings of the tokenizer of that name by key.

    Raises:
        ValueError: they are not JSON.
    """
    values: Any = json_text.parse(settings, f"{name}: {SETTINGS}") if settings else {}
    return values if isinstance(values, dict) else {}


def named(name: str, settings: bytes, key: str) -> str | None:
    """The special token that settings name by ``key``, such as ``bos_token``; None = they name none.

    Raises:
        ValueError: it is neither a text nor an object with a text as its content.
    """
    value = parsed(name, settings).get(key)
    token = value.get("content") if isinstance(value, dict) else value
    if token is not None and not isinstance(token, str):
        raise ValueError(f"tokenizer {name}: {SETTINGS}: {key} must be a token's text, got {json.dumps(value)}")
    return token


def not_there(name: str, key: str, token: str) -> ValueError:
    """The error of settings that name by ``key`` a token that the vocabulary does not have."""
    return ValueError(f"tokenizer {name}: {SETTINGS} says {key}={json.dumps(token)}, which is no token of it")


def _end_of_text(name: str, ids: dict[str, int], settings: bytes) -> str:
    end = named(name, settings, "eos_token")
    if end is not None:
        if end not in ids:
            raise not_there(name, "eos_token", end)
        return end
    found = next((token for token in _ENDS if token in ids), None)
    if found is None:
        raise ValueError(f"tokenizer {name}: no token ends a text; name one as eos_token in {SETTINGS} beside it")
    return found
