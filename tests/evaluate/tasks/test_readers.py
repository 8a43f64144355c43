"""Formats of files whose records are sentences, and records inside of lines."""

import gzip

import pytest

from scaling.evaluate.tasks import readers
from scaling.evaluate.tasks.task import Source


def read(path, source):
    return list(readers.read(source, source.test, {"test": (path,)}, "test"))


def test_sentences_with_columns(tmp_path):
    path = tmp_path / "x.conll.gz"
    path.write_bytes(gzip.compress(b"\n#\tO\nNew York\tB-x\n\t\r\n\r\na O\n  \nb O"))
    source = Source(format="conll", columns=("word", "tag"))
    assert [(where.rsplit(":")[-1], record) for where, record in read(path, source)] == [
        ("2", {"word": ["#", "New York"], "tag": ["O", "B-x"]}),
        ("6", {"word": ["a"], "tag": ["O"]}),
        ("8", {"word": ["b"], "tag": ["O"]}),
    ]
    path = tmp_path / "x.conll"
    path.write_text("a O\nb O O\n")
    with pytest.raises(ValueError, match=r"x\.conll:2: 3 columns, and there should be 2"):
        read(path, source)


def test_conllu_without_comments_ranges_and_words_that_are_not_there(tmp_path):
    rest = "\t_" * 6
    lines = ["# text = I don't", f"1\tI\t_\tPRON{rest}", f"2-3\tdon't\t_\t_{rest}", f"2\tdo\t_\tAUX{rest}"]
    lines += [f"3\tn't\t_\tPART{rest}", f"3.1\tgo\t_\tVERB{rest}", "", "# newpar", f"1\t#\t_\tSYM{rest}", ""]
    path = tmp_path / "x.conllu"
    path.write_text("\n".join(lines))
    (where, first), (_, second) = read(path, Source(format="conllu"))
    assert where.endswith("x.conllu:2") and first["form"] == ["I", "do", "n't"]
    assert first["upos"] == ["PRON", "AUX", "PART"] and second["form"] == ["#"]
    path.write_text("1\ta\tb\n")
    with pytest.raises(ValueError, match=r"x\.conllu:1: 3 columns, and there should be 10"):
        read(path, Source(format="conllu"))


def test_records_inside_of_a_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "t", "qas": [{"q": 1}, {"q": 2}]}\n\n{"text": "u", "qas": [{"q": 3}]}\n')
    found = read(path, Source(format="jsonl", records="qas.*"))
    assert [(where.rsplit(":")[-1], record) for where, record in found] == [
        ("1", {"text": "t", "q": 1}), ("1", {"text": "t", "q": 2}), ("3", {"text": "u", "q": 3}),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"x\.jsonl:1: qas2: there is no key 'qas2'"):
        read(path, Source(format="jsonl", records="qas2"))
