"""Checkpoints that changed on disk, and every state that a killed save can leave."""

import contextlib
import io
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scaling.config import schema as cfg
from scaling.parallel.mesh import make_mesh
from scaling.runs.checkpoint import Checkpoints
from scaling.train import state as train_state
from tests import tiny
from tests.faults.killed import operation
from tests.faults.lab import Lab, Row, steps

OVERRIDES = steps(40)
STOPPED = (*OVERRIDES, "--config.train.tokens=10240")  # 24 of the 40 steps, the last of three checkpoints


def _flip(data: bytes, dice: Any) -> bytes:
    place = dice.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :]


DAMAGES: dict[str, Callable[[bytes, Any], bytes | None]] = {
    "truncated": lambda data, dice: data[: dice.randrange(len(data))],
    "zeroed": lambda data, dice: bytes(len(data)),
    "deleted": lambda data, dice: None,
    "one bit flipped": _flip,
}


@contextlib.contextmanager
def _warnings() -> Iterator[io.StringIO]:
    """What the package logs inside."""
    text, logger = io.StringIO(), logging.getLogger("scaling")
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [logging.StreamHandler(text)], False
    logger.setLevel(logging.INFO)
    try:
        yield text
    finally:
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])


def _newest(run_dir: Path) -> tuple[int | None, str]:
    """The newest whole step, and what was said on the way."""
    checkpoints = Checkpoints(run_dir)
    with _warnings() as said:
        found = checkpoints.newest_whole()
    checkpoints.close()
    return found and found[0], said.getvalue()


def every_file(lab: Lab) -> Row:
    """Each file of the newest step truncated, zeroed, deleted, a bit flipped; then whole runs over some of them."""
    row = Row(
        "each checkpoint file truncated, zeroed, deleted, one bit flipped",
        "named; the step before is used; then bit-identical",
    )
    reference, dice = lab.reference(*OVERRIDES), lab.dice("damage")
    run_dir = lab.new("damaged")
    process = lab.finish(run_dir, *STOPPED)
    row.check(process.wait() == 0, process.last_line)
    step = run_dir / "checkpoints/000000024"
    files = [path for path in sorted(step.rglob("*")) if path.is_file() and path.stat().st_size]
    flips = lab.some(10, 1)
    for path in files:
        lab.note(path.name)
        before = path.read_bytes()
        for name, damage in DAMAGES.items():
            for _ in range(flips if name == "one bit flipped" else 1):
                after = damage(before, dice)
                path.unlink() if after is None else path.write_bytes(after)
                newest, said = _newest(run_dir)
                where = f"{path.relative_to(step)} {name}"
                row.check(newest == 16, f"{where}: step {newest} was used")
                row.check("checkpoint of step 24 passed over" in said, f"{where}: not named")
                row.cases += 1
                path.write_bytes(before)
    row.check(_newest(run_dir) == (24, ""), "undamaged, it is not whole any more")
    largest, meta = max(files, key=lambda path: path.stat().st_size), step / "meta.json"
    runs = [(largest, "one bit flipped"), (meta, "truncated"), (step / "checksums-00000.json", "deleted")]
    for path, name in runs[: lab.some(3, 1)]:
        copy = lab.new("resumed")
        shutil.copytree(run_dir, copy)
        victim = copy / path.relative_to(run_dir)
        after = DAMAGES[name](victim.read_bytes(), dice)
        victim.unlink() if after is None else victim.write_bytes(after)
        process = lab.finish(copy, *OVERRIDES)
        row.check(process.wait() == 0 and "from step 16" in process.output, f"{name}: {process.last_line}")
        row.check(victim.name in process.output, f"{name}: {victim.name} is not named")
        row.check_same(copy, reference, f"{path.name} {name}")
        row.cases += 1
    row.figures = f"{len(files)} files; all named; {len(runs)} whole runs" if not lab.quick else f"{len(files)} files"
    return row


