"""Records that cannot be read: named, or replaced by others in a way that depends on nothing but the data."""

import json
import random

import numpy as np
import pytest
from etils import epath

from scaling.config.schema import Data
from scaling.data import bad_records, loader, prepare, shards, tokenizer
from scaling.runs.bad_records import remembered
from tests.token_records import flip, make, rewrite

BYTES = tokenizer.ByteTokenizer()
T = 2048  # one sequence is two records at most
SHARD_RECORDS = 8


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_RECORDS", SHARD_RECORDS)
    return make(tmp_path / "tokens", 60)


def short(shard):
    rewrite(shard, lambda records: records.__setitem__(2, records[2][:-6]))


def empty(shard):
    rewrite(shard, lambda records: records.__setitem__(2, b""))


def out_of_vocabulary(shard):
    def change(records):
        ids = np.frombuffer(records[2], "<u2").copy()
        ids[77] = 60_000
        records[2] = ids.tobytes()

    rewrite(shard, change)


def truncated(shard):
    shard.write_bytes(shard.read_bytes()[:-5000])


FAULTS = {
    flip: r"record \d+: .*damaged",
    short: r"record 2: 4090 bytes .*2048 tokens",
    empty: r"record 2: 0 bytes .*2048 tokens",
    out_of_vocabulary: r"record 2, token 77: .*60000 .*vocabulary of 257",
    truncated: r"record \d+: .*damaged",
    lambda shard: shard.unlink(): r"record \d+: .*missing",
}


def config(files, bad):
    return Data(train=str(files[0].parent), tokenizer="bytes", validation_fraction=0.2, bad_records=bad)


def training(files, seed=0):
    bad = bad_records.BadRecords()
    return loader.training_set(config(files, "skip"), BYTES, T, seed, bad), bad


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named_when_it_is_read(files, fault):
    dataset = shards.TokenDataset(files[0].parent, T)
    fault(files[1])  # in mid-run: after the sizes were compared
    with pytest.raises(ValueError, match=rf"{files[1].name}, {FAULTS[fault]}"):
        [dataset[i] for i in range(len(dataset))]


@pytest.mark.parametrize("fault", FAULTS)
def test_it_is_replaced_alike_by_everyone_and_ever(files, fault):
    whole, _ = training(files)
    expected = [whole[i] for i in range(3 * whole.sequences)]
    fault(files[1])
    first, bad = training(files)
    assert first.fingerprint == whole.fingerprint
    got = [first[i] for i in range(3 * first.sequences)]
    changed = [i for i, (a, b) in enumerate(zip(expected, got, strict=True)) if not np.array_equal(a, b)]
    assert 1 <= bad.new <= 2 * SHARD_RECORDS and len(changed) == 3 * bad.new  # in each of three epochs
    assert all(any(np.array_equal(got[i], other) for other in expected) for i in changed)
    second, other = training(files)  # from another place, in another order, as other processes would
    order = random.Random(0).sample(range(len(got)), len(got))
    assert all(np.array_equal(second[i], got[i]) for i in order) and other.new == bad.new


def test_a_resume_reads_what_the_run_read(files, tmp_path):
    """Also where the shard has come back meanwhile, and with what another process has noted."""
    content = files[1].read_bytes()
    files[1].unlink()
    run_dir = epath.Path(tmp_path / "run")
    run_dir.mkdir()
    first, bad = training(files)
    with remembered(bad, run_dir):
        got = [first[i] for i in range(first.sequences)]
    lines = [json.loads(line) for line in (run_dir / "bad_records-0.jsonl").read_text().splitlines()]
    assert len(lines) == bad.new > 1 and bad.known == 0
    assert all(files[1].name in line["reason"] and "shard is missing" in line["reason"] for line in lines)
    files[1].write_bytes(content)
    (run_dir / "bad_records-0.jsonl").rename(run_dir / "bad_records-3.jsonl")
    again, known = training(files)
    with remembered(known, run_dir):
        np.testing.assert_array_equal([again[i] for i in range(again.sequences)], got)
    assert (known.known, known.new) == (bad.new, 0)
    assert [path.name for path in run_dir.iterdir()] == ["bad_records-3.jsonl"]
    (run_dir / "bad_records-3.jsonl").write_text('{"step": 1}\n{}\n')
    with pytest.raises(ValueError, match="no record"), remembered(known, run_dir):
        pass


def test_validation_is_replaced_too(files):
    data = config(files, "skip")
    expected = list(loader.validation_set(data, BYTES, T))
    out_of_vocabulary(files[-1])
    with pytest.raises(ValueError, match="vocabulary"):
        list(loader.validation_set(data, BYTES, T))
    bad = bad_records.BadRecords()
    got = list(loader.validation_set(data, BYTES, T, bad))
    assert len(got) == len(expected) and bad.new == 2  # the record lies in two sequences
    assert sum(not np.array_equal(a, b) for a, b in zip(got, expected, strict=True)) == 2


def test_a_missing_shard_is_an_error_at_the_start_unless_it_is_to_be_skipped(files, caplog):
    files[2].unlink()
    with pytest.raises(FileNotFoundError, match=f"{files[2].name}.* missing"):
        loader.training_set(config(files, "error"), BYTES, T, 0)
    training(files)
    assert f"{files[2].name}: shard is missing" in caplog.text


def test_data_that_are_all_gone_are_an_error(files):
    dataset, bad = training(files)
    for file in files:
        file.unlink()
    with pytest.raises(ValueError, match=r"missing.* 100 other sequences"):
        dataset[0]
    assert bad.new == 0


def test_a_batch_of_two_processes_is_that_of_one(files):
    out_of_vocabulary(files[1])

    def batches(rows):
        dataset, _ = training(files)
        span = lambda step: (4 * step, 4)  # noqa: E731
        return list(loader.batches(loader.Steps(dataset, span, np.asarray(rows), 4, 1), 0, 12, 2, 2))

    both = batches(range(4))
    parts = zip(batches([0, 1]), batches([2, 3]), strict=True)
    for one, (low, high) in zip(both, parts, strict=True):
        np.testing.assert_array_equal(one.tokens, np.concatenate([low.tokens, high.tokens], axis=1))


def test_a_damaged_index_is_an_error_all_the_same(files):
    """Only shards may be missing."""
    (files[0].parent / shards.INDEX).write_text("{}")
    with pytest.raises(ValueError, match="damaged index"):
        prepare.cached(config(files, "skip"), BYTES, "train")
