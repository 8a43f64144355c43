"""Rules of thumb that tell text from what is none: those of Gopher and of C4, each counted.

Sources: Rae et al., arXiv 2112.11446, A.1.1 and table A1 (``gopher.py``); Raffel et al., arXiv 1910.10683, section 2.2
(``c4.py``). The thresholds are theirs. 0 or () switches a rule off.

Gopher's rules look at a document as it comes. C4's cut lines, and look at what is left. A document is dropped for the
first rule that it breaks, in the order of the code below. The count "breaks: RULE" is of all documents that break it.

The rules are for text with spaces. In documents of scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer,
Burmese), each character of these scripts is a word. Rules on the length of words, on stop words and on repeated n-grams
are not applied to them, since their thresholds are of words of letters. Where documents have a column ``language``, the
rules on the length of words and on stop words are applied to documents of one language only.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaling.config.knob import knob
from scaling.corpus import documents as parts
from scaling.corpus.filters import c4, gopher
from scaling.corpus.filters.words import slices, spaced, split, unspaced
from scaling.corpus.outcome import Tally, kept

PRESETS = ("gopher", "c4")
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
# C4's marks are the first five; the others end sentences of other scripts.
MARKS = (".", "!", "?", '"', "”", "。", "！", "？", "」", "』", "”", "؟", "۔", "।", "॥", "։", "።", "။")
LINES = (
    *("javascript", "terms of use", "privacy policy", "cookie policy"),
    *("uses cookies", "use of cookies", "use cookies"),
)


@dataclasses.dataclass(frozen=True)
class Heuristics:
    """Knobs of the rules of Gopher, then of C4."""

    presets: tuple[str, ...] = knob(PRESETS, "names", "whose rules are used: gopher, c4, or both")
    min_words: int = knob(50, "words", "gopher: of a document, at least")
    max_words: int = knob(100_000, "words", "gopher: of a document, at most")
    min_word_length: float = knob(3.0, "characters", "gopher: mean of a document, at least")
    max_word_length: float = knob(10.0, "characters", "gopher: mean of a document, at most")
    max_symbols: float = knob(0.1, "", "gopher: hash signs a word, and ellipses a word, at most")
    max_bullets: float = knob(0.9, "", "gopher: share of lines that begin with a bullet, at most")
    max_line_ellipses: float = knob(0.3, "", "gopher: share of lines that end with an ellipsis, at most")
    min_alphabetic: float = knob(0.8, "", "gopher: share of words with a letter, at least")
    min_stop_words: int = knob(2, "words", "gopher: different stop words, at least")
    stop_words: tuple[str, ...] = knob(STOP_WORDS, "words", "gopher: in lower case")
    language: str = knob("en", "", "gopher: of stop words and lengths of words; documents of another are not asked")
    max_lines: float = knob(0.3, "", "gopher: share of lines that occurred before in the document, at most")
    max_paragraphs: float = knob(0.3, "", "gopher: share of paragraphs that occurred before, at most")
    max_line_characters: float = knob(0.2, "", "gopher: share of characters in lines that occurred before, at most")
    max_paragraph_characters: float = knob(0.2, "", "gopher: the same of paragraphs")
    max_top_ngrams: tuple[float, ...] = knob(
        (0.2, 0.18, 0.16), "", "gopher: share of characters in the most frequent 2-, 3- and 4-gram, at most"
    )
    max_ngrams: tuple[float, ...] = knob(
        (0.15, 0.14, 0.13, 0.12, 0.11, 0.1), "", "gopher: share of characters in 5- to 10-grams that repeat, at most"
    )
    citations: bool = knob(True, "", "c4: cut [1], [edit] and [citation needed]")
    line_phrases: tuple[str, ...] = knob(LINES, "texts", "c4: lines with one of them, in any letters, are cut")
    line_words: int = knob(5, "words", "c4: lines with fewer are cut")
    line_marks: tuple[str, ...] = knob(MARKS, "texts", "c4: lines that end with none of them are cut")
    repeated_sentences: int = knob(3, "sentences", "c4: a span of so many that occurred before in the document is cut")
    page_phrases: tuple[str, ...] = knob(("lorem ipsum", "{"), "texts", "c4: documents with one of them are dropped")
    bad_words: str = knob(
        "", "path", "c4: JSON Lines of lang and term, or a term a line; documents with one are dropped"
    )
    bad_language: str = knob("en", "", "c4: whose bad words are meant, for documents without the column `language`")
    min_sentences: int = knob(3, "sentences", "c4: of what is left of a document, at least")

    def __post_init__(self) -> None:
        for name in self.presets:
            if name not in PRESETS:
                raise ValueError(f"heuristics.presets has {name!r}; there are {', '.join(PRESETS)}")
        for name, lengths in (("max_top_ngrams", gopher.TOP), ("max_ngrams", gopher.DUPLICATE)):
            if len(getattr(self, name)) not in (0, len(lengths)):
                raise ValueError(
                    f"heuristics.{name} must have {len(lengths)} numbers, or none: those of {lengths}-grams"
                )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, int | float) and not number >= 0 for number in numbers):
                raise ValueError(f"heuristics.{field.name}={value!r} must not be negative; 0 switches the rule off")


def stage(documents: pa.Table, knobs: Heuristics) -> tuple[pa.Table, Tally]:
    """Drops documents that break a rule, and cuts lines and sentences that C4 does not want.

    Args:
        documents: of a part; its column ``language`` is used if there is one.
        knobs: see there.

    Raises:
        OSError: cannot read the bad words.
        ValueError: a malformed file of bad words.
    """
    tally, texts, reasons = Tally(), [pa.array([], pa.large_string())], np.zeros(0, object)
    for first, these in slices(documents["text"]):
        languages = _languages(documents.slice(first, len(these)))
        broken: dict[str, np.ndarray] = {}
        if "gopher" in knobs.presets:
            broken |= _gopher(these, languages, knobs)
        if "c4" in knobs.presets:
            these, more = _c4(these, languages, knobs, tally)
            broken |= more
        why = np.full(len(these), "", object)
        for name, mask in broken.items():
            tally.count(f"breaks: {name}", int(mask.sum()))
            why[mask & (why == "")] = name
        texts.append(these)
        reasons = np.concatenate([reasons, why])
    tally.counts = {name: number for name, number in tally.counts.items() if number}
    stays = kept(documents, reasons.tolist(), tally)
    changed = pa.chunked_array(texts).filter(pa.array(reasons == "", pa.bool_()))
    return parts.with_column(stays, "text", changed), tally


def _languages(documents: pa.Table) -> list[str] | None:
    return documents["language"].to_pylist() if "language" in documents.column_names else None


def _gopher(texts: pa.LargeStringArray, languages: list[str] | None, knobs: Heuristics) -> dict[str, np.ndarray]:
    """Which documents break each rule, bool [n]."""
    dense = unspaced(texts)
    words = split(spaced(texts, dense))
    found: Mapping[str, np.ndarray] = gopher.of_words(texts, words, knobs.stop_words) | gopher.of_lines(texts)
    asked = ~dense
    if languages is not None:
        asked = asked & np.array([language == knobs.language for language in languages])
    rules = {
        "too few words": _under(found["words"], knobs.min_words),
        "too many words": _over(found["words"], knobs.max_words),
        "words too short": _under(found["word length"], knobs.min_word_length) & asked,
        "words too long": _over(found["word length"], knobs.max_word_length) & asked,
        "too many hash signs": _over(found["hash signs"], knobs.max_symbols),
        "too many ellipses": _over(found["ellipses"], knobs.max_symbols),
        "lines begin with bullets": _over(found["bullets"], knobs.max_bullets),
        "lines end with ellipses": _over(found["line ellipses"], knobs.max_line_ellipses),
        "too few words with letters": _under(found["alphabetic"], knobs.min_alphabetic),
        "too few stop words": _under(found["stop words"], knobs.min_stop_words) & asked,
        "repeated lines": _over(found["lines"], knobs.max_lines),
        "repeated paragraphs": _over(found["paragraphs"], knobs.max_paragraphs),
        "characters in repeated lines": _over(found["line characters"], knobs.max_line_characters),
        "characters in repeated paragraphs": _over(found["paragraph characters"], knobs.max_paragraph_characters),
    }
    if any(knobs.max_top_ngrams) or any(knobs.max_ngrams):
        # N-grams take most of the memory, and a document of too many words is dropped without them.
        shares = gopher.of_ngrams(words.without(rules["too many words"] | dense))
        for length, most in zip(gopher.TOP, knobs.max_top_ngrams, strict=False):
            rules[f"one {length}-gram too often"] = _over(shares[length], most)
        for length, most in zip(gopher.DUPLICATE, knobs.max_ngrams, strict=False):
            rules[f"repeated {length}-grams"] = _over(shares[length], most)
    return rules


def _c4(
    texts: pa.LargeStringArray, languages: list[str] | None, knobs: Heuristics, tally: Tally
) -> tuple[pa.LargeStringArray, dict[str, np.ndarray]]:
    """What is left of the documents, and which of them break each rule, bool [n]."""
    lower = pc.utf8_lower(texts)
    rules = c4.contains_any(lower, knobs.page_phrases)
    if knobs.bad_words:
        terms = c4.load_terms(knobs.bad_words, knobs.bad_language)
        rules["bad words"] = c4.bad_words(lower, languages or [knobs.bad_language] * len(texts), terms)
    if knobs.citations:
        texts = c4.without_citations(texts)
    if knobs.line_phrases or knobs.line_words or knobs.line_marks:
        dense = unspaced(texts)
        texts, counts = c4.cut_lines(texts, dense, knobs.line_marks, knobs.line_words, knobs.line_phrases)
        for name, number in counts.items():
            tally.count(name, number)
    if knobs.repeated_sentences:
        texts, cut = c4.cut_repeated_sentences(texts, knobs.repeated_sentences)
        tally.count("sentences cut: repeated", cut)
    rules["nothing left"] = pc.equal(texts, "").to_numpy(zero_copy_only=False)
    rules["too few sentences"] = _under(c4.count_sentences(texts), knobs.min_sentences)
    return texts, rules


def _under(values: np.ndarray, least: float) -> np.ndarray:
    """Which values are under a threshold; none if it is 0."""
    return values < least


def _over(values: np.ndarray, most: float) -> np.ndarray:
    """Which values are over a threshold; none if it is 0."""
    return (values > most) if most else np.zeros(len(values), bool)
