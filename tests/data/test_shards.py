import json
import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from scaling.data import prepare, shards, tokenizer

BYTES = tokenizer.ByteTokenizer()
T = 64


def token_directory(path, documents=40, words=BYTES, length=700):
    """Random documents of bytes; returns the flat stream they should make."""
    path.mkdir(parents=True)
    rng = np.random.default_rng(0)
    writer = shards.ShardWriter(path, words)
    stream = []
    for _ in range(documents):
        ids = rng.integers(0, 256, rng.integers(0, length))
        writer.append(ids)
        stream += [*ids, words.eot]
    writer.close()
    return np.array(stream)


@pytest.fixture
def many_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_RECORDS", 3)
    stream = token_directory(tmp_path / "tokens")
    return tmp_path / "tokens", stream


def test_the_stream_comes_back_in_sequences_that_share_one_token(many_shards):
    directory, stream = many_shards
    dataset = shards.TokenDataset(directory, T)
    assert dataset.info.tokens == stream.size
    assert dataset.info.documents == 40
    assert len(dataset.info.shards) == -(-stream.size // (3 * shards.RECORD_TOKENS)) > 1
    assert len(dataset) == (stream.size - 1) // T
    for i, sequence in enumerate(dataset):
        assert sequence.dtype == np.int32
        np.testing.assert_array_equal(sequence, stream[i * T : i * T + T + 1])
    assert i == len(dataset) - 1
    for wrong in (-1, len(dataset)):
        with pytest.raises(IndexError):
            dataset[wrong]


@pytest.mark.parametrize("length", [1, 2047, 2048, 2049, 5000])
def test_any_sequence_length_across_records_and_shards(many_shards, length):
    directory, stream = many_shards
    dataset = shards.TokenDataset(directory, length)
    for i in (0, len(dataset) // 2, len(dataset) - 1):
        np.testing.assert_array_equal(dataset[i], stream[i * length : (i + 1) * length + 1])


def test_parts_that_touch_share_no_token(many_shards):
    directory, stream = many_shards
    first, second = (shards.TokenDataset(directory, T, part) for part in ((0, 0.7), (0.7, 1)))
    assert first.stop == second.start
    assert first.tokens + second.tokens == stream.size
    assert first.fingerprint != second.fingerprint
    np.testing.assert_array_equal(second[0], stream[second.start : second.start + T + 1])
    assert first.start + len(first) * T < first.stop


def test_threads_and_pickles_read_the_same(many_shards):
    directory, _ = many_shards
    dataset = shards.TokenDataset(directory, T)
    expected = np.stack([dataset[i] for i in range(len(dataset))])
    other = pickle.loads(pickle.dumps(dataset))
    order = np.random.default_rng(1).permutation(len(dataset)).repeat(3)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: other[i], order))
    np.testing.assert_array_equal(np.stack(got), expected[order])


def test_large_vocabularies_take_four_bytes(tmp_path):
    words = tokenizer.ByteTokenizer()
    words.vocab_size, words.eot = 70_000, 69_999
    stream = token_directory(tmp_path / "tokens", 5, words)
    dataset = shards.TokenDataset(tmp_path / "tokens", T)
    assert dataset.info.dtype == "uint32"
    np.testing.assert_array_equal(dataset.read(0, stream.size), stream)


def read_all(directory):
    dataset = shards.TokenDataset(directory, T)
    return np.concatenate([dataset[i] for i in range(len(dataset))])


def test_missing_and_truncated_shards_are_seen_when_opened(many_shards):
    directory, _ = many_shards
    shard = sorted(directory.glob("*.array_record"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1000])
    with pytest.raises(ValueError, match=rf"{shard.name}: .*truncated.* {len(content) - 1000} bytes"):
        shards.TokenDataset(directory, T)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{shard.name}: .*missing"):
        shards.TokenDataset(directory, T)
    (directory / shards.INDEX).unlink()
    with pytest.raises(FileNotFoundError, match=r"no index\.json"):
        shards.TokenDataset(directory, T)


def test_flipped_bits_are_never_read_as_tokens(many_shards):
    directory, _ = many_shards
    shard = sorted(directory.glob("*.array_record"))[1]
    content = shard.read_bytes()
    expected = read_all(directory)
    rng = np.random.default_rng(0)
    noticed = 0
    for position in rng.integers(0, len(content), 150):
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.integers(8)
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match="SHA-256"):
            shards.verify(directory)
        try:
            # A bit of the padding does no harm.
            np.testing.assert_array_equal(read_all(directory), expected)
        except ValueError as error:
            noticed += 1
            assert f"{shard.name}, record " in str(error)
            assert "\n" not in str(error)
    assert noticed > 10
    shard.write_bytes(content)
    shards.verify(directory)


def test_a_zeroed_page_is_noticed(many_shards):
    directory, _ = many_shards
    shard = sorted(directory.glob("*.array_record"))[0]
    content = bytearray(shard.read_bytes())
    content[1000:1400] = bytes(400)
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=f"{shard.name}, record 0: .*damaged"):
        read_all(directory)


def edit_index(directory, **changes):
    path = directory / shards.INDEX
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_ids_outside_the_vocabulary_and_short_records(many_shards):
    directory, stream = many_shards
    edit_index(directory, vocab_size=200)
    first = int(np.argmax(stream[: shards.RECORD_TOKENS]))
    with pytest.raises(ValueError, match=rf"record 0, token {first}: .*256 .*vocabulary of 200"):
        read_all(directory)
    edit_index(directory, vocab_size=257, tokens=stream.size + 1)
    last = json.loads((directory / shards.INDEX).read_text())["shards"][-1]
    with pytest.raises(ValueError, match=rf"{last['file']}, record {last['records'] - 1}: \d+ bytes"):
        shards.TokenDataset(directory, 1).read(stream.size - 1, stream.size)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format_version": 1}'])
