"""Counting sentences by their ends, without a library."""

import re

# Before whose full stop no sentence ends; and those with which one may end.
_TITLE = re.compile(r"mrs?|ms|dr|prof|rev|gen|sen|rep|gov|capt|lt|col|sgt|st|mt|vs|approx|fig|e\.g|i\.e")
_ABBREVIATION = re.compile(
    r"jr|sr|etc|inc|ltd|co|corp|dept|no|vol|ph\.d|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|\w\.\w"
)
_END = re.compile(r"(?P<word>\S*?)(?P<mark>[.?!]+)[\"'”’)\]*_]*(?=\s+(?P<next>\S)|\s*$)")


def count_sentences(text: str) -> int:
    """How many sentences a text has.

    A sentence ends with ``.``, ``?`` or ``!`` before white space or the end, or with the text. A full stop after an
    abbreviation, an initial or the number of a list does not end one, and a line break alone does not either. The
    official check of IFEval takes NLTK's Punkt, which counts the number of a list, ``1.``, as a sentence.
    """
    count, done = 0, 0
    for found in _END.finditer(text):
        if found["mark"].startswith(".") and len(found["mark"]) != 2 and not _ends(text, found):
            continue
        count += bool(re.search(r"\w", text[done : found.end()]))
        done = found.end()
    return count + bool(re.search(r"\w", text[done:]))


def _ends(text: str, found: re.Match[str]) -> bool:
    """Whether a full stop ends a sentence."""
    word, after = found["word"].lstrip("\"'“‘([*_").lower(), found["next"] or ""
    if len(found["mark"]) > 2:  # an ellipsis
        return not after.islower()
    if _TITLE.fullmatch(word):
        return not after
    if _ABBREVIATION.fullmatch(word):
        return not after or after.isupper()
    if len(word) == 1 and word.isalpha() and word != "i":  # an initial
        return not after
    number = word.isdecimal() and not text[text.rfind("\n", 0, found.start()) + 1 : found.start("word")].strip()
    return not (number and after)
