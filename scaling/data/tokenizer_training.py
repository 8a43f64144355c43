"""Trains a lossless sentencepiece tokenizer: ``decode(encode(text)) == text`` for every text."""

import hashlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from scaling.data import sources
from scaling.data.tokenizer import END_OF_TEXT, SPACE

MAX_CHARACTERS = 200_000_000  # the trainer holds its text in memory; above this, documents are sampled
_COVERAGE = 0.9999  # of the text's characters: the rarest have no piece, but bytes
_RARE = 10 * (1 - _COVERAGE)  # a space with a smaller share of the characters is asked for by name
_RESERVED = "\u2585"  # the trainer drops every sentence that has it


def train_tokenizer(pattern: str, vocab_size: int, output: str | os.PathLike[str], text_key: str = "text") -> Path:
    """Trains byte-pair pieces on text files and writes the model; equal input gives an equal file.

    No normalization, no added space, bytes for whatever has no piece, newlines as pieces of their own,
    digits one by one, and ``<|endoftext|>`` as a control piece that no text encodes to.

    Args:
        pattern: text files (see ``scaling.data.sources``).
        vocab_size: pieces; the 256 bytes, 4 special pieces and the space included.
        output: path of the ``.model`` file.
        text_key: field of the text in ``.jsonl`` and ``.parquet``.

    Raises:
        FileExistsError: ``output`` exists.
        ValueError: bad input, or a vocabulary that the text cannot fill or that cannot hold its characters.
    """
    output = Path(output)
    if output.suffix != ".model":
        raise ValueError(f"{output}: a sentencepiece tokenizer is loaded by a name that ends in .model")
    if output.exists():
        raise FileExistsError(f"{output} exists and is not overwritten; remove it or choose another name")
    if not 0 < vocab_size < 2**31:
        raise ValueError(f"a vocabulary of {vocab_size} pieces cannot be; it must lie between 1 and 2^31")
    texts = _sample(sources.texts(sources.find(pattern), text_key), MAX_CHARACTERS)
    try:
        model = _train(texts, vocab_size)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"no tokenizer of {vocab_size} pieces from {pattern}: {_reason(str(error))}") from None
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("xb") as file:
        file.write(model)
    return output


def _train(texts: list[str], vocab_size: int) -> bytes:
    spaces = sum(text.count(" ") for text in texts)
    # A space has no byte to fall back to: it is U+2581 inside, and the bytes of that are a real U+2581.
    required: dict[str, Any] = {"required_chars": SPACE} if spaces < _RARE * sum(map(len, texts)) else {}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_paragraphs(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        user_defined_symbols=["\n\n", "\n"],
        unk_id=0,
        eos_id=1,
        bos_id=-1,
        pad_id=-1,
        eos_piece=END_OF_TEXT,
        character_coverage=_COVERAGE,
        max_sentence_length=1 << 30,
        minloglevel=2,
        **required,
    )
    return model.getvalue()


def _reason(message: str) -> str:
    """The trainer's error in terms of our own options."""
    if found := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return f"bytes, special pieces and the text's characters alone are {found[1]}; give at least that many"
    if found := re.search(r"too high.*<= (\d+)", message):
        return f"the text is too short or too uniform for more than {found[1]}; give more text, or at most that many"
    if "sentences_.empty()" in message:
        return "the text has no character that a piece can be made of"
    return re.sub(r"^(\w+: )?src/\S+ ", "", message.split("] ")[-1].strip() or message)


def _paragraphs(texts: list[str]) -> Iterator[str]:
    for text in texts:
        for paragraph in text.replace(_RESERVED, "\n\n").split("\n\n"):
            yield paragraph + "\n\n"


def _sample(documents: Iterator[str], limit: int) -> list[str]:
    """Keeps the documents with the lowest hashes, at most ``limit`` characters; one pass, in any order."""
    kept: list[tuple[float, str]] = []
    threshold, characters = 1.0, 0
    for text in documents:
        key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) / 2**64
        if key >= threshold:
            continue
        kept.append((key, text))
        characters += len(text)
        while characters > limit and len(kept) > 1:
            threshold /= 2
            kept = [(key, text) for key, text in kept if key < threshold] or kept[:1]
            characters = sum(len(text) for _, text in kept)
    return [text for _, text in kept]
