"""Fields that no table names: the keys of the record itself, in every format, also behind a byte order mark."""

import json
from pathlib import Path

import pytest

from scaling.evaluate.tasks.file import load
from scaling.evaluate.tasks.prompts import build_requests
from tests.evaluate.tasks.stand_ins import TASK

OWN_KEYS = TASK.replace('["no", "yes"]', '"options"')


@pytest.mark.parametrize(
    ("more", "file", "text"),
    [
        ("", "own.jsonl", '{"question": "Why?", "options": ["a", "b"], "answer": 1, "other": {"n": null}}\n'),
        ("[source.fields]\n", "own.jsonl", '{"question": "Why?", "options": ["a", "b"], "answer": "1"}\n'),
        (
            "keep = { kind = 'x' }\n[source.fields]\nanswer = { from = 'a', map = { no = '0', yes = '1' } }\n",
            "own.jsonl",
            '{"question": "No", "options": ["a", "b"], "a": "no", "kind": "y"}\n'
            '{"question": "Why?", "options": ["a", "b"], "a": "yes", "kind": "x", "answer": 0}\n',
        ),
        ("records = 'data.*'\n", "own.json", '{"options": ["a", "b"], "data": [{"question": "Why?", "answer": 1}]}'),
    ],
)  # fmt: skip
def test_the_keys_of_the_record_are_its_fields(more: str, file: str, text: str, tmp_path):
    own = OWN_KEYS.replace("own.jsonl", file).replace('"jsonl"', f'"{Path(file).suffix[1:]}"')
    (tmp_path / "own.toml").write_text(own + more)
    (tmp_path / file).write_text(text)
    (item,) = build_requests(load(tmp_path / "own.toml")[0], data=tmp_path).items
    assert (item.context, item.gold, item.target) == ("Q: Why?", 1, " b")


def test_keys_with_dots_and_without_the_one_that_is_used(tmp_path):
    (tmp_path / "own.toml").write_text(OWN_KEYS.replace("{question}", "{question.text} {about.who}"))
    good = {"question.text": "Why?", "about": {"who": "Ann"}, "options": ["a", "b"], "answer": 0}
    (tmp_path / "own.jsonl").write_text(json.dumps(good) + "\n")
    (task,) = load(tmp_path / "own.toml")
    assert build_requests(task, data=tmp_path).items[0].context == "Q: Why? Ann"
    (tmp_path / "own.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(good | {"answer": None}) + "\n")
    with pytest.raises(ValueError, match=r"own\.jsonl:2: answer must be text"):
        build_requests(task, data=tmp_path)
    del good["answer"]
    (tmp_path / "own.jsonl").write_text(json.dumps(good) + "\n")
    with pytest.raises(ValueError, match=r"own\.jsonl:1: answer: the record has no 'answer'; there are 'question"):
        build_requests(task, data=tmp_path)


@pytest.mark.parametrize(
    ("source", "files", "context"),
    [
        ('format = "lines"\ntest = "a.txt"', {"a.txt": "One\n"}, "{line}"),
        ('format = "labelled_lines"\ntest = "a.txt"', {"a.txt": "x One\n"}, "{text}"),
        ('format = "text"\ntest = "*.txt"', {"a.txt": "One\n"}, "{text}"),
        ('format = "csv"\ntest = "a.csv"\ncolumns = ["n", "word"]', {"a.csv": "1,One\n"}, "{word}"),
        ('format = "csv"\ntest = "a.csv"', {"a.csv": " n , word\n1,One\n"}, "{word}"),
        (
            'format = "lines"\ntest = { file = "a.txt", aligned = { word = "b.txt" } }',
            {"a.txt": "1\n", "b.txt": "One\n"},
            "{word}",
        ),
    ],
)
def test_the_keys_of_every_format_are_fields(source: str, files: dict[str, str], context: str, tmp_path):
    text = (
        f'metrics = ["perplexity"]\n[prompt]\ncontext = "{context}"\n[scoring]\nkind = "text"\n[[source]]\n{source}\n'
    )
    (tmp_path / "own.toml").write_text(text)
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert [r.context for r in build_requests(load(tmp_path / "own.toml")[0], data=tmp_path).items] == ["One"]
    if "csv" not in source or "columns" in source:  # the keys are known beforehand
        (tmp_path / "own.toml").write_text(text.replace(context, "{wrod}"))
        with pytest.raises(
            ValueError,
            match=r"uses \{wrod\}.* did you mean 'word'" if "word" in context else r"uses \{wrod\}.* did you mean",
        ):
            load(tmp_path / "own.toml")


def test_byte_order_marks_are_no_text(tmp_path):
    (tmp_path / "own.toml").write_text(OWN_KEYS, encoding="utf-8-sig")
    (tmp_path / "own.jsonl").write_text(
        '{"question": "Why?", "options": ["a", "b"], "answer": 1}\n', encoding="utf-8-sig"
    )
    assert build_requests(load(tmp_path / "own.toml")[0], data=tmp_path).items[0].context == "Q: Why?"
    for name, separator in (("csv", ","), ("tsv", "\t")):
        (tmp_path / "own.toml").write_text(
            OWN_KEYS.replace("jsonl", name).replace('"options"', '["no", "yes"]'), encoding="utf-8-sig"
        )
        (tmp_path / f"own.{name}").write_text(
            f"question{separator}answer\r\nWhy?{separator}1\r\n", encoding="utf-8-sig"
        )
        assert build_requests(load(tmp_path / "own.toml")[0], data=tmp_path).items[0].context == "Q: Why?"


TABLE = OWN_KEYS.replace("jsonl", "csv").replace('"options"', '["{c1}", "{c2}"]')


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('"question", "c1" ,c2, answer\nWhy?, "a, b" ,c,0\n', "", " a, b"),
        (f"question,c1,c2,answer\n{'Why? ' * 40_000},a,c,0\n", "", " a"),
        ("question,c1,c1 ,answer\nWhy?,a,b,0\n", "own.csv:1", "two columns are named 'c1'"),
        ("question,c1,c2,answer\nWhy?,a,b,0\nHow?,a,,0\n", "own.csv:3", "is empty"),
    ],
)
def test_tables_as_people_write_them(text: str, line: str, said: str, tmp_path):
    (tmp_path / "own.toml").write_text(TABLE)
    (tmp_path / "own.csv").write_text(text)
    (task,) = load(tmp_path / "own.toml")
    if not line:
        assert build_requests(task, data=tmp_path).items[0].target == said
        return
    with pytest.raises(ValueError, match=line) as caught:
        build_requests(task, data=tmp_path)
    assert said in str(caught.value)


def test_keys_and_texts_in_unicode(tmp_path):
    (tmp_path / "own.toml").write_text(OWN_KEYS.replace("{question}", "{qu\u00e9}"))
    record = {"que\u0301": "Why?", "options": ["a", "b"], "answer": 1}  # the same key, decomposed
    (tmp_path / "own.jsonl").write_text(json.dumps(record) + "\n")
    (task,) = load(tmp_path / "own.toml")
    assert build_requests(task, data=tmp_path).items[0].context == "Q: Why?"
    (tmp_path / "own.jsonl").write_text(json.dumps(record | {"options": ["a", "\ud800"]}) + "\n")
    with pytest.raises(ValueError, match=r"own\.jsonl:1: options has half a character"):
        build_requests(task, data=tmp_path)
