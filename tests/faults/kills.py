"""SIGKILL at any moment and at chosen ones; SIGTERM and SIGINT, once and twice."""

import signal
import statistics
import time
from pathlib import Path

from scaling import exit_codes
from scaling.runs import attempts
from tests.faults.lab import Lab, Process, Row, Witness, logged, lost_steps, signal_name, steps

EVERY = 10  # save interval
LONG = steps(400, EVERY)
QUICK = steps(100, EVERY)
SECONDS_TO_STOP = 30.0  # from a signal to the end of the process, the save included

# Just before these file operations, each the n-th of its kind in a process: 2 = in its second save.
POINTS = {
    "first step folder made": "os.mkdir:checkpoints/[0-9]+.orbax-checkpoint-tmp$:1",
    "arrays being written": "open:params.orbax-checkpoint-tmp/array_metadatas:2",
    "item renamed": "os.rename:params.orbax-checkpoint-tmp$:2",
    "step renamed": "os.rename:[0-9]{9}.orbax-checkpoint-tmp$:2",
    "step without meta": "open:meta.json.partial$:2",
    "meta not renamed": "os.rename:meta.json.partial$:2",
    "meta without checksums": "open:checksums-00000.json.partial$:2",
    "checksums not renamed": "os.rename:checksums-00000.json.partial$:2",
    "old step, before deletion": "os.remove:checksums-00000.json$:1",
    "old step, without checksums": "shutil.rmtree:checkpoints/[0-9]+$:1",
    "old step, half deleted": "os.remove:^inside/manifest.ocdbt$:2",
    "old step, empty": "os.rmdir:checkpoints/[0-9]+$:1",
    "old lines being dropped": "open:metrics.jsonl.partial$:1",
    "old lines not dropped yet": "os.rename:metrics.jsonl.partial$:1",
    "config being written": "os.rename:config.json.partial$:1",
    "attempt being written": "os.rename:attempts/.*partial$:5",
}


def _first_line(process: Process, before: int) -> bool:
    """Waits until an attempt has logged a step, and so has its own file."""
    folder = process.run_dir / attempts.FOLDER
    return process.wait_for(lambda: len(list(folder.glob("*.json"))) > before and _has_steps(process.run_dir))


def _has_steps(run_dir: Path) -> bool:
    found = attempts.read(run_dir)
    return bool(found) and found[-1].step > found[-1].first_step


def random_times(lab: Lab, synchronous: bool = False) -> Row:
    """Kills after a random time from the start (a quarter of them) or from the first logged step."""
    name = "synchronous saves" if synchronous else "saves in the background"
    bound = EVERY if synchronous else 2 * EVERY
    row = Row(
        f"SIGKILL at random times, {name}",
        "bit-identical; at most the interval lost" + ("" if synchronous else ", and what was done while saving"),
    )
    dice, overrides = lab.dice(row.fault), QUICK if lab.quick else LONG
    given = (*overrides, f"--config.checkpoint.asynchronous={not synchronous}")
    reference = lab.reference(*overrides)
    total, lost, down = lab.some(18, 2), [], []
    while row.cases < total:
        run_dir = lab.new("killed")
        witness, first, done = Witness(reference), 0, False
        while not done:
            process = lab.start(run_dir, *given)
            before = len(attempts.read(run_dir))
            if row.cases < total:
                lab.note(f"kill {row.cases + 1} of {total}, at step {logged(run_dir)}")
                early = dice.random() < 0.25
                if early:
                    time.sleep(dice.uniform(0.0, 4.0))
                elif _first_line(process, before):
                    time.sleep(dice.uniform(0.0, 0.6))
                if process.popen.poll() is None:
                    process.kill()
                    row.cases += 1
            code = process.wait()
            done = code == 0
            if not row.check(code in (0, -signal.SIGKILL), f"ended with {signal_name(code)}: {process.last_line}"):
                return row
            found = attempts.read(run_dir)
            if len(found) > before:
                first = found[-1].first_step
                down.append(found[-1].seconds["startup"] + found[-1].seconds["restore"])
            witness.look(run_dir, first)
        row.check(not witness.wrong, "; ".join(witness.wrong[:1]))
        row.check_same(run_dir, reference, "after kills")
        lost += lost_steps(run_dir)
    lost = lost or [0]  # all kills came before the first step
    row.check(max(lost) <= bound, f"{max(lost)} steps were lost, with a save every {EVERY}")
    row.figures = (
        f"lost at worst {max(lost)} steps, median {statistics.median(lost):.0f}, interval {EVERY}; "
        f"{statistics.median(down):.1f} s to restart"
    )
    return row


