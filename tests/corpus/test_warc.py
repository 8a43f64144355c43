import gzip
import random
import shutil
import zlib

import pytest

from scaling.corpus.outcome import Tally
from scaling.corpus.reading.read import read
from scaling.corpus.reading.source import Read
from tests.corpus.archives import PAGE, arc, compressed, http, record
from tests.shared import SHARED, needs_shared

WARC = "data/more/corpus/warc"


def documents(path, **knobs):
    tally = Tally()
    rows = [row for table in read(str(path), Read(**knobs), tally) for row in table.to_pylist()]
    return rows, tally


def of(tmp_path, data, name="a.warc", **knobs):
    (tmp_path / name).write_bytes(data)
    return documents(tmp_path / name, **knobs)


def ids(rows):
    return [row["id"] for row in rows]


def faults(tally):
    return [(fault.place, fault.reason) for fault in tally.faults]


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.warc.bz2", "a.warc.zst"])
def test_pages_are_read_from_an_archive_of_any_compression(tmp_path, name):
    import bz2

    zstandard = pytest.importorskip("zstandard")
    made = [record(0, b"x: y", kind="warcinfo", mime="application/warc-fields"), record(1), record(2)]
    squeeze = {"gz": gzip.compress, "bz2": bz2.compress, "zst": zstandard.compress}.get(name.split(".")[-1], bytes)
    rows, tally = of(tmp_path, b"".join(map(squeeze, made)), name)
    assert ids(rows) == ["record-1", "record-2"] and not tally.faults
    assert [row["content"] for row in rows] == [PAGE, PAGE]
    assert rows[0]["url"] == "http://site/1" and rows[0]["charset"] == "utf-8" and rows[0]["kind"] == "html"
    assert rows[1]["place"] == len(made[0] + made[1]), "the offset in the content, however it is compressed"
    assert tally.counts == {"records of type warcinfo": 1}


def test_what_is_no_page_is_counted(tmp_path):
    made = [
        record(1, http(status=404)),
        record(2, http(fields="Content-Type: image/png")),
        record(3, kind="request"),
        record(4, kind="hymn"),
        record(5, http(b"")),
        record(6, b"Plain words.", kind="conversion", mime="text/plain"),
    ]
    rows, tally = of(tmp_path, b"".join(made))
    assert ids(rows) == ["record-6"] and rows[0]["text"] == "Plain words." and rows[0]["kind"] == "text"
    assert tally.counts == {
        "responses with a status other than 200": 1,
        "records that are neither text nor HTML": 1,
        "records of type request": 1,
        "records of type unknown": 1,
        "empty": 1,
    }


def test_bodies_are_decoded(tmp_path):
    chunks = b"4;x=y\r\n" + PAGE[:4] + b"\r\n" + f"{len(PAGE) - 4:x}\r\n".encode() + PAGE[4:] + b"\r\n0\r\n\r\n"
    html = "Content-Type: text/html"
    made = [
        record(1, http(chunks, f"{html}\r\nTransfer-Encoding: chunked")),
        record(2, http(gzip.compress(PAGE), f"{html}\r\nContent-Encoding: gzip")),
        record(3, http(zlib.compress(PAGE), f"{html}\r\nContent-Encoding: deflate")),
        record(4, http(zlib.compress(PAGE)[2:-4], f"{html}\r\nContent-Encoding: deflate")),
        record(5, http(PAGE, f"{html}\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked")),  # not so stored
    ]
    rows, tally = of(tmp_path, b"".join(made))
    assert [row["content"] for row in rows] == [PAGE] * 5 and not tally.faults


