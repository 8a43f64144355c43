"""Pairs of texts: rows for an encoder with a decoder, for a decoder alone, and for an encoder of two languages."""

import gzip
import json

import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.data import pairs, tokenizer
from scaling.data.tokenizer_base import BEGIN, MASK, SEPARATOR
from scaling.train.run import Data

WORDS = tokenizer.load("bytes+mask")
BEGINS, SEPARATES, MASKED = (WORDS.special(token) for token in (BEGIN, SEPARATOR, MASK))
RECORDS = [{"source": f"copy {i}", "target": f"{i}", "more": [i]} for i in range(20)]


def config(path, objective="pairs", encoder=1, length=16, source=0, **data):
    model = cfg.Model(encoder_layers=encoder)
    if objective in ("tlm", "translations"):
        model = cfg.Model(causal=False, token_types=2)
    data = {"validation_fraction": 0.1} | data
    return cfg.Config(
        model=model, train=cfg.Train(sequence_length=length), eval=cfg.Eval(tokens=10_000),
        data=cfg.Data(train=str(path), objective=objective, source_length=source, **data),
    )  # fmt: skip


@pytest.fixture
def file(tmp_path):
    def written(records=RECORDS, name="pairs.jsonl"):
        path = tmp_path / name
        lines = "".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records)
        path.write_bytes(gzip.compress(lines.encode()) if name.endswith(".gz") else lines.encode())
        return path

    return written


def bytes_of(text):
    return list(text.encode())


def layout(config):
    return pairs.layout_of(config, WORDS)


def of(source, target):
    return pairs.Pair(*WORDS.encode_batch([source, target]), "here")


