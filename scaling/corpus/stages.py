"""Each stage of a build: which tasks it runs in which steps, and which parts it leaves."""

import dataclasses
import functools
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scaling.corpus import decontaminate, documents
from scaling.corpus.config import Corpus
from scaling.corpus.duplicates import exact, fuzzy
from scaling.corpus.duplicates import shared as duplicates
from scaling.corpus.extraction import extract, language
from scaling.corpus.filters import c4, demonstrations, heuristics, quality, toxicity, votes
from scaling.corpus.outcome import Tally
from scaling.corpus.output import tokens
from scaling.corpus.reading import ids
from scaling.corpus.reading import read as reading
from scaling.corpus.reading.source import Read
from scaling.corpus.stage import Parts, Stage, digest, input_bytes, measured, only
from scaling.corpus.steps import Task
from scaling.data import shards, tokenizer

Made = tuple[Parts, Mapping[str, Tally]]  # the parts that a stage leaves of its data sets, and its figures by data set


def read(stage: Stage, config: Corpus) -> Made:
    """Reads the sources; then renames documents whose ids are not unique."""
    tasks, owners = [], []
    for name in config.names:
        files = [each for each in stage.inputs if each.source[0] == name]
        called = reading.names([each.path for each in files])
        for number, each in enumerate(files):
            stem, known = f"raw/{name}/f{number:05d}", f"{name}/{called[each.path]}"
            call = functools.partial(_read, each.path, config.read_knobs(each.source), known, stage.folder, stem)
            tasks.append(Task(stem, call, made_of=digest([dataclasses.astuple(each), known])))
            owners.append(name)
    results = stage.steps.run("files", tasks)
    parts: dict[str, list[Path]] = {name: [] for name in config.names}
    tallies = {name: Tally() for name in config.names}
    for name, task, result in zip(owners, tasks, results, strict=True):
        found = [stage.folder / file for file in result["files"]]
        stage.origins.update((part, digest([stage.stamp, task.made_of])) for part in found)
        parts[name] += found
        tallies[name].add(Tally.of(result["tally"]))
    for name, found in parts.items():
        results_of = [stage.folder / task.name for owner, task in zip(owners, tasks, strict=True) if owner == name]
        only(stage.folder / "raw" / name, [*found, *results_of])
    again = dataclasses.replace(stage, parts=parts)
    whole = digest([(name, stage.origins[part]) for name, found in parts.items() for part in found])
    repeated = _repeated_ids(again, sum(tally.documents_out for tally in tallies.values()), whole)
    if not repeated:
        return parts, tallies
    renamed = again.rows(functools.partial(_rename, repeated), "renaming", whole)
    for name, tally in again.tallies().items():
        tallies[name].add(Tally(counts=tally.counts, faults=tally.faults))
    return renamed, tallies


def _read(file: str, knobs: Read, name: str, folder: Path, stem: str) -> dict[str, Any]:
    tally, files = Tally(), []
    for number, table in enumerate(reading.read(file, knobs, tally, name)):
        files.append(f"{stem}-{number:05d}.parquet")
        documents.write(table, folder / files[-1])
        tally.documents_out += table.num_rows
        tally.bytes_out += input_bytes(table)
    tally.bytes_in = tally.bytes_out
    return {"files": files, "tally": tally.to_dict()}


def _repeated_ids(stage: Stage, rows: int, whole: str) -> list[Path]:
    """Files with the hashes of repeated ids, by ranges of hashes; those without any are left out.

    Args:
        stage: with the parts.
        rows: number of documents.
        whole: a digest of what all parts are made of.
    """
    every, work = [part for parts in stage.parts.values() for part in parts], stage.folder
    hashed = []
    for number, part in enumerate(every):
        target = duplicates.path_of(work, "ids", number)
        made_of = digest([part.parent.name, part.name, stage.origins[part]])
        hashed.append(Task(f"ids/{number:06d}", functools.partial(_hash_ids, part, target), (target,), made_of))
    stage.steps.run("ids", hashed)
    count = 1 + rows // duplicates.ENTRIES
    targets = [duplicates.path_of(work, "repeated", number) for number in range(count)]
    ranges = []
    for number, target in enumerate(targets if every else ()):
        call = functools.partial(_repeated, work, len(every), number, count, target)
        ranges.append(Task(f"repeated/{number:06d}", call, (target,), whole))
    found = stage.steps.run("repeated ids", ranges)
    return [target for target, result in zip(targets, found, strict=False) if result["repeated"]]


