"""Whether a text satisfies a constraint: a function for each of the 25 kinds of IFEval, and what each is told.

The meaning is that of the official checks (Zhou et al., arXiv 2311.07911), written anew. Where a check differs, its
docstring says so.
"""

import dataclasses
import json
import operator
import re
from collections.abc import Callable, Mapping

from scaling.evaluate.constraints.language import detect, languages
from scaling.evaluate.constraints.sentences import count_sentences

RELATIONS: Mapping[str, Callable[[int, int], bool]] = {"less than": operator.lt, "at least": operator.ge}
_QUOTES = "\"'"


def _how_many(key: str, relation: str, count: Callable[..., int], *others: str) -> Callable[..., bool]:
    """A check that compares a count of something in the text with the number in ``key``.

    Args:
        key: of the constraint's keywords, the wanted number.
        relation: of them, how the count must relate to it.
        count: of the text, and of the values of ``others``.
        others: further keywords.
    """

    def check(text: str, **told: object) -> bool:
        found = count(text, *(told[name] for name in others))
        return RELATIONS[str(told[relation])](found, int(str(told[key])))

    return check


def _occurrences(text: str, part: str) -> int:
    return text.lower().count(part.lower())


def _words(text: str) -> int:
    """Runs of letters, digits and ``_``: ``don't`` is two."""
    return len(re.findall(r"\w+", text))


def _capital_words(text: str) -> int:
    """Words all of whose letters are capitals, one letter included.

    Words stand between white space, less the punctuation around them, and are split at dashes between and slashes. The
    official check cuts contractions by NLTK, so that ``I'M`` is two words there.
    """
    words = [word.strip("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~…“”‘’") for word in re.split(r"[\s/—–]+|--+", text)]
    return sum(word.isupper() for word in words)


def _every_keyword(text: str, keywords: list[str]) -> bool:
    """Anywhere, also inside of words."""
    return all(_occurrences(text, word) for word in keywords)


def _no_forbidden_word(text: str, forbidden_words: list[str]) -> bool:
    """As whole words."""
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


def _in_language(text: str, language: str) -> bool:
    return detect(text) == language


def _english_in(case: Callable[[str], bool]) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        return case(text) and detect(text) == "en"

    return check


def _paragraphs(text: str, num_paragraphs: int) -> bool:
    """Paragraphs are divided by ``***``; none between two dividers may be empty."""
    parts = [part.strip() for part in re.split(r"\*\*\*", text)]
    first, last = not parts[0], len(parts) > 1 and not parts[-1]
    inside = parts[first : len(parts) - last]
    return all(inside) and len(inside) == num_paragraphs


def _nth_paragraph(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are divided by an empty line. A quotation mark before the word and what follows it do not matter."""
    parts = text.split("\n\n")
    if sum(bool(part.strip()) for part in parts) != num_paragraphs or nth_paragraph > len(parts):
        return False
    words = parts[nth_paragraph - 1].split()
    return bool(words) and re.split(r"[.,?!'\"]", words[0].lstrip(_QUOTES))[0].lower() == first_word.lower()


def _placeholders(text: str, num_placeholders: int) -> bool:
    """``[address]``, within a line."""
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def _postscript(text: str, postscript_marker: str) -> bool:
    """The marker in any case; in P.S. and P.P.S a space may stand after a full stop."""
    spaced = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    return bool(re.search(spaced.get(postscript_marker, re.escape(postscript_marker)), text, re.IGNORECASE))


def _bullets(text: str, num_bullets: int) -> bool:
    """Lines that begin with ``*`` and something else than another ``*``, or with ``-``; exactly as many."""
    return len(re.findall(r"^\s*(?:\*[^*]|-)", text, re.MULTILINE)) == num_bullets


def _one_of_three(text: str) -> bool:
    return any(f"My answer is {answer}." in text for answer in ("yes", "no", "maybe"))


def _highlights(text: str, num_highlights: int) -> bool:
    """``*a section*`` and ``**a section**`` within a line, not empty."""
    single = [found for found in re.findall(r"\*([^\n*]*)\*", text) if found.strip()]
    double = [found for found in re.findall(r"\*\*([^\n*]*)\*\*", text) if found.strip()]
    return len(single) + len(double) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    """``SECTION 1`` and so on. The keyword is spelt as in IFEval's data."""
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", text)) >= num_sections


def _json(text: str) -> bool:
    """The whole text, which may stand in a fenced block."""
    inside = re.fullmatch(r"\s*(?:```(?:json)?)?(.*?)(?:```)?\s*", text, re.DOTALL | re.IGNORECASE)
    assert inside is not None
    try:
        json.loads(inside[1])
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str) -> bool:
    """``<<a title>>`` within a line."""
    return any(found.strip("<>").strip() for found in re.findall(r"<<[^\n]+>>", text))


