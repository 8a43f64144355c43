"""Trains a lossless sentencepiece tokenizer: ``decode(encode(text)) == text`` for every text."""

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from scaling.data import sources
from scaling.data.tokenizer import END_OF_TEXT

MAX_CHARACTERS = 200_000_000  # the trainer holds its text in memory; above this, documents are sampled


def train_tokenizer(pattern: str, vocab_size: int, output: str | os.PathLike[str], text_key: str = "text") -> Path:
    """Trains byte-pair pieces on text files and writes the model; equal input gives an equal file.

    No normalization, no added space, bytes for whatever has no piece, newlines as pieces of their own,
    digits one by one, and ``<|endoftext|>`` as a control piece that no text encodes to.

    Args:
        pattern: text files (see ``scaling.data.sources``).
        vocab_size: pieces, the 256 bytes and 4 special pieces included.
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
    texts = _sample(sources.documents(sources.find(pattern), text_key), MAX_CHARACTERS)
    model = io.BytesIO()
    try:
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
            character_coverage=0.9999,
            max_sentence_length=1 << 30,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).split("] ")[-1].strip() or str(error)
        raise ValueError(f"no tokenizer of {vocab_size} pieces from {pattern}: {reason}") from None
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("xb") as file:
        file.write(model.getvalue())
    return output


def _paragraphs(texts: list[str]) -> Iterator[str]:
    for text in texts:
        for paragraph in text.split("\n\n"):
            yield paragraph + "\n\n"


def _sample(documents: Iterator[str], limit: int) -> list[str]:
    """Keeps documents of low hash, so many that they hold at most ``limit`` characters; one pass, any order."""
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
