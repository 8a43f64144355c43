"""Supervises one run on this machine until it is finished: ``python -m launch.supervisor --config=RUN/plan.json``.

Starts ``scaling train`` as one process or several, restarts all of them when one dies, hangs or is preempted, and gives
up if another start would not help. Its state is in the run's ``launch.json``; a supervisor that was killed and is
started again continues with the processes that still run.
"""

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from launch import jobs, processes, progress, state
from launch.restarts import DONE, FAIL, Restarts, describe, of_group
from launch.settings import Settings, add_options, settings
from scaling import exit_codes, output
from scaling.config.files import load
from scaling.runs.lock import held, is_locked
from scaling.sweep.states import FAILED, FINISHED, RUNNING, STOPPED, WAITING
from scaling.train.signals import stops

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 2.0  # between checks of the run's files
_LINGER_SECONDS = 10.0  # for the other processes to end by themselves after one has failed
_STOPPED_SECONDS = 30.0  # a process that SIGSTOP has stopped for so long counts as frozen


class Supervisor:
    """One run and its processes."""

    def __init__(self, plan: str, run_dir: epath.Path, chosen: Settings):
        """Args: the ``plan.json`` of the run, its directory, and the settings."""
        self._plan, self._run_dir, self._chosen = plan, run_dir, chosen
        self._state = state.read(run_dir)
        kept = self._state.get("restarts", {})
        # A new supervisor counts failures from 0, because its start asks for another try.
        self._restarts = Restarts(chosen.max_restarts, chosen.first_delay)
        self._restarts.total, self._restarts.preemptions = kept.get("total", 0), kept.get("preemptions", 0)
        self._restarts.saw(progress.newest_step(run_dir))
        self._left = [processes.Child(child) for child in self._state.get("children", [])]
        self._children: list[processes.Child] = []
        self._signals: list[int] = []  # that this process received

    def run(self) -> int:
        """Supervises the run until it ends and is not started again.

        Returns:
            0 if it finished; the code of a signal to this process; or the last exit code (1 if a signal killed it).
        """
        before = {number: signal.signal(number, self._note) for number in stops()}
        try:
            return self._run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            processes.end(self._children, 0)  # only after an exception

    def _run(self) -> int:
        code = self._adopted()
        while True:
            if self._asked():
                return self._stopped()
            if code is None:
                try:
                    code = self._attempt()
                except OSError as error:  # such as a log that cannot be created on a full disk
                    self._say(f"the processes could not be started ({error})")
                    self._end_all()
                    code = exit_codes.IO
            self._restarts.saw(progress.newest_step(self._run_dir))
            if self._asked():
                return self._stopped()
            what = self._restarts.after(code)
            if what in (DONE, FAIL):
                again = (
                    f" after {self._restarts.in_vain} more starts without progress" if self._restarts.in_vain else ""
                )
                event = "finished" if what == DONE else f"failed{again}: {describe(code)}"
                self._save(FINISHED if what == DONE else FAILED, event, exit_code=code)
                return code if code >= 0 else exit_codes.BUG
            delay = self._restarts.delay
            self._save(WAITING, event=f"{describe(code)}; starting again in {delay:g} s", code=code)
            self._sleep(delay)
            code = None

    def _adopted(self) -> int | None:
        """Waits for processes that an earlier supervisor left, found by process id or by the lock that they hold.

        Returns:
            None if another start is due, otherwise an exit code.
        """
        self._children = [child for child in self._left if child.running]
        if self._children:
            self._save(RUNNING, event=f"continuing with {len(self._children)} processes that still run")
            whole = len(self._children) == len(self._left)
            code = self._watch() if whole else -signal.SIGKILL
            self._end_all()
            return code if code != exit_codes.OK else None
        said = ""
        while is_locked(self._run_dir) and not self._asked():  # another process, such as one that a user started
            event = f"another process trains in {self._run_dir}; waiting for it"
            self._save(WAITING, event=event if event != said else "")
            said = event
            self._sleep(_LOOK_SECONDS)
        return None

    def _attempt(self) -> int:
        """Starts the processes and waits for their end; returns the exit code that explains it."""
        count = self._chosen.processes
        joined = {"coordinator_address": f"127.0.0.1:{processes.free_port()}", "num_processes": count}
        commands = [jobs.command(self._plan, joined | {"process_id": i} if count > 1 else {}) for i in range(count)]
        logs = [Path(self._run_dir / ("train.log" if i == 0 else f"train-{i}.log")) for i in range(count)]
        environments = processes.environments(count, os.environ)
        self._children, gate = processes.start(commands, logs, environments)
        for child in self._children if self._asked() else ():  # the signal came while they were being started
            child.send(self._asked())
        self._save(RUNNING, event=f"started {count} process{'es' * (count > 1)}")
        gate.open()
        code = self._watch()
        self._end_all()
        return code

    def _watch(self) -> int:
        """Waits until the run has ended or must be ended; processes that still run are ended by the caller."""
        heartbeat = progress.Heartbeat(self._run_dir)
        looked, frozen = 0.0, time.monotonic()
        ended: list[processes.Child] = []
        deadline = None
        while True:
            ended += [child for child in self._children if child not in ended and not child.running]
            codes = [child.code if child.process else exit_codes.OK for child in ended]
            if len(ended) == len(self._children):
                return of_group([code for code in codes if code is not None])
            now = time.monotonic()
            code = of_group([code for code in codes if code is not None])
            if ended and deadline is None:  # the others get some time to end by themselves, and more for saving
                deadline = now + min(
                    self._chosen.grace_seconds, _LINGER_SECONDS if code and not self._asked() else 60.0
                )
            if deadline is not None and now > deadline:
                self._say(f"{len(ended)} of {len(self._children)} processes have ended; ending the others")
                return code or -signal.SIGKILL
            if now - looked > _LOOK_SECONDS:
                looked = now
                if not any(state.stopped(child.identity["pid"]) for child in self._children if child.running):
                    frozen = now
                if reason := self._hung(heartbeat.silence(), now - frozen):
                    self._say(reason)
                    return exit_codes.HUNG
                if (step := progress.newest_step(self._run_dir)) > self._restarts.step:
                    self._restarts.saw(step)
            time.sleep(_POLL_SECONDS)

    def _hung(self, silence: float, frozen: float) -> str:
        limit = self._chosen.stall_seconds
        if not limit:
            return ""
        if silence > limit:
            return f"no file of the run changed for {silence:.0f} s; ending it"
        if frozen > min(limit, _STOPPED_SECONDS):
            return f"a process has been stopped for {frozen:.0f} s; ending the run"
        return ""

    def _end_all(self) -> None:
        """Ends all processes. Only a single process gets time to save; several cannot continue without each other."""
        alone = len(self._children) == 1 or bool(self._asked())
        processes.end(self._children, self._chosen.grace_seconds if alone else min(self._chosen.grace_seconds, 5.0))
        self._children = []

    def _asked(self) -> int:
        """The last signal that asked for a stop; 0 if there was none."""
        return self._signals[-1] if self._signals else 0

    def _note(self, number: int, frame: object) -> None:
        """Passes a signal on. At the first the run saves and ends; at a second it ends at once."""
        self._signals.append(number)
        for child in self._children:
            child.send(number)

    def _stopped(self) -> int:
        self._save(STOPPED, event=f"stopped by {signal.Signals(self._asked()).name}")
        return exit_codes.OF_SIGNAL[signal.Signals(self._asked())]

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._asked():
            time.sleep(min(_POLL_SECONDS, seconds))

    def _say(self, text: str) -> None:
        state.note(self._state, text)
        _print(text)

    def _save(self, now: str, event: str = "", exit_code: int | None = None, **more: Any) -> None:
        values = self._state
        values |= {"target": "local", "state": now, "exit_code": exit_code, "processes": self._chosen.processes}
        values["supervisor"] = state.identity(os.getpid())
        values["children"] = [child.identity for child in self._children]
        values["restarts"] = {key: getattr(self._restarts, key) for key in ("total", "preemptions", "in_vain", "step")}
        if event:
            state.note(values, event, step=self._restarts.step, **more)
            _print(event)
        try:
            state.write(self._run_dir, values)
        except OSError as error:  # a full disk must not end the supervisor, which starts the run again later
            _print(f"{self._run_dir / state.FILE} could not be written ({error})")


def _print(text: str) -> None:
    with contextlib.suppress(OSError):  # the log may be on the full disk, too
        print(f"launch: {text}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Supervises the run of ``--config=RUN/plan.json``; returns its exit code."""
    output.install()
    output.begin(output.Stdout.LOG)
    parser = argparse.ArgumentParser(prog="python -m launch.supervisor", allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="PLAN", help="plan.json or config.json of the run")
    add_options(parser)
    options = parser.parse_args(argv)
    run_dir = epath.Path(load(options.config).workdir)
    run_dir.mkdir(parents=True, exist_ok=True)
    with held(run_dir / state.LOCK, f"another supervisor runs for {run_dir}"):
        return Supervisor(options.config, run_dir, settings(options)).run()


if __name__ == "__main__":
    try:
        code = main()
    except (ValueError, OSError) as error:
        print(f"scaling train: error: {error}", file=sys.stderr)
        code = exit_codes.USAGE
    sys.exit(code)
