"""Speed of fuzzy deduplication on one core, beside datatrove's: from Parquet files to such without duplicates."""

import contextlib
import gzip
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from scaling.bench.quiet import Timing
from scaling.corpus import documents
from scaling.corpus.duplicates import fuzzy
from scaling.corpus.duplicates import shared as dup

PROGRAM = Path(__file__).with_name("datatrove_peer.py")
_PART = 5000  # documents


def corpus(files: Sequence[Path], number: int, words: int, repetitions: int, peer: str = "") -> Iterator[str]:
    """Times the steps of ``scaling.corpus.duplicates.fuzzy``, preset ``modern``, on documents that are cut from files.

    Both sides read the same Parquet files, have the same n-grams, bands and hashes, and take turns. One process on one
    core does everything; where the system cannot bind a process to a core, Daft uses all. Imports are not timed.

    Args:
        files: JSON Lines with a field ``text``, may be compressed with gzip.
        number: documents.
        words: length of a document, at most.
        repetitions: timed runs of each side; the median counts.
        peer: an interpreter that has datatrove; empty = none.

    Yields:
        Lines of text.

    Raises:
        ValueError: the files hold fewer documents, or the peer failed.
        OSError: a file cannot be read.
    """
    import daft  # noqa: F401 (imported before the clock starts)

    knobs = fuzzy.resolved(fuzzy.Fuzzy())
    ours: list[Timing] = []
    theirs: list[Timing] = []
    with tempfile.TemporaryDirectory() as folder, _one_core():
        source = Path(folder) / "source"
        size = _write(_cut(files, words), number, source / "documents")
        yield f"corpus: {number:,} documents of at most {words} words, {size / 1e6:.1f} MB of text"
        for repetition in range(repetitions):
            taken, kept = _timed(source, Path(folder) / f"ours{repetition}", knobs)
            ours.append(taken)
            yield f"fuzzy: {taken.seconds:.1f} s, {taken.cpu:.1f} s of CPU, {kept:,} documents kept"
            if peer:
                taken, kept, version = _peer(peer, source, Path(folder) / f"theirs{repetition}", knobs)
                theirs.append(taken)
                yield f"datatrove {version}: {taken.seconds:.1f} s, {taken.cpu:.1f} s of CPU, {kept:,} documents kept"
    seconds, cpu = _medians(ours)
    yield (
        f"fuzzy: {number / seconds:,.0f} documents/s, {size / 1e6 / seconds:.1f} MB/s; "
        f"{number / cpu:,.0f} documents and {size / 1e6 / cpu:.1f} MB a second of CPU (medians of {repetitions})"
    )
    if theirs:
        other_seconds, other_cpu = _medians(theirs)
        times = f"{other_seconds / seconds:.1f} times as fast as datatrove, {other_cpu / cpu:.1f} times by CPU time"
        yield f"fuzzy is {times}"


def _timed(source: Path, folder: Path, knobs: fuzzy.Fuzzy) -> tuple[Timing, int]:
    with Timing() as taken:
        steps = fuzzy.steps({"documents": sorted((source / "documents").glob("*.parquet"))}, folder, knobs)
        results = list(dup.run(steps))
    return taken, dup.tally(results).documents_out


def _peer(python: str, source: Path, folder: Path, knobs: fuzzy.Fuzzy) -> tuple[Timing, int, str]:
    request = {"source": str(source / "documents"), "work": str(folder)}
    shape = {"ngram": knobs.ngram, "bands": knobs.bands, "rows": knobs.rows}
    try:
        done = subprocess.run([python, PROGRAM, json.dumps(request | shape)], capture_output=True, text=True)
    except OSError as error:
        raise ValueError(f"--peer={python} cannot be run ({error.strerror})") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]
        raise ValueError(f"the peer {python} failed: {last}; it must have datatrove, orjson, pyarrow, spacy and xxhash")
    answer = json.loads(done.stdout.splitlines()[-1])
    return Timing(answer["seconds"], answer["cpu"]), answer["documents"], answer["version"]


def _medians(timings: Sequence[Timing]) -> tuple[float, float]:
    return statistics.median(one.seconds for one in timings), statistics.median(one.cpu for one in timings)


def _cut(files: Sequence[Path], words: int) -> Iterator[str]:
    """Documents from the files in turns, so that a number of them has a mixture: pieces of texts, at most so long."""
    turns = [_pieces(path, words) for path in files]
    while turns:
        for turn in list(turns):
            piece = next(turn, None)
            if piece is None:
                turns.remove(turn)
            else:
                yield piece


def _pieces(path: Path, words: int) -> Iterator[str]:
    open_file = gzip.open if path.suffix == ".gz" else open
    with open_file(path, "rt", encoding="utf-8", newline="\n") as lines:
        for line in lines:
            split = json.loads(line)["text"].split()
            for begin in range(0, len(split), words):
                yield " ".join(split[begin : begin + words])


def _write(texts: Iterator[str], number: int, folder: Path) -> int:
    """Writes so many documents in parts; returns the bytes of their texts."""
    folder.mkdir(parents=True)
    for part in range(-(-number // _PART)):
        begin = part * _PART
        places = range(begin, min(number, begin + _PART))
        some = [text for _, text in zip(places, texts, strict=False)]
        if len(some) < len(places):
            raise ValueError(f"the files hold {begin + len(some):,} documents; {number:,} are to be timed")
        ids = [str(place) for place in places]
        columns = {"id": ids, "text": some, "file": ids, "place": places, "url": [""] * len(some)}
        documents.write(documents.table(columns), folder / f"f000000-{part:05d}.parquet")
    parts = sorted(folder.iterdir())
    return sum(pc.sum(pc.binary_length(pq.read_table(path, columns=["text"])["text"])).as_py() for path in parts)


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """Binds this process and those that it starts to one core, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
