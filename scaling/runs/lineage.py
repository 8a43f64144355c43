"""Decides whether a checkpoint may be resumed with a config: same model, same data, same position in the data."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from etils import epath

from scaling.config import schema as cfg

log = logging.getLogger(__name__)

# A change of these would silently make another model of the same run.
_FIXED = ("config.model.", "config.lora.", "config.seed")
# But not before the first step on weights that were imported.
_FREE_WHEN_IMPORTED = ("config.model.dropout_", "config.model.document_mask", "config.seed")


@dataclasses.dataclass(frozen=True)
class Lineage:
    """What identifies a run; a checkpoint must agree with it to be resumed.

    Attributes:
        config: resolved.
        data: fingerprint of the training data.
        num_steps: of the whole run.
        first_sequence: steps done -> sequences consumed by then.
    """

    config: cfg.Config
    data: str
    num_steps: int
    first_sequence: Callable[[int], int]

    def refuse_other(self, directory: epath.Path, meta: dict[str, Any]) -> None:
        """Refuses to resume a checkpoint of another run; logs whatever else has changed.

        Args:
            directory: of the checkpoints, for the message.
            meta: of the checkpoint: ``config``, ``step``, ``sequences`` consumed, fingerprint of the ``data``.

        Raises:
            ValueError: another model, seed, batch schedule, sequence length or data.
        """
        config = self.config
        old = cfg.freeze(meta["config"])
        before = {name: value for name, value, _, _ in cfg.knobs(old)}
        now = {name: value for name, value, _, _ in cfg.knobs(config)}
        changed = [name for name in now if before[name] != now[name]]
        imported = meta.get("imported", False)
        for name in changed:
            if name.startswith(_FIXED) and not (imported and name.startswith(_FREE_WHEN_IMPORTED)):
                raise ValueError(
                    f"{directory} holds checkpoints of another run: {name} is {before[name]!r} there and "
                    f"{now[name]!r} here; use another config.workdir, or the same value"
                )
        if imported:  # it has seen no data, and no schedule
            return
        length, expected = config.train.sequence_length, self.first_sequence(meta["step"])
        if (meta["sequences"], old.train.sequence_length) != (expected, length):
            raise ValueError(
                f"the checkpoint of step {meta['step']} in {directory} has consumed {meta['sequences']} sequences of "
                f"{old.train.sequence_length} tokens; this config's batches would have consumed {expected} of "
                f"{length}: keep config.train's batch, ramp and sequence length, or use another config.workdir"
            )
        if meta["step"] > self.num_steps:
            raise ValueError(
                f"{directory} holds a checkpoint of step {meta['step']}, and config.train.tokens={config.train.tokens} "
                f"ends at step {self.num_steps}; use at least {meta['tokens']}, or another config.workdir"
            )
        if meta["data"] != self.data:
            raise ValueError(
                f"the checkpoints in {directory} were trained on other data than config.data gives now "
                "(files, tokenizer, mixture or held-out part); use the same, or another config.workdir"
            )
        for name in changed:
            if name == "config.workdir":  # moved or copied: the same run
                continue
            log.warning("resuming with %s = %r (was %r)", name, now[name], before[name])
