"""The loop's order of things, on stand-ins for the step and the checkpoints."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from scaling import exit_codes
from scaling.train.loop import Loop
from scaling.train.reliability.goodput import Goodput
from scaling.train.reliability.watchdog import Watchdog
from scaling.train.schedule import BatchSchedule
from scaling.train.signals import StopRequest
from tests import tiny


class Told:
    """Takes any call, and notes its name."""

    def __init__(self, seen):
        self._seen = seen

    def __getattr__(self, name):
        return lambda *given: self._seen.append(name)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_signal_saves_before_a_validation(stopped, tmp_path):
    """Whoever sent it may not wait for both; yet the line comes, since a resume would not write it."""
    config = tiny.config()
    config = dataclasses.replace(
        config,
        eval=dataclasses.replace(config.eval, every_steps=1),
        checkpoint=dataclasses.replace(config.checkpoint, every_steps=1),
    )
    seen, stop, state = [], StopRequest(), {"params": {"w": jnp.zeros(2)}, "optimizer": {"m": jnp.zeros(2)}}
    metrics = {"loss": np.float32(1), "grad_norm": np.float32(1), "skipped": np.int32(0), "bad_in_a_row": np.int32(0)}

    def step(state, *rest):
        stop.exit_code = exit_codes.SIGTERM if stopped else 0
        return state, metrics

    schedule = BatchSchedule.from_config(config.train)
    loop = Loop(
        config=config,
        schedule=schedule,
        train_step=step,
        evaluate=lambda params: seen.append("validate") or {"loss": 1.0, "eval_tokens": 1.0},
        tasks=None,
        batches=iter([{}] * schedule.num_steps),
        checkpoints=Told(seen),
        meta={},
        flops_per_token=1.0,
        peak_flops=1.0,
        writer=None,
        console=None,
        goodput=Goodput(),
        bad_steps=Told(seen),
        watchdog=Watchdog(0, epath.Path(tmp_path), 0),
    )
    _, code = loop.run(state, 0, stop)
    if stopped:
        assert (code, seen) == (exit_codes.SIGTERM, ["save", "wait", "validate"])
    else:
        assert (code, seen[:2]) == (0, ["validate", "save"])
