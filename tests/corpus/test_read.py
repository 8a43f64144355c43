import bz2
import gzip
import json
import random
import tracemalloc

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scaling.corpus import documents
from scaling.corpus.outcome import Tally
from scaling.corpus.reading import ids, source
from scaling.corpus.reading.read import RAW, VOTES, find, names, read
from scaling.corpus.reading.source import Read

RANDOM = random.Random(0)


def of(path, **knobs):
    tally = Tally()
    rows = [row for table in read(str(path), Read(**knobs), tally) for row in table.to_pylist()]
    return rows, tally


def lines(*records):
    return b"".join(record if isinstance(record, bytes) else json.dumps(record).encode() + b"\n" for record in records)


def faults(tally):
    return [(fault.place, fault.reason) for fault in tally.faults]


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"body": "One.", "key": 7, "url": "http://x", "karma": "3"}, b" \n", {"body": "Two.\ud800"}))
    rows, tally = of(path, text_key="body", id_key="key", votes_key="karma")
    assert [(row["id"], row["text"], row["url"], row["place"]) for row in rows] == [
        ("7", "One.", "http://x", 1),
        ("a.jsonl:3", "Two.\ufffd", "", 3),
    ]
    assert rows[0]["votes"] == 3.0 and rows[1]["votes"] != rows[1]["votes"] and rows[0]["kind"] == "text"
    assert faults(tally) == [(3, "the field 'karma' of the votes is missing or no number")]
    table = next(iter(read(str(path), Read(text_key="body", votes_key="karma"), Tally())))
    assert table.schema == pa.schema([*documents.COLUMNS, *RAW, *VOTES])


def test_html_in_a_field_is_content(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"html": "<p>é</p>"}))
    rows, _ = of(path, text_key="html", html=True)
    assert rows[0]["content"] == "<p>é</p>".encode() and rows[0]["kind"] == "html" and rows[0]["text"] == ""


def test_bad_lines_are_named_and_the_others_read(tmp_path):
    path = tmp_path / "a.jsonl"
    deep = b"[" * 100_000 + b"]" * 100_000 + b"\n"
    bad = [
        b"{\n",
        b"[1]\n",
        {"other": 1},
        {"text": None},
        b'{"text": "caf\xe9"}\n',
        b"\xff\xfe\0\n",
        deep,
        {"text": " "},
    ]
    path.write_bytes(lines({"text": "first"}, *bad, {"text": "last"})[:-1])
    rows, tally = of(path)
    assert [row["text"] for row in rows] == ["first", "caf\ufffd", "last"]
    assert tally.counts == {
        "fault: not JSON": 4, "fault: no text": 2, "fault: not UTF-8": 2, "empty": 1,
    }  # fmt: skip
    assert {place for place, _ in faults(tally)} == {2, 3, 4, 5, 6, 7, 8}
    assert tally.documents_in == 10 and tally.documents_in - 3 == 4 + 2 + 1
    assert "'text' is not there; there are 'other'" in faults(tally)[2][1]


