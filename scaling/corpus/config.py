"""The knobs of a build of a corpus: sections are those of the stages. ``CORPUS`` is the kind of such config files."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from scaling.config import files
from scaling.config.kind import Kind
from scaling.config.knob import knob
from scaling.corpus.decontaminate import Decontaminate
from scaling.corpus.duplicates import fuzzy, shared
from scaling.corpus.duplicates.exact import Exact
from scaling.corpus.duplicates.fuzzy import Fuzzy
from scaling.corpus.engine import Engine
from scaling.corpus.extraction import language
from scaling.corpus.extraction.extract import Extract
from scaling.corpus.extraction.language import Language
from scaling.corpus.filters.demonstrations import Demonstrations
from scaling.corpus.filters.heuristics import Heuristics
from scaling.corpus.filters.quality import Quality
from scaling.corpus.filters.toxicity import Toxicity
from scaling.corpus.filters.votes import Votes
from scaling.corpus.output import mixture
from scaling.corpus.output.mixture import Mixture
from scaling.corpus.output.tokens import Tokens
from scaling.corpus.reading.source import Read

# In the order of GPT-3's recipe: filter, deduplicate, remove overlap with evaluation.
STAGES = (
    "read",
    "votes",
    "extract",
    "language",
    "heuristics",
    "quality",
    "exact",
    "fuzzy",
    "toxicity",
    "decontaminate",
    "demonstrations",
    "tokens",
    "mixture",
)
NEEDED = ("read", "extract")  # first and in this order; between them, only votes
_FIELDS = ("text", "id", "url", "votes")  # whose keys a source may name
_HTML = "html"  # what a source says whose texts are pages


@dataclasses.dataclass(frozen=True)
class Corpus:
    workdir: str = knob("", "path", "folder of the build; empty = runs/<name of the config file>")
    engine: str = knob("native", "", "native (processes of this machine) or ray (a cluster)")
    workers: int = knob(0, "processes", "at a time; 0 = one a core, of this machine or of the cluster")
    sources: tuple[tuple[str, ...], ...] = knob(
        (),
        "(data set, files[, keys])",
        "documents: a path or glob of .txt, .jsonl, .parquet, .warc, .arc or .wet, also compressed; keys are fields of "
        "records that have other names there, as in 'text=content,id=path,votes=karma'; html = the text is HTML",
    )
    stages: tuple[str, ...] = knob(
        (),
        "names",
        f"in their order, of {', '.join(STAGES)}; () = all that have what they need: votes a field of votes, "
        "heuristics presets, quality positives or a classifier, toxicity a classifier, decontaminate tasks",
    )
    only: tuple[tuple[str, str], ...] = knob(
        (),
        "(stage, data sets)",
        "stages for some data sets only, as in (('quality', 'crawl'), ('language', 'crawl,web')); others are for all",
    )
    read: Read = Read()
    votes: Votes = Votes()
    extract: Extract = Extract()
    language: Language = Language()
    heuristics: Heuristics = Heuristics()
    quality: Quality = Quality()
    exact: Exact = Exact()
    fuzzy: Fuzzy = Fuzzy()
    toxicity: Toxicity = Toxicity()
    decontaminate: Decontaminate = Decontaminate()
    demonstrations: Demonstrations = Demonstrations()
    tokens: Tokens = Tokens()
    mixture: Mixture = Mixture()

    @property
    def names(self) -> tuple[str, ...]:
        """The data sets, in the order in which they are named first."""
        return tuple(dict.fromkeys(source[0] for source in self.sources))

    def datasets(self, stage: str) -> tuple[str, ...]:
        """The data sets that a stage is for; ``votes`` is for those whose sources name votes, unless ``only`` says."""
        for name, chosen in self.only:
            if name == stage:
                return tuple(name for name in self.names if name in _split(chosen))
        if stage == "votes":
            voted = {source[0] for source in self.sources if self.read_knobs(source).votes_key}
            return tuple(name for name in self.names if name in voted)
        return self.names

    def lacking(self, stage: str) -> str:
        """What a stage cannot do without and the knobs do not name, as a sentence; "" = nothing."""
        there = {
            "votes": (self.datasets("votes"), "votes=KEY in config.sources names no field of votes"),
            "heuristics": (self.heuristics.presets, "config.heuristics.presets names none"),
            "quality": (
                self.quality.positives or self.quality.classifier,
                "config.quality.positives names no curated data set, and config.quality.classifier no classifier",
            ),
            "toxicity": (self.toxicity.classifier, "config.toxicity.classifier names no run"),
            "decontaminate": (self.decontaminate.tasks, "config.decontaminate.tasks names no task"),
        }
        found, sentence = there.get(stage, (True, ""))
        return "" if found else sentence

    def read_knobs(self, source: Sequence[str]) -> Read:
        """The knobs with which a source is read."""
        said = _split(source[2]) if len(source) > 2 else []
        keys = dict(pair.split("=", 1) for pair in said if pair != _HTML)
        changed: dict[str, Any] = {f"{field}_key": key for field, key in keys.items()}
        return dataclasses.replace(self.read, html=self.read.html or _HTML in said, **changed)


CORPUS: Kind[Corpus] = Kind(Corpus(), "get_corpus")


def default_config() -> ConfigDict:
    """All knobs at their defaults, as a locked ConfigDict for a config file to edit."""
    return CORPUS.default()


def load(spec: str | None, overrides: Sequence[str] = ()) -> Corpus:
    """The checked config of a file with ``get_corpus()``, with ``--config.a.b=value`` overrides.

    Args:
        spec: ``FILE`` or ``FILE:argument``; None = all defaults.
        overrides: as ``config.files.split_arguments`` returns them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file raises, has no ``get_corpus``, or sets what cannot be set.
    """
    edited = CORPUS.default() if spec is None else files.from_file(CORPUS, spec)
    return checked(files.edited(CORPUS, edited, overrides))


def checked(config: Corpus) -> Corpus:
    """The config with its stages, if its parts fit together. No file is opened.

    Raises:
        ValueError: they do not; the message names the knob.
    """
    if not config.sources:
        raise ValueError("config.sources is empty; give (data set, files), such as (('books', 'books/*.jsonl.gz'),)")
    for source in config.sources:
        _check_source(source)
    for entry in config.only:
        _check_only(entry, config)
    if not config.stages:
        config = dataclasses.replace(config, stages=tuple(name for name in STAGES if not config.lacking(name)))
    _check_stages(config)
    Engine(config.engine, config.workers)  # refuses what it cannot be
    for name in config.stages:
        _check_knobs(name, config)
    return config


def _check_stages(config: Corpus) -> None:
    if unknown := [name for name in config.stages if name not in STAGES]:
        raise ValueError(f"config.stages: there is no stage {unknown[0]!r}; there are {', '.join(STAGES)}")
    if len(set(config.stages)) < len(config.stages):
        raise ValueError("config.stages names a stage twice")
    begin = ("read", "votes", "extract") if "votes" in config.stages else NEEDED
    if config.stages[: len(begin)] != begin:
        raise ValueError("config.stages must begin with read and extract; votes stands between them, and no other")
    if "mixture" in config.stages and config.stages[-2:] != ("tokens", "mixture"):
        raise ValueError("config.stages: mixture is the last stage, after tokens")
    for name in config.stages:
        if lacking := config.lacking(name):
            raise ValueError(f"config.stages has {name}, but {lacking}")


def _check_knobs(stage: str, config: Corpus) -> None:
    """Refuses knobs of a stage that its data sets do not fit."""
    chosen = config.datasets(stage)
    if stage == "votes":
        for source in config.sources:
            if source[0] in chosen and not config.read_knobs(source).votes_key:
                raise ValueError(f"config.sources: {source[1]} of {source[0]} has no votes=KEY, which votes needs")
    if stage == "language":
        language.check(config.language)
    if stage == "quality" and not config.quality.classifier:
        config.quality.classes(config.names)
    if stage == "exact":
        shared.check_order("exact", config.exact.order, chosen)
    if stage == "fuzzy":
        fuzzy.resolved(config.fuzzy)
        shared.check_order("fuzzy", config.fuzzy.order, chosen)
    if stage == "mixture":
        mixture.check(config.mixture, config.names)


def _check_source(source: Sequence[str]) -> None:
    if not 2 <= len(source) <= 3 or not all(isinstance(part, str) and part for part in source):
        raise ValueError(f"config.sources must hold (data set, files) or (data set, files, keys), not {source!r}")
    name = source[0]
    if not all(letter.isalnum() or letter in "._-" for letter in name) or name.startswith("."):
        raise ValueError(f"config.sources: the data set {name!r} must have a name of letters, digits, '.', '_' and '-'")
    for pair in _split(source[2]) if len(source) > 2 else ():
        field, equals, key = pair.partition("=")
        if pair != _HTML and (field not in _FIELDS or not equals or not key):
            fields = ", ".join(_FIELDS)
            raise ValueError(f"config.sources: {pair!r} of {name} must be FIELD=KEY, with {fields}, or {_HTML}")


def _check_only(entry: Sequence[str], config: Corpus) -> None:
    if len(entry) != 2 or not all(isinstance(part, str) for part in entry):
        raise ValueError(f"config.only must hold (stage, data sets), not {entry!r}")
    stage, chosen = entry
    whole = ("read", "extract", "tokens", "mixture")
    if stage not in STAGES or stage in whole:
        allowed = [name for name in STAGES if name not in whole]
        raise ValueError(f"config.only: {stage!r} must be one of {', '.join(allowed)}; the other stages are for all")
    if unknown := [name for name in _split(chosen) if name not in config.names]:
        raise ValueError(f"config.only: {stage} names {unknown[0]!r}, which is none of {', '.join(config.names)}")
    if not _split(chosen):
        raise ValueError(f"config.only: {stage} names no data set; to leave the stage out, take it from config.stages")
    if [each[0] for each in config.only].count(stage) > 1:
        raise ValueError(f"config.only names {stage} twice; give all its data sets in one entry, with commas")


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
