import collections
import contextlib
import gzip
import io
import json
import os
import re
import time

import pyarrow as pa
import pytest

from scaling.corpus import documents
from scaling.corpus.extraction.extract import Extract, depth, extract
from scaling.corpus.extraction.extractor import Extractor, Settings, Stopped
from scaling.corpus.outcome import Tally
from scaling.corpus.reading import read
from scaling.corpus.reading.formats import decode
from tests.corpus.archives import PAGE
from tests.shared import SHARED, needs_shared

pytest.importorskip("trafilatura")

MANY_TAGS = b"<table>" + b"<tr><td>some text<span>word</span></td></tr>" * 20_000 + b"</table>"
GOLD = "data/more/corpus/html_gold/article_extraction_benchmark.jsonl.gz"


def table(*pages, text=None):
    n = len(pages)
    columns = dict(id=[f"d{i}" for i in range(n)], text=[text or ""] * n, file=["f"] * n, place=range(n), url=[""] * n)
    raw = dict(kind=["text" if text else "html"] * n, content=pages, charset=[""] * n)
    return documents.table(columns | raw, read.RAW)


def test_main_text_is_extracted_and_raw_columns_end():
    found, tally = extract(table(PAGE, b"<p></p>", b"junk \0\1", PAGE), Extract())
    assert found["id"].to_pylist() == ["d0", "d3"] and tally.counts == {"no text": 2} and not tally.faults
    assert found.schema == documents.COLUMNS
    text = found["text"][0].as_py()
    assert "Sentence number 11 says something" in text and "<" not in text


def test_text_is_cleaned_but_not_extracted():
    found, _ = extract(table(b"", text="a <b> e\u0301\r\n\0c"), Extract())
    assert found["text"].to_pylist() == ["a <b> é\nc"]


def test_encodings():
    page = PAGE.decode().replace("Sentence", "Où est le café naïf")
    for encoded in (
        page.encode("cp1252"),
        page.encode("utf-16"),
        page.encode("utf-8-sig"),
        page.replace("<head>", "<head><meta charset='iso-8859-15'>").encode("iso-8859-15"),
    ):
        found, _ = extract(table(encoded), Extract())
        assert "Où est le café naïf" in found["text"][0].as_py()
    assert decode("это".encode("cp1251"), "windows-1251") == ("это", "")
    almost = "это русский текст".encode() + b"\xff" + "é".encode()
    assert decode(almost, "windows-1251") == (
        "это русский текст\ufffdé",
        "byte 0xff at offset 32 is not UTF-8; bytes read as U+FFFD: 1",
    )
    assert "not UTF-8; it was read as" in decode("это".encode("cp1251") * 9, "punycode")[1], "no encoding of the web"
    assert decode("это".encode(), "windows-1251") == ("это", "")
    assert decode(b"caf\xe9", "no-such-encoding")[0] == "café"


@pytest.mark.parametrize(
    "page, knobs, reason",
    [
        (b"<div>" * 300 + PAGE, {}, "the page nests 30[0-9] elements"),
        (PAGE * 3, {"largest": 2000}, r"the page has \d+ bytes, more than the knob largest"),
        (PAGE * 3, {"tags": 60}, r"the page has \d+ tags, more than the knob tags"),
        (MANY_TAGS, {"seconds": 0.3}, "stopped after 0.3 seconds of processor time"),
    ],
)
def test_pages_that_are_too_much_are_faults_and_the_others_are_read(page, knobs, reason):
    start = time.monotonic()
    found, tally = extract(table(PAGE, page, PAGE), Extract(**knobs))
    assert found["id"].to_pylist() == ["d0", "d2"], "the pages around it"
    assert len(tally.faults) == 1 and tally.faults[0].file == "f" and tally.faults[0].place == 1
    assert re.search(reason, tally.faults[0].reason) and sum(tally.counts.values()) == 1
    assert time.monotonic() - start < 60


