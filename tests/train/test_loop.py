"""The loop's order of things, on stand-ins for the step, the batches and the checkpoints."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from scaling import exit_codes
from scaling.train import loop as loop_module
from scaling.train.loop import Hook, Loop
from scaling.train.metrics import Log
from scaling.train.reliability.goodput import Goodput
from scaling.train.reliability.rollbacks import Rollbacks
from scaling.train.reliability.watch import Watch
from scaling.train.reliability.watchdog import Watchdog
from scaling.train.run import Data, Run
from scaling.train.signals import StopRequest
from scaling.train.speed import Speed
from tests import tiny


class Told:
    """Takes any call, and notes its name."""

    def __init__(self, seen):
        self._seen = seen

    def __getattr__(self, name):
        return lambda *given: self._seen.append(name)


class Feed:
    """Empty batches."""

    def __init__(self, *given):
        pass

    def __next__(self):
        return {}, None

    def logged(self, batch):
        return {}


class Quiet(Log):
    """Writes nothing."""

    def resume(self, first_step):
        pass


@pytest.fixture
def training(tmp_path, monkeypatch):
    """A function that trains on stand-ins: what was called, in order, and the exit code."""
    monkeypatch.setattr(loop_module, "Feed", Feed)
    config = dataclasses.replace(
        tiny.config(tokens=4 * 128), checkpoint=dataclasses.replace(tiny.config().checkpoint, every_steps=2)
    )
    data = Data(SimpleNamespace(fingerprint=""), (), None)
    run = Run(config, epath.Path(tmp_path), SimpleNamespace(), data, SimpleNamespace())
    state = {"params": {"w": jnp.zeros(2)}, "optimizer": {"m": jnp.zeros(2)}}
    numbers = dict(loss=np.float32(1), grad_norm=np.float32(1), skipped=np.int32(0), bad_in_a_row=np.int32(0))

    def train(*hooks, stopped=0):
        seen, stop, calls = [], StopRequest(), []

        def step(state, *rest):
            calls.append(1)
            stop.exit_code = exit_codes.SIGTERM if len(calls) == stopped else 0
            return state, numbers

        checkpoints, watchdog = Told(seen), Watchdog(0, run.directory, 0)
        watch = Watch(run, Goodput(), watchdog, checkpoints, Rollbacks(run.directory, run.schedule))
        hooks = [
            dataclasses.replace(hook, run=lambda step, _, n=hook.name: seen.append(f"{n} {step}")) for hook in hooks
        ]
        loop = Loop(run, step, hooks, Quiet(run), watch, Speed(run, 1.0))
        loop.begin(0)
        _, code = loop.train(state, stop)
        if not code:
            loop.finish(state)
        return seen, code

    return train


VALIDATION, TASKS = Hook("validation", print, 1, when_stopped=True), Hook("tasks", print, 2)


def test_hooks_come_before_the_save_of_their_step_and_at_the_end(training):
    seen, code = training(VALIDATION, TASKS, Hook("samples", print))
    assert code == 0
    assert seen == [
        *("validation 1", "validation 2", "tasks 2", "save", "validation 3", "save", "wait"),
        *("validation 4", "tasks 4", "samples 4"),
    ]


def test_a_signal_saves_before_a_validation(training):
    """Whoever sent it may not wait for both; yet the line comes, since a resume would not write it."""
    assert training(VALIDATION, TASKS, stopped=2) == (
        ["validation 1", "save", "wait", "validation 2"],
        exit_codes.SIGTERM,
    )
