"""Supervised fine-tuning whose validation also says what a reward makes of answers to held-out prompts.

InstructGPT chose among the checkpoints of 16 epochs by this figure (arXiv 2203.02155, section 3.5).
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from scaling.align import supervised
from scaling.align.rl import judges
from scaling.align.rl.iteration import Setting
from scaling.align.rl.prompts import Row, fitted
from scaling.align.rl.texts import left_aligned
from scaling.config import schema as cfg
from scaling.config.refusal import refused
from scaling.data.batch import filled
from scaling.data.chat.dialogues import Skipped
from scaling.data.chat.prompts import Prompt
from scaling.data.chat.template import Chat, read_template
from scaling.data.tokenizer import Tokenizer
from scaling.generate.rollout import Rollouts
from scaling.generate.sampling import Sampling
from scaling.objectives.objective import Objective
from scaling.parallel.sharding import batch_sharding, replicated
from scaling.train.metrics import Log
from scaling.train.placement import local_rows, place
from scaling.train.recipe import Recipe
from scaling.train.run import Data, Run
from scaling.train.state import TrainState
from scaling.train.validation import Validation

_DRAWS = 4  # what the key of the draws is folded with, as in a validation of learning from rewards


def recipe(config: cfg.Config) -> Recipe:
    """Supervised fine-tuning; with ``config.checkpoint.choose="reward"`` its validation has the figure "reward"."""
    if config.checkpoint.choose != "reward":
        return supervised.RECIPE
    parts = _Rated()
    figures = (*supervised.RECIPE.figures, "reward")
    return dataclasses.replace(supervised.RECIPE, data=parts.data, validation=parts.validation, figures=figures)


class _Rated:
    """The parts of the recipe, which share the prompts and the reward."""

    def __init__(self) -> None:
        self._reward: judges.Named
        self._prompts: list[Prompt] = []
        self._rows: list[Row] = []

    def data(self, config: cfg.Config, words: Tokenizer) -> Data:
        """As ``supervised.data``. The prompts are the held-out dialogues without the last message, an answer.

        Raises:
            FileNotFoundError, ValueError: as ``supervised.data`` and ``judges.Named``, or no prompt leaves room.
        """
        rl, room = config.rl, config.train.sequence_length
        if rl.response_tokens >= room:
            right = f"must be less than config.train.sequence_length={room}, which holds the prompt too"
            raise refused("rl.response_tokens", rl.response_tokens, right)
        for name in ("stage", "context"):
            if (size := getattr(config.mesh, name)) > 1:
                raise refused(
                    f"mesh.{name}", size, "must be 1 with config.checkpoint.choose='reward', which has answers"
                )
        # Before the run directory is made, so a reward that cannot be used leaves nothing behind.
        self._reward = judges.Named("rl.reward", config, words)
        found, held_out = supervised.read(config, words)
        skipped, chat = Skipped(refuses=False), Chat(words, read_template(config.chat.template))
        asked = (Prompt(each.messages[:-1], each.record, each.where) for each in held_out)
        self._rows = fitted(asked, chat, config, skipped, self._prompts)
        skipped.summary()
        if not self._rows:
            raise ValueError(
                f"no held-out prompt leaves room for config.rl.response_tokens={rl.response_tokens} in "
                f"config.train.sequence_length={room}"
            )
        return found

    def validation(self, run: Run, frozen: None, log: Log) -> Validation:
        return _Validation(run, supervised.RECIPE.objective(run.config), log, self._reward, self._prompts, self._rows)


class _Validation(Validation):
    """The loss, and "reward": the mean score of one answer to each prompt, drawn by the same keys each time."""

    def __init__(
        self,
        run: Run,
        objective: Objective,
        log: Log,
        reward: judges.Named,
        prompts: Sequence[Prompt],
        rows: Sequence[Row],
    ) -> None:
        super().__init__(run, objective, log)
        config, setting = run.config, Setting.of(run)
        self._rows = rows[: max(1, config.eval.tokens // config.train.sequence_length)]
        sampling = Sampling(tokens=config.rl.response_tokens, temperature=config.rl.temperature, end_ids=setting.ends)
        self._rollouts = Rollouts(config.network, run.words.vocab_size, run.mesh, sampling)
        whole = replicated(run.mesh)
        self._aligned = jax.jit(
            lambda batch, chosen: left_aligned(batch.tokens[0], batch.start[0], chosen, setting.ends),
            out_shardings=whole,
        )
        self._whole = jax.jit(lambda x: x, out_shardings=whole)
        self._judge, self._params = reward.judge(run, prompts), reward.params(run)

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """As of ``Validation``, and "reward"."""
        run, size, scores = self._run, self._run.schedule.microbatch, list[np.ndarray]()
        params, sharding = run.whole(state["params"]), batch_sharding(run.mesh)
        here = local_rows(sharding, size)
        key = jax.random.fold_in(jax.random.key(run.config.seed), _DRAWS)
        for number in range(-(-len(self._rows) // size)):
            # The last batch is filled up with the first prompts, whose scores are not counted again.
            places = {
                (0, slot): self._rows[(number * size + int(row)) % len(self._rows)] for slot, row in enumerate(here)
            }
            batch: Row = place(filled((1, len(here)), places), here, size, sharding)  # type: ignore[assignment]
            draws = jax.random.fold_in(key, number)
            chosen = self._rollouts(params, batch.tokens[0], batch.start[0], draws)
            texts = self._aligned(batch, chosen)
            scores.append(
                np.asarray(self._judge(self._params, texts, self._whole(chosen), self._whole(batch.number[0])))
            )
        counted = np.concatenate(scores)[: len(self._rows)]
        return super().evaluate(state) | {"reward": float(np.mean(counted, dtype=np.float64))}
