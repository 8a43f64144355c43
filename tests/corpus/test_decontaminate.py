"""GPT-3's rule: the grams of items are cut with their windows, and everything else stays, character by character."""

import dataclasses
import gzip
import json
import random
import re

import numpy as np
import pyarrow as pa
import pytest

from scaling.corpus import documents as parts
from scaling.corpus.decontaminate import (
    Decontaminate,
    Found,
    Wanted,
    collect,
    combine,
    decontaminate,
    find,
    read_common,
    write_common,
)
from scaling.evaluate.contamination.grams import Grams, words_of
from scaling.evaluate.contamination.search import item_texts
from scaling.evaluate.tasks.catalogue import find_tasks
from tests.shared import SHARED, needs_shared

ITEM = " ".join(f"item{i}" for i in range(20))
KNOBS = Decontaminate()
OTHER = " ".join(f"other{i}" for i in range(13))


def table(*texts):
    ids = [f"d{i}" for i in range(len(texts))]
    columns = {
        "id": ids,
        "text": texts,
        "file": ["f"] * len(texts),
        "place": range(len(texts)),
        "url": [""] * len(texts),
    }
    return parts.table(columns)


def filler(seed, words):
    rng = random.Random(seed)
    return " ".join(
        rng.choice(["one,", "two", "Thr\u00e9e.", "\u5b66 four\n", "five-six", "\ufb01sh"]) for _ in range(words)
    )


def wanted(**tasks):
    """As ``collect``, of texts."""
    numbers = {}
    owned = [
        (number, np.array([numbers.setdefault(w, len(numbers) + 1) for w in words_of(text)], np.uint32))
        for number, texts in enumerate(tasks.values())
        for text in texts
    ]
    return Wanted(tuple(tasks), numbers, Grams.of(owned, 13))


def run(documents, items, knobs=KNOBS):
    found = find(documents, items)
    common, _ = combine([found], items, knobs)
    left, tally = decontaminate(documents, knobs, items, found, common)
    return dict(zip(left["id"].to_pylist(), left["text"].to_pylist(), strict=True)), tally


def test_a_gram_is_cut_with_its_window_and_splits_the_document():
    before, after = filler(1, 300), filler(2, 300)
    clean = filler(3, 100)
    left, tally = run(table(f"{before} {ITEM.upper()}! {after}", clean), wanted(a=[ITEM], b=[OTHER]))
    cut = len(f"{before} ") - 200
    assert left == {"d0#1": before[:cut], "d0#2": (" " + after)[200:], "d1": clean}
    assert tally.counts == {
        "a: grams found": 8,
        "a: documents touched": 1,
        "a: windows cut": 1,
        "documents cut": 1,
        "windows cut": 1,
        "short pieces discarded": 0,
    }


def test_windows_that_meet_are_one_and_belong_to_both_tasks():
    gap = "x" * 399  # with the spaces, 401 characters: the windows do not meet
    for size, windows in ((399, 2), (398, 1)):
        text = f"{filler(1, 200)} {ITEM} {gap[:size]} {OTHER} {filler(2, 200)}"
        left, tally = run(table(text), wanted(a=[ITEM], b=[OTHER]))
        assert list(left) == ["d0#1", "d0#2"] and tally.counts["windows cut"] == windows
        assert tally.counts["a: windows cut"] == tally.counts["b: windows cut"] == 1
        assert tally.counts["short pieces discarded"] == windows - 1  # one character is between the two


def test_an_item_must_have_thirteen_words_in_a_row():
    words = ITEM.split()
    texts = [" ".join(words[:12]), " ".join([*words[:12], "x", *words[12:]]), f"{filler(4, 90)} {' '.join(words[:13])}"]
    left, _ = run(table(*texts), wanted(a=[ITEM]))
    assert list(left) == ["d0", "d1", "d2#1"]
    assert run(table(ITEM), wanted(a=[" ".join(words[:12])]))[0] == {"d0": ITEM}


def test_short_documents_and_documents_in_many_pieces_are_discarded():
    def many(count):
        return f" {ITEM} ".join(filler(i, 150) for i in range(count))

    left, tally = run(table(f"short {ITEM}", many(10), many(11)), wanted(a=[ITEM]))
    assert list(left) == [f"d1#{number}" for number in range(1, 11)]
    assert tally.counts["no piece is long enough"] == 1
    assert tally.counts["split into more than 10 pieces"] == 1
    assert (tally.counts["a: documents discarded"], tally.counts["a: windows cut"]) == (2, 9)
    assert [one[1] for one in tally.examples["split into more than 10 pieces"]] == ["d2"]


