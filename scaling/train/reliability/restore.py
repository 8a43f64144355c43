"""From which state a run goes on: at its start, and after too many bad steps in a row."""

import logging

from scaling.runs.lineage import Lineage
from scaling.train import state as train_state
from scaling.train.reliability import guard
from scaling.train.reliability.bad_steps import Diverged, RollBack
from scaling.train.reliability.watch import Watch

log = logging.getLogger(__name__)

_ADVICE = "try a lower config.optimizer.peak_lr or a longer config.optimizer.warmup_tokens"


def restore_or_create(watch: Watch) -> tuple[train_state.TrainState, int]:
    """The state of the newest whole checkpoint and its step, or a fresh one and 0; errors as in ``restore``."""
    run, saved = watch.run, restore(watch)
    watch.checkpoints.tidy(saved[1] if saved else None)
    if saved is None:
        return run.fresh_state(), 0
    if saved[1] == run.schedule.num_steps:
        log.info("%s is already finished; another run needs another config.workdir", run.config.workdir)
    else:
        log.info("resuming %s from step %d", run.config.workdir, saved[1])
    return saved


def restore(watch: Watch, good: bool = False) -> tuple[train_state.TrainState, int] | None:
    """The state of the newest checkpoint that is whole and has only finite numbers, and its step; None without one.

    Those with other numbers are named in the log, and set aside once an earlier one is found.

    Args:
        watch: of the run.
        good: only a checkpoint that was not saved in the middle of bad steps.

    Raises:
        ValueError: the checkpoints are of another run, or know of more roll-backs, or none is whole.
        Diverged: those that are whole hold numbers that are not finite.
    """
    run, checkpoints, broken = watch.run, watch.checkpoints, list[int]()
    schedule, fingerprint = run.schedule, run.data.training.fingerprint
    lineage = Lineage(run.config, fingerprint, schedule.num_steps, schedule.first_sequence)
    while True:
        with watch.goodput.during("restore"):
            saved = checkpoints.newest_whole(passed_over=broken, good=good)
        if saved is None:
            if broken:
                raise Diverged(
                    f"the weights in {checkpoints.directory} are not finite numbers at steps "
                    f"{', '.join(map(str, sorted(broken)))}, and there is no earlier checkpoint; restore one from "
                    "a backup, or use another config.workdir to start afresh"
                )
            return None
        step, meta = saved
        lineage.refuse_other(checkpoints.directory, meta)
        watch.rollbacks.refuse_fewer(step, meta)
        with watch.goodput.during("restore"):
            target = run.abstract_state()
            if meta.get("imported"):
                state = train_state.create_state(run.config, run.mesh)
                state["params"] = checkpoints.read_params(step, target["params"])
            else:
                state = train_state.TrainState(**checkpoints.read_state(step, target))  # type: ignore[typeddict-item]
            if guard.is_finite(state):
                for bad in broken:
                    checkpoints.set_aside(bad)
                return state, step
        log.warning("checkpoint of step %d passed over: it holds numbers that are not finite", step)
        broken.append(step)
        del state


def roll_back(watch: Watch, bad: RollBack) -> tuple[train_state.TrainState, int]:
    """The state to go on from, and its step, after the roll-back is on disk.

    A kill at any point here repeats what led here, and the same decision: what is newer than the checkpoint is set
    aside first.

    Raises:
        Diverged: rolling back is off, or there is nothing to go back to, or it was tried from there.
        OSError: a checkpoint could not be written, or the roll-back not noted.
    """
    checkpoints = watch.checkpoints
    if not watch.run.config.guard.rollback_after:
        steps = checkpoints.steps()
        where = f"the last checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"
        raise Diverged(f"{bad}; {where}; {_ADVICE}")
    checkpoints.wait()
    saved = restore(watch, good=True)
    if saved is None:
        raise Diverged(f"{bad}; they were skipped, and there is no checkpoint to go back to; {_ADVICE}")
    state, step = saved
    if watch.rollbacks.to(step):
        raise Diverged(
            f"{bad}; going back to the last good checkpoint, step {step}, past the data that came next, was tried "
            f"and did not help; {_ADVICE}"
        )
    checkpoints.set_aside_after(step)
    watch.rollbacks.add(step, bad.step)
    watch.goodput.rolled_back(step)
    log.warning("%s: back to the checkpoint of step %d, past the data read since", bad, step)
    return state, step