def test_dropped_texts_are_shown_and_very_many_faults_are_counted_but_not_named():
    _, tally = extract(table(*[b"<p>x</p>"] * 250), Extract(largest=3))
    assert tally.counts["page too large"] == 250 and len(tally.faults) == 101
    assert tally.faults[-1].reason.startswith("150 more pages of this part")
    _, tally = extract(table(b"", text="\0\0 \0"), Extract())
    assert [text for _, _, text in tally.examples["no text"]] == ["\0\0 \0"]


def test_the_process_that_extracts_may_die_and_fail():
    extractor = Extractor(Settings())
    assert "number 3" in extractor.extract(PAGE.decode())
    child = extractor._child
    extractor.extract(PAGE.decode())
    assert extractor._child is child, "one process serves many pages"
    os.kill(child.pid, 9)
    child.wait()
    with pytest.raises(Stopped, match="ended with -9"):
        extractor.extract(PAGE.decode())
    assert "number 3" in extractor.extract(PAGE.decode())
    extractor.close()
    with pytest.raises(ValueError, match=r"before its first page|cannot be used"):
        Extractor(Settings(memory=1 << 20)).extract("")


@pytest.mark.parametrize("page", ["<!--" * 10**6, "<script>" * 10**5, "<" * 10**6, "<a " * 10**5, "</script" * 10**5])
def test_depth_takes_no_long(page):
    start = time.process_time()
    depth(page)
    assert time.process_time() - start < 5


def test_depth():
    assert depth("<html><body><div><p>a<br><p>b<li><img/></div><div></div></body>") == 1
    assert depth("<div><b><i>x</i></b><!-- <b><b><b><b> --><script><b><b><b><b></script>") == 3
    assert depth("</b></b><b>") == 1 and depth("") == 0


def test_knobs_are_checked():
    with pytest.raises(ValueError, match="extractor='other' must be one of 'trafilatura', 'resiliparse'"):
        Extract(extractor="other")
    with pytest.raises(ValueError, match="normalization='nfc' must be one of"):
        Extract(normalization="nfc")


def shingles(text):
    """How often each run of four words occurs, as github.com/scrapinghub/article-extraction-benchmark counts."""
    words = re.findall(r"\w+", text)
    return collections.Counter(tuple(words[n : n + 4]) for n in range(len(words) - 3))


def f1(pairs):
    """F1 of the means of precision and recall over pages, of (gold text, text found); as that benchmark."""
    precisions, recalls = [], []
    for gold, found in pairs:
        wanted, there = shingles(gold), shingles(found)
        both = (wanted & there).total()
        precisions.append(both / there.total() if there else float(not wanted))
        recalls.append(both / wanted.total() if wanted else float(not there))
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 2 * precision * recall / (precision + recall)


@needs_shared(GOLD)
@pytest.mark.parametrize("extractor, least", [("trafilatura", 0.95), ("resiliparse", 0.90)])
def test_gold_pages(extractor, least):
    # Its command line sets how standard output is encoded, which pytest's capture must not lose.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from trafilatura import cli, cli_utils

    with gzip.open(SHARED / GOLD) as file:
        gold = {row["id"]: row for row in map(json.loads, file)}
    tables = list(read.read(str(SHARED / GOLD), read.Read(text_key="html", html=True), Tally()))
    plain = Extract(extractor=extractor, normalization="", controls=False, gutenberg=False, wiki=False)
    documents = pa.concat_tables(tables)
    found = extract(documents, plain)[0]
    texts = dict(zip(found["id"].to_pylist(), found["text"].to_pylist(), strict=True))
    assert f1([(row["articleBody"], texts.get(id, "")) for id, row in gold.items()]) > least
    if extractor == "trafilatura":  # the same text as its own command line gives
        options = cli.parse_args(["--no-comments"])
        for id in sorted(gold)[:15]:
            assert (cli_utils.examine(gold[id]["html"], options) or "") == texts[id]