def _two_responses(text: str) -> bool:
    """Two different texts, divided by ``******``."""
    parts = [part.strip() for part in text.split("******")]
    inside = [part for place, part in enumerate(parts) if part or 0 < place < len(parts) - 1]
    return len(inside) == 2 and all(inside) and inside[0] != inside[1]


def _repeats(text: str, prompt_to_repeat: str) -> bool:
    """The text begins with the prompt, whatever the case of letters."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends(text: str, end_phrase: str) -> bool:
    """The last words, whatever their case; a quotation mark may follow."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quotation(text: str) -> bool:
    return re.fullmatch(r'\s*".*"\s*', text, re.DOTALL) is not None


def _no_comma(text: str) -> bool:
    return "," not in text


@dataclasses.dataclass(frozen=True)
class Constraint:
    """A kind of constraint.

    Attributes:
        check: takes a text and the keywords.
        takes: keyword -> its type: ``int`` (at least 0), ``str`` (not empty), ``list`` (of such texts), or the values
            that it may have.
    """

    check: Callable[..., bool]
    takes: Mapping[str, type | tuple[str, ...]] = dataclasses.field(default_factory=dict)


_RELATION = tuple(RELATIONS)

# By the names of IFEval's data.
CONSTRAINTS: Mapping[str, Constraint] = {
    "keywords:existence": Constraint(_every_keyword, {"keywords": list}),
    "keywords:frequency": Constraint(
        _how_many("frequency", "relation", _occurrences, "keyword"),
        {"keyword": str, "frequency": int, "relation": _RELATION},
    ),
    "keywords:forbidden_words": Constraint(_no_forbidden_word, {"forbidden_words": list}),
    "keywords:letter_frequency": Constraint(
        _how_many("let_frequency", "let_relation", _occurrences, "letter"),
        {"letter": str, "let_frequency": int, "let_relation": _RELATION},
    ),
    "language:response_language": Constraint(_in_language, {"language": languages()}),
    "length_constraints:number_sentences": Constraint(
        _how_many("num_sentences", "relation", count_sentences), {"num_sentences": int, "relation": _RELATION}
    ),
    "length_constraints:number_paragraphs": Constraint(_paragraphs, {"num_paragraphs": int}),
    "length_constraints:number_words": Constraint(
        _how_many("num_words", "relation", _words), {"num_words": int, "relation": _RELATION}
    ),
    "length_constraints:nth_paragraph_first_word": Constraint(
        _nth_paragraph, {"num_paragraphs": int, "nth_paragraph": int, "first_word": str}
    ),
    "detectable_content:number_placeholders": Constraint(_placeholders, {"num_placeholders": int}),
    "detectable_content:postscript": Constraint(_postscript, {"postscript_marker": str}),
    "detectable_format:number_bullet_lists": Constraint(_bullets, {"num_bullets": int}),
    "detectable_format:constrained_response": Constraint(_one_of_three),
    "detectable_format:number_highlighted_sections": Constraint(_highlights, {"num_highlights": int}),
    "detectable_format:multiple_sections": Constraint(_sections, {"section_spliter": str, "num_sections": int}),
    "detectable_format:json_format": Constraint(_json),
    "detectable_format:title": Constraint(_title),
    "combination:two_responses": Constraint(_two_responses),
    "combination:repeat_prompt": Constraint(_repeats, {"prompt_to_repeat": str}),
    "startend:end_checker": Constraint(_ends, {"end_phrase": str}),
    "startend:quotation": Constraint(_quotation),
    "change_case:capital_word_frequency": Constraint(
        _how_many("capital_frequency", "capital_relation", _capital_words),
        {"capital_frequency": int, "capital_relation": _RELATION},
    ),
    "change_case:english_capital": Constraint(_english_in(str.isupper)),
    "change_case:english_lowercase": Constraint(_english_in(str.islower)),
    "punctuation:no_comma": Constraint(_no_comma),
}
