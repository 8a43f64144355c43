"""Each stage of a build: which tasks it runs in which steps, and which parts it leaves."""

import functools
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
from scaling.corpus.filters import demonstrations, heuristics, quality, toxicity, votes
from scaling.corpus.outcome import Tally
from scaling.corpus.output import tokens
from scaling.corpus.reading import ids
from scaling.corpus.reading import read as reading
from scaling.corpus.reading.source import Read
from scaling.corpus.stage import Parts, Stage, input_bytes, measured
from scaling.corpus.steps import Task
from scaling.data import tokenizer

Made = tuple[Parts, Mapping[str, Tally]]  # the parts that a stage leaves of its data sets, and its figures by data set


def read(stage: Stage, config: Corpus) -> Made:
    """Reads the sources; then renames documents whose ids are not unique."""
    tasks, owners = [], []
    for name in config.names:
        sources = [source for source in config.sources if source[0] == name]
        files = [(file, source) for source in sources for file in reading.find(source[1])]
        called = reading.names([file for file, _ in files])
        for number, (file, source) in enumerate(files):
            knobs, target = config.read_knobs(source), stage.folder / "raw" / name
            call = functools.partial(_read, file, knobs, f"{name}/{called[file]}", target, f"f{number:05d}")
            tasks.append(Task(f"raw/{name}/f{number:05d}", call))
            owners.append((name, target, f"f{number:05d}"))
    results = stage.steps.run("files", tasks)
    parts: dict[str, list[Path]] = {name: [] for name in config.names}
    tallies = {name: Tally() for name in config.names}
    for (name, target, stem), result in zip(owners, results, strict=True):
        parts[name] += [target / f"{stem}-{number:05d}.parquet" for number in range(result["parts"])]
        tallies[name].add(Tally.of(result["tally"]))
    every = [part for found in parts.values() for part in found]
    work = stage.folder / "ids"
    hashed = [
        Task(f"ids/{number:06d}", functools.partial(_hash_ids, part, work / f"{number:06d}.npy"))
        for number, part in enumerate(every)
    ]
    stage.steps.run("ids", hashed)
    paths = [work / f"{number:06d}.npy" for number in range(len(every))]
    (found,) = stage.steps.run("repeated ids", [Task("ids/all", functools.partial(_repeated, paths, work / "all.npy"))])
    if not found["repeated"]:
        return parts, tallies
    again = Stage(stage.steps, parts, parts)
    renamed = again.rows(functools.partial(_rename, work / "all.npy"), "renaming")
    for name, tally in again.tallies().items():
        tallies[name].add(Tally(counts=tally.counts, faults=tally.faults))
    return renamed, tallies


def _read(file: str, knobs: Read, name: str, folder: Path, stem: str) -> dict[str, Any]:
    tally, number = Tally(), 0
    for number, table in enumerate(reading.read(file, knobs, tally, name), start=1):
        documents.write(table, folder / f"{stem}-{number - 1:05d}.parquet")
        tally.documents_out += table.num_rows
        tally.bytes_out += input_bytes(table)
    tally.documents_in, tally.bytes_in = tally.documents_out, tally.bytes_out
    return {"parts": number, "tally": tally.to_dict()}


def _hash_ids(part: Path, target: Path) -> dict[str, Any]:
    duplicates.save(ids.hashes(pq.read_table(part, columns=["id"])), target)
    return {}


def _repeated(paths: Sequence[Path], target: Path) -> dict[str, Any]:
    again = ids.repeated(map(np.load, paths))
    duplicates.save(again, target)
    return {"repeated": len(again)}