def random_times_synchronous(lab: Lab) -> Row:
    return random_times(lab, synchronous=True)


def chosen_points(lab: Lab) -> Row:
    """Kills inside save, rename, deletion of old steps, and the files beside; each in a process of its own."""
    row = Row(
        "SIGKILL inside save, rename and deletion", "resumes unattended, bit-identical; at most the interval lost"
    )
    chosen = [
        "arrays being written",
        "meta without checksums",
        "old step, half deleted",
    ]
    names = chosen if lab.quick else list(POINTS)
    overrides = LONG if len(names) > 4 else QUICK
    # Saves are waited for, so that the interval bounds what a kill loses; one old step is kept.
    given = (*overrides, "--config.checkpoint.keep_last=1", "--config.checkpoint.asynchronous=false")
    reference, run_dir = lab.reference(*overrides), lab.new("points")
    for name in names:
        lab.note(name)
        process = lab.start(run_dir, *given, killed_at=POINTS[name])
        code = process.wait()
        row.check(code == -signal.SIGKILL, f"{name}: ended with {signal_name(code)}: {process.last_line}")
        row.cases += 1
    process = lab.finish(run_dir, *given)
    row.check(process.wait() == 0, f"after the kills: {process.last_line}")
    row.check_same(run_dir, reference, "after kills")
    lost = lost_steps(run_dir)
    row.check(max(lost) <= EVERY, f"{max(lost)} steps were lost, with a save every {EVERY}")
    left = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    row.check(left == ["000000400" if overrides is LONG else "000000100"], f"left in checkpoints/: {left}")
    row.figures = f"lost at worst {max(lost)} steps, interval {EVERY}; nothing left over"
    return row


def signals(lab: Lab) -> Row:
    """SIGTERM, SIGINT; a second one at once; one while the process starts."""
    row = Row(
        "SIGTERM, a second SIGTERM, SIGINT",
        f"saved at the current step, exit code of its own, within {SECONDS_TO_STOP:.0f} s; then bit-identical",
    )
    reference = lab.reference(*QUICK)
    given = (*QUICK, "--config.checkpoint.every_steps=0")
    kinds = {
        "SIGTERM": ([signal.SIGTERM], exit_codes.SIGTERM),
        "SIGINT": ([signal.SIGINT], exit_codes.SIGINT),
        "SIGTERM twice": ([signal.SIGTERM, signal.SIGTERM], -signal.SIGTERM),
        "SIGINT twice": ([signal.SIGINT, signal.SIGINT], exit_codes.SIGINT),
    }
    slowest: dict[str, float] = {}
    for name in list(kinds)[: lab.some(4, 1)]:
        numbers, code = kinds[name]
        dice, run_dir = lab.dice(name), lab.new("signals")
        for _ in range(lab.some(4, 1)):
            lab.note(name)
            process, before = lab.start(run_dir, *given), len(attempts.read(run_dir))
            if not row.check(_first_line(process, before), f"{name}: no step: {process.last_line}"):
                return row
            time.sleep(dice.uniform(0, 0.1))
            start = time.monotonic()
            for number in numbers:
                process.popen.send_signal(number)
                time.sleep(0.002)
            ended = process.wait(60)
            slowest[name] = max(slowest.get(name, 0.0), time.monotonic() - start)
            row.cases += 1
            if ended == code and len(numbers) == 1:
                saved = max(int(path.name) for path in (run_dir / "checkpoints").iterdir())
                last = attempts.read(run_dir)[-1]
                row.check(saved == last.step, f"{name}: saved step {saved}, logged {last.step}")
                row.check(last.exit_code == code, f"{name}: the attempt says {last.exit_code}")
            # The second signal may come too late to interrupt anything.
            allowed = (code,) if len(numbers) == 1 else (code, 128 + numbers[0], -numbers[0])
            row.check(ended in allowed, f"{name}: ended with {signal_name(ended)}: {process.last_line}")
        process = lab.finish(run_dir, *given)
        row.check(process.wait() == 0, f"{name}: after it: {process.last_line}")
        row.check_same(run_dir, reference, f"after {name}")
    worst = max(slowest.values())
    row.check(worst <= SECONDS_TO_STOP, f"took {worst:.1f} s")
    row.figures = "; ".join(f"{name} {seconds:.1f} s" for name, seconds in slowest.items())
    return row
