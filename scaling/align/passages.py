"""Texts of which words are marked: the span that answers a question, or a tag for each word."""

import re
from collections.abc import Sequence
from typing import NamedTuple

FIRST, LAST = 1, 2  # of a span: the word where it begins, and the one where it ends; their sum is both
_WORD = re.compile(r"\w+|[^\w\s]")  # runs of letters and digits, and each other sign by itself
_STRIPPED = 8  # characters by which an answer may stand earlier than a release says, because readers strip texts


class Passage(NamedTuple):
    """A text as its words.

    Attributes:
        where: file and line, for messages.
        words: with the blank before them, where there is one.
        labels: of each word: the number of its tag, or FIRST and LAST of a span.
        question: what is read before the words; None = nothing.
        text: of which the words are parts; empty where words have tags.
        offsets: of each word in that text, first character and the one after the last.
        references: accepted answers.
    """

    where: str
    words: tuple[str, ...]
    labels: tuple[int, ...]
    question: str | None = None
    text: str = ""
    offsets: tuple[tuple[int, int], ...] = ()
    references: tuple[str, ...] = ()

    def answer(self, first: int, last: int) -> str:
        """The text from one word to another."""
        return self.text[self.offsets[first][0] : self.offsets[last][1]]


def tagged(where: str, words: Sequence[str], tags: Sequence[str] | None, known: Sequence[str]) -> Passage:
    """A sentence whose words have tags.

    Args:
        where: file and line.
        words: of the sentence.
        tags: of the words; None = not known.
        known: every tag.

    Raises:
        ValueError: no word, an empty one, another number of tags than of words, or an unknown tag.
    """
    if not words or not all(words):
        raise ValueError(f"{where}: {'a word' if words else 'the sentence'} is empty")
    if tags is None:
        tags = [known[0]] * len(words)
    if len(tags) != len(words):
        raise ValueError(f"{where}: {len(words)} words have {len(tags)} tags; there must be a tag for each word")
    for word, tag in zip(words, tags, strict=True):
        if tag not in known:
            raise ValueError(f"{where}: the tag {tag[:40]!r} of {word[:40]!r} is none of {', '.join(known)}")
    blanks = [words[0], *(f" {word}" for word in words[1:])]
    return Passage(where, tuple(blanks), tuple(known.index(tag) for tag in tags))


def answered(
    where: str, texts: Sequence[str], span: tuple[str, int] | None = None, references: Sequence[str] = ()
) -> Passage:
    """A text with the span that answers a question.

    Args:
        where: file and line.
        texts: the question, if there is one, and the text.
        span: the answer, and the number of its first character in the text; None = not known.
        references: other accepted answers.

    Raises:
        ValueError: the answer does not stand there.
    """
    text = texts[-1]
    offsets = [found.span() for found in _WORD.finditer(text)]
    words = [text[begin - (begin > 0 and text[begin - 1].isspace()) : end] for begin, end in offsets]
    words = [f" {word[1:]}" if word[0].isspace() else word for word in words]
    labels = [0] * len(words)
    if span is not None:
        answer, place = span
        begin = text.find(answer, max(0, place - _STRIPPED), max(0, place) + len(answer))
        inside = [i for i, (a, b) in enumerate(offsets) if a < begin + len(answer) and b > begin]
        if begin < 0 or not inside:
            raise ValueError(f"{where}: the answer {answer[:40]!r} does not stand at character {place} of its text")
        labels[inside[0]] += FIRST
        labels[inside[-1]] += LAST
        references = references or (answer,)
    question = texts[0] if len(texts) == 2 else None
    return Passage(where, tuple(words), tuple(labels), question, text, tuple(offsets), tuple(references))
