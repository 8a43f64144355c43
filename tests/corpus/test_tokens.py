"""Token directories of parts are those of the text itself, whatever the order in which the parts were encoded."""

import random

import numpy as np
import pytest

from scaling.corpus import documents as parts
from scaling.corpus.output import tokens
from scaling.data import shards
from scaling.data.prepare import prepare
from scaling.data.tokenizer import load
from tests.shared import SHARED, needs_shared

RANKS = SHARED / "data/tokenizer/r50k_base.tiktoken"


def write_parts(folder, counts, words=400):
    """Parts of documents with numbers of words up to ``words``; some are empty."""
    rng, paths = random.Random(0), []
    for number, count in enumerate(counts):
        texts = [
            "".join(rng.choice(["a ", "\u5b66", "Two, ", "\n"]) for _ in range(rng.randrange(1, words)))
            for _ in range(count)
        ]
        texts[::7] = [""] * len(texts[::7])
        ids = [f"{number}-{i}" for i in range(count)]
        paths.append(folder / f"f000000-{number:05d}.parquet")
        columns = {"id": ids, "text": texts, "file": ids, "place": range(count), "url": ids}
        parts.write(parts.table(columns), paths[-1])
    return paths


def built(paths, words, folder, order):
    for number in order:
        stream, _ = tokens.encode(parts.read(paths[number]), words)
        tokens.write(stream, folder / f"{paths[number].stem}.npy")
    return tokens.join(sorted(folder.glob("*.npy")), words, folder / "tokens")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["bytes", "books", pytest.param(str(RANKS), marks=needs_shared("data/tokenizer"))])
def test_equal_to_tokenizing_the_text_in_any_order_of_parts(tmp_path, name):
    words, found = load(name), []
    paths = write_parts(tmp_path, [50, 3, 0, 120])
    for number, order in enumerate([(0, 1, 2, 3), (3, 1, 0, 2)]):
        (tmp_path / f"{number}").mkdir()
        index = built(paths, words, tmp_path / f"{number}", order)
        found.append(content(tmp_path / f"{number}/tokens"))
    expected = prepare(str(tmp_path / "*.parquet"), words, tmp_path / "expected")
    assert found[0] == found[1] == content(expected)
    assert index == shards.read_index(expected) and index.documents == 173 - 8 - 1 - 18
    shards.verify(tmp_path / "0/tokens")


def test_the_tally_counts_tokens_and_names_empty_documents(tmp_path):
    (path,) = write_parts(tmp_path, [30])
    stream, tally = tokens.encode(parts.read(path), load("bytes"))
    assert tally.counts == {"documents": 25, "tokens": stream.size, "empty": 5}
    assert (stream == 256).sum() == 25 and stream[-1] == 256
    assert {id for _, id, _ in tally.examples["empty"]} < {"0-0", "0-7", "0-14", "0-21", "0-28"}


def test_a_token_directory_is_replaced_as_a_whole(tmp_path):
    words = load("bytes")
    tokens.write(np.array([1, 2, 256], np.uint16), tmp_path / "a.npy")
    tokens.write(np.array([3, 256], np.uint16), tmp_path / "b.npy")
    tokens.join([tmp_path / "a.npy"], words, tmp_path / "tokens")
    assert tokens.join([tmp_path / "a.npy", tmp_path / "b.npy"], words, tmp_path / "tokens").tokens == 5
    assert shards.TokenDataset(tmp_path / "tokens", 4)[0].tolist() == [1, 2, 256, 3, 256]
    assert {path.name for path in tmp_path.iterdir()} == {"a.npy", "b.npy", "tokens"}


def test_mistakes(tmp_path):
    words = load("bytes")
    tokens.write(np.empty(0, np.uint16), tmp_path / "a.npy")
    with pytest.raises(ValueError, match="no document is left for"):
        tokens.join([tmp_path / "a.npy"], words, tmp_path / "tokens")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]
    assert tokens.load("bytes", words.fingerprint).fingerprint == words.fingerprint
    with pytest.raises(ValueError, match="tokenizer bytes has changed since the build began"):
        tokens.load("bytes", "another")
