"""What the rules of C4 do (Raffel et al., arXiv 1910.10683, section 2.2), for many documents at a time.

Lines and sentences are cut from documents, and pages are dropped. C4 removes a three-sentence span that occurs twice
anywhere in the data set; here a span is removed that occurs twice in a document (stages of deduplication see the rest).
"""

import collections
import functools
import gzip
import json
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from etils import epath

from scaling.corpus.filters.lines import SENTENCE_END, Pieces, lines, repeated_spans, sentences
from scaling.corpus.filters.words import between_spaces, spaced

_CITATION = r"\[(?:\d+|edit|citation needed)\]"
_WITHOUT_BOUNDARIES = ("ja", "zh", "th", "lo", "km", "my")  # languages whose terms are found inside of words, too


def without_citations(texts: pa.LargeStringArray) -> pa.LargeStringArray:
    """The texts without marks of Wikipedia: [1], [edit], [citation needed]."""
    return pc.replace_substring_regex(texts, _CITATION, "")


def cut_lines(
    texts: pa.LargeStringArray, which: np.ndarray, marks: Sequence[str], words: int, phrases: Sequence[str]
) -> tuple[pa.LargeStringArray, dict[str, int]]:
    """The texts without some lines, and how many were cut by each rule; a line is counted by the first that it breaks.

    Lines lose white space at their ends. Empty ones are cut, and not counted, since they have no words.

    Args:
        texts: of n documents.
        which: those of scripts without spaces, bool [n].
        marks: one of them must end a line; "..." does not count as "."; () = any end will do.
        words: that a line must have; 0 = any number.
        phrases: in lower case; a line that contains one in any case of letters is cut.
    """
    found, counts = lines(texts), {}
    found = found.where(pc.not_equal(found.texts, "").to_numpy(zero_copy_only=False))
    lower = pc.utf8_lower(found.texts) if phrases else found.texts
    rules = {f"contains {phrase!r}": _contains(lower, phrase) for phrase in phrases}
    if words:
        pieces = between_spaces(spaced(found.texts, which[found.documents]))
        rules[f"under {words} words"] = pc.list_value_length(pieces).to_numpy(zero_copy_only=False) < words
    if marks:
        end = f"(?:{'|'.join(map(re.escape, marks))})$"
        ended = pc.match_substring_regex(found.texts, end).to_numpy(zero_copy_only=False)
        rules["no terminal mark"] = ~ended | pc.ends_with(found.texts, "...").to_numpy(zero_copy_only=False)
    bad = np.zeros(len(found.documents), bool)
    for name, broken in rules.items():
        counts[f"lines cut: {name}"] = int((broken & ~bad).sum())
        bad |= broken
    return found.where(~bad).joined(len(texts), "\n"), counts


def cut_repeated_sentences(texts: pa.LargeStringArray, length: int) -> tuple[pa.LargeStringArray, int]:
    """The texts without spans of ``length`` sentences that occurred before in their document; the sentences cut."""
    found = sentences(texts)
    trimmed = pc.utf8_trim_whitespace(found.texts)
    some = pc.not_equal(trimmed, "").to_numpy(zero_copy_only=False)
    cut = np.zeros(len(some), bool)
    cut[some] = repeated_spans(found.documents[some], Pieces(found.documents, trimmed).where(some).ids(), length)
    if not cut.any():
        return texts, 0
    changed = np.zeros(len(texts), bool)
    changed[found.documents[cut]] = True
    rest = pc.utf8_trim_whitespace(found.where(~cut).joined(len(texts), ""))
    return pc.if_else(pa.array(changed), rest, texts), int(cut.sum())


def count_sentences(texts: pa.LargeStringArray) -> np.ndarray:
    """Number of sentences of each text [n]: of marks that end one. An abbreviation before a space counts, too."""
    return pc.count_substring_regex(texts, SENTENCE_END).to_numpy(zero_copy_only=False)


def contains_any(lower: pa.LargeStringArray, phrases: Sequence[str]) -> dict[str, np.ndarray]:
    """Which texts contain each phrase, bool [n]; texts and phrases are in lower case."""
    return {f"contains {phrase!r}": _contains(lower, phrase) for phrase in phrases}


def bad_words(lower: pa.LargeStringArray, languages: Sequence[str], terms: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Which texts contain a term of their language, bool [n].

    A term is a whole word, except in languages without spaces. Documents of languages without terms have none.

    Args:
        lower: texts in lower case.
        languages: of each text [n].
        terms: of ``load_terms``.
    """
    found, names = np.zeros(len(lower), bool), np.array(languages, object)
    for language in sorted(set(languages) & terms.keys()):
        mask = names == language
        pattern = _pattern(language, tuple(terms[language]))
        found[mask] = pc.match_substring_regex(lower.filter(pa.array(mask)), pattern).to_numpy(zero_copy_only=False)
    return found


@functools.cache
def load_terms(path: str, language: str) -> dict[str, tuple[str, ...]]:
    """Bad words by language, in lower case.

    Args:
        path: JSON Lines with the keys ``lang`` and ``term``, or else a term a line; also compressed (``.gz``).
        language: of the terms of a file that does not say it.

    Raises:
        OSError: cannot read.
        ValueError: a malformed file; with its line.
    """
    content = epath.Path(path).read_bytes()
    try:
        text = (gzip.decompress(content) if path.endswith(".gz") else content).decode()
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no list of words: {error}") from None
    found: dict[str, list[str]] = collections.defaultdict(list)
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        if path.removesuffix(".gz").endswith(".jsonl"):
            try:
                record = json.loads(line)
                found[str(record["lang"])].append(str(record["term"]).strip().lower())
            except (ValueError, KeyError, TypeError):
                raise ValueError(f'{path}:{number} is no record {{"lang": "en", "term": "..."}}') from None
        else:
            found[language].append(line.strip().lower())
    if not any(found.values()):
        raise ValueError(f"{path} has no words")
    return {name: tuple(sorted({*terms} - {""})) for name, terms in found.items()}


def _pattern(language: str, terms: Sequence[str]) -> str:
    """A regular expression of RE2, whose own word boundaries know only ASCII."""
    any_term = "|".join(map(re.escape, terms))
    if language in _WITHOUT_BOUNDARIES:
        return any_term
    return rf"(?:^|[^\p{{L}}\p{{M}}\p{{N}}_])(?:{any_term})(?:$|[^\p{{L}}\p{{M}}\p{{N}}_])"


def _contains(lower: pa.LargeStringArray, phrase: str) -> np.ndarray:
    return pc.match_substring(lower, phrase).to_numpy(zero_copy_only=False)
