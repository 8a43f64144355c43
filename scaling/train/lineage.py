"""Whether a checkpoint may be resumed under a config: same model, same data, same place in it."""

import logging
from typing import Any

from etils import epath

from scaling import config as cfg
from scaling.train.schedule import BatchSchedule

log = logging.getLogger(__name__)

# A change of these would silently make another model of the same run.
_FIXED = ("config.model.", "config.seed")


def refuse_other_run(directory: epath.Path, meta: dict[str, Any], config: cfg.Config, data_fingerprint: str) -> None:
    """Refuses to resume a checkpoint under a config of another run; logs whatever else has changed.

    Args:
        directory: of the checkpoints, for the message.
        meta: of the checkpoint: ``config``, ``step``, ``sequences`` consumed, fingerprint of the ``data``.
        config: resolved config of this run.
        data_fingerprint: of this run's data.

    Raises:
        ValueError: another model, seed, batch schedule, sequence length or data.
    """
    old = cfg.freeze(meta["config"])
    before = {name: value for name, value, _, _ in cfg.knobs(old)}
    now = {name: value for name, value, _, _ in cfg.knobs(config)}
    changed = [name for name in now if before[name] != now[name]]
    for name in changed:
        if name.startswith(_FIXED):
            raise ValueError(
                f"{directory} holds checkpoints of another run: {name} is {before[name]!r} there and "
                f"{now[name]!r} here; use another config.workdir, or the same value"
            )
    length, schedule = config.train.sequence_length, BatchSchedule.from_config(config.train)
    expected = schedule.first_sequence(meta["step"])
    if (meta["sequences"], old.train.sequence_length) != (expected, length):
        raise ValueError(
            f"the checkpoint of step {meta['step']} in {directory} has consumed {meta['sequences']} sequences of "
            f"{old.train.sequence_length} tokens; this config's batches would have consumed {expected} of {length}: "
            "keep config.train's batch, ramp and sequence length, or use another config.workdir"
        )
    if meta["step"] > schedule.num_steps:
        raise ValueError(
            f"{directory} holds a checkpoint of step {meta['step']}, and config.train.tokens={config.train.tokens} "
            f"ends at step {schedule.num_steps}; use at least {meta['tokens']}, or another config.workdir"
        )
    if meta["data"] != data_fingerprint:
        raise ValueError(
            f"the checkpoints in {directory} were trained on other data than config.data gives now "
            "(files, tokenizer, mixture or held-out part); use the same, or another config.workdir"
        )
    for name in changed:
        if name == "config.workdir":  # moved or copied: the same run
            continue
        log.warning("resuming with %s = %r (was %r)", name, now[name], before[name])
