"""The rules of Gopher and C4, against plain computations of single documents."""

import collections
import gzip
import json
import re

import numpy as np
import pyarrow as pa
import pytest

from scaling.corpus.filters import c4, gopher, heuristics, words
from scaling.corpus.filters.heuristics import Heuristics
from scaling.corpus.outcome import Tally
from tests.corpus.test_quality import records, table
from tests.shared import SHARED, needs_shared

GOOD = """The people of the town have bread and fish, and that is good.
In winter all boats of old captains stay with their owners on land.
Nobody would be sure to find a room, because houses were full.
A traveller told us that he had walked along rivers for many days.
We gave him soup, which his children liked more than anything else.
Later, when snow melted, they left to see mountains beyond this valley.
Some letters came back; others were lost on ships or never written."""
THAI = "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ" * 2
CHINESE = "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。" * 2


def reasons(texts, **knobs):
    """Why each text is dropped by itself, "" if it stays."""
    found = []
    for text in texts:
        _, tally = heuristics.stage(table([text]), Heuristics(**knobs))
        found.append(next((name for name in tally.counts if name in tally.examples), ""))
    return found


def gopher_of(text):
    """What ``gopher`` says of one text, computed plainly."""
    found = text.split()
    characters = max(1, sum(map(len, found)))
    rows = [line.strip() for line in text.split("\n")]
    full = [row for row in rows if row]
    blocks = [tuple(block.split("\n")) for block in re.split(r"\n{2,}", "\n".join(rows).strip("\n")) if block]

    def again(pieces):
        return [piece for place, piece in enumerate(pieces) if piece in pieces[:place]]

    of_line = max(1, sum(map(len, full)))
    figures = {
        "words": len(found),
        "word length": characters / max(1, len(found)) if found else 0,
        "hash signs": text.count("#") / max(1, len(found)),
        "ellipses": (text.count("...") + text.count("…")) / max(1, len(found)),
        "alphabetic": sum(any(map(str.isalpha, word)) for word in found) / max(1, len(found)),
        "stop words": len({word.lower() for word in found} & set(heuristics.STOP_WORDS)),
        "bullets": sum(row[0] in "•‣⁃◦∙●○■▪►" or row.startswith(("- ", "* ", "– ")) for row in full)
        / max(1, len(full)),
        "line ellipses": sum(row.endswith(("...", "…")) for row in full) / max(1, len(full)),
        "lines": len(again(full)) / max(1, len(full)),
        "paragraphs": len(again(blocks)) / max(1, len(blocks)),
        "line characters": sum(map(len, again(full))) / of_line,
        "paragraph characters": sum(len(row) for block in again(blocks) for row in block) / of_line,
    }
    for n in range(2, 11):
        grams = [tuple(found[place : place + n]) for place in range(len(found) - n + 1)]
        counts = collections.Counter(grams)
        if n in gopher.TOP:
            top = max(((count, len("".join(gram))) for gram, count in counts.items() if count > 1), default=(0, 0))
            figures[n] = top[0] * top[1] / characters
        else:
            inside = {place + more for place, gram in enumerate(grams) if counts[gram] > 1 for more in range(n)}
            figures[n] = sum(len(found[place]) for place in inside) / characters
    return figures


def check_gopher(texts):
    column = pa.array(texts, pa.large_string())
    split = words.split(column)
    found = gopher.of_words(column, split, heuristics.STOP_WORDS) | gopher.of_lines(column) | gopher.of_ngrams(split)
    for place, text in enumerate(texts):
        plain = gopher_of(text)
        assert found.keys() == plain.keys()
        for name, value in plain.items():
            assert found[name][place] == pytest.approx(value), (name, text[:60])


def test_gophers_figures_are_those_of_a_plain_computation():
    random = np.random.default_rng(0)
    pieces = np.array(
        ["a", "the", "be", "cat", "dog.", "#tag", "12", "...", "So…", "•", "-", "\n", "\n\n", "to", "élan"]
    )
    texts = [" ".join(random.choice(pieces, random.integers(0, 120))) for _ in range(60)]
    check_gopher(["", "\n\n", "a", "a a", *texts, "a b c\n\na b c\nd\n\n\na b c\n"])