@pytest.mark.parametrize("count", [10, 11])
def test_grams_of_more_than_ten_documents_of_all_parts_are_ignored(count):
    text = f"{filler(1, 100)} {OTHER} {OTHER} {filler(2, 100)}"
    items, knobs = wanted(a=[OTHER, ITEM]), Decontaminate()
    first, second = table(*[text] * 6, f"{ITEM} {filler(3, 100)}"), table(*[text] * (count - 6))
    found = [find(part, items) for part in (first, second)]
    common, tally = combine(found, items, knobs)
    assert tally.counts == {"a: different grams found": 9, "a: common grams ignored": int(count > 10)}
    left, _ = decontaminate(first, knobs, items, found[0], common)
    assert ("d0" in left["id"].to_pylist()) == (count > 10) and "d6#1" in left["id"].to_pylist()
    if count > 10:
        assert decontaminate(second, knobs, items, found[1], common)[0].equals(second)


def test_all_other_columns_stay():
    documents = table(filler(1, 50), f"{filler(2, 90)} {ITEM} {filler(3, 90)}", filler(4, 50))
    documents = parts.with_column(documents, "quality", pa.array([0.1, 0.2, 0.3]))
    items = wanted(a=[ITEM])
    found = find(documents, items)
    left, _ = decontaminate(documents, Decontaminate(), items, found, np.zeros(len(items.grams.rows), bool))
    assert left.schema == documents.schema
    assert left["quality"].to_pylist() == [0.1, 0.2, 0.2, 0.3] and left["place"].to_pylist() == [0, 1, 1, 2]


def test_files_hold_what_was_written_with_the_same_bytes(tmp_path):
    items = wanted(a=[ITEM], b=[OTHER, ITEM])
    found = find(table(f"{filler(1, 50)} {ITEM}", OTHER), items)
    for name, value, kind in (("wanted", items, Wanted), ("found", found, Found)):
        value.write(tmp_path / name)
        again = kind.read(tmp_path / name)
        again.write(tmp_path / f"{name}2")
        assert (tmp_path / name).read_bytes() == (tmp_path / f"{name}2").read_bytes()
    assert again.starts.tolist() == found.starts.tolist() != []
    assert Wanted.read(tmp_path / "wanted").numbers == items.numbers
    write_common(np.array([True, False]), tmp_path / "common")
    assert read_common(tmp_path / "common").tolist() == [True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ""}, "no task is named"),
        ({"tasks": "lambda"}, "did you mean lambada"),
        ({"words": 0}, "decontaminate.words must be at least 1, not 0"),
        ({"window": -1}, "decontaminate.window must be 0 or more, not -1"),
    ],
)
def test_mistakes(change, message):
    with pytest.raises(ValueError, match=message):
        collect(dataclasses.replace(Decontaminate(tasks="lambada"), **change))


def planted(text, items, rng):
    """A text with items at random places between words, and what must remain of it: the text without the windows."""
    places = sorted(rng.sample([i for i, c in enumerate(text) if c == " "], len(items)))
    made, windows, done = "", [], 0
    for place, item in zip(places, items, strict=True):
        made += text[done : place + 1]
        words = [word for word in re.finditer(r"\S+", item) if re.search(r"[^\W_]", word[0])]
        windows.append([len(made) + words[0].start() - 200, len(made) + words[-1].end() + 200])
        made += item
        done = place
    made += text[done:]
    cut = {place for start, stop in windows for place in range(max(0, start), min(stop, len(made)))}
    pieces = "".join("\0" if place in cut else c for place, c in enumerate(made)).split("\0")
    return made, [piece for piece in pieces if len(piece) >= 200]


@needs_shared("data/eval/llm_foundry/lambada_openai.jsonl")
@needs_shared("data/wikipedia/enwiki_sample.jsonl.gz")
def test_planted_items_of_real_tasks_are_cut_and_nothing_else():
    data, rng = SHARED / "data", random.Random(0)
    knobs = Decontaminate(tasks="lambada,boolq,piqa", data=str(data / "eval/llm_foundry"))
    items, tally = collect(knobs)
    assert tally.counts["lambada: items"] == 5153 and tally.counts["lambada: items without a gram"] < 100
    shuffled = [
        text.strip() for texts, _ in item_texts(find_tasks(knobs.tasks), knobs.data).values() for text in texts.values()
    ]
    rng.shuffle(shuffled)
    long = iter(text for text in shuffled if len(words_of(text)) >= 13)
    with gzip.open(data / "wikipedia/enwiki_sample.jsonl.gz", "rt") as file:
        texts = [json.loads(next(file))["text"] for _ in range(150)]
    texts = [text for text in texts if len(text) > 1000]
    clean = find(table(*texts), items)
    texts = [text for row, text in enumerate(texts) if row not in clean.rows]  # some have items of their own
    expected, made = {}, []
    for number, text in enumerate(texts):
        count = rng.choice([0, 1, 1, 2, 3])
        whole, pieces = planted(text, [next(long) for _ in range(count)], rng) if count else (text, [text])
        made.append(whole)
        expected |= {f"d{number}{f'#{n}' * (count > 0)}": piece for n, piece in enumerate(pieces, start=1)}
    left, tally = run(table(*made), items, knobs)
    assert left == expected
    assert tally.counts["lambada: documents touched"] > 10 and tally.counts["boolq: windows cut"] > 10
