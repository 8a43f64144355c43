"""Data that go bad while a run is stopped, or while it runs."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scaling import exit_codes
from scaling.data import shards
from tests.faults.lab import Lab, Row, curve, differences, lines, logged, steps
from tests.token_records import flip, make, rewrite

WHOLE, PART = steps(80, 10), steps(30, 10)


def _make(folder: Path) -> None:
    """Token shards of random bytes, one record each, so that one can go."""
    before, shards.SHARD_RECORDS = shards.SHARD_RECORDS, 4
    try:
        make(folder, 64, vocab=64)
    finally:
        shards.SHARD_RECORDS = before


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "corrupt record": (flip, "damaged shard"),
    "short record": (lambda p: rewrite(p, lambda r: r.__setitem__(1, r[1][:-6])), "bytes instead of"),
    "token outside the vocabulary": (
        lambda p: rewrite(p, lambda r: r.__setitem__(1, b"\xff\x7f" * (len(r[1]) // 2))),
        "outside the vocabulary",
    ),
    "shard missing": (Path.unlink, "shard is missing"),
}


def bad_records(lab: Lab) -> Row:
    """Each fault comes between two attempts; with "skip", one run goes on to its end and one is killed on the way."""
    row = Row(
        "corrupt, short or out-of-vocabulary record; shard missing in mid-run",
        "error that names file and record, and as if nothing was once it is mended; or replaced and counted, the same "
        "when killed and resumed",
    )
    data, backup, skipped = lab.folder / "shards", lab.folder / "shards-backup", []
    _make(backup)
    shutil.copytree(backup, data)
    given = (f"--config.data.train={data}", "--config.data.validation_fraction=0.1")
    reference, start = lab.reference(*WHOLE, *given), lab.new("data")
    row.check(lab.finish(start, *PART, *given).wait() == 0, "the run to spoil failed")

    def copy() -> Path:
        run_dir = lab.new("data")
        shutil.copytree(start, run_dir)
        return run_dir

    def restore() -> None:
        shutil.rmtree(data)
        shutil.copytree(backup, data)

    for name in list(DAMAGES)[: lab.some(len(DAMAGES), 1)]:
        lab.note(name)
        damage, sentence = DAMAGES[name]
        victim = sorted(data.glob("*.array_record"))[1]
        damage(victim)
        run_dir = copy()
        process = lab.finish(run_dir, *WHOLE, *given)
        code = process.wait()
        row.check(code == exit_codes.USAGE, f"{name}: ended with {code}: {process.last_line}")
        named = victim.name in process.last_line and (sentence in process.last_line or "truncated" in process.last_line)
        row.check(named, f"{name}: said {process.last_line}")
        whole, killed = copy(), copy()
        skip = (*WHOLE, *given, "--config.data.bad_records=skip")
        row.check(lab.finish(whole, *skip).wait() == 0, f"{name}: skipping failed")
        skipped.append(lines(whole)[-1]["bad_records"])
        process = lab.start(killed, *skip)
        process.wait_for(lambda killed=killed: logged(killed) >= 45)
        process.kill()
        row.check(process.wait() == -signal.SIGKILL, f"{name}: it had ended before it could be killed")
        row.check(lab.finish(killed, *skip).wait() == 0, f"{name}: skipping failed after a kill")
        row.failures.extend(f"{name}, killed: {text}" for text in differences(killed, whole))
        restore()
        row.check(curve(whole) != curve(reference) and skipped[-1] > 0, f"{name}: nothing was skipped")
        process = lab.finish(run_dir, *WHOLE, *given)
        row.check(process.wait() == 0, f"{name}: with the shard back: {process.last_line}")
        row.check_same(run_dir, reference, f"{name}, with the shard back")
        row.cases += 3
    row.figures = f"{', '.join(map(str, skipped))} sequences replaced"
    return row