@needs_shared("data/c4")
def test_gophers_figures_of_real_pages():
    check_gopher(records("c4/c4_en_sample.jsonl.gz")[:40])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, ""),
        ("The people of the town have bread.", "too few words"),
        (GOOD + " p" * 80, "words too short"),
        (GOOD.replace(" ", "-and-so-on ", 60), "words too long"),
        (GOOD.replace(" of ", " #of #of #of #of ").replace(" on ", " #on "), "too many hash signs"),
        (GOOD.replace(".", "..."), "lines end with ellipses"),
        (GOOD + " Yes... no…" * 5, "too many ellipses"),
        (re.sub("(?m)^", "- ", GOOD), "lines begin with bullets"),
        (re.sub("(?m)^", "•", GOOD), "lines begin with bullets"),
        (re.sub("(?m)^", "- ", GOOD, count=6), ""),
        (GOOD.replace(". ", " ") + " 3.5" * 30, "too few words with letters"),
        (re.sub(r"\b(The|the|have|with|and|that|of|to)\b", "dem", GOOD), "too few stop words"),
        ("\n".join([GOOD, GOOD]), "repeated lines"),
        (GOOD + "\n\nYes.\n\nYes.\n\nYes.\n\nYes.", "repeated paragraphs"),
        (GOOD + "\n" + GOOD[:240], "characters in repeated lines"),
        ("A.\nB.\n\n" + GOOD.replace("\n", "\n\n"), ""),
        (
            "\n\n".join([GOOD[:190], "A.", GOOD[:190], "B.", *GOOD[190:].split("\n")]),
            "characters in repeated lines",
        ),
        (GOOD + "".join(f" {n} aaaa bbbb cccc" for n in "abcdefghij"), "one 3-gram too often"),
        (GOOD + " " + GOOD[:60], "repeated 5-grams"),
    ],
)
def test_gophers_rules(text, reason):
    grams = {} if "gram" in reason else {"max_top_ngrams": (), "max_ngrams": ()}
    assert reasons([text], presets=("gopher",), **grams) == [reason]


def test_n_grams_are_not_looked_at_in_documents_of_too_many_words():
    texts = [GOOD + " " + GOOD[:60], GOOD, "so it is to be " * 200, GOOD + " " + GOOD[:60]]
    _, tally = heuristics.stage(table(texts), Heuristics(presets=("gopher",), max_words=200))
    assert {name: number for name, number in tally.counts.items() if "gram" not in name or "5" in name} == {
        "breaks: too many words": 1,
        "breaks: repeated 5-grams": 2,
        "breaks: words too short": 1,
        "too many words": 1,
        "repeated 5-grams": 2,
    }


def test_a_rule_is_switched_off_by_zero():
    bad = "## x ...\n" * 5
    off = {name: 0 for name in vars(Heuristics()) if name.startswith(("min_", "max_"))}
    off |= {"max_top_ngrams": (0.0,) * 3, "max_ngrams": ()}
    assert reasons([bad, ""], presets=("gopher",), **off) == ["", ""]
    assert reasons([bad], presets=("gopher",), **off | {"max_symbols": 0.5}) == ["too many hash signs"]
    off |= {"citations": False, "line_phrases": (), "line_words": 0, "line_marks": (), "page_phrases": ()}
    kept, tally = heuristics.stage(table([bad + " {[1]"]), Heuristics(repeated_sentences=0, **off))
    assert kept["text"].to_pylist() == [("## x ...\n" * 5) + " {[1]"] and not tally.counts


def test_c4_cuts_lines_and_says_how_many():
    text = (
        "Home | About\nThis is a line of the page.[1]\n  Please enable Javascript to see the page.\nShort one.\n\n"
        'She said: "It is the second line."\nIt goes on and on...\nIs it the third line? Yes!  '
    )
    kept, tally = heuristics.stage(table([text, "One two three four five."]), Heuristics(presets=("c4",)))
    assert kept["text"].to_pylist() == [
        'This is a line of the page.\nShe said: "It is the second line."\nIs it the third line? Yes!'
    ]
    assert tally.counts == {
        "lines cut: contains 'javascript'": 1,
        "lines cut: under 5 words": 2,
        "lines cut: no terminal mark": 1,
        "breaks: too few sentences": 1,
        "too few sentences": 1,
    }


def test_c4_cuts_spans_of_sentences_that_repeat():
    spans = "One is here. Two is here. Three is here. "
    texts = [spans + "Four is there. " + spans + "Five is there.", "A b. A b. A c.", spans, "x" + spans]
    found, cut = c4.cut_repeated_sentences(pa.array(texts, pa.large_string()), 3)
    assert found.to_pylist() == [spans + "Four is there. Five is there.", *texts[1:]] and cut == 3