def odd_folders(lab: Lab) -> Row:
    """What else may lie among the checkpoints."""
    row = Row("empty step folder, stale temporary folder and the like", "named or ignored, then bit-identical")
    reference, start = lab.reference(*OVERRIDES), lab.new("folders")
    row.check(lab.finish(start, *STOPPED).wait() == 0, "the run to spoil failed")
    whole = start / "checkpoints"
    spoilt: dict[str, Callable[[Path], Any]] = {
        "empty step folder": lambda folder: (folder / "000000032").mkdir(),
        "stale temporary folder": lambda folder: shutil.copytree(
            folder / "000000024", folder / "000000032.orbax-checkpoint-tmp"
        ),
        "step with its temporary items": lambda folder: (folder / "000000032/params.orbax-checkpoint-tmp").mkdir(
            parents=True
        ),
        "step under another name": lambda folder: shutil.copytree(folder / "000000024", folder / "000000032"),
        "older step half deleted": lambda folder: shutil.rmtree(folder / "000000008/params"),
        "a file with the name of a step": lambda folder: (folder / "000000032").write_text("not a folder"),
        "other files": lambda folder: ((folder / "notes.txt").write_text("mine"), (folder / "backup").mkdir()),
    }
    for name in list(spoilt)[: lab.some(len(spoilt), 2)]:
        lab.note(name)
        run_dir = lab.new("folders")
        shutil.copytree(start, run_dir)
        spoilt[name](run_dir / "checkpoints")
        process = lab.finish(run_dir, *OVERRIDES)
        row.check(process.wait() == 0 and "from step 24" in process.output, f"{name}: {process.last_line}")
        row.check_same(run_dir, reference, name)
        row.cases += 1
        if name == "other files":
            row.check((run_dir / "checkpoints/notes.txt").exists(), "other people's files were deleted")
    row.check((whole / "000000024").exists(), "the run that was copied has changed")
    row.figures = "all resumed from the newest whole step"
    return row


def crash_states(lab: Lab) -> Row:
    """A copy of the folder before each file operation of three saves; each must restore and go on.

    A kill leaves the files as they are at some moment; this goes through all moments at which Python is about to
    change one. What TensorStore does between two of them is left to kills at random times.
    """
    row = Row(
        "killed before each file operation of save, commit and deletion",
        "a whole step, bit-identical, not older than the last one committed; the next save succeeds",
    )
    config = tiny.config()
    mesh = make_mesh(cfg.Mesh(), jax.devices()[:1])
    run_dir = lab.new("states")
    target = train_state.abstract_state(config, mesh)
    states = {n: _filled(target, n) for n in (1, 2, 3)}
    keeping = cfg.Checkpoint(keep_last=1)
    copies: list[tuple[Path, str, int]] = []
    committed = [0]
    recording = [True]

    def copy(event: str, arguments: tuple[object, ...]) -> None:
        path = operation(event, arguments) if recording[0] else None
        if path is None or not (str(run_dir) in path or path.startswith("inside/")):
            return
        recording[0] = False  # copying is made of operations too
        try:
            destination = lab.folder / "states" / f"{len(copies):03d}"
            with contextlib.suppress(shutil.Error, FileNotFoundError):  # TensorStore's files come and go
                shutil.copytree(run_dir, destination)
            copies.append((destination, f"{event} {Path(path).name}", committed[0]))
        finally:
            recording[0] = True

    sys.addaudithook(copy)
    checkpoints = Checkpoints(run_dir, keeping)
    try:
        for step in (1, 2, 3):
            lab.note(f"save {step}")
            checkpoints.save(step, states[step], {})
            checkpoints.wait()
            committed[0] = step
        checkpoints.close()
    finally:
        recording[0] = False
    chosen = copies if not lab.quick else copies[:: max(1, len(copies) // 12)]
    for folder, what, least in chosen:
        lab.note(f"{folder.name}: before {what}")
        row.cases += 1
        again = Checkpoints(folder, keeping)
        try:
            with _warnings():
                found = again.newest_whole()
            step = found[0] if found else 0
            row.check(step >= least, f"before {what}: step {step}, though {least} was committed")
            if found:
                same = _equal(again.read_state(step, target), states[step])
                row.check(same, f"before {what}: the state of step {step} is another")
            again.tidy(found and found[0])
            again.save(4, states[1], {})
            again.wait()
            row.check(again.newest_whole() is not None and again.steps() == [4], f"before {what}: {again.steps()} left")
            left = sorted(path.name for path in again.directory.iterdir())
            row.check(left == ["000000004"], f"before {what}: {left} left")
        except (OSError, ValueError) as error:
            row.check(False, f"before {what}: {error}")
        finally:
            again.close()
        shutil.rmtree(folder)
    row.figures = f"{len(copies)} states of three saves"
    return row


def _filled(target: Any, seed: int) -> Any:
    """A state of random numbers."""
    dice = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jax.device_put(dice.normal(size=x.shape).astype(x.dtype), x.sharding), target)


def _equal(one: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(one["params"]), jax.tree.leaves(other["params"]), strict=True)
    moments = zip(jax.tree.leaves(one["optimizer"]), jax.tree.leaves(other["optimizer"]), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in [*pairs, *moments])
