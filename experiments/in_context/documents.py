"""Documents for in-context learning: strings and their codes, by a code book that changes with each document.

    python experiments/in_context/documents.py data/in_context

A code book gives each of eight letters one of its three code letters ("a" is written A, I or Q). Each document draws
a code book and shows 16 strings of three letters with their codes, such as "hcf PCN". Training can teach which three
codes a letter may have; only the examples in a document show which of them is used there. A perfect reader answers 6 %
of the strings without an example, 20 % after one (the codes of its letters are then known), 99.6 % after 15.
A document with its end-of-text token is 128 bytes, so that each training sequence is one document.

100 of the 512 strings, and 20 of the 6,561 code books, never occur in training documents. The directory gets

* ``train.jsonl``: documents of the other strings and code books;
* ``validation.jsonl``: documents of held-out strings and code books;
* ``test.jsonl``, ``demonstrations.jsonl``: held-out and other strings with their codes by each held-out code book,
  for the tasks in ``experiments/in_context/tasks/code_books.toml``.

Machine: one CPU core, a few seconds. The same seed gives the same files.
"""

import argparse
import dataclasses
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

ALPHABET = "abcdefgh"
CODES = 3  # of a letter
LENGTH = 3  # letters of a string
EXAMPLES = 16  # in a document; with a space and a line end each, 128 bytes
HELD_OUT_STRINGS = 100
HELD_OUT_BOOKS = 20

CodeBook = Mapping[str, str]  # letter -> its code letter

_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWX"


def all_strings() -> list[str]:
    return ["".join(letters) for letters in itertools.product(ALPHABET, repeat=LENGTH)]


def all_books() -> list[CodeBook]:
    """All code books. Letter number i has the codes number i, i + 8 and i + 16, so no two letters share a code."""
    codes = [_UPPER[place :: len(ALPHABET)] for place in range(len(ALPHABET))]
    return [dict(zip(ALPHABET, chosen, strict=True)) for chosen in itertools.product(*codes)]


def encode(book: CodeBook, string: str) -> str:
    return "".join(map(book.__getitem__, string))


@dataclasses.dataclass(frozen=True)
class Split:
    """The strings and code books of training documents, and those that are held out."""

    strings: Sequence[str]
    books: Sequence[CodeBook]
    held_out_strings: Sequence[str]
    held_out_books: Sequence[CodeBook]


def split(seed: int) -> Split:
    rng = random.Random(f"split/{seed}")
    strings, books = all_strings(), all_books()
    rng.shuffle(strings)
    rng.shuffle(books)
    return Split(strings[HELD_OUT_STRINGS:], books[HELD_OUT_BOOKS:], strings[:HELD_OUT_STRINGS], books[:HELD_OUT_BOOKS])


def documents(strings: Sequence[str], books: Sequence[CodeBook], count: int, seed: str) -> Iterator[dict[str, str]]:
    """Records with the key ``text``: ``EXAMPLES`` different strings with their codes by one code book."""
    rng = random.Random(seed)
    for _ in range(count):
        book = rng.choice(books)
        yield {"text": "\n".join(f"{string} {encode(book, string)}" for string in rng.sample(strings, EXAMPLES))}


def items(strings: Sequence[str], books: Sequence[CodeBook]) -> Iterator[dict[str, str]]:
    """Records with the keys ``string`` and ``book_00``, ``book_01``, ...: its code by each code book."""
    for string in strings:
        yield {"string": string} | {f"book_{n:02}": encode(book, string) for n, book in enumerate(books)}


def write(directory: Path, train: int, seed: int) -> None:
    """Writes the four files, ``train`` documents and a twentieth as many for validation."""
    directory.mkdir(parents=True, exist_ok=True)
    parts = split(seed)
    validation = max(1, train // 20)
    files: dict[str, Iterable[dict[str, str]]] = {
        "train": documents(parts.strings, parts.books, train, f"train/{seed}"),
        "validation": documents(parts.held_out_strings, parts.held_out_books, validation, f"validation/{seed}"),
        "test": items(parts.held_out_strings, parts.held_out_books),
        "demonstrations": items(parts.strings, parts.held_out_books),
    }
    for name, records in files.items():
        with (directory / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes documents for in-context learning, and items to test it.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--documents", type=int, default=40_000, help="training documents, 128 bytes each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.directory, options.documents, options.seed)


if __name__ == "__main__":
    main()
