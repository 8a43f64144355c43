"""Control codes in token streams: where they stand, and that streams without them are as before."""

import json

import numpy as np
import pytest

from scaling import cli
from scaling.config.schema import Data
from scaling.data import loader, prepare, shards, sources, tokenizer

BYTES = tokenizer.ByteTokenizer()
EOT = BYTES.eot


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def documents(random, count=60):
    """Texts of digits, and codes of one, two and three letters."""
    return [
        {
            "domain": ("A", "BC", "DEF")[i % 3],
            "text": "".join(map(str, random.integers(0, 10, random.integers(1, 900)))),
        }
        for i in range(count)
    ]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A token directory of several shards, its records, and the code of each token of the stream."""
    monkeypatch.setattr(shards, "SHARD_RECORDS", 4)
    records = documents(np.random.default_rng(0))
    write(tmp_path / "a.jsonl", records)
    path = prepare.prepare(str(tmp_path / "a.jsonl"), BYTES, tmp_path / "tokens", control_field="domain")
    stream, codes = [], []
    for record in records:
        document = [*record["domain"].encode(), *record["text"].encode(), EOT]
        stream += document
        codes += [record["domain"].encode()] * len(document)
    return path, np.array(stream), codes


def test_each_document_begins_with_its_code(made):
    path, stream, _ = made
    dataset = shards.TokenDataset(path, 100)
    assert len(dataset.info.shards) > 1
    np.testing.assert_array_equal(dataset.read(0, dataset.tokens), stream)
    assert dataset.info.controls == tuple(tuple(code) for code in (b"A", b"BC", b"DEF"))
    shards.verify(path)


@pytest.mark.parametrize("length", [4, 63, 100, 2048, 3000])
def test_each_sequence_begins_with_the_code_of_its_text(made, length):
    path, stream, codes = made
    dataset = shards.TokenDataset(path, length)
    changed = 0
    for i in range(len(dataset)):
        first = i * length
        expected, code = stream[first : first + length + 1].copy(), codes[first]
        if EOT not in expected[: len(code)]:
            expected[: len(code)] = list(code)
        np.testing.assert_array_equal(dataset[i], expected)
        changed += bool((expected != stream[first : first + length + 1]).any())
    assert changed > len(dataset) / 2


def test_parts_of_a_stream_have_the_same_codes(made):
    path, *_ = made
    whole, part = shards.TokenDataset(path, 10), shards.TokenDataset(path, 10, (0.5, 1.0))
    assert part.start % 10 == whole.start or part[0].size == 11
    moved = shards.TokenDataset(path, 10, (0.0, 1.0))
    moved.start = part.start
    np.testing.assert_array_equal(moved[3], part[3])


def test_a_stream_without_codes_is_as_it_was(tmp_path):
    records = documents(np.random.default_rng(0))
    write(tmp_path / "a.jsonl", records)
    path = prepare.prepare(str(tmp_path / "a.jsonl"), BYTES, tmp_path / "tokens")
    assert not {"control_field", "controls"} & json.loads((path / "index.json").read_text()).keys()
    stream = np.array([token for record in records for token in (*record["text"].encode(), EOT)], "<u2")
    dataset = shards.TokenDataset(path, 100)
    for number, first in enumerate(range(0, stream.size, shards.RECORD_TOKENS)):
        stored = dataset._reader(0).read([number])[0]
        assert stored == stream[first : first + shards.RECORD_TOKENS].tobytes()
    np.testing.assert_array_equal(dataset[7], stream[700:801])


def test_the_field_is_part_of_what_the_data_is(tmp_path):
    write(tmp_path / "a.jsonl", [record | {"kind": "x"} for record in documents(np.random.default_rng(0))])
    prints = []
    for field in ("", "domain", "kind"):
        data = Data(train=str(tmp_path / "a.jsonl"), cache_dir=str(tmp_path / "cache"), control_field=field)
        prints.append(loader.training_set(data, BYTES, 64, 0).fingerprint)
        held_out = loader.validation_set(data, BYTES, 64)
        assert len(held_out) > 0
    assert len(set(prints)) == 3
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 3


def test_a_token_directory_must_have_the_field_of_the_config(made, tmp_path):
    path, *_ = made
    for field, words in (("", "control field 'domain', and config.data.control_field is ''"), ("kind", "is 'kind'")):
        with pytest.raises(ValueError, match=words):
            loader.training_set(Data(train=str(path), control_field=field), BYTES, 64, 0)
    assert loader.training_set(Data(train=str(path), control_field="domain"), BYTES, 64, 0)[0].size == 65


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"text": "x"}, "a.jsonl:2: no key 'domain'; there are 'text' (choose with control_field)"),
        ({"text": "x", "domain": 7}, "a.jsonl:2: 'domain' must be text, not 7"),
        ({"text": "x", "domain": None}, "a.jsonl:2: 'domain' must be text, not null"),
        ({"text": "x", "domain": ""}, "a.jsonl:2: 'domain' is empty; a control code has at least one character"),
    ],
)
def test_records_without_a_code_are_refused(record, words, tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [{"text": "x", "domain": "A"}, record])
    arguments = ["--tokenizer=bytes", f"--output={tmp_path}/tokens", "--control_field=domain"]
    assert cli.main(["tokenize", str(path), *arguments]) == 2
    assert capsys.readouterr().err == f"scaling tokenize: error: {tmp_path}/{words}\n"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl"]


def test_what_cannot_have_codes_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(
        ValueError, match=r"a.txt has no field 'domain'; control codes are read from .jsonl and .parquet"
    ):
        list(sources.documents([str(tmp_path / "a.txt")], control_field="domain"))
    path = str(write(tmp_path / "a.jsonl", [{"text": "x" * 50, "domain": "long enough"}]))
    made = prepare.prepare(path, BYTES, tmp_path / "tokens", control_field="domain")
    with pytest.raises(ValueError, match="a control code of 11 tokens leaves no text in a sequence of 11"):
        shards.TokenDataset(made, 11)
    monkeypatch.setattr("scaling.data.control.MOST", 1)
    write(tmp_path / "b.jsonl", [{"text": "x", "domain": f"http://{i}"} for i in range(2)])
    with pytest.raises(ValueError, match="'domain' holds no control codes: more than 1 different texts"):
        prepare.prepare(str(tmp_path / "b.jsonl"), BYTES, tmp_path / "more", control_field="domain")
    assert not (tmp_path / "more").exists()


def test_parquet_has_codes_too(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"domain": ["A", "B"], "text": ["one", "two"]}), tmp_path / "a.parquet")
    found = list(sources.documents([str(tmp_path / "a.parquet")], control_field="domain"))
    assert found == [("one", "A"), ("two", "B")]


def test_damage_is_named(made):
    path, *_ = made
    index = path / "index.json"
    values = json.loads(index.read_text())
    index.write_text(json.dumps(values | {"controls": values["controls"][:1]}))
    with pytest.raises(ValueError, match="control code 2 of 1"):
        shards.TokenDataset(path, 100)[0]
    index.write_text(json.dumps(values | {"controls": 5}))
    with pytest.raises(ValueError, match="damaged index of token shards"):
        shards.TokenDataset(path, 100)
