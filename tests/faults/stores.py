"""Run directories in emulated object stores: killed processes, spoiled requests, a store that is gone or refuses."""

import random
import re
import signal
import statistics
import time
from pathlib import Path

from etils import epath

from scaling import exit_codes
from scaling.runs import attempts
from scaling.runs.json_lines import last_record
from tests.faults.lab import Lab, Process, Row, signal_name, steps
from tests.stores.emulators import BUCKET, SCHEMES, download, emulated, missing
from tests.stores.proxy import Plan, Proxy

EVERY = 10  # save interval
LONG, HALF, QUICK = steps(400, EVERY), steps(200, EVERY), steps(60, EVERY)
LIMIT = 60  # config.guard.store_seconds of a run whose store goes away; with less, silence is noticed too late
SPOILED = 200


def _schemes(lab: Lab, row: Row) -> list[str]:
    reasons = {scheme: missing(scheme) for scheme in SCHEMES}
    row.skipped = "; ".join(reason for reason in reasons.values() if reason)
    return [scheme for scheme, reason in reasons.items() if not reason][: lab.some(len(SCHEMES), 1)]


class _Run:
    """A run in a store: ``copy`` is where its files are compared, and beside it lies its output."""

    def __init__(self, lab: Lab, scheme: str, *overrides: str):
        self.lab, self.copy = lab, lab.new(f"store-{scheme}")
        self.url = f"{scheme}://{BUCKET}/{self.copy.parent.name}"
        self.given = (*overrides, f"--config.workdir={self.url}")

    def start(self, *overrides: str) -> Process:
        return self.lab.start(self.copy, *self.given, *overrides)

    def finish(self, *overrides: str) -> Process:
        process = self.start(*overrides)
        process.wait()
        return process

    def began(self, process: Process) -> bool:
        """Waits until it makes steps."""
        return process.wait_for(lambda: " parameters, " in process.output)

    def check_same(self, row: Row, reference: Path, what: str) -> None:
        row.check_same(download(self.url, self.copy), reference, what)


def killed(lab: Lab) -> Row:
    """Kills after a random time from the start (a quarter of them) or from the first step."""
    row = Row("SIGKILL at random times, run directory in a store", "bit-identical; only whole steps are left over")
    overrides, total = QUICK if lab.quick else LONG, lab.some(20, 1)
    reference, figures = lab.reference(*overrides), []
    for scheme in _schemes(lab, row):
        with emulated(scheme):
            dice, kills, down = lab.dice(scheme), 0, list[float]()
            while kills < total and not row.failures:
                lab.note(f"{scheme}: kill {kills + 1} of {total}")
                run = _Run(lab, scheme, *overrides)
                kills += _until_done(row, run, dice, total - kills)
                run.check_same(row, reference, f"{scheme}, after kills")
                down += [a.seconds["startup"] + a.seconds["restore"] for a in attempts.read(run.copy)[1:]]
                left = sorted(path.name for path in (run.copy / "checkpoints").iterdir())
                row.check(len(left) == 3, f"{scheme}: left in checkpoints/: {left}")
            row.cases += kills
            figures.append(f"{scheme}:// {statistics.median(down or [0]):.1f} s to restart")
    row.figures = "; ".join(figures)
    return row


def _until_done(row: Row, run: _Run, dice: random.Random, most: int) -> int:
    """Starts a run again until it is done, and kills it at most so many times; returns how many."""
    kills, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        process = run.start()
        if kills < most:
            if dice.random() < 0.25:
                time.sleep(dice.uniform(0.0, 6.0))
            elif run.began(process):
                time.sleep(dice.uniform(0.0, 4.0))
            if process.popen.poll() is None:
                process.kill()
                kills += 1
                _check_covered(row, run.url)
        code = process.wait()
    row.check(code == 0, f"ended with {signal_name(code)}: {process.last_line}")
    return kills


def spoiled(lab: Lab) -> Row:
    """429, 500, 503, resets before and after the request was done, silent connections, answers that are cut short."""
    total = lab.some(SPOILED, 12)
    row = Row(f"{total} requests spoiled by a seeded plan", "no attempt ends; bit-identical")
    overrides, figures = QUICK if lab.quick else LONG, []
    reference = lab.reference(*overrides)
    for scheme in _schemes(lab, row):
        with emulated(scheme) as proxy:
            run = _Run(lab, scheme, *overrides)
            proxy.plan(Plan(seed=1, share=0.08, most=total))
            start = time.monotonic()
            process = run.finish()
            seconds = time.monotonic() - start
            counts, faults = proxy.counts.total(), proxy.spoiled
            proxy.plan(Plan())
            row.check(process.wait() == 0, f"{scheme}: {process.last_line}")
            run.check_same(row, reference, scheme)
            row.check(faults.total() >= total / 2, f"{scheme}: only {faults.total()} faults")
            row.cases += faults.total()
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(faults.items()))
            figures.append(f"{scheme}:// {counts} requests, {kinds}; {seconds:.0f} s")
    row.figures = "; ".join(figures)
    return row