def _hash_ids(part: Path, target: Path) -> dict[str, Any]:
    duplicates.save_sorted(ids.hashes(pq.read_table(part, columns=["id"])), target)
    return {}


def _repeated(work: Path, parts: int, number: int, count: int, target: Path) -> dict[str, Any]:
    entries = duplicates.partition_entries(work, "ids", parts, *duplicates.bounds(number, count))
    again = ids.repeated(entries)
    duplicates.save(again, target)
    return {"repeated": len(again)}


def _rename(repeated: Sequence[Path], part: pa.Table) -> tuple[pa.Table, Tally]:
    return ids.renamed(part, [np.load(path, mmap_mode="r", allow_pickle=False) for path in repeated])


def outside(name: str, config: Corpus) -> dict[str, Any]:
    """What a stage takes from outside of the build: it is opened, so that it is refused before anything is written.

    Returns:
        What changes if the content does: digests of files and of evaluation items; of a folder sizes and times.

    Raises:
        FileNotFoundError, OSError, ValueError: it cannot be used.
    """
    knobs = getattr(config, name)
    if name == "decontaminate":
        return {"items": decontaminate.digest(knobs)}
    if name == "heuristics" and knobs.bad_words:
        c4.load_terms(knobs.bad_words, knobs.bad_language)
    if name == "quality" and knobs.classifier:
        quality.load(Path(knobs.classifier))
    if name == "demonstrations":
        demonstrations.load(knobs.patterns)
    if name == "tokens":
        return {"tokenizer": tokenizer.load(knobs.tokenizer).fingerprint}
    if name == "toxicity" and "://" not in knobs.classifier and not Path(knobs.classifier).is_dir():
        raise FileNotFoundError(f"toxicity.classifier={knobs.classifier} is no folder of a run")
    named = {key: getattr(knobs, key) for key in ("bad_words", "classifier", "patterns") if hasattr(knobs, key)}
    return {"files": {key: _facts(Path(value)) for key, value in named.items() if value}}


