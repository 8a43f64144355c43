"""Fuzzy deduplication: against all pairs, whatever the parts, ranges and order; which copy stays; hard inputs."""

import gzip
import json
import pickle
import random

import numpy as np
import pytest

from scaling.corpus.duplicates import fuzzy, similar
from scaling.corpus.duplicates import shared as dup
from tests.corpus.near_duplicates import all_similar, connected, edited, found_pairs, parts_of, read_ids, write_parts
from tests.shared import SHARED, needs_shared

KNOBS = fuzzy.Fuzzy()


def deduplicated(folder, names, knobs=KNOBS):
    results = list(dup.run(fuzzy.steps(parts_of(folder, names), folder, knobs)))
    return results, {name: read_ids(folder / name) for name in names}


def sentences(numbers, words, vocabulary=3000):
    return " ".join(f"w{numbers.randrange(vocabulary)}" for _ in range(words))


def with_near_duplicates(numbers, count):
    """Texts of which most have an edited copy, and the copies have copies."""
    texts = [sentences(numbers, numbers.randrange(40, 300)) for _ in range(count)]
    for _ in range(count):
        texts.append(edited(numbers.choice(texts), numbers, numbers.uniform(0.6, 1)))
    numbers.shuffle(texts)
    return texts


def counts(results, step):
    total = {}
    for name, result in results:
        for key, value in result.items() if name == step else ():
            total[key] = total.get(key, 0) + value
    return total


def test_pairs_are_those_of_the_exhaustive_computation(tmp_path):
    texts = with_near_duplicates(random.Random(1), 600)
    write_parts(tmp_path / "in/a", texts, parts=3)
    results, kept = deduplicated(tmp_path, ("a",))
    truth, found = set(all_similar(texts, 5, 0.8)), found_pairs(tmp_path / "work", [400] * 3)
    assert len(truth) > 400
    assert found <= truth
    assert len(found) >= 0.97 * len(truth)
    assert len(kept["a"]) == len(set(connected(found, len(texts))))
    assert counts(results, "choose")["duplicates"] == len(texts) - len(kept["a"])


def test_parts_ranges_order_and_repetition_do_not_matter(tmp_path, monkeypatch):
    numbers = random.Random(2)
    texts = with_near_duplicates(numbers, 120)
    kept, files = [], []
    for name, parts, entries in (("one", 1, 10**6), ("three", 3, 700), ("again", 3, 10**6)):
        folder = tmp_path / name
        write_parts(folder / "in/a", texts[:160], parts)
        write_parts(folder / "in/b", texts[160:], parts)
        monkeypatch.setattr(dup, "ENTRIES", entries)
        steps = fuzzy.steps(parts_of(folder, ("a", "b")), folder, KNOBS)
        assert len(steps[1].inputs) == 1 + 240 * 15 // entries
        for step in pickle.loads(pickle.dumps(steps)):
            for task in numbers.sample(step.inputs, len(step.inputs)) + step.inputs[:1]:
                step.function(*task)
        kept.append([read_ids(folder / name) for name in ("a", "b")])
        files.append([path.read_bytes() for path in sorted(folder.glob("[ab]/*.parquet"))])
    assert kept[0] == kept[1] == kept[2] and sum(map(len, kept[0])) < 200
    assert files[1] == files[2]


def test_big_buckets_give_the_same_groups_as_all_pairs(tmp_path, monkeypatch):
    numbers = random.Random(3)
    base = [sentences(numbers, 150) for _ in range(6)]
    texts = [edited(numbers.choice(base), numbers, numbers.uniform(0.8, 1)) for _ in range(300)]
    groups = []
    for name, small in (("pairs", 10**6), ("rows", 1)):
        write_parts(tmp_path / name / "in/a", texts)
        monkeypatch.setattr(similar, "SMALL", min(small, 300))
        deduplicated(tmp_path / name, ("a",))
        groups.append(connected(found_pairs(tmp_path / name / "work", [300]), 300))
    np.testing.assert_array_equal(*groups)
    assert 6 < len(set(groups[0].tolist())) < 100


