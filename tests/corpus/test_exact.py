"""Exact deduplication: what counts as the same text, which copy stays, independence of parts and order."""

import hashlib
import pickle
import random

import numpy as np
import pyarrow as pa
import pytest

from scaling.corpus import documents
from scaling.corpus.duplicates import exact
from scaling.corpus.duplicates import shared as dup
from tests.corpus.near_duplicates import parts_of, read_ids, write_parts

KNOBS = exact.Exact()


def deduplicated(folder, names, knobs=KNOBS):
    results = list(dup.run(exact.steps(parts_of(folder, names), folder, knobs)))
    return dup.tally(results), {name: read_ids(folder / name) for name in names}


def test_white_space_and_composition_do_not_count_case_and_punctuation_do():
    same = ["a b", " a\n\tb ", "a\u00a0\u3000b\u2028", "a\x0b\x0c\x1c\x85b"]
    assert exact.same(pa.array(same, pa.large_string())).to_pylist() == ["a b"] * 4
    composed = pa.array(["caf\u00e9", "cafe\u0301"], pa.large_string())
    assert len(set(exact.same(composed).to_pylist())) == 1
    others = ["a b", "A b", "a b.", "ab", ""]
    assert len(set(exact.same(pa.array(others, pa.large_string())).to_pylist())) == 5


def test_the_first_copy_stays_in_order_of_data_sets(tmp_path):
    write_parts(tmp_path / "in/crawl", ["one", "two", "two ", "three"], parts=2)
    write_parts(tmp_path / "in/web", ["zero", "three", "one"])
    tally, kept = deduplicated(tmp_path, ("crawl", "web"))
    assert kept == {"crawl": ["crawl/0", "crawl/1", "crawl/3"], "web": ["web/0"]}
    assert tally.counts == {"exact duplicate": 1, "exact duplicate of a document in crawl": 2}
    assert (tally.documents_in, tally.documents_out, tally.bytes_in, tally.bytes_out) == (7, 4, 27, 15)
    assert tally.examples["exact duplicate"][0][1:] == ("crawl/2", "two ")


def test_webtext_is_removed_from_common_crawl(tmp_path):
    write_parts(tmp_path / "in/crawl", ["one", "two", "three"])
    write_parts(tmp_path / "in/web", ["zero", "three", "one"])
    tally, kept = deduplicated(tmp_path, ("crawl", "web"), exact.Exact(order=("web",)))
    assert kept == {"crawl": ["crawl/1"], "web": ["web/0", "web/1", "web/2"]}
    assert tally.counts == {"exact duplicate of a document in web": 2}


def test_parts_partitions_and_order_of_tasks_do_not_matter(tmp_path, monkeypatch):
    numbers = random.Random(1)
    texts = [str(numbers.randrange(300)) for _ in range(1000)]
    kept = []
    for parts, entries in ((1, 10**6), (7, 100)):
        folder = tmp_path / str(parts)
        write_parts(folder / "in/a", texts[:600], parts)
        write_parts(folder / "in/b", texts[600:], parts)
        monkeypatch.setattr(dup, "ENTRIES", entries)
        steps = exact.steps(parts_of(folder, ("a", "b")), folder, exact.Exact())
        assert len(steps[1].inputs) == 1 + 1000 // entries
        for step in pickle.loads(pickle.dumps(steps)):
            for task in numbers.sample(step.inputs, len(step.inputs)):
                step.function(*task)
        kept.append([read_ids(folder / name) for name in ("a", "b")])
    assert kept[0] == kept[1]
    first = {text: place for place, text in reversed(list(enumerate(texts)))}
    expected = sorted(first.values())
    assert kept[0][0] == [f"a/{n}" for n in expected if n < 600]
    assert kept[0][1] == [f"b/{n - 600}" for n in expected if n >= 600]


def test_digests_are_those_of_the_texts(tmp_path):
    write_parts(tmp_path / "in", ["x", "", "e\u0301 \U0001f600"])
    exact.digests(tmp_path, dup.Part(3, tmp_path / "in/f000000-00000.parquet", tmp_path))
    upper, lower, keys = np.load(dup.path_of(tmp_path, "digests", 3))
    found = {int(key) & 0xFFFFFFFF: (int(a) << 64) | int(b) for a, b, key in zip(upper, lower, keys, strict=True)}
    for row, text in enumerate(["x", "", "e\u0301 \U0001f600"]):
        assert found[row] == int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")
    assert set(keys >> np.uint64(32)) == {3} and list(upper) == sorted(upper)


def test_empty_parts_and_data_sets_without_parts(tmp_path):
    write_parts(tmp_path / "in/a", [], parts=1)
    (tmp_path / "in/b").mkdir()
    tally, kept = deduplicated(tmp_path, ("a", "b"))
    assert kept == {"a": [], "b": []} and tally.documents_in == 0
    assert documents.read(tmp_path / "a/f000000-00000.parquet").num_rows == 0


@pytest.mark.parametrize(
    ("order", "said"), [(("webtxt",), "'webtxt', which is none of a, b"), (("a", "a"), "names a data set twice")]
)
def test_a_wrong_order_is_refused(tmp_path, order, said):
    write_parts(tmp_path / "in/a", ["x"])
    write_parts(tmp_path / "in/b", ["x"])
    with pytest.raises(ValueError, match=said):
        exact.steps(parts_of(tmp_path, ("a", "b")), tmp_path, exact.Exact(order=order))
    assert not (tmp_path / "work").exists()