def _facts(path: Path) -> Any:
    """The digest of a local file; names, sizes and times of a folder's files; None if there is no such path here."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = ((file, file.stat()) for file in sorted(path.rglob("*")) if file.is_file())
    return [[str(file.relative_to(path)), facts.st_size, facts.st_mtime_ns] for file, facts in files] or None


def _by_rows(function: Callable[..., tuple[pa.Table, Tally]], section: str) -> Callable[..., Made]:
    """A stage that is a function of documents and of ``knobs``."""

    def stage_of(stage: Stage, config: Corpus) -> Made:
        knobs = getattr(config, section)
        return stage.rows(functools.partial(function, knobs=knobs)), stage.tallies()

    return stage_of


def judge_quality(stage: Stage, config: Corpus) -> Made:
    """Trains the classifier on a sample of all data sets, unless a knob names one, then filters those of ``only``."""
    knobs, path = config.quality, Path(config.quality.classifier)
    figures: dict[str, Any] = {}
    if not knobs.classifier:
        path = stage.folder / "classifier.npz"
        sizes = {name: sum(map(documents.rows, parts)) for name, parts in stage.all_parts.items()}
        shares, classes = quality.shares(knobs, sizes), knobs.classes(tuple(sizes))
        tasks, files = [], (list[Path](), list[Path]())
        for name, share in shares.items():
            for part in stage.all_parts[name]:
                target = stage.folder / "sample" / name / f"{part.stem}.npz"
                call = functools.partial(_sample, part, knobs, share, target)
                tasks.append(Task(f"sample/{name}/{part.stem}", call, (target,)))
                files[classes[name]].append(target)
        stage.steps.run("sample", tasks)
        train = functools.partial(quality.train, files[1], files[0], knobs, path)
        (figures,) = stage.steps.run("classifier", [Task("classifier", train, (path,))])
    made = stage.rows(functools.partial(_judge, knobs, path, _least(stage, knobs, path)))
    tallies = stage.tallies()
    for tally in tallies.values() if figures else ():
        tally.notes["area under the ROC curve of held-out documents"] = figures["auc"]
        for kind, number in zip(("raw", "curated"), figures["tested"], strict=True):
            tally.notes[f"held-out {kind} documents"] = number
    return made, tallies


def _sample(part: Path, knobs: quality.Quality, share: float, target: Path) -> dict[str, Any]:
    target.parent.mkdir(parents=True, exist_ok=True)
    return {"documents": quality.sample(documents.read(part), knobs, share, target)}


def _least(stage: Stage, knobs: quality.Quality, path: Path) -> int | None:
    """The level that documents need so that the share ``knobs.best`` of all text stays; None without such a share."""
    if not knobs.best:
        return None
    tasks, files = [], []
    for name, parts in stage.parts.items():
        for part in parts:
            files.append(stage.folder / "rank" / name / f"{part.stem}.npz")
            call = functools.partial(_rank, part, path, files[-1])
            tasks.append(Task(f"rank/{name}/{part.stem}", call, (files[-1],)))
    stage.steps.run("rank", tasks)
    find = functools.partial(_threshold, files, knobs.best)
    (found,) = stage.steps.run("threshold", [Task("threshold", find)])
    return int(found["level"])


def _rank(part: Path, path: Path, target: Path) -> dict[str, Any]:
    quality.rank(documents.read(part), quality.load(path), target)
    return {}


def _threshold(files: Sequence[Path], best: float) -> dict[str, Any]:
    return {"level": quality.threshold(files, best)}


def _judge(knobs: quality.Quality, path: Path, least: int | None, part: pa.Table) -> tuple[pa.Table, Tally]:
    return quality.stage(part, knobs, quality.load(path), least)


def _rate(part: pa.Table, knobs: toxicity.Toxicity) -> tuple[pa.Table, Tally]:
    return toxicity.stage(part, knobs, toxicity.load(knobs))


def _deduplicated(module: Any, section: str) -> Callable[..., Made]:
    """Exact or fuzzy deduplication, within and across the data sets."""

    def stage_of(stage: Stage, config: Corpus) -> Made:
        steps = module.steps(stage.parts, stage.folder, getattr(config, section))
        last: list[dict[str, Any]] = []
        for step in steps:
            tasks = [
                Task(
                    f"work/{step.name}/{number:06d}",
                    functools.partial(step.function, *arguments),
                    step.outputs(stage.folder / "work", number),
                )
                for number, arguments in enumerate(step.inputs)
            ]
            last = stage.steps.run(step.name, tasks)
        tallies = {name: Tally() for name in stage.parts}
        for (_, part, *_), result in zip(steps[-1].inputs, last, strict=True):
            tallies[part.target.parent.name].add(Tally.of(result))
        return stage.targets(), tallies

    return stage_of


def cut_items(stage: Stage, config: Corpus) -> Made:
    """Finds the grams of evaluation items in all parts, leaves common ones alone, and cuts the others."""
    knobs, folder = config.decontaminate, stage.folder / "grams"
    wanted = folder / "wanted.npz"
    collect = Task("grams/wanted", functools.partial(_collect, knobs, wanted), (wanted,))
    (collected,) = stage.steps.run("items", [collect])
    found = {part: folder / name / f"{part.stem}.npz" for name, parts in stage.parts.items() for part in parts}
    tasks = [
        Task(f"grams/{path.parent.name}/{path.stem}", functools.partial(_find, wanted, part, path), (path,))
        for part, path in found.items()
    ]
    stage.steps.run("search", tasks)
    common = folder / "common.npz"
    count = functools.partial(_count, [*found.values()], wanted, knobs, common)
    (counted,) = stage.steps.run("common grams", [Task("grams/common", count, (common,))])
    targets = stage.targets()
    cuts = [
        Task(
            f"{name}/{part.stem}",
            functools.partial(_cut, knobs, wanted, common, part, found[part], target),
            (target,),
        )
        for name, parts in stage.parts.items()
        for part, target in zip(parts, targets[name], strict=True)
    ]
    stage.steps.run("cut", cuts)
    tallies = stage.tallies()
    whole = Tally(counts=collected["counts"])
    whole.add(Tally.of(counted))
    next(iter(tallies.values())).add(whole)
    return targets, tallies


def _collect(knobs: decontaminate.Decontaminate, target: Path) -> dict[str, Any]:
    wanted, tally = decontaminate.collect(knobs)
    wanted.write(target)
    return tally.to_dict()


def _find(wanted: Path, part: Path, target: Path) -> dict[str, Any]:
    decontaminate.find(documents.read(part), _wanted(wanted)).write(target)
    return {}


def _count(found: Sequence[Path], wanted: Path, knobs: decontaminate.Decontaminate, target: Path) -> dict[str, Any]:
    common, tally = decontaminate.combine(map(decontaminate.Found.read, found), _wanted(wanted), knobs)
    decontaminate.write_common(common, target)
    return tally.to_dict()


def _cut(
    knobs: decontaminate.Decontaminate, wanted: Path, common: Path, part: Path, found: Path, target: Path
) -> dict[str, Any]:
    before = documents.read(part)
    grams = decontaminate.Found.read(found), decontaminate.read_common(common)
    after, tally = decontaminate.decontaminate(before, knobs, _wanted(wanted), *grams)
    documents.write(after, target)
    measured(tally, before, after)
    return tally.to_dict()


def _wanted(path: Path) -> decontaminate.Wanted:
    return _wanted_at(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _wanted_at(path: Path, time: int) -> decontaminate.Wanted:
    """The grams, which a process keeps for its parts; a file that is written again has another time."""
    del time
    return decontaminate.Wanted.read(path)


def tokenize(stage: Stage, config: Corpus) -> Made:
    """Encodes all parts, and joins them into a token directory a data set; a data set without documents has none."""
    words = config.tokens.tokenizer, tokenizer.load(config.tokens.tokenizer).fingerprint
    streams = {name: [target.with_suffix(".npy") for target in found] for name, found in stage.targets().items()}
    tasks = [
        Task(f"{name}/{part.stem}", functools.partial(_encode, *words, part, stream), (stream,))
        for name, parts in stage.parts.items()
        for part, stream in zip(parts, streams[name], strict=True)
    ]
    stage.steps.run("tokens", tasks)
    tallies, joins = stage.tallies(), []
    for name, tally in tallies.items():
        output = stage.folder.parent.parent / "tokens" / name
        if tally.counts.get("documents"):
            call = functools.partial(_join, streams[name], *words, output)
            joins.append(Task(f"join/{name}", call, (output / shards.INDEX,)))
        else:
            shutil.rmtree(output, ignore_errors=True)
    stage.steps.run("token directories", joins)
    return stage.parts, tallies


def _encode(name: str, fingerprint: str, part: Path, target: Path) -> dict[str, Any]:
    before = documents.read(part)
    stream, tally = tokens.encode(before, tokens.load(name, fingerprint))
    tokens.write(stream, target)
    measured(tally, before, before)
    return tally.to_dict()


def _join(streams: Sequence[Path], name: str, fingerprint: str, output: Path) -> dict[str, Any]:
    index = tokens.join(streams, tokens.load(name, fingerprint), output)
    return {"tokens": index.tokens, "documents": index.documents}


# What is made of each part by itself. The other stages depend on all documents of all data sets.
BY_PART = ("read", "votes", "extract", "language", "heuristics", "toxicity", "demonstrations")
ALL: dict[str, Callable[[Stage, Corpus], Made]] = {
    "read": read,
    "votes": _by_rows(votes.votes, "votes"),
    "extract": _by_rows(extract.extract, "extract"),
    "language": _by_rows(language.language, "language"),
    "heuristics": _by_rows(heuristics.stage, "heuristics"),
    "quality": judge_quality,
    "exact": _deduplicated(exact, "exact"),
    "fuzzy": _deduplicated(fuzzy, "fuzzy"),
    "toxicity": _by_rows(_rate, "toxicity"),
    "decontaminate": cut_items,
    "demonstrations": _by_rows(demonstrations.stage, "demonstrations"),
    "tokens": tokenize,
}