def test_ten_thousand_equal_and_three_thousand_nearly_equal_documents(tmp_path):
    numbers = random.Random(4)
    one, other = sentences(numbers, 100), sentences(numbers, 100)
    texts = [one.replace(" ", "," * (n % 7) + " ") for n in range(10_000)]
    texts += [f"{other} page {n}" for n in range(3000)]
    write_parts(tmp_path / "in/a", texts, parts=4)
    results, kept = deduplicated(tmp_path, ("a",), fuzzy.Fuzzy(keep="first"))
    assert kept["a"] == ["a/0", "a/10000"]
    assert counts(results, "buckets")["equal"] == 9999
    assert counts(results, "verify")["verified"] < 4000
    assert counts(results, "verify")["buckets cut"] == 0


def test_a_bucket_that_is_cut_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(similar, "LARGE", 100)
    text = sentences(random.Random(5), 200)
    write_parts(tmp_path / "in/a", [f"{text} page {n}" for n in range(250)])
    results, kept = deduplicated(tmp_path, ("a",))
    assert counts(results, "verify")["buckets cut"] > 0
    assert len(kept["a"]) == 1


def test_documents_without_words_and_short_ones(tmp_path):
    texts = [
        "",
        "",
        "?!",
        "a b c",
        "A, b c.",
        "a b d",
        "a b c d e",
        "a b c d e!",
        "a b c d f",
        "\u732b",
        "\u732b\u3002",
    ]
    write_parts(tmp_path / "in/a", texts)
    results, kept = deduplicated(tmp_path, ("a",), fuzzy.Fuzzy(keep="first"))
    assert kept["a"] == [f"a/{n}" for n in (0, 1, 2, 3, 5, 6, 8, 9)]
    assert counts(results, "sketch")["short"] == 8


def test_only_documents_without_words_and_empty_parts(tmp_path):
    write_parts(tmp_path / "in/a", ["", " "])
    write_parts(tmp_path / "in/b", [])
    assert deduplicated(tmp_path, ("a", "b"))[1] == {"a": ["a/0", "a/1"], "b": []}


def test_which_document_stays(tmp_path):
    text = sentences(random.Random(6), 300)
    texts = [text, f"{text} and more", f"{text} more"]
    for keep, expected in (("first", "a/0"), ("longest", "a/1"), ("quality", "a/2")):
        folder = tmp_path / keep
        write_parts(folder / "in/a", texts, quality=[0.2, 0.1, 0.3])
        write_parts(folder / "in/b", [f"{text} which is the longest of all"], quality=[0.9])
        results, kept = deduplicated(folder, ("a", "b"), fuzzy.Fuzzy(keep=keep))
        assert kept == {"a": [expected], "b": []}, keep
    assert dup.tally(results).counts == {"near-duplicate": 2, "near-duplicate of a document in a": 1}
    write_parts(tmp_path / "plain/in/a", texts)
    assert deduplicated(tmp_path / "plain", ("a",))[1] == {"a": ["a/1"]}, "no quality: the longest"


def test_the_order_of_data_sets_decides_first(tmp_path):
    text = sentences(random.Random(7), 300)
    write_parts(tmp_path / "in/crawl", [f"{text} and more", "something else"])
    write_parts(tmp_path / "in/web", [text])
    results, kept = deduplicated(tmp_path, ("crawl", "web"), fuzzy.Fuzzy(order=("web",)))
    assert kept == {"crawl": ["crawl/1"], "web": ["web/0"]}
    assert dup.tally(results).counts == {"near-duplicate of a document in web": 1}