def test_damaged_index(many_shards, content):
    directory, _ = many_shards
    (directory / shards.INDEX).write_text(content)
    with pytest.raises(ValueError, match=r"index\.json: .*damaged"):
        shards.TokenDataset(directory, T)


def test_other_format_version(many_shards):
    edit_index(many_shards[0], format_version=99)
    with pytest.raises(ValueError, match="version 99"):
        shards.TokenDataset(many_shards[0], T)


def text_file(tmp_path, documents=200):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {i} " * (1 + i % 7)}) + "\n" for i in range(documents)))
    return path


def test_prepare_keeps_the_order_of_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_BATCH_CHARACTERS", 100)
    source = text_file(tmp_path)
    prepare.prepare(str(source), BYTES, tmp_path / "out/tokens")
    dataset = shards.TokenDataset(tmp_path / "out/tokens", T)
    expected = "".join(json.loads(line)["text"] + "<|endoftext|>" for line in source.read_text().splitlines())
    assert BYTES.decode(dataset.read(0, dataset.info.tokens)) == expected
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tokens"]
    with pytest.raises(FileExistsError, match="not overwritten"):
        prepare.prepare(str(source), "bytes", tmp_path / "out/tokens")


def test_a_failed_prepare_leaves_nothing(tmp_path):
    source = text_file(tmp_path)
    source.write_text(source.read_text() + "{broken\n")
    with pytest.raises(ValueError, match=r"text\.jsonl:201: .*JSON"):
        prepare.prepare(str(source), BYTES, tmp_path / "out/tokens")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture
def at_once(monkeypatch):
    """Runs two functions in threads that both have written their shards before either renames; results or errors."""
    barrier = threading.Barrier(2)
    close = shards.ShardWriter.close

    def close_together(self):
        barrier.wait(10)  # both have written before either renames
        return close(self)

    monkeypatch.setattr(shards.ShardWriter, "close", close_together)

    def run(*functions):
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(function) for function in functions]
            return [future.exception() or future.result() for future in futures]

    return run


def test_concurrent_writers_agree_on_the_winner(tmp_path, at_once):
    source = text_file(tmp_path)
    write = lambda: prepare.prepare(str(source), BYTES, tmp_path / "out/tokens")  # noqa: E731
    assert at_once(write, write) == [tmp_path / "out/tokens"] * 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tokens"]
    shards.verify(tmp_path / "out/tokens")


@pytest.mark.parametrize("differ", ["tokenizer", "text"])
def test_of_two_writers_that_differ_one_fails(tmp_path, at_once, differ):
    source, other = text_file(tmp_path), tmp_path / "other.txt"
    other.write_text("other text")
    words = [BYTES, tokenizer.load("books") if differ == "tokenizer" else BYTES]
    files = [source, other if differ == "text" else source]
    writers = [
        lambda w=w, f=f: prepare.prepare(str(f), w, tmp_path / "out/tokens") for w, f in zip(words, files, strict=True)
    ]
    results = at_once(*writers)
    (loser,) = (number for number, result in enumerate(results) if isinstance(result, FileExistsError))
    assert "out/tokens" in str(results[loser]) and "not overwritten" in str(results[loser])
    won = shards.read_index(tmp_path / "out/tokens")
    assert won.tokenizer == words[1 - loser].name
    assert won.documents == (200 if files[1 - loser] == source else 1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tokens"]


def test_nothing_that_another_program_put_there_is_lost(tmp_path, monkeypatch):
    close = shards.ShardWriter.close

    def make_folder(self):
        (tmp_path / "out/tokens").mkdir()
        (tmp_path / "out/tokens/notes.txt").write_text("mine")
        return close(self)

    monkeypatch.setattr(shards.ShardWriter, "close", make_folder)
    with pytest.raises(FileExistsError, match="out/tokens"):
        prepare.prepare(str(text_file(tmp_path)), BYTES, tmp_path / "out/tokens")
    assert (tmp_path / "out/tokens/notes.txt").read_text() == "mine"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tokens"]


def test_unwritable_places_say_so(tmp_path):
    source = text_file(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*SCALING_CACHE"):
        prepare.prepare(str(source), BYTES, tmp_path / "file/below/tokens")


def test_a_full_disk_says_where(tmp_path, monkeypatch):
    class Full:
        def __init__(self, path, options):
            pass

        def write(self, record):
            raise RuntimeError("write() failed: No space left on device; writing /x.array_record; at byte 0")

        def close(self):
            pass

    monkeypatch.setattr(shards.array_record_module, "ArrayRecordWriter", Full)
    with pytest.raises(OSError, match=f"No space left .*{tmp_path}/out") as caught:
        prepare.prepare(str(text_file(tmp_path)), BYTES, tmp_path / "out/tokens")
    assert caught.value.errno == 28
    assert list((tmp_path / "out").iterdir()) == []


def test_a_copied_directory_is_as_good(many_shards, tmp_path):
    shutil.copytree(many_shards[0], tmp_path / "copy")
    a, b = (shards.TokenDataset(path, T) for path in (many_shards[0], tmp_path / "copy"))
    assert a.fingerprint == b.fingerprint
    np.testing.assert_array_equal(a[3], b[3])
