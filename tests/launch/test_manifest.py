"""Manifests: every text is a text again, whichever rules the reader goes by."""

import random
import re

import pytest
import yaml

from launch.manifest import to_yaml

# What YAML 1.1 or 1.2, PyYAML or kubectl (sigs.k8s.io/yaml) take for something else where it has no quotes.
WORDS = [
    "1234e56",
    "1234e5",
    "12e345",
    "1E3",
    "1e+3",
    ".5",
    "1.",
    "0.",
    "1.e3",
    "-1e-3",
    "+1",
    "-0",
    "00",
    "017",
    "0o17",
    "0x1F",
    "0b1",
    "1_000",
    "1__0",
    "1_0.5",
    "1:30",
    "190:20:30.15",
    "2024-01-01",
    "2001-12-14t21:59:43.10-05:00",
    ".inf",
    "-.INF",
    ".nan",
    ".NaN",
    "y",
    "Y",
    "n",
    "N",
    "yes",
    "Yes",
    "no",
    "NO",
    "on",
    "On",
    "off",
    "OFF",
    "true",
    "TRUE",
    "false",
    "null",
    "Null",
    "NULL",
    "~",
    "=",
    "<<",
]
# Texts that a block would change, or that look like YAML.
TRAPS = [
    "-",
    "?",
    ":",
    "|",
    ">",
    "%",
    "@",
    "`",
    "!",
    "&",
    "*",
    "#",
    "[]",
    "{}",
    "---",
    "...",
    "%YAML",
    "a:b",
    "a,b",
    '"',
]
TRAPS += ["", " ", " a", "a ", "a: b", "a #b", "- a", "? a", "a\tb", "a\n", "\na", "a\n\n", " a\nb", "a\n b\n", "a \nb"]
TRAPS += [
    "a\n---\nb",
    "#a\nb",
    "a\r\nb",
    "a\x85b",
    "a\u2028b",
    "\ufeffa",
    "\x00",
    "\x1b",
    "é",
    "\U0001f600",
    "a b " * 90,
]
# Plain scalars that are not texts: of YAML 1.1's types, of 1.2's core schema, and of kubectl's reader.
OTHERS = re.compile(
    r"""[-+]?(0b[01_]+ | 0o?[0-7_]+ | 0x[0-9a-f_]+ | \.?[0-9][0-9_]*\.?[0-9_]*(e[-+]?[0-9]+)?)
    | [-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)? | [-+]?\.inf | \.nan | [0-9]{4}-[0-9].*
    | ~ | null | y | n | yes | no | on | off | true | false | = | << | """,
    re.IGNORECASE | re.VERBOSE,
)


def texts():
    draw = random.Random(0)
    letters = "aenoyNtf019._-+:/# \n\t\"'\\{}[],&*!|>%@~?=\x85\u2028é\x07"
    return WORDS + TRAPS + ["".join(draw.choice(letters) for _ in range(draw.randint(0, 9))) for _ in range(2000)]


@pytest.mark.parametrize("loader", [yaml.SafeLoader, yaml.CSafeLoader, yaml.BaseLoader])
def test_every_text_is_read_back_as_it_was(loader):
    values = {f"k{key}": value for key, value in enumerate(texts())}
    document = {"list": texts(), "values": values, "keys": dict.fromkeys(texts(), "x")}
    assert loader(to_yaml([document])).get_single_data() == document


def test_nothing_without_quotes_can_be_taken_for_something_else():
    plain = [e.value for e in yaml.parse(to_yaml([dict.fromkeys(texts(), "x"), texts()])) if _is_plain(e)]
    assert len(plain) > 100 and not [text for text in plain if OTHERS.fullmatch(text)]
    assert all(OTHERS.fullmatch(text) for text in WORDS)  # so that such a text would show


def _is_plain(event):
    return isinstance(event, yaml.ScalarEvent) and event.style is None


def test_numbers_and_booleans_stay_what_they_are_and_long_texts_stay_readable():
    document = {"replicas": 2, "spot": True, "none": None, "share": 0.5, "run": "set -e\npython3 -m scaling train\n"}
    text = to_yaml([document])
    assert yaml.safe_load(text) == document
    assert "replicas: 2\nspot: true\n" in text and "run: |\n  set -e\n  python3" in text
