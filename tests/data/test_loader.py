import gc
import json
import shutil
import threading
import time

import fsspec
import numpy as np
import pytest

from scaling.config.schema import Data
from scaling.data import loader, prepare, shards, tokenizer
from scaling.data.batch import of_sequences
from scaling.data.sources import Document

BYTES = tokenizer.ByteTokenizer()
T = 32


def write_documents(path, count, letter="x"):
    """Documents whose every sequence differs: numbers up to count, with a letter to tell sources apart."""
    path.write_text("".join(json.dumps({"text": f"{letter}{i:06d}" * 8}) + "\n" for i in range(count)))
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loader")
    return Data(
        train=write_documents(folder / "a.jsonl", 300),
        validation_fraction=0.1,
        tokenizer="bytes",
        cache_dir=str(folder / "cache"),
    )


@pytest.fixture(scope="module")
def training(data):
    return loader.training_set(data, BYTES, T, seed=7)


def span(step):
    """A ramp: 4, 4, 8, 8, 12, 12, 12, ... sequences."""
    counts = [4, 4, 8, 8]
    return sum(counts[:step]) + max(0, step - 4) * 12, counts[step] if step < 4 else 12


def batches(dataset, rows=range(4), start=0, stop=10, workers=2, prefetch=4):
    return loader.batches(loader.Steps(dataset, span, np.array(rows), 4, 3), start, stop, workers, prefetch)


def test_an_epoch_holds_every_sequence_once_and_epochs_differ(training):
    n = training.sequences
    epochs = [[training[e * n + i].tobytes() for i in range(n)] for e in range(3)]
    assert all(len(set(epoch)) == n for epoch in epochs)
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]
    assert training.tokens // T >= n >= training.tokens // T - 1


def test_order_is_a_function_of_the_seed(data, training):
    again, other, next_seed = (loader.training_set(data, BYTES, T, seed) for seed in (7, 123, 8))
    order = [[ds[i].tobytes() for i in range(training.sequences)] for ds in (training, again, other, next_seed)]
    assert order[0] == order[1]
    assert order[0] != order[2]
    second_epoch = [training[training.sequences + i].tobytes() for i in range(training.sequences)]
    assert order[3] != second_epoch  # seeds are not epochs
    assert training.fingerprint == again.fingerprint != other.fingerprint


def test_far_elements_are_as_quick_as_near_ones(training):
    start = time.monotonic()
    for i in range(10**12, 10**12 + 50):
        training[i]
    assert time.monotonic() - start < 1


def test_train_and_validation_share_no_document(data):
    texts = {}
    for split in ("train", "validation"):
        directory, part = prepare.cached(data, BYTES, split)
        dataset = shards.TokenDataset(directory, T, part)
        texts[split] = set(BYTES.decode(dataset.read(0, dataset.info.tokens)).split("<|endoftext|>")) - {""}
    assert not texts["train"] & texts["validation"]
    assert len(texts["train"]) + len(texts["validation"]) == 300
    assert 10 < len(texts["validation"]) < 60