def gone(lab: Lab) -> Row:
    """The store answers no more from some moment on; then it is back."""
    row = Row(
        "the store is gone for good",
        f"exit code 74 and one sentence, after at most {LIMIT} s of trying (guard.store_seconds={LIMIT}) and as much "
        "again for what was under way; then bit-identical",
    )
    reference, took = lab.reference(*HALF), list[float]()
    for scheme in _schemes(lab, row):
        with emulated(scheme) as proxy:
            for what in ("connections cut", "silent")[: lab.some(2, 1)]:
                run = _Run(lab, scheme, *HALF)
                process = run.start(f"--config.guard.store_seconds={LIMIT}")
                row.check(run.began(process), f"{scheme}: no step: {process.last_line}")
                time.sleep(lab.dice(what).uniform(0.5, 2.0))
                _vanish(proxy, what)
                start = time.monotonic()
                code = process.wait(300)
                took.append(time.monotonic() - start)
                _vanish(proxy, "")
                row.check(code == exit_codes.IO, f"{scheme}, {what}: {signal_name(code)}: {process.last_line}")
                _check_sentence(row, process, f"{scheme}, {what}", "does not answer")
                row.check(took[-1] <= 2 * LIMIT + 5, f"{scheme}, {what}: took {took[-1]:.0f} s")
                row.check(run.finish().wait() == 0, f"{scheme}: after it")
                run.check_same(row, reference, f"{scheme}, {what}")
                row.cases += 1
    row.figures = f"ended after {', '.join(f'{seconds:.0f}' for seconds in took)} s"
    return row


def _check_covered(row: Row, url: str) -> None:
    """Checks that the lines of all steps of the newest finished checkpoint are in the store."""
    names = epath.Path(url).names()
    steps = [int(name.split("/")[1]) for name in names if re.fullmatch(r"checkpoints/\d+/checksums-00000.json", name)]
    if steps:
        last = last_record(epath.Path(url) / "metrics.jsonl", "step")
        row.check(last and last["step"] >= max(steps), f"{url}: checkpoint {max(steps)} has lines up to {last}")


def _check_sentence(row: Row, process: Process, what: str, word: str) -> None:
    said = [line for line in process.output.splitlines() if line.startswith("scaling train: error: ")]
    row.check(len(said) == 1 and word in said[0], f"{what}: said {said}")
    row.check("Traceback" not in process.output, f"{what}: a traceback")


def _vanish(proxy: Proxy, how: str) -> None:
    proxy.gone = how == "connections cut"
    proxy.plan(Plan(share=1.0, kinds=("stall",), stall=120.0) if how == "silent" else Plan())


def refused(lab: Lab) -> Row:
    """Credentials expire, or writing is forbidden, in the middle of a run."""
    row = Row(
        "credentials expire, or writing is forbidden, in mid-run", "not 0, one sentence, nothing lost; bit-identical"
    )
    reference, said, seconds = lab.reference(*HALF), list[int](), list[float]()
    for scheme in _schemes(lab, row):
        with emulated(scheme) as proxy:
            for status in (401, 403):
                run = _Run(lab, scheme, *HALF)
                process = run.start()
                row.check(run.began(process), f"{scheme}: no step: {process.last_line}")
                time.sleep(1.0)
                proxy.status = status
                start = time.monotonic()
                code = process.wait(300)
                seconds.append(time.monotonic() - start)
                proxy.status = 0
                row.check(code not in (0, -1000), f"{scheme} {status}: {signal_name(code)}: {process.last_line}")
                _check_sentence(row, process, f"{scheme} {status}", "credentials" if status == 401 else "permit")
                said += [code]
                row.check(run.finish().wait() == 0, f"{scheme} {status}: after it")
                run.check_same(row, reference, f"{scheme} {status}")
                row.cases += 1
    row.figures = f"exit codes {', '.join(map(str, said))}; at worst {max(seconds, default=0):.0f} s"
    return row


def stalls(lab: Lab) -> Row:
    """What a save keeps the loop waiting, with a store that takes 50 ms for each request."""
    row = Row(
        "a store with 50 ms a request", "a save in the background keeps the loop waiting for less than a fifth of it"
    )
    figures = []
    for scheme in _schemes(lab, row):
        with emulated(scheme) as proxy:
            proxy.delay = 0.05
            run = _Run(lab, scheme, *steps(1000, 500))
            row.check(run.finish("--config.eval.every_steps=0").wait() == 0, scheme)
            proxy.delay = 0.0
            times = [at for at, method, target in proxy.journal if "/000000500/" in target and method != "DELETE"]
            last = max(at for at, _, target in proxy.journal if "/000000500/checksums" in target)
            took = last - min(times)
            stall = attempts.read(download(run.url, run.copy))[-1].save_stalls[0]
            row.check(stall < took / 5, f"{scheme}: the loop waited {stall:.2f} s of {took:.2f} s")
            figures.append(f"{scheme}:// {stall:.2f} s of {took:.1f} s")
            row.cases += 1
    row.figures = "; ".join(figures)
    return row