def test_what_looks_like_something_else_is_read_as_what_it_is(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    wet = record(1, b"HTTP/2 is faster than HTTP/1.1.", kind="conversion", mime="text/plain")
    made = [
        b"\xef\xbb\xbf" + wet,
        record(2, http(zstandard.compress(PAGE), "Content-Type: text/html\nContent-Encoding: zstd")),
    ]
    twice = "Content-Type: text/html\nContent-Encoding: deflate\nContent-Encoding: gzip"
    made.append(record(3, http(gzip.compress(zlib.compress(PAGE)), twice)))
    rows, tally = of(tmp_path, b"".join(made))
    assert rows[0]["text"].startswith("HTTP/2 is") and not tally.faults
    assert [row["content"] for row in rows[1:]] == [PAGE, PAGE]
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    rows, tally = of(tmp_path, skipped + zstandard.compress(record(1)) + skipped + zstandard.compress(record(2)))
    assert ids(rows) == ["record-1", "record-2"] and not tally.faults


def test_documents_that_are_lost_are_documents_that_went_in(tmp_path):
    made = [
        record(1),
        record(2, b"no status"),
        record(3, http(b"\n")),
        record(4, kind="request"),
        record(5, http(b"x" * 5000)),
    ]
    rows, tally = of(tmp_path, b"".join(made), longest=4000)
    assert ids(rows) == ["record-1"] and tally.documents_in == 4


def test_damaged_bodies_are_faults_and_what_there_is_of_them_is_kept(tmp_path):
    html = "Content-Type: text/html"
    bomb = gzip.compress(b"<p>" + bytes(10_000))
    made = [
        record(1, http(gzip.compress(PAGE)[:-30], f"{html}\r\nContent-Encoding: gzip")),
        record(2, http(b"4\r\n<p>x\r\nzz\r\nrest", f"{html}\r\nTransfer-Encoding: chunked")),
        record(3, http(bomb, f"{html}\r\nContent-Encoding: gzip")),
        record(4, b"no HTTP at all"),
        record(5),
    ]
    rows, tally = of(tmp_path, b"".join(made), longest=5000)
    assert ids(rows) == [f"record-{n}" for n in (1, 2, 3, 5)]
    assert rows[0]["content"] and PAGE.startswith(rows[0]["content"])
    assert rows[1]["content"] == b"<p>xzz\r\nrest" and len(rows[2]["content"]) == 5000
    assert tally.counts == {
        "fault: cut off": 1, "fault: wrong chunks": 1, "fault: too long": 1, "fault: no HTTP": 1,
    }  # fmt: skip


@pytest.mark.parametrize("length", [5, 400, 10**6, 10**17, -1, "abc", ""])
def test_a_wrong_length_costs_no_other_record(tmp_path, length):
    made = [record(1), record(2, length=length), record(3), record(4)]
    rows, tally = of(tmp_path, b"".join(made))
    expected = [1, 3, 4] if length == 10**17 else [1, 2, 3, 4]
    assert ids(rows) == [f"record-{n}" for n in expected]
    assert all(row["content"] == PAGE for row in rows)
    assert tally.faults and {fault.place for fault in tally.faults} == {len(made[0])}
    assert tally.counts["fault: wrong length"] == 1


def test_a_chunk_that_is_cut_off_is_named(tmp_path):
    body = b"%x\r\n" % (len(PAGE) + 9) + PAGE
    rows, tally = of(tmp_path, record(1, http(body, "Content-Type: text/html\nTransfer-Encoding: chunked")))
    assert rows[0]["content"] == PAGE
    assert faults(tally) == [(0, f"the last chunk of the body says {len(PAGE) + 9} bytes; 9 lack")]


def test_a_cut_off_archive_keeps_what_there_is(tmp_path):
    whole = record(1) + record(2)
    rows, tally = of(tmp_path, whole[:-300])
    assert ids(rows) == ["record-1", "record-2"] and PAGE.startswith(rows[1]["content"])
    assert faults(tally)[0][0] == len(record(1)) and tally.counts == {"fault: cut off": 1}
    rows, tally = of(tmp_path, compressed(record(1), record(2))[:-50], "b.warc.gz")
    assert ids(rows) == ["record-1", "record-2"]
    assert "the gzip data that begins at byte 318 is cut off" in tally.faults[1].reason
    rows, tally = of(tmp_path, record(1) + record(2)[:100], "c.warc")
    assert ids(rows) == ["record-1"] and "has no end" in tally.faults[0].reason


def test_a_damaged_member_costs_no_other_record(tmp_path):
    members = [compressed(record(n, http(random.Random(n).randbytes(5000).hex().encode()))) for n in range(4)]
    bad = bytearray(members[1])
    bad[3000:3010] = b"\xff" * 10
    rows, tally = of(tmp_path, members[0] + bytes(bad) + members[2] + b"junk" + members[3] + bytes(99), "a.warc.gz")
    assert ids(rows)[0] == "record-0" and ids(rows)[-2:] == ["record-2", "record-3"]
    reasons = " ".join(reason for _, reason in faults(tally))
    assert f"stored byte {len(members[0])}" in reasons and "4 bytes are no gzip" in reasons


def test_junk_between_records_is_named(tmp_path):
    rows, tally = of(tmp_path, record(1) + b"junk\nmore junk\n" + record(2) + b"\0\r\n\r\n\r\n" + record(3))
    assert ids(rows) == ["record-1", "record-2", "record-3"]
    assert len(tally.faults) == 1 and "wrong length" in next(iter(tally.counts))
    rows, tally = of(tmp_path, b"no archive\n" * 3 + record(1))
    assert ids(rows) == ["record-1"] and faults(tally) == [(0, "33 bytes belong to no record")]
    rows, tally = of(tmp_path, bytes(range(256)) * 50)
    assert rows == [] and tally.counts == {"fault: no record": 1}


def test_quirks_of_headers(tmp_path):
    clueweb = record(1, version="0.18", more="WARC-TREC-ID: http://a/\nb\r\n\n")
    folded = record(2, more="X-Folded: one\r\n  two: three\r\nno field at all\r\n").replace(b"WARC-Type", b"warc-TYPE")
    bare = record(3).replace(b"\r\n", b"\n")
    rows, tally = of(tmp_path, clueweb + folded + bare)
    assert ids(rows) == ["record-1", "record-2", "record-3"]
    assert rows[0]["content"] == PAGE and not [fault for fault in tally.faults if fault.place < len(clueweb + folded)]


def test_votes_and_ids_of_records(tmp_path):
    rows, tally = of(tmp_path, record(1, more="Karma: 7\r\n") + record(2), votes_key="Karma", id_key="")
    assert rows[0]["votes"] == 7 and rows[1]["votes"] != rows[1]["votes"]
    assert ids(rows) == ["a.warc:0", f"a.warc:{rows[1]['place']}"]
    assert tally.counts == {"fault: no votes": 1}


def test_arc(tmp_path):
    made = arc(
        ("http://site/a b", http(), None),
        ("http://site/2", http(), "-1"),
        ("http://site/3", http(), 9999),
        ("http://site/4", http(), 10),
        ("http://site/5", PAGE, None),
    )
    rows, tally = of(tmp_path, made, "a.arc")
    assert [row["url"] for row in rows] == ["http://site/a b", *(f"http://site/{n}" for n in range(2, 6))]
    assert all(row["content"] == PAGE for row in rows) and rows[0]["id"] == f"a.arc:{rows[0]['place']}"
    assert tally.counts == {"records of type warcinfo": 1, "fault: wrong length": 3}
    assert made[rows[2]["place"] :].startswith(b"http://site/3")


# What the shared files give: documents, and what was counted beside records of other types.
FILES = {
    "cc_net_sample.wet.txt": (3, {"wrong length": 4}),
    "commoncrawl/whirlwind.warc.gz": (1, {}),
    "commoncrawl/whirlwind.warc.wet.gz": (1, {}),
    "resiliparse/clipped.warc.gz": (1, {"cut off": 1, "damaged compression": 1}),
    "resiliparse/clueweb-quirk.warc.gz": (29, {}),
    "resiliparse/warcfile.warc.gz": (16, {}),
    "warcio/bad.arc": (0, {"wrong length": 3}),
    "warcio/example-bad-non-chunked.warc.gz": (1, {}),
    "warcio/example-bad.warc.gz.bad": (1, {}),
    "warcio/example-iana.org-chunked.warc": (1, {}),
    "warcio/example-resource.warc.gz": (1, {}),
    "warcio/example-space-in-url.arc": (1, {"cut off": 1}),
    "warcio/example-trunc.warc": (1, {"cut off": 1}),
    "warcio/example-wget-bad-target-uri.warc.gz": (3, {}),
    "warcio/example-wrong-chunks.warc.gz": (1, {}),
    "warcio/example.arc.gz": (1, {}),
    "warcio/example.warc": (1, {}),
    "warcio/post-test.warc.gz": (0, {}),
}


@needs_shared(WARC)
@pytest.mark.parametrize("file", FILES)
def test_broken_and_good_files_of_others(tmp_path, file):
    number, counts = FILES[file]
    name = file.split("/")[-1].removesuffix(".bad").removesuffix(".txt")
    rows, tally = documents(shutil.copy(SHARED / WARC / file, tmp_path / name))
    assert len(rows) == number
    assert {what: n for what, n in tally.counts.items() if what.startswith("fault")} == {
        f"fault: {what}": n for what, n in counts.items()
    }


@needs_shared(WARC)
@pytest.mark.parametrize("file", ["resiliparse/warcfile.warc.gz", "commoncrawl/whirlwind.warc.gz"])
def test_pages_are_those_that_fastwarc_reads(file):
    fastwarc = pytest.importorskip("fastwarc.warc")
    path = SHARED / WARC / file
    with path.open("rb") as stream:
        expected = {}
        for one in fastwarc.ArchiveIterator(stream, record_types=fastwarc.WarcRecordType.response, auto_decode="all"):
            expected[one.record_id.strip("<>").removeprefix("urn:uuid:")] = one.reader.read()
    rows, tally = documents(path)
    left_out = sum(n for what, n in tally.counts.items() if what.startswith(("responses", "records that")))
    assert rows and len(rows) == len(expected) - left_out
    assert all(row["content"] == expected[row["id"]] for row in rows)
