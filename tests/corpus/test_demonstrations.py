"""Demonstrations of tasks that occur in text by themselves."""

import time

import pyarrow as pa
import pytest

from scaling.corpus.filters import demonstrations
from scaling.corpus.filters.demonstrations import Demonstrations
from tests.corpus.test_quality import records, table
from tests.shared import needs_shared

# Table 1 of Radford et al. 2019.
TRANSLATIONS = [
    "”I’m not the cleverest man in the world, but like they say in French: "
    "Je ne suis pas un imbecile [I’m not a fool].",
    "Soheil Eid, Tory candidate in the riding of Joliette, wrote in French: ”Mentez mentez, il en restera toujours "
    "quelque chose,” which translates as, ”Lie lie and something will always remain.”",
    "“I hate the word ‘perfume,”’ Burr says. ‘It’s somewhat better in French: ‘parfum.’",
    "If listened carefully at 29:55, a conversation can be heard between two guys in French: “-Comment on fait pour "
    "aller de l’autre coté? -Quel autre coté?”, which means “- How do you get to the other side? - What side?”.",
    "If this sounds like a bit of a stretch, consider this question in French: As-tu aller au cinéma?, or Did you go "
    "to the movies?, which literally translates as Have-you to go to movies/theater?",
]
OTHER_TRANSLATION = (
    "“Brevet Sans Garantie Du Gouvernement”, translated to English: “Patented without government warranty”."
)
TEXTS = {
    "translation, French": [
        *TRANSLATIONS,
        "He is a boulanger, French for baker, by trade.",
        "Bread (French: du pain) is good.",
        "English: the house\nFrench: la maison",
    ],
    "translation, any language": [OTHER_TRANSLATION, 'It is called the German word for "house".'],
    "question with answer": [
        "Q: How many legs has a dog?\n\nA: Four, mostly.",
        "Question 1. Who?\nAnswer 1. Me.",
        "We asked. Q: Is it so? A: Yes.",
    ],
    "summary": ["It was long.\nTL;DR: we went home", "tldr they left", "Summary: nothing of note was seen there."],
    "arithmetic": ["I know 12 + 30 = 42.", "3 x 4 - 2 = 10", "Two: 5 plus 3 is 8.", "1,000 / 4 = 250"],
    "definition": ["cat (n.): a small animal", "A prime is defined as a number with two divisors"],
}
NONE = [
    "He wrote in French, English and Latin.",
    "He learned French for his work.",
    "She was in French class at 9.",
    "Q. E. D.",
    "x = 3; a == b",
    "The title of the dr.",
    "It is (a) good, (b) bad.",
    "in French",
    "",
]


def counted(texts, knobs=Demonstrations()):
    documents, tally = demonstrations.stage(table(texts), knobs)
    assert documents.equals(table(texts))
    return tally


def test_each_kind_is_found_and_nothing_else():
    for kind, texts in TEXTS.items():
        for text in texts:
            tally = counted([text])
            assert tally.counts.get(f"{kind}: documents") == 1, text
            (_, id, found), *_ = next(iter(tally.examples.values()))
            assert id == "d0" and found and found in text
    assert counted(NONE).counts == {}


def test_every_pattern_that_ships_finds_something():
    tally = counted([text for texts in TEXTS.values() for text in [*texts, *texts]])
    names = {f"{pattern.kind}: {pattern.name}" for pattern in demonstrations.load("")}
    assert names <= tally.counts.keys()
    assert tally.counts["arithmetic: documents"] == 2 * len(TEXTS["arithmetic"])
    assert tally.counts["question with answer: Q: ... A: ..."] == 4
    assert names >= tally.examples.keys()


def test_places_in_a_document_are_counted():
    tally = counted(["Q: One?\nA: 1\n\nQ: Two?\nA: 2", "1 + 1 = 2, and 2 + 2 = 4", "no"])
    assert tally.counts == {
        "question with answer: Q: ... A: ...": 2,
        "question with answer: documents": 1,
        "arithmetic: 2 + 3 = 5": 2,
        "arithmetic: documents": 1,
    }
    assert [found for _, _, found in tally.examples["arithmetic: 2 + 3 = 5"]] == ["1 + 1 = 2, and 2 + 2 = 4"]


def test_patterns_of_a_user_cannot_take_for_ever(tmp_path):
    """Python's ``re`` needs 2^n steps for this pattern."""
    file = tmp_path / "own.toml"
    file.write_text('[[pattern]]\nkind = "a"\nname = "b"\ncontains = []\npattern = "(a+)+$"\n')
    start = time.process_time()
    assert counted(["a" * 100_000 + "!", "aaa"], Demonstrations(str(file))).counts == {"a: b": 1, "a: documents": 1}
    assert time.process_time() - start < 2


def test_long_lines_take_time_in_proportion():
    hard = ["in french: " + "1+" * n + " q: (n translates" * (n // 8) + "tl;dr" + "\t" * n for n in (20_000, 200_000)]
    times = []
    for text in hard:
        start = time.process_time()
        demonstrations.stage(table([text]), Demonstrations())
        times.append(time.process_time() - start)
    assert times[1] < 40 * times[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"has no patterns; write them as tables \[\[pattern\]\]"),
        ("[[pattern", "is no TOML file"),
        ('[[pattern]]\nkind = "a"', "pattern 1 must be a table with kind, name, contains, pattern"),
        ('[[pattern]]\nkind = "a"\nname = "b"\ncontains = "c"\npattern = "d"', "contains must be a list of texts"),
        (
            '[[pattern]]\nkind = "a"\nname = "b"\ncontains = []\npattern = "(?=d)"',
            "must be a regular expression of RE2",
        ),
        ('[[pattern]]\nkind = "a"\nname = "b"\ncontains = []\npattern = "d*"', "pattern 1 matches the empty text"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, said):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(ValueError, match=said):
        demonstrations.load(str(tmp_path / "own.toml"))


@needs_shared("data/wikipedia")
def test_wikipedia_has_translations():
    tally = counted(records("wikipedia/enwiki_sample.jsonl.gz"))
    assert tally.counts["translation, French: documents"] >= 4 and tally.counts["definition: documents"] >= 9
    examples = [found for _, _, found in tally.examples["translation, French: ... (French: ...)"]]
    assert any("L'Homme aux cercles bleus" in found for found in examples)


def test_the_column_may_have_several_chunks():
    chunks = pa.concat_tables([table(["1 + 1 = 2"], "a"), table([], "b"), table(["no"], "c")])
    assert demonstrations.stage(chunks, Demonstrations())[1].counts["arithmetic: documents"] == 1