def test_rows_behind_an_encoder():
    found = layout(config("x", source=8))
    row = found.row(of("abc", "de"))
    np.testing.assert_array_equal(row.source, [97, 98, 99, WORDS.eot, 0, 0, 0, 0])
    np.testing.assert_array_equal(row.source_segments, [0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(row.tokens[:4], [WORDS.decoder_start, 100, 101, 0])
    np.testing.assert_array_equal(row.targets[:4], [100, 101, WORDS.eot, 0])
    np.testing.assert_array_equal(row.weights, [1, 1, 1] + [0] * 13)
    assert row.tokens.shape == (16,) and row.segments is row.positions is row.types is None
    assert not found.fault(of("a" * 7, "b" * 15))
    assert found.fault(of("a" * 8, "b")) == "the source with its end does not fit config.data.source_length=8"
    assert found.fault(of("a", "b" * 16)) == "the target with its end does not fit config.train.sequence_length=16"
    assert found.row(of("a" * 7, "b" * 15)).weights.all()


def test_a_template_of_the_tokenizer_is_kept():
    class Bart(tokenizer.ByteTokenizer):
        template = (0,)

    found = pairs.layout_of(config("x"), Bart())
    row = found.row(of("abc", "de"))
    assert row.source[:5].tolist() == [0, 97, 98, 99, 256]
    assert row.targets[:4].tolist() == [0, 100, 101, 256] and row.tokens[:4].tolist() == [256, 0, 100, 101]
    assert found.fault(of("a" * 15, "b"))


def test_rows_of_a_decoder_alone():
    found = layout(config("x", encoder=0, length=10))
    row = found.row(of("abc", "de"))
    np.testing.assert_array_equal(row.tokens, [WORDS.eot, 97, 98, 99, SEPARATES, 100, 101, 0, 0, 0])
    np.testing.assert_array_equal(row.targets, [97, 98, 99, SEPARATES, 100, 101, WORDS.eot, 0, 0, 0])
    np.testing.assert_array_equal(row.weights, [0, 0, 0, 0, 1, 1, 1, 0, 0, 0])
    assert row.source is None
    assert not found.fault(of("a" * 5, "b" * 3)) and found.row(of("a" * 5, "b" * 3)).weights[-1] == 1
    assert found.fault(of("a" * 6, "b" * 3)) == "source and target do not fit config.train.sequence_length=10"
    with pytest.raises(ValueError, match=r"'bytes' has no token <\|separator\|>"):
        pairs.layout_of(config("x", encoder=0), tokenizer.load("bytes"))


def test_both_count_the_same_targets():
    """So the losses of a decoder with an encoder and of one alone are means over the same tokens."""
    rows = [layout(config("x", encoder=encoder)).row(of("abc", "de")) for encoder in (0, 1)]
    found = [row.targets[row.weights == 1].tolist() for row in rows]
    assert found == [[*bytes_of("de"), WORDS.eot]] * 2


def test_rows_of_translations():
    found = layout(config("x", "translations", length=6, source=7))
    row = found.row(of("abc", "de"))
    np.testing.assert_array_equal(row.source, [BEGINS, 97, 98, 99, SEPARATES, 0, 0])
    np.testing.assert_array_equal(row.source_segments, [0, 0, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(row.tokens, [BEGINS, 100, 101, SEPARATES, 0, 0])
    np.testing.assert_array_equal(row.segments, [0, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(row.weights, [1, 0, 0, 0, 0, 0])
    assert not found.fault(of("a" * 5, "b" * 4))
    assert found.fault(of("a" * 6, "b")) == "the source does not fit config.data.source_length=7"
    assert found.fault(of("a", "b" * 5)) == "the target does not fit config.train.sequence_length=6"


@pytest.mark.slow
def test_rows_of_two_languages(file):
    data = Data.of(config(file(), "tlm", length=24), WORDS)
    plain = layout(config("x", "tlm", length=12)).row(of("ab", "cde"))
    np.testing.assert_array_equal(plain.targets[:9], [BEGINS, 97, 98, SEPARATES, BEGINS, 99, 100, 101, SEPARATES])
    np.testing.assert_array_equal(plain.positions, [0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 0, 0])
    np.testing.assert_array_equal(plain.types, [0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(plain.segments, [0] * 9 + [1] * 3)
    rows = [data.training[i] for i in range(4000)]
    special = [BEGINS, SEPARATES, WORDS.eot]
    shown = np.concatenate([row.tokens[row.weights == 1] for row in rows])
    hidden = np.concatenate([row.targets[row.weights == 1] for row in rows])
    assert not np.isin(hidden, special).any() and not any(row.weights[row.segments == 1].any() for row in rows)
    for row in rows:
        text = (row.segments == 0) & ~np.isin(row.targets, special)
        assert row.weights.sum() == max(1, round(0.15 * text.sum()))
        np.testing.assert_array_equal(row.tokens[row.weights == 0], row.targets[row.weights == 0])
    share = (shown == MASKED).mean()
    assert abs(share - 0.8) < 3 * np.sqrt(0.8 * 0.2 / len(shown))
    assert layout(config("x", "tlm", length=8)).fault(of("ab", "cde"))
    again = Data.of(config(file(), "tlm", length=24), WORDS)
    assert all(np.array_equal(again.training[i].tokens, rows[i].tokens) for i in (3999, 17, 0))
    assert np.array_equal(again.held_out[0].tokens, data.held_out[0].tokens)


def texts(rows):
    return sorted(WORDS.decode(row.source[row.source_segments == 0][:-1]) for row in rows)


def test_each_epoch_has_every_pair_once_in_another_order(file):
    data = Data.of(config(file(name="pairs.jsonl.gz")), WORDS)
    training = data.training
    assert training.sequences == 18 and training.tokens == 18 * 16 and len(data.held_out) == 2
    epochs = [[training[i + 18 * epoch] for i in range(18)] for epoch in range(2)]
    assert texts(epochs[0]) == texts(epochs[1])
    assert sorted(texts(epochs[0]) + texts(data.held_out)) == sorted(record["source"] for record in RECORDS)
    orders = [[row.source.tobytes() for row in epoch] for epoch in epochs]
    assert orders[0] != orders[1]
    again = Data.of(config(file(name="pairs.jsonl.gz")), WORDS).training
    assert [again[i].source.tobytes() for i in reversed(range(18))] == orders[0][::-1]
    assert again.fingerprint == training.fingerprint
    assert Data.of(config(file(RECORDS[1:])), WORDS).training.fingerprint != training.fingerprint


def test_fields_and_held_out_files_have_names(file):
    other = file([{"de": "ja", "en": "yes"}, {"de": "nein", "en": "no"}], "valid.jsonl")
    one = file([{"de": "gut", "en": "good"}], "train.jsonl")
    data = Data.of(config(one, source_key="de", target_key="en", validation=str(other)), WORDS)
    assert len(data.held_out) == 2 and data.training.sequences == 1
    assert WORDS.decode(data.held_out[1].source[:4]) == "nein"


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [{"source": "a"}],
            r"pairs\.jsonl:1: no field 'target'; there are 'source' \(choose with config",
        ),
        ([RECORDS[0], {"source": "a", "target": " "}], r"pairs\.jsonl:2: the field 'target' has no text"),
        ([{"source": 3, "target": "b"}], r"pairs\.jsonl:1: the field 'source' has no text"),
        ([{"source": "a" * 16, "target": "b"}], r"pairs\.jsonl:1: the source with its end does not fit"),
        ([{"source": "a", "target": "b" * 16}], r"pairs\.jsonl:1: the target with its end does not fit"),
        ([], r"pairs\.jsonl is empty"),
        (["[]"], r"pairs\.jsonl:1: an object was expected"),
        ([RECORDS[0]], r"pairs\.jsonl has one usable record, and one must be held out"),
    ],
)
def test_records_that_cannot_be_used_are_refused(file, records, message):
    with pytest.raises(ValueError, match=message):
        Data.of(config(file(records)), WORDS)


def test_they_are_left_out_and_counted_where_that_is_wanted(file, caplog):
    faulty = [{"source": "a"}] * 7 + [{"source": "a" * 99, "target": "b"}] * 8
    with caplog.at_level("WARNING", logger="scaling"):
        data = Data.of(config(file([*RECORDS, *faulty]), bad_records="skip"), WORDS)
    assert data.training.sequences + len(data.held_out) == len(RECORDS)
    said = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("7 records in all: no field 'target'") for line in said)
    assert any(line.startswith("8 records in all: the source with its end does not fit") for line in said)
    with pytest.raises(ValueError, match="no pair in it can be used"):
        Data.of(config(file(faulty[:7]), bad_records="skip"), WORDS)
    with pytest.raises(ValueError, match="no pair in it fits a row"):
        Data.of(config(file(faulty[7:]), bad_records="skip"), WORDS)


def test_rows_of_several_pairs(file):
    found = layout(config("x", source=10, length=8))
    row = found.packed([of("abc", "de"), of("f", "g")])
    end, start = WORDS.eot, WORDS.decoder_start
    assert row.tokens.tolist() == [start, 100, 101, start, 103, 0, 0, 0]
    assert row.targets.tolist() == [100, 101, end, 103, end, 0, 0, 0]
    assert row.weights.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert row.segments.tolist() == [0, 0, 0, 1, 1, 2, 2, 2] and row.positions.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert row.source.tolist() == [97, 98, 99, end, 102, end, 0, 0, 0, 0]
    assert row.source_segments.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert row.source_positions.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3]
    alone = layout(config("x", encoder=0, length=16)).packed([of("abc", "de"), of("f", "g")])
    assert alone.source is None and alone.weights.sum() == 5
    assert alone.segments.tolist()[-1] == 2 and (np.diff(alone.segments) >= 0).all()


def test_every_pair_is_in_one_row_that_it_fits():
    rng = np.random.default_rng(0)
    places = [tuple(map(int, rng.integers(1, 17, 2))) for _ in range(3000)]
    rows = pairs.together(places, (16, 20))
    assert sorted(i for row in rows for i in row) == list(range(3000))
    sums = np.array([np.sum([places[i] for i in row], axis=0) for row in rows])
    assert (sums <= (16, 20)).all() and sums[:, 0].mean() > 14.5


def test_packed_data_are_read(file):
    training, held_out = pairs.data(config(file(), source=40, length=24, pack=True), WORDS)
    assert training.sequences < 9 and training[0].source_positions is not None
    assert sum(float(row.weights.sum()) for row in held_out) == 5
