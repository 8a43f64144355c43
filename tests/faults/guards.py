"""Numbers that are no numbers, spikes, flipped bits, hung steps: what the guard of a run makes of them."""

import signal
import time
from pathlib import Path

from scaling import exit_codes
from scaling.runs import attempts
from tests.faults.lab import Lab, Row, curve, differences, lines, logged, steps

EVERY = 10
SHORT = steps(40, EVERY)
HANG = 5  # config.guard.hang_seconds
NOTICED = HANG + 10.0  # seconds within which a hung step is noticed

# Kind and steps of a fault; how many bad steps there are, and whether they end in a roll-back.
BAD = {
    "NaN in the loss": ("loss:24", (), 1, False),
    "Inf in the gradient": ("gradient:24", (), 1, False),
    "NaN in three steps": ("loss:24,25,26", (), 3, True),
    "Inf in a weight": ("weight:24", (), 3, True),
    "20-fold spike": ("spike:124", (*steps(140, EVERY), "--config.guard.spike_factor=10"), 1, False),
}


def bad_steps(lab: Lab) -> Row:
    """Skipped or rolled back from; killed a few steps later and resumed, the same."""
    row = Row(
        "NaN or Inf in loss, gradient or a weight; a spike",
        "skipped, its batch noted; after three in a row rolled back, past their data; the same when killed and resumed",
    )
    for name in list(BAD)[: lab.some(len(BAD), 1)]:
        lab.note(name)
        fault, overrides, count, rolls_back = BAD[name]
        given = overrides or SHORT
        kind, _, wrong = fault.partition(":")
        # The same program, which never meets its fault: another one may round otherwise.
        clean, whole = lab.reference(*given, injected=f"{kind}:0"), lab.new("bad")
        process = lab.finish(whole, *given, injected=fault)
        row.check(process.wait() == 0, f"{name}: ended with {process.wait()}: {process.last_line}")
        # The guard may find a step of the run itself bad, with and without the fault.
        its_own = {line["step"] for line in lines(clean, "bad_steps.jsonl")}
        noted = [line for line in lines(whole, "bad_steps.jsonl") if line["step"] not in its_own]
        row.check(len(noted) == count, f"{name}: {len(noted)} bad steps were noted")
        first = int(wrong.split(",")[0])
        expected = {line["step"]: line["batch_hash"] for line in curve(clean)}
        row.check(all(n["batch_hash"] == expected[n["step"]] for n in noted), f"{name}: another batch was noted")
        row.check((whole / "rollbacks.json").exists() == rolls_back, f"{name}: rolled back or not")
        before = [line for line in curve(whole) if line["step"] < first - (first % EVERY if rolls_back else 0)]
        row.check(before == curve(clean)[: len(before)], f"{name}: steps before it differ")
        if rolls_back:  # its data come once, and those of the bad steps and of what went with them not at all
            left_out = {expected[step] for step in range(first - first % EVERY + 1, first + count)}
            read = {line["batch_hash"] for line in curve(whole)[first - first % EVERY :]}
            row.check(not left_out & read, f"{name}: data that were left out came again")
        killed = lab.new("bad-killed")
        process = lab.start(killed, *given, injected=fault)
        process.wait_for(lambda killed=killed, first=first, count=count: _is_past(killed, first, count))
        process.kill()
        row.check(process.wait() == -signal.SIGKILL, f"{name}: it had ended before it could be killed")
        # What is wrong with data comes again when they are read again, and not once a roll-back has left them out.
        gone = (killed / "rollbacks.json").exists()
        process = lab.finish(killed, *given, injected="" if gone else fault)
        row.check(process.wait() == 0, f"{name}, killed: {process.last_line}")
        row.failures.extend(f"{name}, killed: {text}" for text in differences(killed, whole))
        row.cases += 2
    row.figures = "state and data as in the run that was not killed"
    return row


def _is_past(run_dir: Path, first: int, count: int) -> bool:
    return len(lines(run_dir, "bad_steps.jsonl")) >= count and logged(run_dir) > first + 3


def flipped_bit(lab: Lab) -> Row:
    """One bit of one weight, in one of the two times that a step is computed."""
    row = Row(
        "a flipped bit in compute", f"noticed by recomputation, exit code {exit_codes.FAULTY}; then bit-identical"
    )
    reference, run_dir = lab.reference(*SHORT), lab.new("flipped")
    given = (*SHORT, "--config.guard.recompute_every_steps=5")
    process = lab.finish(run_dir, *given, injected="flip:25")
    row.check(process.wait() == exit_codes.FAULTY, f"ended with {process.wait()}: {process.last_line}")
    row.check("step 25 was computed twice" in process.output, f"said {process.last_line}")
    row.check(attempts.read(run_dir)[-1].exit_code == exit_codes.FAULTY, "the attempt says something else")
    process = lab.finish(run_dir, *given)
    row.check(process.wait() == 0, f"afterwards: {process.last_line}")
    row.check_same(run_dir, reference, "flipped bit")
    row.cases, row.figures = 1, "noticed in the step itself, where it is recomputed"
    return row


def hung_step(lab: Lab) -> Row:
    """A step that never returns."""
    row = Row("a hung step", f"stacks dumped, exit code {exit_codes.HUNG} within {NOTICED:.0f} s; then bit-identical")
    reference, run_dir = lab.reference(*SHORT), lab.new("hung")
    given = (*SHORT, f"--config.guard.hang_seconds={HANG}")
    process = lab.start(run_dir, *given, injected="hang:25")
    row.check(process.wait_for(lambda: logged(run_dir) >= 23), f"no step 23: {process.last_line}")
    start = time.monotonic()
    code = process.wait(120)
    seconds = time.monotonic() - start
    row.check(code == exit_codes.HUNG, f"ended with {code}: {process.last_line}")
    row.check("spoilt" in process.output and (run_dir / "stacks-0.txt").exists(), "no stacks were dumped")
    row.check(seconds <= NOTICED, f"took {seconds:.1f} s")
    process = lab.finish(run_dir, *given)
    row.check(process.wait() == 0, f"afterwards: {process.last_line}")
    row.check_same(run_dir, reference, "hung step")
    row.cases, row.figures = 1, f"{seconds:.1f} s with hang_seconds={HANG}"
    return row