def test_pages_with_phrases_and_bad_words(tmp_path):
    terms = [("en", "darn"), ("en", "bad words"), ("ja", "悪い"), ("de", "mist"), ("fr", "zut")]
    path = tmp_path / "terms.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps({"lang": a, "term": b}) + "\n" for a, b in terms).encode()))
    texts = ["Darn!", "darned", "some BAD words", "the mist", "とても悪い", "ézut", "Lorem Ipsum dolor", "f() { }"]
    knobs = {"presets": ("c4",), "line_marks": (), "line_words": 0, "min_sentences": 0, "bad_words": str(path)}
    assert reasons(texts, **knobs) == [
        "bad words",
        "",
        "bad words",
        "",
        "",
        "",
        "contains 'lorem ipsum'",
        "contains '{'",
    ]
    documents = table(texts).append_column("language", pa.array(["en", "en", "de", "de", "ja", "fr", "", "xx"]))
    _, tally = heuristics.stage(documents, Heuristics(**knobs))
    assert tally.counts["bad words"] == 3
    (tmp_path / "terms.txt").write_text("mist\n\n")
    assert c4.load_terms(str(tmp_path / "terms.txt"), "de") == {"de": ("mist",)}
    for name, content in (("a.jsonl", '{"lang": "en"}'), ("b.txt", "\n"), ("c.txt.gz", "x"), ("d.txt", b"\xff")):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=str(tmp_path / name)):
            c4.load_terms(str(tmp_path / name), "en")


def test_scripts_without_spaces_have_words_too():
    column = pa.array([THAI, CHINESE, GOOD, "", "日本 in a text of English words"], pa.large_string())
    dense = words.unspaced(column)
    assert dense.tolist() == [True, True, False, False, False]
    assert np.diff(words.split(words.spaced(column, dense)).starts)[1] > 70
    assert reasons([CHINESE * 2, THAI * 2], presets=("gopher",)) == ["", ""]
    assert reasons([CHINESE], presets=("c4",)) == [""]


def test_words_are_asked_for_in_their_language_only():
    texts = [" ".join(f"wort{n}" for n in range(60)), "a " * 9 + "the of " * 60]
    for language, counts in (("de", {}), ("en", {"too few stop words": 1, "words too short": 1})):
        documents = table(texts).append_column("language", pa.array([language] * 2))
        _, tally = heuristics.stage(documents, Heuristics(presets=("gopher",), max_top_ngrams=(), max_ngrams=()))
        assert {name: number for name, number in tally.counts.items() if "breaks" not in name} == counts


def test_words_are_those_that_python_splits():
    random = np.random.default_rng(0)
    pieces = np.array(["a", "b", "é", "日", " ", "  ", "\n", "\t", "\u3000", "\xa0", "the "])
    texts = ["".join(random.choice(pieces, random.integers(0, 6))) for _ in range(300)]
    found = words.split(pa.array(texts, pa.large_string()))
    vocabulary, starts = found.vocabulary.to_pylist(), zip(found.starts, found.starts[1:], strict=False)
    assert [[vocabulary[i] for i in found.ids[a:b]] for a, b in starts] == [text.split() for text in texts]


@pytest.mark.parametrize("after", [b"\xff", b"\x00", b" ", b"a"])
def test_words_do_not_depend_on_the_byte_after_an_array(after):
    """Arrow alone splits the last text by that byte; see ``words.between_spaces``."""
    offsets = pa.py_buffer(np.array([0, 2, 4], np.int64))
    texts = pa.LargeStringArray.from_buffers(2, offsets, pa.py_buffer(b"a b " + after))
    assert words.split(texts).starts.tolist() == [0, 1, 2]
    assert words.between_spaces(texts).to_pylist() == [["a"], ["b"]]


def test_slices_change_nothing(monkeypatch):
    texts = [GOOD, "", THAI, "no", GOOD * 3, "The end of it and that. " * 30] * 5
    knobs = Heuristics()
    whole, tally = heuristics.stage(table(texts), knobs)
    monkeypatch.setattr(words, "SLICE", 700)
    assert len([*words.slices(table(texts)["text"])]) > 5
    cut, again = heuristics.stage(table(texts), knobs)
    assert whole.equals(cut) and tally == again and 0 < len(whole) < len(texts)
    empty, tally = heuristics.stage(table([]), knobs)
    assert len(empty) == 0 and tally == Tally()


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"presets": ("fineweb",)}, "heuristics.presets has 'fineweb'; there are gopher, c4"),
        ({"max_ngrams": (0.1,)}, r"heuristics.max_ngrams must have 6 numbers"),
        ({"min_words": -1}, r"heuristics.min_words=-1 must not be negative"),
    ],
)
def test_knobs_that_cannot_be_used(knobs, said):
    with pytest.raises(ValueError, match=said):
        Heuristics(**knobs)


@needs_shared("data/more/alignment/ldnoobw_words.jsonl.gz")
def test_the_real_list_of_bad_words():
    terms = c4.load_terms(str(SHARED / "data/more/alignment/ldnoobw_words.jsonl.gz"), "en")
    assert len(terms) == 28 and len(terms["en"]) > 400
    texts = ["this is porn.", "the scunthorpe problem", "clean", "2 girls 1 cup"]
    lower = pa.array(texts, pa.large_string())
    assert c4.bad_words(lower, ["en"] * 4, terms).tolist() == [True, False, False, True]
    for language in terms:
        c4.bad_words(lower, [language] * 4, terms)
