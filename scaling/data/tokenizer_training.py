"""Makes tokenizers from text: lossless sentencepiece models, and parts of other tokenizers for drafts.

With a sentencepiece model of ours, ``decode(encode(text)) == text`` for every text.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from scaling.data import sources, tokenizer
from scaling.data.reduced_tokenizer import SUFFIX, ReducedTokenizer, required
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
    output = _new_file(output, "a sentencepiece tokenizer", ".model")
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


def reduce_tokenizer(
    name: str, pattern: str, vocab_size: int, output: str | os.PathLike[str], text_key: str = "text"
) -> tuple[Path, float]:
    """Writes a tokenizer with the tokens of another one that are the most frequent in texts (``reduced_tokenizer``).

    Args:
        name: of the other tokenizer.
        pattern: text files (see ``scaling.data.sources``).
        vocab_size: tokens, with the control tokens of the other one and the token of all that is left out.
        output: path of the ``.reduced`` file.
        text_key: field of the text in ``.jsonl`` and ``.parquet``.

    Returns:
        The path, and the share of the texts' tokens that are kept.

    Raises:
        FileExistsError: ``output`` exists.
        FileNotFoundError: no such tokenizer or text.
        ValueError: bad input, or a vocabulary that holds nothing but control tokens, or more than the other one has.
    """
    output = _new_file(output, "a reduced tokenizer", SUFFIX)
    base = tokenizer.load(name)
    least = required(base)
    if not len(least) + 1 < vocab_size <= base.vocab_size:
        raise ValueError(
            f"a vocabulary of {vocab_size} tokens cannot be a part of {name}; it must lie between {len(least) + 2} "
            f"(control tokens, one more, and one for all others) and {base.vocab_size}"
        )
    counts = np.zeros(base.vocab_size, np.int64)
    for text in sources.texts(sources.find(pattern), text_key):
        counts += np.bincount(base.encode(text), minlength=base.vocab_size)
    share = counts / max(1, counts.sum())
    share[list(least)] += 1
    kept = np.sort(np.argsort(-share, kind="stable")[: vocab_size - 1]).astype(np.int32)
    _, content = ReducedTokenizer(str(output), base, kept).file()
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("xb") as file:
        file.write(content)
    return output, float(counts[kept].sum() / max(1, counts.sum()))


def _new_file(output: str | os.PathLike[str], what: str, suffix: str) -> Path:
    path = Path(output)
    if path.suffix != suffix:
        raise ValueError(f"{path}: {what} is loaded by a name that ends in {suffix}")
    if path.exists():
        raise FileExistsError(f"{path} exists and is not overwritten; remove it or choose another name")
    return path


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
