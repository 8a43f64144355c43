"""A task: where its items come from, how they become a prompt, how an answer is scored.

The dataclasses below are the only declaration of the format of a task file, which ``task_file.load`` reads and
docs/evaluation.md describes for users. Protocol: GPT-3 (arXiv 2005.14165), section 2.4 and Appendix G.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping

KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # kind -> required and allowed keys of [scoring]
    "choices": (("choices", "gold"), ("labels", "normalisation", "answer_context")),
    "partial": (("contexts", "completion", "gold"), ("labels",)),
    "completion": (("target",), ()),
    "free_form": (
        ("target",),
        ("references", "stop", "max_tokens", "beams", "length_penalty", "extract", "remove", "normalisation"),
    ),
    "text": ((), ()),
}
METRICS: dict[str, tuple[str, ...]] = {
    "choices": ("accuracy", "macro_f1"),
    "partial": ("accuracy",),
    "completion": ("accuracy", "perplexity"),
    "free_form": ("exact", "exact_number", "exact_match", "f1", "bleu"),
    "text": ("bits_per_byte", "perplexity"),
}
MEASURES = ("ability", "bias")
NORMALISATIONS: dict[str, tuple[str, ...]] = {  # kind -> how its answers are made comparable; the first is the default
    "choices": ("token", "sum", "unconditional"),
    "free_form": ("squad", "triviaqa"),
}
FORMATS = ("jsonl", "json", "csv", "tsv", "xml", "lines", "labelled_lines", "blocks", "text")
EDITS = ("upper_first", "lower_first", "lower_determiner", "without_period", "question_mark")
GENERATORS: dict[str, tuple[str, ...]] = {  # generator -> the fields that its items have
    "arithmetic": ("expression", "answer"),
    "scrambling": ("scrambled", "word"),
}


@dataclasses.dataclass(frozen=True)
class Field:
    """How one field is taken from a record; the steps are done in this order, on each string of a list."""

    # 'a.b', 'a.*.b' (a list), '{a} {b}' (a template of paths), or a list of those, in which 'a?.*' may be absent
    path: str | tuple[str, ...] = ""
    constant: str | tuple[str, ...] | None = None  # the value itself, in place of a path
    remove: str = ""  # regular expression; what it matches is cut
    match: str = ""  # regular expression; its first group (or the whole match) is kept
    match_all: str = ""  # regular expression; a list of its matches takes the place of the text
    map: Mapping[str, str] = dataclasses.field(default_factory=dict)  # value -> what stands for it
    edits: tuple[str, ...] = ()  # of EDITS
    empty: str = ""  # what stands for an empty text or list


@dataclasses.dataclass(frozen=True)
class Split:
    file: str = ""  # the end of a path, with * and ?; .gz and .bz2 are found too
    aligned: Mapping[str, str] = dataclasses.field(default_factory=dict)  # record key -> file with a line for each


@dataclasses.dataclass(frozen=True)
class Source:
    """Local files in one format. ``train`` supplies the demonstrations; without it the test items do."""

    format: str = ""
    records: str = ""  # json and xml: path to the list of records; keys of enclosing objects are kept
    columns: tuple[str, ...] = ()  # csv and tsv without a header, blocks: the names
    fields: Mapping[str, Field] = dataclasses.field(default_factory=dict)  # other names are keys of the record
    keep: Mapping[str, str] = dataclasses.field(default_factory=dict)  # field -> regular expression it must match
    test: Split = Split()
    train: Split | None = None


@dataclasses.dataclass(frozen=True)
class Generator:
    name: str = ""
    kind: str = ""
    count: int = 0  # test items
    demonstrations: int = 0  # further, other items that supply the demonstrations; 0 = the test items do
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Prompt:
    description: str = ""  # stands first
    context: str = ""  # template; the completion follows it after one space
    separator: str = "\n\n"  # between description, demonstrations and the item


@dataclasses.dataclass(frozen=True)
class Scoring:
    kind: str = ""
    choices: str | tuple[str, ...] = ()  # the name of a list field, or templates
    contexts: str | tuple[str, ...] = ()  # partial: the contexts with each candidate put in
    completion: str = ""  # partial: what follows each of them
    target: str = ""  # template of the answer, as demonstrations show it
    gold: str = ""  # template; the place of the right choice from 0, or one of the labels
    labels: str | tuple[str, ...] = ()  # what gold may say, in the order of the choices
    references: str = ""  # the name of a list field of accepted answers; without it, target is the only one
    normalisation: str = ""  # of NORMALISATIONS
    answer_context: str = ""  # unconditional: the context whose probability is divided out
    stop: tuple[str, ...] = ("\n",)
    max_tokens: int = 32
    beams: int = 4
    length_penalty: float = 0.6
    extract: str = ""  # regular expression; its first group in the generated text is the answer
    remove: str = ""  # regular expression; cut from answer and references before they are compared


@dataclasses.dataclass(frozen=True)
class Task:
    name: str
    group: str  # the file's name; the variants of a file share it
    path: str
    about: str  # one line for people: the data set and its paper
    few_shot: int  # K of "few"; GPT-3's where it has the task
    metrics: tuple[str, ...]
    prompt: Prompt
    zero_shot: Prompt  # the prompt at zero shots; the same as prompt unless the file says otherwise
    scoring: Scoring
    sources: tuple[Source, ...]
    generator: Generator | None
    metadata: tuple[str, ...]  # fields that go with each request, for breakdowns
    sampled: bool  # the variants are a random sample of what the group stands for: its mean has the error of a sample
    measures: str  # of MEASURES; the mean over all tasks is of abilities


def nearest(name: str, known: Iterable[str]) -> str:
    """The one of ``known`` that is spelt most like ``name``."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def placeholders(template: str) -> list[str]:
    """Names in braces; doubled braces stand for themselves."""
    return re.findall(r"\{([^{}]*)\}", template.replace("{{", "").replace("}}", ""))
