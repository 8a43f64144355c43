"""Builds the embedded corpus, byte for byte, from Project Gutenberg texts.

    python -m scaling.data.books.build gutenberg.jsonl.gz scaling/data/books

The input has one JSON record a line with ``text`` (as published by Project Gutenberg), ``title`` and
``author``. The books of ``catalogue.py`` are cut out between the two quoted phrases given there, so
that headers, licences, contents, advertisements and transcribers' notes are left out. Then the text
is made plain (straight quotes, no italics marks, no headings, no illustrations), hard-wrapped lines are
joined, and each book is cut into documents of about ``PIECE`` characters; its last part is held out.
"""

import argparse
import gzip
import io
import json
import re
from pathlib import Path

from scaling.data import tokenizer_training
from scaling.data.books.catalogue import BOOKS, Book

PIECE = 10_000  # characters in a document, about
HELD_OUT = 0.05  # of each book, its last part
VOCAB_SIZE = 4096

PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "—": "--", "–": "-", "\u00a0": " ", "\ufeff": ""})
NUMBERED_HEADING = re.compile(r"(chapter|part|stave|book|prologue)\b[\s\divxlc.,:-]*$|[IVXLC]+\.?$", re.IGNORECASE)
BREAK = re.compile(r"[\s*_.=~-]*$")
# Paragraphs with a slur are left out; the books otherwise keep the attitudes of their time.
SLUR = re.compile(r"\bnigger|\bgreasers?\b", re.IGNORECASE)


def body(text: str, book: Book) -> str:
    """Cuts the book out of a Project Gutenberg file: from ``book.begin`` up to, not including, ``book.end``."""
    text = text.replace("\r\n", "\n").translate(PLAIN)
    start = text.find(book.begin)
    stop = text.find(book.end, start + len(book.begin))
    if start < 0 or stop < 0:
        missing = book.begin if start < 0 else book.end
        raise ValueError(f"{book.title}: the text does not contain {missing!r}")
    return text[start:stop]


def plain(text: str) -> str:
    """Removes marks of typesetting inside running text; paragraphs and lines stay as they are."""
    text = re.sub(r"\[(?:[^\[\]]|\[[^\]]*\])*\]", "", text)  # illustrations, footnotes, editors' remarks
    text = re.sub(r"</?p>|(?<=\S)\*|[_=~]", "", text)  # paragraph tags, footnote marks, italics, bold
    text = re.sub(r"(?<=\w) '(?=(?:ll|ve|re|s|m|d)\b)", "'", text)  # "I 'll", as some printers set it
    text = re.sub(r"(?<=\w) n't\b", "n't", text)
    return re.sub(r" ?\.(?: \.)+", "...", text)


def paragraphs(text: str) -> list[list[str]]:
    """Splits a book into chapters of paragraphs, without headings; lines of verse are kept apart by newlines."""
    chapters: list[list[str]] = [[]]
    after_number = False  # the block before was a numbered heading, so a short line now is its title
    after_heading = True
    for block in re.split(r"\n[ \t]*\n", text):
        lines = [line.rstrip() for line in block.split("\n") if line.strip()]
        joined = " ".join(line.strip() for line in lines)
        footnote = re.match(r"\*\w", joined)
        if not lines or footnote or BREAK.match(joined) or SLUR.search(joined):
            continue
        numbered = bool(NUMBERED_HEADING.match(joined)) or bool(re.match(r"(CHAPTER|Chapter) ", joined))
        short = len(lines) == 1 and len(joined) < 60 and joined[-1] not in '.?!",'
        title = after_number and short and joined[0].isupper()
        if numbered or title or _capitals(joined):
            if chapters[-1]:
                chapters.append([])
            after_number, after_heading = numbered, True
            continue
        paragraph = _join(lines)
        if after_heading:
            paragraph = re.sub(r'^("?)([A-Z][A-Z\']+)\b', lambda m: m[1] + m[2].capitalize(), paragraph)
        chapters[-1].append(paragraph)
        after_number = after_heading = False
    return [chapter for chapter in chapters if chapter]


