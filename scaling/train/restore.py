"""From which checkpoint a run goes on: at its start, and after too many bad steps in a row."""

import logging

import jax

from scaling import config as cfg
from scaling.train import guard
from scaling.train import state as train_state
from scaling.train.bad_steps import Diverged, RollBack
from scaling.train.checkpoint import Checkpoints
from scaling.train.goodput import Goodput
from scaling.train.lineage import refuse_other_run
from scaling.train.rollbacks import Rollbacks

log = logging.getLogger(__name__)

_ADVICE = "try a lower config.optimizer.peak_lr or a longer config.optimizer.warmup_tokens"


def restore(
    config: cfg.Config,
    checkpoints: Checkpoints,
    mesh: jax.sharding.Mesh,
    data_fingerprint: str,
    goodput: Goodput,
    rollbacks: Rollbacks,
    good: bool = False,
) -> tuple[train_state.TrainState, int] | None:
    """The state of the newest checkpoint that is whole and has only finite numbers, and its step; None without one.

    Those with other numbers are named in the log, and set aside once an earlier one is found.

    Args:
        config: resolved.
        checkpoints: of the run.
        mesh: on which the state is wanted.
        data_fingerprint: of the run's data.
        goodput: its clock.
        rollbacks: of the run.
        good: only a checkpoint that was not saved in the middle of bad steps.

    Raises:
        ValueError: the checkpoints are of another run, or know of more roll-backs, or none is whole.
        Diverged: those that are whole hold numbers that are not finite.
    """
    broken: list[int] = []
    while True:
        with goodput.during("restore"):
            saved = checkpoints.newest_whole(passed_over=broken, good=good)
        if saved is None:
            if broken:
                raise Diverged(
                    f"the weights in {checkpoints.directory} are not finite numbers at steps "
                    f"{', '.join(map(str, sorted(broken)))}, and there is no earlier checkpoint; restore one from a "
                    "backup, or use another config.workdir to start afresh"
                )
            return None
        step, meta = saved
        refuse_other_run(checkpoints.directory, meta, config, data_fingerprint)
        rollbacks.refuse_fewer(step, meta)
        with goodput.during("restore"):
            state = checkpoints.read_state(step, train_state.abstract_state(config, mesh))
            if guard.is_finite(state):
                for bad in broken:
                    checkpoints.set_aside(bad)
                return state, step
        log.warning("checkpoint of step %d passed over: it holds numbers that are not finite", step)
        broken.append(step)
        del state


def roll_back(
    bad: RollBack,
    config: cfg.Config,
    checkpoints: Checkpoints,
    rollbacks: Rollbacks,
    mesh: jax.sharding.Mesh,
    data_fingerprint: str,
    goodput: Goodput,
) -> tuple[train_state.TrainState, int]:
    """The state to go on from, and its step, after the roll-back is on disk.

    A kill at any point here repeats what led here, and the same decision: what is newer than the checkpoint is set
    aside first.

    Raises:
        Diverged: rolling back is off, or there is nothing to go back to, or it was tried from there.
        OSError: a checkpoint could not be written, or the roll-back not noted.
    """
    if not config.guard.rollback_after:
        steps = checkpoints.steps()
        where = f"the last checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"
        raise Diverged(f"{bad}; {where}; {_ADVICE}")
    checkpoints.wait()
    saved = restore(config, checkpoints, mesh, data_fingerprint, goodput, rollbacks, good=True)
    if saved is None:
        raise Diverged(f"{bad}; they were skipped, and there is no checkpoint to go back to; {_ADVICE}")
    state, step = saved
    if rollbacks.to(step):
        raise Diverged(
            f"{bad}; going back to the last good checkpoint, step {step}, past the data that came next, was tried and "
            f"did not help; {_ADVICE}"
        )
    checkpoints.set_aside_after(step)
    rollbacks.add(step, bad.step)
    goodput.rolled_back(step)
    log.warning("%s: back to the checkpoint of step %d, past the data read since", bad, step)
    return state, step
