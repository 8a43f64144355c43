"""The n-gram report: equal to a slow search of tuples, streamed, with scores of all, dirty and clean items."""

import json
import math
import random
import unicodedata

import pytest

from scaling.evaluate.contamination.grams import spans_of, words_of
from scaling.evaluate.contamination.search import Contamination, contamination, gram_length, search
from scaling.evaluate.tasks.catalogue import find_tasks


def test_words():
    assert words_of("It's  THE\nend -- of_it, (really).") == ["its", "the", "end", "ofit", "really"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Caf\u00e9 Z\u00fcrich", ["caf\u00e9", "z\u00fcrich"]),
        ("Cafe\u0301 Zu\u0308rich", ["caf\u00e9", "z\u00fcrich"]),
        ("\uff21\uff22\uff23\u3000\uff11\uff12", ["abc", "12"]),  # full width
        ("\uff76\uff9e", ["\u30ac"]),  # half width
        ("don\u2019t don\u00b4t \u2764\ufe0f \ufb01sh", ["dont", "dont", "fish"]),
        ("\u6570\u5b66\u3002\u7269\u7406GPT3\u300d", [*"\u6570\u5b66\u7269\u7406", "gpt3"]),
        ("\u0939\u093f\u0928\u094d\u0926\u0940 x", ["\u0939\u093f\u0928\u094d\u0926\u0940", "x"]),  # with its vowels
        ("\ud55c\uad6d\uc5b4 \ubb38\uc7a5", ["\ud55c\uad6d\uc5b4", "\ubb38\uc7a5"]),
        ("\u1112\u1161\u11ab", ["\ud55c"]),
    ],
)
def test_words_of_other_scripts_and_forms(text: str, words: list[str]):
    assert words_of(text) == words


SAMPLES = [
    "It's  THE\nend -- of_it, (really).",
    "\u201cCaf\u00e9\u201d Cafe\u0301 Zu\u0308rich\u2026 don\u00b4t \u2764\ufe0f \ufb01sh",
    "\uff21\uff22\uff23\u3000\uff11\uff12 \uff76\uff9e\uff76\uff9e \u30ab\u3099\u5b66",
    "\u6570\u5b66\u3002\u7269\u7406GPT3\u300d\u5728\u4e2d\u56fd\u7684\u5927\u5b66 \u0130stanbul \u039f\u03a3\u4e2d",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u1112\u1161\u11ab\u1100\u116e\u11a8 \u0e01\u0e33\u0e19\u0e49\u0e33",
    "before \ufdfa after, \u037ax \u3231\u3232 \u2460\u4e00\u2461",  # NFKC puts spaces and brackets into these
]


@pytest.mark.parametrize(
    "text",
    [
        form(text)
        for text in SAMPLES
        for form in (
            str,
            *(lambda text, name=name: unicodedata.normalize(name, text) for name in ("NFC", "NFD", "NFKC", "NFKD")),
        )
    ],
)
def test_spans_are_where_the_words_stand_in_the_text_itself(text: str):
    words, spans = words_of(text), spans_of(text)
    assert len(words) == len(spans) and spans == sorted(spans)
    for word, (start, stop) in zip(words, spans, strict=True):
        assert 0 <= start < stop <= len(text) and word in " ".join(words_of(text[start:stop]))
    # What no span covers has no words of its own.
    covered = {place for start, stop in spans for place in range(start, stop)}
    assert not words_of(" ".join(character for place, character in enumerate(text) if place not in covered))


def test_spans_of_any_characters_are_as_many_as_the_words():
    rng = random.Random(0)
    ranges = [(0x20, 0x250), (0x300, 0x370), (0x900, 0x980), (0xE00, 0xE80), (0x1100, 0x1200), (0x3040, 0x3100)]
    ranges += [(0x4E00, 0x4E80), (0xAC00, 0xAC80), (0xFB00, 0xFE00), (0xFF00, 0xFFF0), (0x2000, 0x2100)]
    for _ in range(2000):
        text = "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(1, 30)))
        assert len(spans_of(text)) == len(words_of(text)), ascii(text)


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKD"])
@pytest.mark.parametrize(
    "item",
    [
        "o\u00f9 est le caf\u00e9 o\u00f9 l\u2019\u00e9l\u00e8ve fran\u00e7ais a d\u00een\u00e9 avec sa s\u0153ur hier",
        "\u5728\u4e2d\u56fd\u7684\u5927\u5b66\u91cc\u5b66\u4e60\u6570\u5b66\u548c\u7269\u7406",
        "\u30c7\u30fc\u30bf\u304c\u5927\u5b66\u3067\u4f7f\u308f\u308c\u3066\u3044\u308b",
    ],
)
def test_an_item_is_found_in_another_form_and_inside_running_text(form: str, item: str):
    space = " " if " " in item else ""
    document = unicodedata.normalize(form, f"\u6211\u4eec{space}{item}{space}\u5427")
    other = unicodedata.normalize(form, f"\u6211\u4eec{space}{item[::-1]}{space}\u5427")
    assert search({"task": ({"a": item}, False)}, [document])[0].dirty == ("a",)
    assert search({"task": ({"a": unicodedata.normalize("NFD", item)}, False)}, [document])[0].dirty == ("a",)
    assert search({"task": ({"a": item}, False)}, [other])[0].dirty == ()


