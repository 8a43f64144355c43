"""The language of a text, by its script and its most common words: small, exact to repeat, and without a library.

The official checks of IFEval use langdetect, which knows 55 languages by n-grams of letters. This one knows those of
``languages.toml``, which has all that occur in IFEval's prompts.
"""

import collections
import functools
import re
import tomllib
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_KANA = ("HIRAGANA", "KATAKANA")
_LEAST_KANA = 0.05  # of the characters of a Japanese text, most of which may be Chinese ones
_BREAKS = re.compile(r"[\s\d_!-/:-@\[-^`{-~।॥،؛؟…«»“”‘’–—¿¡]+")


class _Language(NamedTuple):
    words: frozenset[str]  # its most common ones
    letters: frozenset[str]  # that no other language of its script has


@functools.cache
def _table() -> tuple[Mapping[str, str], Mapping[str, Mapping[str, _Language]]]:
    """Script -> its only language; script of several -> code -> language."""
    found = tomllib.loads((Path(__file__).parent / "languages.toml").read_text(encoding="utf-8"))
    letters = found["letters"]
    several = {
        script: {
            code: _Language(frozenset(text.split()), frozenset(letters.get(code, ""))) for code, text in its.items()
        }
        for script, its in found["words"].items()
    }
    return found["scripts"], several


@functools.cache
def languages() -> tuple[str, ...]:
    """The codes (ISO 639-1) that ``detect`` can give, sorted."""
    alone, several = _table()
    return tuple(sorted({*alone.values(), *(code for its in several.values() for code in its), "ja", "zh"}))


def detect(text: str) -> str:
    """The language of most of a text; "" if none of the known ones is recognised.

    A text in a script of several languages, such as Latin, is in the one of which it has the most common words and
    letters of its own. A few sentences are enough; of a few words it may find nothing.
    """
    text = unicodedata.normalize("NFC", text).lower()
    counts = collections.Counter(unicodedata.name(c, "").split(" ")[0] for c in text if c.isalpha())
    if not counts:
        return ""
    kana = sum(counts[script] for script in _KANA)
    east = kana + counts["CJK"]
    script, most = max(counts.items(), key=lambda pair: pair[1])
    if east >= most:
        return "ja" if kana >= _LEAST_KANA * east else "zh"
    alone, several = _table()
    if script in alone:
        return alone[script]
    if script not in several:
        return ""
    words = [word for word in _BREAKS.split(text) if word]
    found = {
        code: sum(word in its.words for word in words) + sum(letter in its.letters for letter in text)
        for code, its in several[script].items()
    }
    best, second = sorted(found.values(), reverse=True)[:2]
    return max(found, key=found.__getitem__) if best > second else ""
