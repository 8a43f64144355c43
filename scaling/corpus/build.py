"""Builds a corpus: runs the stages of a config in their order, each on what the one before left."""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from scaling import __version__, durable
from scaling.config.schema import to_dict
from scaling.corpus import documents, stages
from scaling.corpus.config import Corpus
from scaling.corpus.engine import Engine
from scaling.corpus.outcome import Tally
from scaling.corpus.output import mixture
from scaling.corpus.page import corpus_page
from scaling.corpus.reading.read import find
from scaling.corpus.stage import Input, Parts, Stage, digest
from scaling.corpus.steps import Steps
from scaling.data import progress
from scaling.data.manifest import Manifest
from scaling.runs.lock import held

REPORT, CONFIG, FIGURES = "report.html", "config.json", "report.json"


@dataclasses.dataclass(frozen=True)
class Built:
    """A corpus.

    Attributes:
        folder: of the build.
        tallies: figures of each stage, by data set.
        parts: the documents after the last stage.
        manifest: of the tokens; None if the config has no stage ``mixture``.
    """

    folder: Path
    tallies: Mapping[str, Mapping[str, Tally]]
    parts: Parts
    manifest: Manifest | None


def build(config: Corpus) -> Built:
    """Builds the corpus in ``config.workdir``, or goes on with a build there.

    A stage whose knobs or version have changed is made again, and all stages after it. If files of the sources have
    changed, the parts that depend on them are. Everything else that was done before stays. What the knobs name is
    opened before anything is written.

    Args:
        config: of ``checked``.

    Raises:
        FileNotFoundError: no such files.
        ValueError: knobs or files that cannot be used.
        OSError: cannot write.
    """
    folder = Path(config.workdir)
    if "://" in config.workdir:
        raise ValueError(
            f"config.workdir={config.workdir} must be a local folder; copy tokens/ and manifest.json to a bucket"
        )
    engine = Engine(config.engine, config.workers)
    sources = _sources(config)
    outside = {name: stages.outside(name, config) for name in config.stages}
    folder.mkdir(parents=True, exist_ok=True)
    with held(epath.Path(folder / ".lock"), f"another process builds in {folder}; wait for it, or stop it"):
        return _build(config, folder, engine, sources, outside)


def _build(
    config: Corpus, folder: Path, engine: Engine, sources: Sequence[Input], outside: Mapping[str, Mapping[str, Any]]
) -> Built:
    """Runs the stages.

    Args:
        config: see there.
        folder: of the build.
        engine: where tasks run.
        sources: the files of all sources.
        outside: what each stage takes from outside of the build, besides its knobs.
    """
    durable.replace_text(folder / CONFIG, json.dumps(to_dict(config), indent=1) + "\n")
    tallies: dict[str, Mapping[str, Tally]] = {}
    parts: dict[str, list[Path]] = {}
    origins: dict[Path, str] = {}
    manifest = None
    for number, name in enumerate(config.stages, start=1):
        if name == "mixture":
            names = [each for each, tally in tallies["tokens"].items() if tally.counts.get("documents")]
            manifest = mixture.build(folder, config.mixture, names, to_dict(config), parts)
            break  # it is the last
        chosen = config.datasets(name)
        knobs = json.loads(json.dumps(to_dict(getattr(config, name))))
        made_of = {"version": __version__, "stage": name, "knobs": knobs, **outside[name]}
        if name not in stages.BY_PART:
            of = [(each, origins[part]) for each, found in parts.items() for part in found]
            made_of |= {"data sets": chosen, "documents": digest(of)}
        with progress.Steps(name) as bar:
            steps = Steps(folder / "stages" / f"{number:02d}-{name}", engine, bar.progress)
            steps.begin(made_of)
            taken = {each: parts[each] for each in chosen if each in parts}
            stage = Stage(steps, taken, parts, sources, digest(made_of), origins)
            if name == "read" or any(documents.rows(part) for found in taken.values() for part in found):
                left, tallies[name] = stages.ALL[name](stage, config)
            else:  # no document is left that it could do something with
                left, tallies[name] = {each: [] for each in chosen}, {each: Tally() for each in chosen}
        parts |= {each: [*found] for each, found in left.items()}
        if name not in stages.BY_PART:
            origins |= dict.fromkeys((part for found in left.values() for part in found), stage.stamp)
        _report(folder, tallies, manifest)
    if manifest:
        _report(folder, tallies, manifest)
    return Built(folder, tallies, parts, manifest)


def _sources(config: Corpus) -> list[Input]:
    """The files, with their sizes and times."""
    from scaling.data import sources

    found, seen = [], set()
    for source in config.sources:
        for file in find(source[1]):
            if (source[0], file) in seen:
                raise ValueError(
                    f"config.sources: two sources of {source[0]} have the file {file}; give it to one of them"
                )
            seen.add((source[0], file))
            fs, path = sources.filesystem(file)
            facts = fs.info(path)
            when = next((str(facts[key]) for key in ("mtime", "LastModified", "updated", "ETag") if key in facts), "")
            found.append(Input(source, file, facts.get("size"), when))
    return found


def _report(folder: Path, tallies: Mapping[str, Mapping[str, Tally]], manifest: Manifest | None) -> None:
    """Writes the page and its figures, after each stage, so that a build that ends early has them too."""
    plain = {stage: {name: tally.to_dict() for name, tally in by_set.items()} for stage, by_set in tallies.items()}
    durable.replace_text(folder / FIGURES, json.dumps(plain, indent=1, sort_keys=False) + "\n")
    rows = mixture.rows(manifest) if manifest else []
    made = f"Made by scaling {__version__}, {time.strftime('%Y-%m-%d %H:%M')}, from {folder}."
    durable.replace_text(folder / REPORT, corpus_page(f"Corpus {folder.name}", made, tallies, rows))
