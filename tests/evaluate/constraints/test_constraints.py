"""The 25 kinds of constraints of IFEval: what satisfies each, what does not, and what is refused."""

import gzip
import json
import subprocess
import sys

import pytest

from scaling.evaluate.constraints import IDS, check, follows, loosely_follows
from scaling.evaluate.constraints.language import detect, languages
from scaling.evaluate.constraints.sentences import count_sentences
from tests.shared import SHARED, needs_shared

# Kind, what it is told, texts that satisfy it, texts that do not.
CASES = [
    ("keywords:existence", {"keywords": ["Mom", "tea"]}, ["mom has a TEAPOT"], ["mom has a pot", ""]),
    (
        "keywords:frequency",
        {"keyword": "war", "frequency": 2, "relation": "at least"},
        ["War and wars"],
        ["One war alone"],
    ),
    (
        "keywords:frequency",
        {"keyword": "war", "frequency": 2, "relation": "less than"},
        ["One war alone", "none"],
        ["War and warm"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["rock", "field"]},
        ["A rocket in afield."],
        ["Rock!", "the (field)"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "t", "let_frequency": 3, "let_relation": "at least"},
        ["Ttt", "that test"],
        ["tt and an end"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "!", "let_frequency": 2, "let_relation": "less than"},
        ["One!"],
        ["Two!!"],
    ),
    (
        "language:response_language",
        {"language": "de"},
        ["Das ist nicht der Hund, den ich gesehen habe."],
        ["That is not the dog that I saw.", "12 + 3"],
    ),
    ("language:response_language", {"language": "ko"}, ["모든 사람은 태어날 때부터 자유롭다"], ["すべての人は"]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        ["One. Two! Three?", 'He said "No." She left. I stayed'],
        ["Dr. Who met J. R. Smith at 3.5 p.m. on Monday. Well.", "One\nTwo\nThree"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "less than"},
        ["Only this, e.g. one. And this... one"],
        ["One. Two. Three."],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["One\n***\nTwo", "***\nOne\n\nstill one\n***\nTwo\n***"],
        ["One\n\nTwo", "One\n***\n\n***\nTwo", "One"],
    ),
    ("length_constraints:number_words", {"num_words": 4, "relation": "at least"}, ["don't go now"], ["a, b, c"]),
    ("length_constraints:number_words", {"num_words": 4, "relation": "less than"}, ["one, two, three"], ["a b c d"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Send"},
        ["One.\n\nSend, it", 'One.\n\n"send" it', "One.\n\nsend's"],
        ["Send.\n\nOne", "One\n\nSend\n\nThree", "One\nSend", "One\n\nSending"],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[name], [place]"], ["[name", "[a\nb] [c]"]),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. Write!", "bye p. s. more"],
        ["Bye. PS Write!"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["P.P.S. Write!", "p. p. s"], ["P.S. Write!"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["List:\n* one\n  * two", "- one\n- two"],
        ["* one", "* one\n- two\n* three", "** one\n** two"],
    ),
    ("detectable_format:constrained_response", {}, ["So: My answer is no."], ["yes", "My answer is"]),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*one* and **two words**", "*a* *b*"],
        ["*one* and ** **", "*over\nlines* *"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb"],
        ["SECTION 1\na", "Section 1\nSection 2", "SECTION A SECTION B"],
    ),
    ("detectable_format:json_format", {}, ['{"a": [1]}', '```json\n{"a": 1}\n```', "```JSON\n[]```"], ["{a: 1}"]),
    ("detectable_format:title", {}, ["<<Ode to joy>>\nO friends"], ["<Ode>", "<< >>", "<<over\nlines>>"]),
    (
        "combination:two_responses",
        {},
        ["One\n******\nTwo", "******One******Two******"],
        ["One\n******\nOne", "One ****** ****** Two", "One\n***\nTwo", "a******b******c"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a Song."},
        ["write a song.\nLa la"],
        ["La la: Write a song.", "Write a poem."],
    ),
    ("startend:end_checker", {"end_phrase": "Any questions?"}, ["any questions?", '"Any questions?"\n'], ["Any?"]),
    ("startend:quotation", {}, ['"All of it."', ' "a"\n'], ['"', 'He said "no"', "“a”"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["STOP, I say", "The BBC—CNN", "It is (NOT) OK."],
        ["Stop, I say", "iPhone USA"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        ["Stop, I say"],
        ["STOP, I say"],
    ),
    ("change_case:english_capital", {}, ["THIS IS ALL THAT THERE IS."], ["This is all.", "DAS IST NICHT ALLES."]),
    ("change_case:english_lowercase", {}, ["this is all that there is."], ["This is all.", "das ist nicht alles."]),
    ("punctuation:no_comma", {}, ["One; two"], ["One, two"]),
]


@pytest.mark.parametrize(("name", "told", "good", "bad"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_each_kind(name, told, good, bad):
    assert [follows(name, told, text) for text in good] == [True] * len(good)
    assert [follows(name, told, text) for text in bad] == [False] * len(bad)
    assert not follows(name, told, " \n")


def test_every_kind_has_a_case():
    assert {case[0] for case in CASES} == set(IDS)
    assert len(IDS) == 25


def test_loosely_lines_around_the_answer_and_asterisks_do_not_matter():
    quoted = ("startend:quotation", {})
    framed = 'Here it is:\n"So be it."\nAnything else?'
    assert not follows(*quoted, framed) and loosely_follows(*quoted, framed)
    assert loosely_follows(*quoted, 'Sure:\n**"So be it."**') and loosely_follows(*quoted, '"So be it."\nBye')
    assert not loosely_follows(*quoted, 'Here\nit is:\n"So be it."')
    assert not loosely_follows("punctuation:no_comma", {}, "One, two\nthree, four\nfive, six\nseven, eight")


@pytest.mark.parametrize(
    ("name", "told", "said"),
    [
        ("keywords:exist", {}, "'keywords:exist' is no constraint; there are keywords:existence"),
        ("keywords:existence", {}, "keywords:existence takes keywords; keywords is missing"),
        ("punctuation:no_comma", {"n": 1}, "punctuation:no_comma takes nothing; n is unknown"),
        ("keywords:existence", {"keywords": "a"}, "keywords must be a list of texts, not 'a'"),
        ("keywords:existence", {"keywords": [""]}, "keywords must be a list of texts"),
        ("startend:end_checker", {"end_phrase": 3}, "end_phrase must be a text, not 3"),
        ("length_constraints:number_paragraphs", {"num_paragraphs": 2.5}, "must be a whole number from 0, not 2.5"),
        (
            "length_constraints:number_words",
            {"num_words": 2, "relation": "more"},
            "one of less than, at least, not 'more'",
        ),
        ("language:response_language", {"language": "xx"}, "language must be one of ar, bg, "),
    ],
)
def test_what_a_constraint_is_told_is_checked(name, told, said):
    with pytest.raises(ValueError, match=said.replace("[", r"\[")):
        follows(name, told, "text")


def test_absent_values_and_whole_numbers_as_some_files_have_them():
    told = {"num_words": 2.0, "relation": "at least", "keywords": None}
    assert check("length_constraints:number_words", told) == {"num_words": 2, "relation": "at least"}
    assert follows("length_constraints:number_words", told, "one two")


def test_sentences():
    assert count_sentences("") == count_sentences("...") == 0
    assert count_sentences("1. Mix it.\n2. Bake it.") == 2  # the numbers of a list are none
    assert count_sentences("Mr. Fox of the U.S. saw it, vs. me, in No. 5. He ran.") == 2
    assert count_sentences("Wait... what? It is 3.14! (Really.) Yes") == 4


def test_a_language_is_told_by_its_common_words_where_the_script_has_several():
    assert detect("Это не то, что я хотел сказать.") == "ru"
    assert detect("यह एक किताब है और वह मेज पर है।") == "hi"
    assert detect("") == detect("12 % !") == detect("Xyzzy") == ""
    assert {"en", "hi", "mr", "ne", "ru", "bg", "ar", "fa", "ur", "vi", "sw", "fi", "zh", "ja"} <= set(languages())


@needs_shared("data/more/corpus/udhr_by_language.jsonl.gz")
def test_the_declaration_of_human_rights_is_recognised_in_28_languages():
    codes = {
        "arb": "ar", "ben": "bn", "bul": "bg", "eng": "en", "fin": "fi", "fra": "fr", "guj": "gu", "heb": "he",
        "hin": "hi", "ind": "id", "ita": "it", "jpn": "ja", "kan": "kn", "kor": "ko", "mal": "ml", "mar": "mr",
        "nld": "nl", "pan": "pa", "pol": "pl", "ron": "ro", "rus": "ru", "spa": "es", "swe": "sv", "swh": "sw",
        "tam": "ta", "tha": "th", "tur": "tr", "vie": "vi",
    }  # fmt: skip
    right = parts = 0
    with gzip.open(SHARED / "data/more/corpus/udhr_by_language.jsonl.gz", "rt", encoding="utf-8") as file:
        for record in map(json.loads, file):
            if record["lang"] in codes:
                text = record["text"]
                pieces = [text[i : i + 300] for i in range(0, len(text) - 300, 300)]
                right += sum(detect(piece) == codes[record["lang"]] for piece in pieces)
                parts += len(pieces)
    assert parts > 700 and right / parts > 0.99


@needs_shared("data/more/alignment/ifeval_input_data.jsonl.gz")
def test_every_constraint_of_ifeval_can_be_checked():
    with gzip.open(SHARED / "data/more/alignment/ifeval_input_data.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    pairs = [pair for r in records for pair in zip(r["instruction_id_list"], r["kwargs"], strict=True)]
    assert (len(records), len(pairs), len({name for name, _ in pairs})) == (541, 834, 25)
    for name, told in pairs:
        follows(name, told, "A text.")


def test_the_module_imports_no_jax():
    code = "import sys, scaling.evaluate.constraints; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