def test_the_preset_of_gpt3_ignores_the_order_of_words(tmp_path):
    numbers = random.Random(8)
    words = sentences(numbers, 200, 10**6).split()
    shuffled = numbers.sample(words, len(words))
    write_parts(tmp_path / "in/a", [" ".join(words), f"{' '.join(shuffled)} too"])
    assert len(deduplicated(tmp_path, ("a",), fuzzy.Fuzzy(preset="gpt3"))[1]["a"]) == 1
    assert len(deduplicated(tmp_path, ("a",), KNOBS)[1]["a"]) == 2


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        (dict(preset="gpt4"), "fuzzy.preset='gpt4' is none of modern, gpt3"),
        (dict(keep="best"), "fuzzy.keep='best' is none of quality, longest, first"),
        (dict(bands=-1), "fuzzy.bands=-1 is below 0"),
        (dict(threshold=1.5), "fuzzy.threshold=1.5 is not between 0 and 1"),
    ],
)
def test_wrong_knobs_are_refused(tmp_path, knobs, said):
    with pytest.raises(ValueError, match=said):
        fuzzy.steps({}, tmp_path, fuzzy.Fuzzy(**knobs))


def test_knobs_of_a_preset_can_be_replaced():
    assert fuzzy.resolved(fuzzy.Fuzzy(preset="gpt3", bands=10, rows=1)) == fuzzy.Fuzzy("gpt3", 1, 10, 1, 0.8)


@pytest.mark.slow
def test_two_documents_of_50_megabytes(tmp_path):
    numbers = np.random.default_rng(9)
    words = numbers.integers(0, 10**6, 7_500_000).astype("U7")
    text = " ".join(words.tolist())
    assert len(text) > 50_000_000
    write_parts(tmp_path / "in/a", ["small", text, f"one more {text}"])
    assert deduplicated(tmp_path, ("a",))[1]["a"] == ["a/0", "a/2"]


def records(path):
    return [json.loads(line) for line in gzip.open(SHARED / path, "rt", encoding="utf-8") if line.strip()]


@needs_shared("data/more/corpus/neardup/articles_100.jsonl.gz")
@pytest.mark.parametrize("preset", ["modern", "gpt3"])
def test_all_truth_pairs_of_the_articles_are_found(tmp_path, preset):
    rows = records("data/more/corpus/neardup/articles_100.jsonl.gz")
    number = {row["id"]: place for place, row in enumerate(rows)}
    truth = {tuple(sorted((number[row["id"]], number[row["duplicate_of"]]))) for row in rows if row["duplicate_of"]}
    write_parts(tmp_path / "in/a", [row["text"] for row in rows])
    _, kept = deduplicated(tmp_path, ("a",), fuzzy.Fuzzy(preset=preset))
    assert found_pairs(tmp_path / "work", [100]) == truth and len(truth) == 5
    assert len(kept["a"]) == 95


@needs_shared("data/c4/c4_en_sample.jsonl.gz")
def test_recall_and_precision_on_web_pages_with_planted_near_duplicates(tmp_path):
    numbers = random.Random(10)
    texts = [row["text"] for row in records("data/c4/c4_en_sample.jsonl.gz")]
    long = [text for text in texts if len(text.split()) >= 100]
    texts += [edited(text, numbers, numbers.uniform(0.7, 1)) for text in numbers.sample(long, 400)]
    write_parts(tmp_path / "in/a", texts, parts=2)
    deduplicated(tmp_path, ("a",))
    truth, found = set(all_similar(texts, 5, 0.8)), found_pairs(tmp_path / "work", [800, 800])
    assert len(truth) > 200 and found <= truth and len(found) >= 0.95 * len(truth)


@pytest.mark.slow
@needs_shared("data/books/gutenberg_books.jsonl.gz")
def test_books_that_are_there_twice(tmp_path):
    rows = records("data/books/gutenberg_books.jsonl.gz")
    first: dict[str, int] = {}
    twice = {(first[row["blob"]], n) for n, row in enumerate(rows) if first.setdefault(row["blob"], n) != n}
    write_parts(tmp_path / "in/a", [row["text"] for row in rows])
    deduplicated(tmp_path, ("a",))
    assert found_pairs(tmp_path / "work", [len(rows)]) == twice and len(twice) == 8