def test_batches_lay_out_the_sequences_of_a_step(training):
    for step, batch in enumerate(batches(training)):
        first, count = span(step)
        assert batch.tokens.shape == batch.targets.shape == batch.weights.shape == (3, 4, T)
        assert batch.tokens.dtype == batch.targets.dtype == np.int32 and batch.positions is None
        for j in range(12):
            got = batch.tokens[j // 4, j % 4], batch.targets[j // 4, j % 4]
            assert (batch.weights[j // 4, j % 4] == (j < count)).all()
            expected = training[first + j] if j < count else np.zeros(T + 1, np.int32)
            np.testing.assert_array_equal(got[0], expected[:-1])
            np.testing.assert_array_equal(got[1], expected[1:])
    assert step == 9


def equal(a, b):
    return all(map(np.array_equal, a[:3], b[:3]))


def test_documents_are_numbered_and_positions_restart():
    batch = of_sequences(np.asarray([[5, 6, 0, 7, 0, 8, 9]], np.int32), separator=0)
    np.testing.assert_array_equal(batch.segments, [[0, 0, 1, 1, 2, 2]])
    np.testing.assert_array_equal(batch.positions, [[0, 1, 0, 1, 0, 1]])
    assert batch.positions.dtype == batch.segments.dtype == np.int32


@pytest.mark.parametrize("start", [0, 1, 3, 7])
def test_starting_at_a_step_equals_going_on(training, start):
    whole = list(batches(training))[start:]
    resumed = list(batches(training, start=start, workers=0 if start == 1 else 3))
    assert len(whole) == len(resumed)
    assert all(map(equal, whole, resumed))


def test_two_processes_read_the_halves_of_one(training):
    whole, first, second = (batches(training, rows) for rows in (range(4), (0, 1), (2, 3)))
    for a, b, c in zip(whole, first, second, strict=True):
        joined = [np.concatenate(parts, axis=1) for parts in zip(b[:3], c[:3], strict=True)]
        assert equal(a, joined)


class Counting:
    """Records what is read; fails at one sequence."""

    def __init__(self, dataset, bad=None):
        self.dataset, self.bad, self.read = dataset, bad, []

    def __getitem__(self, i):
        self.read.append(i)
        if i == self.bad:
            raise ValueError("tokens-00003: record 5 is damaged")
        return self.dataset[i]


def test_microbatches_beyond_the_ramp_are_not_read(training):
    counting = Counting(training)
    list(batches(counting, stop=3))
    assert set(counting.read) == set(range(16))


def test_an_error_comes_at_its_step_with_its_message(training):
    iterator = batches(Counting(training, bad=9))
    next(iterator), next(iterator)
    with pytest.raises(ValueError, match=r"tokens-00003.* 5 .*damaged"):
        next(iterator)


def test_reading_ahead_is_bounded_and_its_threads_end(training):
    def threads():
        return {thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")}

    before = threads()
    counting = Counting(training)
    iterator = batches(counting, stop=10_000, workers=2, prefetch=3)
    next(iterator)
    time.sleep(0.2)
    assert max(counting.read) < sum(span(4))
    assert threads() - before
    iterator.close()
    another = batches(training, stop=10_000)
    next(another)
    del another
    gc.collect()
    deadline = time.monotonic() + 5
    while threads() - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads() - before


def test_a_mixture_is_validated_on_the_files_that_are_named(tmp_path):
    for name in ("a", "b", "held"):
        (tmp_path / f"{name}.txt").write_text(name * 500)
    data = Data(
        train="",
        mixture=((str(tmp_path / "a.txt"), 0.5), (str(tmp_path / "b.txt"), 0.5)),
        validation=str(tmp_path / "held.txt"),
        tokenizer="bytes",
        cache_dir=str(tmp_path / "c"),
    )
    held_out = loader.validation_set(data, BYTES, T)
    assert BYTES.decode(held_out[0][:8]) == "heldheld"
    assert len(loader.training_set(data, BYTES, T, 0).fingerprint) > 0


def test_mixture_keeps_its_proportions_and_each_source_its_epochs(tmp_path):
    weights = {"a": 6.0, "b": 3.0, "c": 1.0}
    sources = {letter: write_documents(tmp_path / f"{letter}.jsonl", 120, letter) for letter in weights}
    mixture = tuple((sources[letter], weight) for letter, weight in weights.items())
    data = Data(train="", mixture=mixture, validation_fraction=0.1, tokenizer="bytes", cache_dir=str(tmp_path / "c"))
    mixed = loader.training_set(data, BYTES, 56, seed=0)

    def source_of(sequence):
        return max(weights, key=lambda letter: np.count_nonzero(sequence == ord(letter)))

    there = [tokens for _, tokens in mixed.parts]
    assert [share for share, _ in mixed.parts] == pytest.approx([0.6, 0.3, 0.1])
    assert mixed.unique(1000) == 1000
    assert mixed.unique(2 * there[1]) == pytest.approx(there[0] + 0.8 * there[1], abs=1)  # a has fewer than 0.6 of it
    assert mixed.unique(100 * mixed.tokens) == mixed.tokens == sum(there)
    drawn = [source_of(mixed[i]) for i in range(1000)]
    for letter, weight in weights.items():
        for window in (drawn[:100], drawn[450:550], drawn):
            assert abs(window.count(letter) / len(window) - weight / 10) <= 0.02
    from_c = [mixed[i].tobytes() for i in range(1000) if drawn[i] == "c"]
    assert len(set(from_c)) == len(from_c)  # 100 of about 108: still its first epoch
    held = loader.validation_set(data, BYTES, 56)
    seen = [source_of(held[i]) for i in range(len(held))]
    assert set(seen[:20]) == set(weights)
    again = loader.training_set(data, BYTES, 56, seed=0)
    assert again.fingerprint == mixed.fingerprint
    assert all(np.array_equal(again[i], mixed[i]) for i in range(50))


@pytest.mark.parametrize(
    ("train", "mixture", "words"),
    [
        ("x", (("a", 1.0),), "data.train must be ''"),
        ("", (("a", 1.0), ("a", 2.0)), "twice"),
        ("", (("a", 1.0), ("b", 0.0)), "weight of b .*0.0"),
        ("", (), "data.train is empty"),
    ],
)
def test_bad_mixtures(train, mixture, words):
    with pytest.raises(ValueError, match=words):
        loader.training_set(Data(train=train, mixture=mixture, tokenizer="bytes"), BYTES, T, 0)


def test_evaluation_fills_the_last_batch_with_rows_that_do_not_count(data):
    held = loader.validation_set(data, BYTES, T)
    got = list(loader.evaluation_batches(held, 10, 4, np.array([0, 1, 2, 3])))
    assert [batch.targets.shape for batch in got] == [(1, 4, T)] * 3
    inputs, targets, weights = (np.concatenate([batch[part][0] for batch in got]) for part in range(3))
    np.testing.assert_array_equal(inputs[:10], [held[i][:-1] for i in range(10)])
    np.testing.assert_array_equal(targets[:10], [held[i][1:] for i in range(10)])
    assert np.all(weights[:10] == 1) and np.all(weights[10:] == 0) and np.all(inputs[10:] == 0)
    halves = [list(loader.evaluation_batches(held, 10, 4, np.array(rows))) for rows in ((0, 1), (2, 3))]
    for a, b, c in zip(got, *halves, strict=True):
        assert equal(a, [np.concatenate(parts, axis=1) for parts in zip(b[:3], c[:3], strict=True)])
    everything = list(loader.evaluation_batches(held, 10**9, 4, np.array([0, 1, 2, 3])))
    assert sum(np.any(batch.weights > 0, axis=-1).sum() for batch in everything) == len(held)


def test_books_train_on_theirs_and_validate_on_theirs(tmp_path):
    words = tokenizer.load("books")
    data = Data(train="books", tokenizer="books", cache_dir=str(tmp_path))
    training, held = loader.training_set(data, words, 256, 0), loader.validation_set(data, words, 256)
    assert training.tokens > 1_600_000
    assert 70_000 < held.tokens < 100_000
    assert words.decode(held[0]).isascii()


def test_the_cache_is_used_and_follows_its_input(tmp_path, monkeypatch):
    source = write_documents(tmp_path / "a.jsonl", 50)
    data = Data(train=source, tokenizer="bytes", cache_dir=str(tmp_path / "cache"))
    first = prepare.cached(data, BYTES, "train")
    with monkeypatch.context() as context:
        context.setattr(prepare, "_written", lambda *_: pytest.fail("tokenized again"))
        assert prepare.cached(data, BYTES, "train") == first
        assert prepare.cached(data, BYTES, "validation")[0].parent == first[0].parent
    monkeypatch.setenv("SCALING_CACHE", str(tmp_path / "cache"))
    assert prepare.cached(Data(train=source, tokenizer="bytes"), BYTES, "train") == first
    assert prepare.cached(Data(train=source, validation_fraction=0.2), BYTES, "train") != first
    write_documents(tmp_path / "a.jsonl", 51)
    assert prepare.cached(data, BYTES, "train") != first


def flip(shard):
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))


DAMAGES = {
    "shard missing": lambda index, shard: shard.unlink(),
    "shard cut": lambda index, shard: shard.write_bytes(shard.read_bytes()[:-1]),
    "bit flipped": lambda index, shard: flip(shard),
    "index missing": lambda index, shard: index.unlink(),
    "index cut": lambda index, shard: index.write_text(index.read_text()[:50]),
    "index not UTF-8": lambda index, shard: index.write_bytes(b"\xff"),
    "other version": lambda index, shard: index.write_text(
        index.read_text().replace('"format_version": 1', '"format_version": 0')
    ),
    "all gone": lambda index, shard: shutil.rmtree(index.parent),
}


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_again_and_says_so(tmp_path, caplog, damage, split):
    source = write_documents(tmp_path / "a.jsonl", 100)
    data = Data(train=source, tokenizer="bytes", validation_fraction=0.2, cache_dir=str(tmp_path / "cache"))
    before = loader.training_set(data, BYTES, T, 0)
    expected = [before[i] for i in range(before.sequences)]
    folder, _ = prepare.cached(data, BYTES, split)
    DAMAGES[damage](folder / shards.INDEX, next(folder.glob("*.array_record")))
    assert not caplog.text
    again = loader.training_set(data, BYTES, T, 0)
    assert str(folder.parent) in caplog.text and caplog.text.count("damaged and will be made again") == 1
    assert again.fingerprint == before.fingerprint
    np.testing.assert_array_equal([again[i] for i in range(again.sequences)], expected)
    assert [path.name for path in (tmp_path / "cache/tokens").iterdir()] == [folder.parent.name]
    caplog.clear()
    loader.validation_set(data, BYTES, T)
    assert not caplog.text


def test_damage_inside_a_large_cache_is_named_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_HASHED_BYTES", 0)
    data = Data(train=write_documents(tmp_path / "a.jsonl", 100), tokenizer="bytes", cache_dir=str(tmp_path / "cache"))
    folder, _ = prepare.cached(data, BYTES, "train")
    flip(next(folder.glob("*.array_record")))
    training = loader.training_set(data, BYTES, T, 0)
    with pytest.raises(ValueError, match=f"cache.* {folder.parent}"):
        [training[i] for i in range(training.sequences)]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_token_directory_that_is_named_is_refused_and_kept(tmp_path, damage):
    """Where the index is gone, nothing tells it from any other folder."""
    tokens = prepare.prepare(write_documents(tmp_path / "a.jsonl", 100), BYTES, tmp_path / "tokens")
    data = Data(train=str(tokens), tokenizer="bytes", cache_dir=str(tmp_path / "cache"))
    DAMAGES[damage](tokens / shards.INDEX, next(tokens.glob("*.array_record")))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    words = {"index missing": "directory", "all gone": "no file", "bit flipped": "damaged"}
    with pytest.raises((ValueError, FileNotFoundError), match=words.get(damage, "no cache")) as caught:
        training = loader.training_set(data, BYTES, T, 0)
        [training[i] for i in range(training.sequences)]
    assert str(tokens) in str(caught.value) and "this is a cache" not in str(caught.value)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_one_document_is_cut_and_few_documents_give_up_one(tmp_path):
    data = Data(train=str(tmp_path / "*.txt"), tokenizer="bytes", cache_dir=str(tmp_path / "cache"))
    text = "".join(f"line number {i}\n" for i in range(400))
    (tmp_path / "a.txt").write_text(text)
    held, train = (
        BYTES.decode((ds := shards.TokenDataset(prepare.cached(data, BYTES, split)[0], T)).read(0, ds.info.tokens))
        for split in ("validation", "train")
    )
    assert train.removesuffix("<|endoftext|>") + held.removesuffix("<|endoftext|>") == text
    assert 0 < len(held) < 0.02 * len(text)
    assert train.endswith("\n<|endoftext|>")
    for name in "bcd":
        (tmp_path / f"{name}.txt").write_text(name * 500)
    counts = [shards.read_index(prepare.cached(data, BYTES, split)[0]).documents for split in ("train", "validation")]
    assert counts == [3, 1]


def test_hold_out_keeps_copies_together_and_needs_something_to_train_on():
    texts = [f"text {i % 10}" for i in range(50)]
    found = list(prepare.hold_out(map(Document, texts), 0.001, "x"))
    sides = {side: {document.text for s, document in found if s == side} for side in ("train", "validation")}
    assert len(sides["validation"]) == 1
    assert len(sides["train"]) == 9
    with pytest.raises(ValueError, match=r"3 documents.* validation"):
        list(prepare.hold_out([Document("same")] * 3, 0.1, "x"))


def test_validation_files_of_their_own(tmp_path):
    train, held = write_documents(tmp_path / "a.jsonl", 50), write_documents(tmp_path / "b.jsonl", 20, "v")
    data = Data(train=train, validation=held, tokenizer="bytes", cache_dir=str(tmp_path / "cache"))
    assert shards.read_index(prepare.cached(data, BYTES, "train")[0]).documents == 50
    assert len(loader.validation_set(data, BYTES, T)) == (20 * 57 - 1) // T


def test_token_directories_are_used_as_they_are(tmp_path):
    source = write_documents(tmp_path / "a.jsonl", 300)
    tokens = prepare.prepare(source, BYTES, tmp_path / "tokens")
    data = Data(train=str(tokens), validation_fraction=0.25, tokenizer="bytes", cache_dir=str(tmp_path / "cache"))
    training, held = loader.training_set(data, BYTES, T, 0), loader.validation_set(data, BYTES, T)
    total = shards.read_index(tokens).tokens
    assert training.tokens + held.tokens == total
    assert held.tokens == round(total * 0.25)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ValueError, match=r"tokenizer 'bytes'.*differs"):
        loader.training_set(data, tokenizer.load("books"), T, 0)


def test_shards_are_not_written_to_buckets(tmp_path):
    source = write_documents(tmp_path / "a.jsonl", 3)
    with pytest.raises(ValueError, match=r"gs://bucket.*local"):
        loader.training_set(Data(train=source, cache_dir="gs://bucket"), BYTES, T, 0)
    with pytest.raises(ValueError, match="local directory"):
        prepare.prepare(source, BYTES, "gs://bucket/tokens")


def test_remote_token_directories_are_copied_and_verified(tmp_path, caplog):
    source = write_documents(tmp_path / "a.jsonl", 50)
    tokens = prepare.prepare(source, BYTES, tmp_path / "tokens")
    remote = fsspec.filesystem("memory")
    remote.put(str(tokens), "/bucket/tokens", recursive=True)
    data = Data(train="memory://bucket/tokens", tokenizer="bytes", cache_dir=str(tmp_path / "cache"))
    training = loader.training_set(data, BYTES, T, 0)
    local = loader.training_set(Data(train=str(tokens), tokenizer="bytes"), BYTES, T, 0)
    assert all(np.array_equal(training[i], local[i]) for i in range(20))
    (copy,) = (tmp_path / "cache/tokens").iterdir()
    flip(next(copy.glob("*.array_record")))
    again = loader.training_set(data, BYTES, T, 0)
    assert "damaged and will be made again" in caplog.text
    assert all(np.array_equal(again[i], local[i]) for i in range(20))
    assert list((tmp_path / "cache/tokens").iterdir()) == [copy]
    shutil.rmtree(tmp_path / "cache")
    name = next(name for name in remote.ls("/bucket/tokens", detail=False) if name.endswith("array_record"))
    content = bytearray(remote.cat_file(name))
    content[len(content) // 2] ^= 1
    remote.pipe_file(name, bytes(content))
    with pytest.raises(ValueError, match=r"^memory://bucket/tokens/.*SHA-256"):
        loader.training_set(data, BYTES, T, 0)
    assert list((tmp_path / "cache/tokens").iterdir()) == []


def test_too_little_data(tmp_path):
    (tmp_path / "a.txt").write_text("short " * 10)
    data = Data(train=str(tmp_path / "a.txt"), tokenizer="bytes", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"a\.txt: 60 train tokens .*64 \+ 1"):
        loader.training_set(data, BYTES, 64, 0)
    with pytest.raises(ValueError, match=r"2 validation tokens .*config\.data\.validation_fraction"):
        loader.validation_set(data, BYTES, 8)
    with pytest.raises(ValueError, match="validation_fraction"):
        loader.training_set(Data(train=data.train, validation_fraction=0.0), BYTES, 64, 0)
