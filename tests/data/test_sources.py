import gzip
import json
import re
import shlex
import sys

import fsspec
import pytest

from scaling.data import sources


def write_jsonl(path, records):
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def read(pattern, **kwargs):
    return list(sources.texts(sources.find(str(pattern)), **kwargs))


TEXT = "Zwölf Boxkämpfer jagen Viktor.\n\n\t漢字 😀\r\n  end "


def test_every_format_gives_the_text_as_it_is(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    write_jsonl(tmp_path / "c.jsonl", [{"text": TEXT}, {"text": "two"}])
    write_jsonl(tmp_path / "d.jsonl.gz", [{"text": TEXT}])
    parquet.write_table(pyarrow.table({"text": [TEXT, "two"], "n": [1, 2]}), tmp_path / "e.parquet")
    assert read(tmp_path / "*") == [TEXT, TEXT, TEXT, "two", TEXT, TEXT, "two"]


def test_files_are_sorted_and_a_name_with_brackets_is_taken_literally(tmp_path):
    for name in ("b.txt", "a.txt", "c[1].txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "sub.txt").mkdir()
    assert read(tmp_path / "*.txt") == ["a.txt", "b.txt", "c[1].txt"]
    assert read(tmp_path / "c[1].txt") == ["c[1].txt"]


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("c/*.txt", ["c/a.txt"]),
        ("*/*.txt", ["c/a.txt"]),
        ("c/**/*.txt", ["c/a.txt", "c/deep/b.txt"]),
        ("**/*.txt", ["c/a.txt", "c/deep/b.txt"]),
        ("c/[._a]*.txt", ["c/a.txt"]),
        ("c/.*.txt", ["c/._a.txt", "c/.draft.txt"]),
        ("c/.draft.txt", ["c/.draft.txt"]),
        ("c/.ipynb_checkpoints/*.txt", ["c/.ipynb_checkpoints/a.txt"]),
        (".cache/*.txt", [".cache/x.txt"]),
        ("c/.ipynb*/*.txt", ["c/.ipynb_checkpoints/a.txt"]),
    ],
)
def test_hidden_files_are_left_out_as_by_shells(tmp_path, pattern, expected):
    root = tmp_path / ".home"  # what lies above a glob may be hidden
    names = ("c/a.txt", "c/deep/b.txt", "c/.draft.txt", "c/._a.txt", "c/.ipynb_checkpoints/a.txt", ".cache/x.txt")
    make(root, *names)
    assert read(root / pattern) == expected


def test_a_link_to_no_file_is_named_as_one(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(ValueError, match="link"):
        sources.find(f"{tmp_path}/*.txt")


def test_only_hidden_files_are_no_files(tmp_path):
    make(tmp_path, ".a.txt")
    bad(tmp_path, "*.txt", None, "hidden", FileNotFoundError)


ODD = ["corpus [v1]", "a::b", "what?", "50% *", "[!x]", "it's", "{a,b}", "~x", "a[b", "file:x"]


@pytest.mark.parametrize("folder", ODD)
def test_what_a_message_advises_works_whatever_the_name_of_the_folder(tmp_path, folder, monkeypatch):
    make(tmp_path, f"{folder}/b.txt", f"{folder}/a::[1].txt", f"{folder}/in [x]/c.txt", "corpus v/other.txt")
    monkeypatch.chdir(tmp_path)
    expected = [f"{folder}/a::[1].txt", f"{folder}/b.txt"]
    for directory in (folder, f"{tmp_path}/{folder}", f"{folder}/"):
        with pytest.raises(ValueError, match=r"directory.* glob") as caught:
            sources.find(directory)
        (advice,) = shlex.split(str(caught.value).partition("such as ")[2])
        assert read(advice) == expected
    for name in expected:
        assert read(name) == [name]
    assert read(f"{folder}/*/*.txt") == read(f"{folder}/in [x]/*.txt") == [f"{folder}/in [x]/c.txt"]
    assert f"{folder}/b.txt" in read("*/b.txt")


def test_other_field_byte_order_mark_blank_lines_and_half_surrogates(tmp_path):
    file = tmp_path / "a.jsonl"
    lines = b'\xef\xbb\xbf{"content": "x"}\n\n{"content": ""}\n{"content": "\\ud83d!"}\n'
    file.write_bytes(lines)
    assert read(file, text_key="content") == ["x", "\ufffd!"]
    file.write_bytes(lines + lines)  # as by cat
    assert read(file, text_key="content") == ["x", "\ufffd!"] * 2


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz"])
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    text = b'\xef\xbb\xbf{"text": "x"}\n' if "jsonl" in name else b"\xef\xbb\xbfx"
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert read(tmp_path / name) == ["x"]


def test_remote_files_through_fsspec():
    with fsspec.open("memory://bucket/a.jsonl.gz", "wb") as file:
        file.write(gzip.compress(b'{"text": "remote"}\n'))
    assert sources.find("memory://bucket/*.gz") == ["memory:///bucket/a.jsonl.gz"]
    assert read("memory://bucket/*.gz") == ["remote"]


def test_progress_adds_up_to_the_stored_size(tmp_path):
    write_jsonl(tmp_path / "a.jsonl.gz", [{"text": "x" * 100}] * 50)
    (tmp_path / "b.txt").write_text("y")
    files = sources.find(str(tmp_path / "*"))
    seen = []
    list(sources.documents(files, progress=seen.append))
    assert sum(seen) == sources.size(files) == sum(f.stat().st_size for f in tmp_path.iterdir())


def bad(tmp_path, name, content, words, error=ValueError):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error) as caught:
        read(tmp_path / name)
    assert re.search(words, str(caught.value))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