def _rename(again: Path, part: pa.Table) -> tuple[pa.Table, Tally]:
    return ids.renamed(part, np.load(again, allow_pickle=False))


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
        sizes = {name: sum(map(_rows, parts)) for name, parts in stage.all_parts.items()}
        shares, classes = quality.shares(knobs, sizes), knobs.classes(tuple(sizes))
        tasks, files = [], (list[Path](), list[Path]())
        for name, share in shares.items():
            for part in stage.all_parts[name]:
                target = stage.folder / "sample" / name / f"{part.stem}.npz"
                tasks.append(Task(f"sample/{name}/{part.stem}", functools.partial(_sample, part, knobs, share, target)))
                files[classes[name]].append(target)
        stage.steps.run("sample", tasks)
        train = functools.partial(quality.train, files[1], files[0], knobs, path)
        (figures,) = stage.steps.run("classifier", [Task("classifier", train)])
    made = stage.rows(functools.partial(_judge, knobs, path, _least(stage, knobs, path)))
    tallies = stage.tallies()
    for tally in tallies.values() if figures else ():
        tally.notes |= {f"held-out {name}": figures[name] for name in ("auc", "tested")}
    return made, tallies


def _rows(part: Path) -> int:
    return int(pq.read_metadata(part).num_rows)


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
            tasks.append(Task(f"rank/{name}/{part.stem}", functools.partial(_rank, part, path, files[-1])))
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
                Task(f"work/{step.name}/{number:06d}", functools.partial(step.function, *arguments))
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
    if not knobs.tasks:
        return stage.parts, {}
    wanted = folder / "wanted.npz"
    (collected,) = stage.steps.run("items", [Task("grams/wanted", functools.partial(_collect, knobs, wanted))])
    found = {part: folder / name / f"{part.stem}.npz" for name, parts in stage.parts.items() for part in parts}
    tasks = [
        Task(f"grams/{path.parent.name}/{path.stem}", functools.partial(_find, wanted, part, path))
        for part, path in found.items()
    ]
    stage.steps.run("search", tasks)
    common = folder / "common.npz"
    count = functools.partial(_count, [*found.values()], wanted, knobs, common)
    (counted,) = stage.steps.run("common grams", [Task("grams/common", count)])
    cuts = [
        Task(
            f"{name}/{part.stem}",
            functools.partial(_cut, knobs, wanted, common, part, found[part], stage.folder / name / part.name),
        )
        for name, parts in stage.parts.items()
        for part in parts
    ]
    stage.steps.run("cut", cuts)
    tallies = stage.tallies()
    whole = Tally(counts=collected["counts"])
    whole.add(Tally.of(counted))
    next(iter(tallies.values())).add(whole)
    return stage.targets(), tallies


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


@functools.lru_cache(maxsize=1)
def _wanted(path: Path) -> decontaminate.Wanted:
    return decontaminate.Wanted.read(path)


def tokenize(stage: Stage, config: Corpus) -> Made:
    """Encodes all parts, and joins them into a token directory a data set."""
    words = tokenizer.load(config.tokens.tokenizer)
    tasks = [
        Task(
            f"{name}/{part.stem}",
            functools.partial(
                _encode, config.tokens.tokenizer, words.fingerprint, part, stage.folder / name / f"{part.stem}.npy"
            ),
        )
        for name, parts in stage.parts.items()
        for part in parts
    ]
    stage.steps.run("tokens", tasks)
    outputs = {name: stage.folder.parent.parent / "tokens" / name for name in stage.parts}
    joins = [
        Task(
            f"join/{name}",
            functools.partial(
                _join,
                [stage.folder / name / f"{part.stem}.npy" for part in parts],
                config.tokens.tokenizer,
                words.fingerprint,
                outputs[name],
            ),
        )
        for name, parts in stage.parts.items()
    ]
    stage.steps.run("token directories", joins)
    return stage.parts, stage.tallies()


def _encode(name: str, fingerprint: str, part: Path, target: Path) -> dict[str, Any]:
    before = documents.read(part)
    stream, tally = tokens.encode(before, tokens.load(name, fingerprint))
    tokens.write(stream, target)
    measured(tally, before, before)
    return tally.to_dict()


def _join(streams: Sequence[Path], name: str, fingerprint: str, output: Path) -> dict[str, Any]:
    index = tokens.join(streams, tokens.load(name, fingerprint), output)
    return {"tokens": index.tokens, "documents": index.documents}


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
