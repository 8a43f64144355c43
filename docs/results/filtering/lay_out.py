"""Lays out the folder that experiments/data/filtering.py reads, of real text, with a crawl whose parts are known.

    python docs/results/filtering/lay_out.py DATA FOLDER

DATA holds ``books``, ``wikipedia``, ``c4`` and ``more`` (see README.md beside this file). Documents are JSON Lines with
an id that begins with the kind of the document, so that one can see what a filter keeps. Books are split by author,
everything else by document: what is held out, curated, in the crawl, and in the sample of the crawl that the classifier
learns from has no document in common with the others, but for the copies that the crawl is given.
"""

import gzip
import html
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

CRAWL = 2_000_000  # bytes of text; the sample for the classifier has as many
SHARES = {  # of the crawl's bytes
    "c4": 0.38,
    "wikipedia": 0.14,
    "books": 0.05,
    "languages": 0.14,
    "code": 0.06,
    "html": 0.05,
    "shuffled": 0.04,
    "boilerplate": 0.04,
    "copy": 0.06,
    "edited": 0.04,
}
CURATED = {"books": 300_000, "wikipedia": 250_000}
HELD_OUT = 150_000
FILES = 16  # of the crawl, of about equal size
Document = tuple[str, str]  # id and text


def _records(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def _books(data: Path, draw: random.Random) -> list[list[Document]]:
    """Passages of about 2,000 characters, in lists of one author each; of equal texts the first counts."""
    found: dict[str, list[Document]] = {}
    seen = set()
    for number, book in enumerate(_records(data / "books/gutenberg_books.jsonl.gz")):
        text = book["text"].replace("\r\n", "\n")
        text = re.split(r"\*\*\* ?START OF[^\n]*\n", text)[-1]
        text = re.split(r"\*\*\* ?END OF|End of (the )?Project Gutenberg", text)[0]
        if text[5000:9000] in seen:
            continue
        seen.add(text[5000:9000])
        passages = [""]
        for paragraph in re.split(r"\n\s*\n", text[len(text) // 20 : -len(text) // 20]):
            passages[-1] += re.sub(r"\s+", " ", paragraph).strip() + "\n\n"
            if len(passages[-1]) > 2000:
                passages.append("")
        # At most 60 kB of a book, so that no book is all of a set.
        chosen = draw.sample(passages[:-1], min(30, len(passages) - 1))
        found.setdefault(book["author"], []).extend((f"books-{number}-{n}", text) for n, text in enumerate(chosen))
    authors = list(found.values())
    draw.shuffle(authors)
    return authors


def _languages(data: Path) -> Iterator[Document]:
    for one in _records(data / "more/corpus/udhr_by_language.jsonl.gz"):
        if one["lang"] != "eng":
            yield f"languages-udhr-{one['lang']}", one["text"]
    lines = _records(data / "more/multilingual/ntrex_parallel.jsonl.gz")
    for language in sorted(set(lines[0]) - {"id", "eng"}):
        for first in range(0, len(lines), 15):
            text = " ".join(line[language].strip() for line in lines[first : first + 15])
            yield f"languages-news-{language}-{first}", text


def _html(data: Path) -> Iterator[tuple[Document, list[str]]]:
    """All text of pages, with menus and footers, and their short lines."""
    for number, page in enumerate(_records(data / "more/corpus/html_gold/article_extraction_benchmark.jsonl.gz")):
        text = re.sub(r"(?is)<(script|style|noscript)\b.*?</\1>|<!--.*?-->", " ", page["html"])
        text = html.unescape(re.sub(r"(?s)<[^>]*>", "\n", text))
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        yield (f"html-{number}", "\n".join(lines)), [line for line in lines if len(line) < 60]


def _kinds(data: Path, draw: random.Random) -> dict[str, list[Document]]:
    """Documents by kind, in random order; those that are held out and curated are still among them."""
    found = {}
    for name, path in (("wikipedia", "wikipedia/enwiki_sample"), ("c4", "c4/c4_en_sample")):
        records = _records(data / f"{path}.jsonl.gz")
        found[name] = [(f"{name}-{one['id']}", one["text"]) for one in records if len(one["text"]) > 200]
    found["languages"] = list(_languages(data))
    code = _records(data / "more/corpus/code/thealgorithms.jsonl.gz")
    found["code"] = [(f"code-{number}", one["content"]) for number, one in enumerate(code)]
    pages = list(_html(data))
    found["html"] = [document for document, _ in pages]
    lines = sorted({line for _, some in pages for line in some})
    found["boilerplate"] = [(f"boilerplate-{n}", "\n".join(draw.choices(lines, k=60))) for n in range(400)]
    for documents in found.values():
        draw.shuffle(documents)
    return found


def _take(documents: list[Document], size: float) -> list[Document]:
    """Takes documents off the end of a list until they have so many bytes."""
    taken, total = [], 0
    while total < size:
        taken.append(documents.pop())
        total += len(taken[-1][1].encode())
    return taken


def _edited(text: str, draw: random.Random) -> str:
    """A near copy: another first line, and one word in 100 is another one of the text."""
    words = text.split(" ")
    for place in draw.sample(range(len(words)), len(words) // 100):
        words[place] = draw.choice(words)
    return f"Posted on {draw.randint(1, 28)} May {draw.randint(2001, 2019)} by admin.\n" + " ".join(words)


def _crawl(kinds: dict[str, list[Document]], books: list[Document], draw: random.Random) -> list[Document]:
    """A crawl by ``SHARES``."""
    kinds = kinds | {"books": books}
    mine = {name: _take(kinds[name], SHARES[name] * CRAWL) for name in SHARES if name in kinds}
    half = SHARES["shuffled"] * CRAWL / 2
    shuffled = [text.split() for _, text in _take(kinds["c4"], half) + _take(kinds["wikipedia"], half)]
    for words in shuffled:
        draw.shuffle(words)
    mine["shuffled"] = [(f"shuffled-{number}", " ".join(words)) for number, words in enumerate(shuffled)]
    every = [document for documents in mine.values() for document in documents]
    for kind, change in (("copy", lambda text: text), ("edited", lambda text: _edited(text, draw))):
        again = draw.sample(every, len(every))
        copies = _take(again, SHARES[kind] * CRAWL)
        mine[kind] = [(f"{kind}-{number}-of-{id}", change(text)) for number, (id, text) in enumerate(copies)]
    for kind, documents in mine.items():
        print(f"  {kind:12}{len(documents):6} documents {sum(len(text.encode()) for _, text in documents):9,} bytes")
    # Each kind is spread evenly, so that each file of the crawl has about the same share of it.
    placed = [
        ((number + draw.random()) / len(documents), document)
        for documents in mine.values()
        for number, document in enumerate(documents)
    ]
    return [document for _, document in sorted(placed)]


def _write(path: Path, documents: list[Document]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        file.writelines((json.dumps({"id": id, "text": text}) + "\n").encode() for id, text in documents)


def main(data: Path, folder: Path) -> None:
    """Writes the folder, and prints what the crawl is made of."""
    draw = random.Random(0)
    kinds, authors = _kinds(data, draw), _books(data, draw)
    # Authors: a fifth held out, two fifths curated, and a fifth in each crawl.
    fifth = len(authors) // 5
    groups = [authors[:fifth], authors[fifth : 3 * fifth], authors[3 * fifth : 4 * fifth], authors[4 * fifth :]]
    held, curated, first, second = ([one for author in group for one in author] for group in groups)
    for books in (held, curated, first, second):
        draw.shuffle(books)
    # Books and Wikipedia by turns, so that the beginning has as much of both.
    halves = _take(held, HELD_OUT / 2), _take(kinds["wikipedia"], HELD_OUT / 2)
    longest = max(map(len, halves))
    _write(folder / "held_out.jsonl.gz", [half[n] for n in range(longest) for half in halves if n < len(half)])
    _write(folder / "books/books.jsonl.gz", _take(curated, CURATED["books"]))
    _write(folder / "wikipedia/wikipedia.jsonl.gz", _take(kinds["wikipedia"], CURATED["wikipedia"]))
    print("crawl")
    crawl = _crawl(kinds, first, draw)
    filled, number = 0, 0
    files: list[list[Document]] = [[] for _ in range(FILES)]
    for id, text in crawl:
        files[number].append((id, text))
        filled += len(text.encode())
        number = min(FILES - 1, int(filled / CRAWL * FILES))
    for number, documents in enumerate(files):
        _write(folder / f"crawl/{number:02d}.jsonl.gz", documents)
    print("sample of the crawl for the classifier")
    _write(folder / "crawl_sample/crawl_sample.jsonl.gz", _crawl(kinds, second, draw))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: lay_out.py DATA FOLDER")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