def test_gram_length_is_the_fifth_percentile_within_8_and_13():
    assert gram_length([10] * 4 + [50] * 96) == 13
    assert gram_length([10] * 6 + [50] * 94) == 10
    assert gram_length([3] * 100) == 8 and gram_length([3] * 100, minimum=1) == 3


def grams(words, n):
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def test_equals_a_slow_search():
    rng = random.Random(0)
    vocabulary = [f"w{i}" for i in range(4)]  # few words, so that short grams meet by chance

    def text(length):
        return " ".join(rng.choice(vocabulary) for _ in range(length))

    items = {f"test/{i}": text(rng.randint(5, 20)) for i in range(100)}
    corpus = [text(rng.randint(1, 200)) + " other" for _ in range(60)] + [""]
    (found,) = search({"task": (items, False)}, iter(corpus))
    expected = []
    for item, content in items.items():
        words = content.split()
        n = min(found.n, len(words))
        if any(grams(words, n) & grams(document.split(), n) for document in corpus):
            expected.append(item)
    assert found.dirty == tuple(expected) and 10 < len(expected) < 90
    assert (found.n, found.total, found.documents, found.clean) == (8, 100, 61, 100 - len(expected))


def test_case_punctuation_and_line_ends_do_not_matter():
    item = "Who wrote the long book about the white whale in 1851?"
    for document, dirty in (
        ("x\nwho WROTE the, long book\nabout the white-whale in 1851 y", False),  # 'whitewhale' is another word
        ("x\nwho WROTE the, long book\nabout -- the white whale in 1851 y", True),
        ("who wrote the long book about a white whale in 1851", False),
    ):
        (found,) = search({"task": ({"a": item}, False)}, [document])
        assert bool(found.dirty) == dirty, document


def test_an_item_shorter_than_n_counts_whole():
    items = {"short": "one two three", **{f"long{i}": " ".join(f"{i}w{j}" for j in range(30)) for i in range(30)}}
    (found,) = search({"task": (items, False)}, ["zero one two three four", "one two", "two three"])
    assert found.n == 13 and found.dirty == ("short",)


def test_of_tasks_and_files(tmp_path):
    story = "In the year {} a man went down to the old harbour to find his lost"
    items = [{"context": story.format(number), "continuation": "boat"} for number in ("one", "two", "three")]
    (tmp_path / "lambada_openai.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    text = "And so: in the year two a man went down to the old harbour to find his lost boat."
    (tmp_path / "corpus-1.jsonl").write_text(json.dumps({"body": "nothing"}) + "\n")
    (tmp_path / "corpus-2.jsonl").write_text(json.dumps({"body": text}) + "\n")
    lambada, arithmetic = find_tasks("lambada,two_digit_addition")
    first, second = contamination([lambada, arithmetic], str(tmp_path / "corpus-*.jsonl"), "body", tmp_path)
    # 13 words from 'a man went' on are in all three: only its number tells them apart.
    assert first.n == 13 and first.task == "lambada" and first.dirty == ("test/0", "test/1", "test/2")
    assert second.n == 8 and second.total == 2000 and second.dirty == () and second.documents == 2


def test_scores():
    report = Contamination("task", 13, 4, ("a", "b"), 10)
    scores = report.scores({"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0})
    assert (scores["all"].count, scores["all"].mean) == (4, 0.75)
    assert scores["all"].error == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert (scores["dirty"].mean, scores["clean"].mean) == (0.5, 1.0)
    assert math.isnan(Contamination("task", 13, 1, (), 1).scores({"a": 1.0})["dirty"].mean)


@pytest.mark.slow
def test_the_embedded_corpus_can_be_searched():
    (task,) = find_tasks("mid_word_2_anagrams")
    (found,) = contamination([task], "books")
    assert found.documents > 600 and found.total == 10_000 and found.n == 2
    assert len(found.dirty) < 10  # 'scrambled word' does not occur in books