# Without the time: it would stand in the names of the tests, which every worker must collect alike.
GZIPPED = gzip.compress(b'{"text": "' + bytes(range(97, 123)) * 400 + b'"}\n', mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt.gz", gzip.compress(b"", mtime=0), "no documents with text"),
        ("a.jsonl", b"\n\n", "no documents with text"),
        ("a.txt", b"abc \xff def", "UTF-8: .*0xff .*4"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "\xe9"}\n', "UTF-8: .*0xe9 .*25"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": oops}\n', "a.jsonl:2: not JSON"),
        ("a.jsonl", b'["text"]\n', "a.jsonl:1: a JSON object"),
        (
            "a.jsonl",
            b'{"text": "ok"}\n{"text": "x", "n": %s}\n' % (b"9" * 5000),
            "a.jsonl:2 .*4300 digits",
        ),
        ("a.jsonl", b'{"body": "x", "id": 3}\n', "a.jsonl:1: .*'text'.*'body', 'id'"),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl:1: 'text' .*3"),
        ("a.jsonl.gz", GZIPPED[:60], "damaged or truncated gzip"),
        ("a.jsonl.gz", b"plain text, not gzip", "damaged or truncated gzip"),
        ("a.csv", b"a,b", "unknown format"),
        ("a.parquet", b"PAR1 not really", "damaged parquet"),
    ],
)
def test_bad_input_is_one_sentence_that_says_where(tmp_path, name, content, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    bad(tmp_path, name, content, message)


def test_nothing_matches_and_a_directory(tmp_path):
    bad(tmp_path, "none*.txt", None, "no file matches", FileNotFoundError)
    (tmp_path / "folder").mkdir()
    bad(tmp_path, "folder", None, "is a directory")


def test_parquet_without_the_column_or_with_null(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: row 2: 'text' .*null"):
        read(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"'body'.* 'text'"):
        read(tmp_path / "a.parquet", text_key="body")


def test_parquet_with_bytes_that_are_no_text_or_two_columns_of_one_name(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    bad_text = pyarrow.array([b"ok", b"abc \xff"] + [b"ok"] * 2000, pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": bad_text}), tmp_path / "a.parquet")
    bad(tmp_path, "a.parquet", None, "a.parquet: row 2 .*0xff .*4")
    columns = [pyarrow.array([name]) for name in "abc"]
    parquet.write_table(pyarrow.Table.from_arrays(columns, ["text", "n", "text"]), tmp_path / "b.parquet")
    bad(tmp_path, "b.parquet", None, "b.parquet: 2 columns .*'text'")
    assert read(tmp_path / "b.parquet", text_key="n") == ["b"]


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"scaling\[data\]"):
        read(tmp_path / "a.parquet")