def test_a_very_long_line_takes_bounded_memory_and_is_named(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(lines({"text": "first"}) + b'{"text": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n' + lines({"text": "last"}))
    tracemalloc.start()
    rows, tally = of(path, longest=2_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row["text"] for row in rows] == ["first", "last"]
    assert faults(tally) == [(2, "the line of 100000013 bytes is longer than the knob longest (2000000)")]
    assert peak < 15_000_000


def test_very_many_faults_are_counted_but_not_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x\n" * 1000)
    _, tally = of(path)
    assert tally.counts == {"fault: not JSON": 1000} and len(tally.faults) == source.NAMED + 1
    assert "900 more faults" in tally.faults[-1].reason


@pytest.mark.parametrize("squeeze", [gzip.compress, bz2.compress, bytes])
def test_a_cut_off_file_keeps_its_beginning(tmp_path, squeeze):
    path = tmp_path / "a.jsonl.gz"  # the content says how it is compressed, not the name
    data = squeeze(lines(*({"text": RANDOM.randbytes(20_000).hex()} for _ in range(60))))
    path.write_bytes(data[: len(data) // 2 - 999])
    rows, tally = of(path)
    assert 1 <= len(rows) < 60
    assert tally.counts.pop("fault: not JSON") == 1
    assert tally.counts == ({} if squeeze is bytes else {"fault: damaged compression": 1})


def test_a_text_file_is_a_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffOne.\n\nTwo é.".encode())
    rows, tally = of(path)
    assert [(row["id"], row["text"]) for row in rows] == [("a.txt:0", "One.\n\nTwo é.")] and not tally.counts
    path.write_bytes("Où est le café près de l'hôtel où nous étions à la fête ?".encode("cp1252"))
    rows, tally = of(path)
    assert rows[0]["text"].startswith("Où est le café")
    assert faults(tally)[0][1].startswith("byte 0xf9 at offset 1 is not UTF-8; it was read as")
    path.write_bytes("Words in sixteen bits.".encode("utf-16"))
    assert of(path)[0][0]["text"] == "Words in sixteen bits."
    path.write_bytes(b"x" * 101)
    assert "longer than the knob" in faults(of(path, longest=100)[1])[0][1] and of(path, longest=101)[0]


@pytest.mark.parametrize("end", ["txt", "jsonl", "parquet", "warc", "arc", "wet", "txt.gz", "jsonl.bz2", "warc.zst"])
def test_empty_files_and_junk_give_faults_alone(tmp_path, end):
    path = tmp_path / f"a.{end}"
    path.write_bytes(b"")
    rows, tally = of(path)
    assert rows == [] and faults(tally) == [(0, "the file is empty")]
    for start in (b"", b"\x1f\x8b\x08\0\0\0\0\0\0\0", b"BZh91AY&SY", b"\x28\xb5\x2f\xfd", b"PAR1"):
        path.write_bytes(start + bytes(range(256)) * 40)
        rows, tally = of(path)
        assert rows == [] and tally.faults and tally.faults[0].file == f"a.{end}"


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["One.", None, "x" * 50, "Two."], "id": ["a", "b", "c", None], "karma": [1, 2, None, 4]})
    pq.write_table(table, path)
    rows, tally = of(path, votes_key="karma", longest=40)
    assert [(row["id"], row["text"], row["votes"], row["place"]) for row in rows] == [
        ("a", "One.", 1.0, 1),
        ("a.parquet:4", "Two.", 4.0, 4),
    ]
    assert [place for place, _ in faults(tally)] == [2, 3]
    rows, tally = of(path, text_key="body")
    assert rows == [] and faults(tally) == [(0, "the file has 0 columns 'body'; it has text, id, karma")]


def test_cells_that_python_has_no_value_for_are_faults(tmp_path):
    path = tmp_path / "a.parquet"
    for odd in (pa.array([2**30, 1], pa.date32()), pa.array([2**62, 1], pa.timestamp("us"))):
        pq.write_table(pa.table({"text": ["One.", "Two."], "id": odd}), path)
        rows, tally = of(path)
        assert [(row["id"], row["text"]) for row in rows] == [("a.parquet:1", "One."), ("a.parquet:2", "Two.")]
        assert tally.faults[0].place == 1 and "the column 'id' cannot be read here" in tally.faults[0].reason
    twice = pa.Table.from_arrays([pa.array(["One."]), pa.array(["a"]), pa.array(["b"])], ["text", "id", "id"])
    pq.write_table(twice, path)
    rows, tally = of(path)
    assert [row["id"] for row in rows] == ["a.parquet:1"]
    assert faults(tally) == [(0, "the file has 2 columns 'id'; none of them is read")]


def test_damaged_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [RANDOM.randbytes(2000).hex() for _ in range(90)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=30, use_dictionary=False)
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    rows, tally = of(path)
    assert rows == [] and "no whole Parquet" in tally.faults[0].reason
    page = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(1).column(0).data_page_offset
    data[page : page + 60] = b"\xff" * 60
    path.write_bytes(data)
    rows, tally = of(path)
    assert [row["text"] for row in rows] == texts[:30] + texts[60:]
    assert tally.faults[0].place == 31 and "rows 31 to 60 cannot be read" in tally.faults[0].reason


def test_parts_and_memory_do_not_grow_with_the_file(tmp_path):
    def peak(number):
        path = tmp_path / f"{number}.jsonl.gz"
        with gzip.open(path, "wb", compresslevel=1) as file:
            for n in range(number):
                file.write(lines({"text": f"{n} " * 2000}))
        tracemalloc.start()
        sizes = [table.num_rows for table in read(str(path), Read(part_bytes=1_000_000), Tally())]
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sum(sizes) == number
        return memory, len(sizes)

    small, few = peak(600)
    large, many = peak(3000)
    assert few >= 4 and many >= 4 * few and large < 1.3 * small


def test_files_are_found_anywhere(tmp_path):
    for name in ("b.txt", "a/b.warc.gz", "a/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find(f"{tmp_path}/**/*.*")
    assert names(found) == dict(zip(found, ["a/b.warc.gz", "a/c.jsonl", "b.txt"], strict=True))
    assert names(found[:1]) == {found[0]: "b.warc.gz"} and names([]) == {}
    assert list(names([f"{tmp_path}/x1/a.txt", f"{tmp_path}/x2/a.txt"]).values()) == ["x1/a.txt", "x2/a.txt"]
    (tmp_path / "d.doc").touch()
    with pytest.raises(ValueError, match=r"d.doc: unknown format; names end in .txt"):
        find(f"{tmp_path}/*")
    with pytest.raises(FileNotFoundError):
        find(f"{tmp_path}/*.parquet")


def test_a_store_in_the_cloud():
    with fsspec.open("memory://corpus/x/a.jsonl.gz", "wb") as file:
        file.write(gzip.compress(lines({"text": "One."})))
    (path,) = find("memory://corpus/x/*.gz")
    rows, _ = of(path)
    assert rows[0]["text"] == "One." and rows[0]["id"] == "a.jsonl.gz:1"


def test_repeated_ids_are_made_unique_in_any_order():
    def part(file, *own):
        n = len(own)
        columns = dict(id=own, text=["t"] * n, file=[file] * n, place=range(n), url=[""] * n)
        return documents.table(columns)

    def unique(parts):
        entries = np.concatenate([*map(ids.hashes, parts)], axis=1)
        again = ids.repeated(entries)
        assert (again == ids.repeated(entries[:, ::-1])).all()
        low = entries[0] < 2**63
        halves = [each for each in (ids.repeated(entries[:, low]), ids.repeated(entries[:, ~low])) if len(each)]
        assert np.array_equal(np.concatenate([again[:0], *halves]), again)
        tally, found = Tally(), []
        for one in parts:
            made, more = ids.renamed(one, halves)
            assert made.equals(ids.renamed(one, [again])[0]) or not len(again)
            found += made["id"].to_pylist()
            tally.add(more)
        return found, tally

    found, tally = unique([part("a", "x", "y", "x"), part("b", "z", "y"), part("c", "w")])
    assert found == ["x@a:0", "y@a:1", "x@a:2", "z", "y@b:1", "w"]
    assert tally.counts == {"fault: repeated id": 4} and [f.file for f in tally.faults] == ["a", "a", "a", "b"]
    # An own id may be what the build would call a renamed document, or a piece of one that is cut.
    found, _ = unique([part("a", "x", "x", "x@a:0"), part("b", "d", "d#1", "e#1", "e#2", "f@g@b:4")])
    assert found == ["x@a:0", "x@a:1", "x@a:0@a:2", "d@b:0", "d#1@b:1", "e#1", "e#2", "f@g@b:4"]
    assert unique([part("a", "f", "f"), part("b", "f@a:0#3")])[0] == ["f@a:0", "f@a:1", "f@a:0#3@b:0"]
    assert unique([part("a")])[0] == []