def _capitals(joined: str) -> bool:
    """Whether a block is a heading in capitals, and not initials or a name under a letter."""
    letters = [c for c in joined if c.isalpha()]
    long = len(letters) > 3 or (len(letters) == 3 and joined[-1] != ".")
    return long and len(joined) < 120 and all(c.isupper() for c in letters) and joined[0] != '"'


def _join(lines: list[str]) -> str:
    """One paragraph: prose on one line, verse (lines set in from the margin, with capitals) on several."""
    set_in = len(lines) > 1 and all(line.startswith("  ") for line in lines)
    if set_in and all(re.match(r"\W*[A-Z]", line) for line in lines):
        return "\n".join(re.sub(r"\s+", " ", line.strip()) for line in lines)
    text = ""
    for line in lines:
        hyphenated = text.endswith("-")
        text += ("" if hyphenated or not text else " ") + line.strip()
    return re.sub(r"\s+", " ", text)


def documents(chapters: list[list[str]]) -> list[str]:
    """Cuts chapters at paragraph ends into pieces of about ``PIECE`` characters; very short chapters join the next."""
    pieces = []
    short: list[str] = []
    for chapter in chapters:
        chapter, short = short + chapter, []
        if sum(map(len, chapter)) < PIECE / 5 and chapter[-1] != chapters[-1][-1]:
            short = chapter
            continue
        length = sum(map(len, chapter))
        size = length / max(1, round(length / PIECE))
        piece: list[str] = []
        done = 0
        for paragraph in chapter:
            piece.append(paragraph)
            done += len(paragraph)
            if done >= size * (1 - 1e-9):
                pieces.append("\n\n".join(piece))
                piece, done = [], 0
        if piece:
            pieces.append("\n\n".join(piece))
    return pieces


def split(pieces: list[str]) -> tuple[list[str], list[str]]:
    """(train, validation): the last pieces, as many as come nearest to ``HELD_OUT`` of the characters, at least one."""
    total = sum(map(len, pieces))
    held, count = len(pieces[-1]), 1
    while held + len(pieces[-count - 1]) / 2 < HELD_OUT * total:
        count += 1
        held += len(pieces[-count])
    return pieces[:-count], pieces[-count:]


def write(path: Path, records: list[dict[str, str]]) -> None:
    """Writes records as gzipped JSON lines; without a time stamp, so that equal records make equal files."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", compresslevel=9, mtime=0) as file:
        for record in records:
            file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
    path.write_bytes(buffer.getvalue())


def build(source: Path, output: Path) -> None:
    """Writes train.jsonl.gz, validation.jsonl.gz and tokenizer.model into ``output``.

    Raises:
        ValueError: a book of the catalogue is not in ``source``, or its text is another edition.
    """
    opener = gzip.open if source.suffix == ".gz" else open
    with opener(source, "rt", encoding="utf-8") as file:
        found = {(r["title"], r["author"]): r["text"] for r in map(json.loads, file)}
    train: list[dict[str, str]] = []
    validation: list[dict[str, str]] = []
    for book in BOOKS:
        if (book.record_title, book.record_author) not in found:
            raise ValueError(f"{source} holds no {book.record_title!r} by {book.record_author!r}")
        text = plain(body(found[book.record_title, book.record_author], book))
        for records, pieces in zip((train, validation), split(documents(paragraphs(text))), strict=True):
            records += [{"text": piece, "title": book.title, "author": book.author} for piece in pieces]
    write(output / "train.jsonl.gz", train)
    write(output / "validation.jsonl.gz", validation)
    (output / "tokenizer.model").unlink(missing_ok=True)
    tokenizer_training.train_tokenizer(str(output / "train.jsonl.gz"), VOCAB_SIZE, output / "tokenizer.model")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="Project Gutenberg texts, .jsonl or .jsonl.gz")
    parser.add_argument("output", type=Path, help="directory of the three files")
    arguments = parser.parse_args()
    build(arguments.source, arguments.output)
