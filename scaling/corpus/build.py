"""Builds a corpus: runs the stages of a config in their order, each on what the one before left."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from scaling import __version__, durable
from scaling.config.schema import to_dict
from scaling.corpus import stages
from scaling.corpus.config import Corpus
from scaling.corpus.engine import Engine
from scaling.corpus.outcome import Tally
from scaling.corpus.output import mixture
from scaling.corpus.page import corpus_page
from scaling.corpus.reading.read import find
from scaling.corpus.stage import Parts, Stage
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

    A stage whose knobs, input or version have changed is made again, and all stages after it. Everything that was done
    before stays. What the knobs name is opened before anything is written.

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
        return _build(config, folder, engine, {"version": __version__, "sources": sources}, outside)


def _build(
    config: Corpus, folder: Path, engine: Engine, made_of: Mapping[str, Any], outside: Mapping[str, Mapping[str, Any]]
) -> Built:
    """Runs the stages.

    Args:
        config: see there.
        folder: of the build.
        engine: where tasks run.
        made_of: what the first stage reads.
        outside: what each stage takes from outside of the build, besides its knobs.
    """
    durable.replace_text(folder / CONFIG, json.dumps(to_dict(config), indent=1) + "\n")
    tallies: dict[str, Mapping[str, Tally]] = {}
    parts: dict[str, list[Path]] = {}
    manifest = None
    for number, name in enumerate(config.stages, start=1):
        if name == "mixture":
            names = [each for each, tally in tallies["tokens"].items() if tally.counts.get("documents")]
            manifest = mixture.build(folder, config.mixture, names, to_dict(config), parts)
            break  # it is the last
        chosen = config.datasets(name)
        knobs = json.loads(json.dumps(to_dict(getattr(config, name))))
        made_of = {"before": _digest(made_of), "stage": name, "datasets": chosen, "knobs": knobs, **outside[name]}
        with progress.Steps(name) as bar:
            steps = Steps(folder / "stages" / f"{number:02d}-{name}", engine, bar.progress)
            steps.begin(made_of)
            stage = Stage(steps, {each: parts[each] for each in chosen if each in parts}, parts)
            if name == "read" or any(stage.parts.values()):
                left, tallies[name] = stages.ALL[name](stage, config)
            else:  # no document is left that it could do something with
                left, tallies[name] = {each: [] for each in chosen}, {each: Tally() for each in chosen}
        parts |= {each: [*found] for each, found in left.items()}
        _report(folder, tallies, manifest)
    if manifest:
        _report(folder, tallies, manifest)
    return Built(folder, tallies, parts, manifest)


def _sources(config: Corpus) -> list[list[Any]]:
    """What the files are known by: name, size and time, which change if their content does."""
    from scaling.data import sources

    found: list[list[Any]] = []
    for source in config.sources:
        for file in find(source[1]):
            fs, path = sources.filesystem(file)
            facts = fs.info(path)
            when = next((str(facts[key]) for key in ("mtime", "LastModified", "updated", "ETag") if key in facts), "")
            if any(each[0] == source[0] and each[-3] == file for each in found):
                raise ValueError(
                    f"config.sources: two sources of {source[0]} have the file {file}; give it to one of them"
                )
            found.append([*source, file, facts.get("size"), when])
    return found


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=list).encode()).hexdigest()


def _report(folder: Path, tallies: Mapping[str, Mapping[str, Tally]], manifest: Manifest | None) -> None:
    """Writes the page and its figures, after each stage, so that a build that ends early has them too."""
    plain = {stage: {name: tally.to_dict() for name, tally in by_set.items()} for stage, by_set in tallies.items()}
    durable.replace_text(folder / FIGURES, json.dumps(plain, indent=1, sort_keys=False) + "\n")
    rows = mixture.rows(manifest) if manifest else []
    made = f"Made by scaling {__version__}, {time.strftime('%Y-%m-%d %H:%M')}, from {folder}."
    durable.replace_text(folder / REPORT, corpus_page(f"Corpus {folder.name}", made, tallies, rows))
