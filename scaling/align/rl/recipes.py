"""The recipes of learning from rewards: PPO with a value function (InstructGPT), and GRPO without."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaling.align.rl import judges
from scaling.align.rl.iteration import Drawn, Frozen, Iteration, Sampler, Setting, described, inner, of_value
from scaling.align.rl.prompts import Row, check, data, pretraining
from scaling.config import schema as cfg
from scaling.data import loader
from scaling.data.batch import filled
from scaling.data.chat_tokenizer import SUFFIX
from scaling.data.tokenizer import Tokenizer
from scaling.model import decoder
from scaling.objectives.next_token import next_token
from scaling.objectives.policy import policy
from scaling.parallel.sharding import batch_sharding, replicated
from scaling.runs.json_lines import JsonLines
from scaling.train import state as train_state
from scaling.train.metrics import Log
from scaling.train.placement import local_rows, place
from scaling.train.recipe import Recipe
from scaling.train.run import Data, Run
from scaling.train.state import Beside, TrainState
from scaling.train.validation import Validation

ANSWERS = "answers.jsonl"  # of a run directory: answers to held-out prompts
_SHOWN = 4  # at each validation


class _Learning:
    """The parts of a recipe, which share what they find out of the reward.

    Args:
        critic: there is a value function.
    """

    def __init__(self, critic: bool) -> None:
        self._critic = critic
        self._reward: judges.Named
        self._gold: judges.Named | None = None

    def data(self, config: cfg.Config, words: Tokenizer) -> Data:
        check(config, self._critic)
        # Before the run directory is made, so a reward that cannot be used leaves nothing behind.
        self._reward = judges.Named("rl.reward", config, words)
        self._gold = judges.Named("rl.gold", config, words) if config.rl.gold else None
        return data(config, words)

    def beside(self, run: Run) -> Beside:
        """The mean of the policy's weights, the coefficient of the divergence, and the value function's state."""
        config, mesh = run.config, run.mesh
        start = self._reward.start or run.start
        assert start is not None
        params = train_state.abstract_state(config, mesh)["params"]
        shapes: dict[str, Any] = {"kl": jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))}
        shapes |= {"ema": params} if config.rl.ema else {}
        values = of_value(inner(config), self._value_model(run)) if self._critic else None
        if values is not None:
            shapes["value"] = train_state.abstract_state(values, mesh)
        copied = jax.jit(functools.partial(jax.tree.map, jnp.copy), out_shardings=_where(params))

        def make(policy: decoder.Params) -> Any:
            made: dict[str, Any] = {"kl": jax.device_put(np.float32(config.rl.kl), replicated(mesh))}
            made |= {"ema": copied(policy)} if config.rl.ema else {}
            if values is not None:
                state = train_state.create_state(values, mesh)
                state["params"] = start.params(values.model, mesh, config.seed)
                made["value"] = state
            return made

        return Beside(shapes, make)

    def frozen(self, run: Run) -> Frozen:
        """The reference, which is the model that the run begins with, and the reward models."""
        assert run.start is not None
        reference = run.base or run.start.params(run.config.model, run.mesh, run.config.seed)
        return Frozen(reference, self._reward.params(run), self._gold.params(run) if self._gold else None)

    def step(self, run: Run, frozen: Frozen) -> Iteration:
        value_model = self._value_model(run) if self._critic else None
        judge = self._reward.judge(run, run.data.training.prompts)
        return Iteration(Setting.of(run), judge, value_model, frozen, run)

    def validation(self, run: Run, frozen: Frozen, log: Log) -> Validation:
        prompts = run.data.training.prompts
        gold = self._gold.judge(run, prompts) if self._gold else None
        return _Validation(run, frozen, log, Sampler(Setting.of(run), self._reward.judge(run, prompts)), gold)

    def _value_model(self, run: Run) -> cfg.Model:
        """The value function's, without the dropout that a reward model was trained with: policies have none here."""
        reward = self._reward.start
        model = run.config.model if reward is None else reward.model
        none: dict[str, Any] = dict(dropout_embedding=0.0, dropout_attention=0.0, dropout_residual=0.0)
        return dataclasses.replace(model, outputs=1, **none)


class _Validation(Validation):
    """Answers to held-out prompts, which a second reward may score; and the loss on held-out pre-training text."""

    def __init__(self, run: Run, frozen: Frozen, log: Log, sampler: Sampler, gold: judges.Judge | None) -> None:
        super().__init__(run, policy(inner(run.config), run.words.vocab_size), log)
        self._frozen, self._sampler, self._gold, config = frozen, sampler, gold, run.config
        self._ends = Setting.of(run).ends
        self._described = sampler.compiled(described)
        self._text = None
        if config.rl.pretraining:
            held_out = loader.validation_set(pretraining(config), run.words, config.train.sequence_length)
            separator = run.words.eot if config.model.document_mask else None
            text = Data(None, held_out, None, separator)
            self._text = Validation(run, next_token(config), log, data=text)

    def evaluate(self, state: TrainState) -> dict[str, float]:
        run = self._run
        rows, micro = run.schedule.full, run.schedule.microbatch
        held_out, found = run.data.held_out, list[Mapping[str, Any]]()
        batches = max(1, min(len(held_out), self._count) // rows)
        sharding = batch_sharding(run.mesh)
        here = local_rows(sharding, micro)
        key = jax.random.fold_in(jax.random.key(run.config.seed), 4)
        params = run.whole(state["params"])
        for number in range(batches):
            places = {
                (part, slot): held_out[(number * rows + part * micro + int(row)) % len(held_out)]
                for part in range(rows // micro)
                for slot, row in enumerate(here)
            }
            batch: Row = place(filled((rows // micro, len(here)), places), here, micro, sharding)  # type: ignore[assignment]
            drawn, _ = self._sampler(params, self._frozen, batch, jax.random.fold_in(key, number))
            found.append(jax.device_get(self._described(drawn)) | self._second(drawn))
            if not number and run.is_first:
                self._show(state, drawn)
        means = {name: float(np.mean([each[name] for each in found])) for name in found[0]}
        penalty = float(state["beside"]["kl"]) * means["objective/kl"]
        # As in an iteration: what was maximised as a reward, in which the divergence is or is not.
        inside = penalty if run.config.rl.kl_in == "reward" else 0.0
        means["objective/rlhf_reward"] = means["objective/scores"] - inside
        text = {"pretraining_loss": self._text.evaluate(state)["loss"]} if self._text else {}
        return {"loss": penalty - means["objective/scores"]} | means | text | {"eval_tokens": float(batches * rows)}

    def _second(self, drawn: Drawn) -> dict[str, Any]:
        """The mean of the reward that trains nothing, as it is, without the rule for answers without an end."""
        if self._gold is None:
            return {}
        scores = self._gold(self._frozen.gold, drawn.texts, drawn.chosen, drawn.numbers)
        return {"objective/gold": np.mean(np.asarray(scores))}

    def _show(self, state: TrainState, drawn: Drawn) -> None:
        """Appends some answers to ``answers.jsonl``; those of a later step, which a kill has left, are dropped."""
        run, step = self._run, int(state["step"])
        prompts, numbers = run.data.training.prompts, np.asarray(drawn.numbers)
        rows, scores = np.asarray(drawn.chosen), np.asarray(drawn.scores)
        lines = JsonLines(run.directory / ANSWERS, lambda record: record["step"] >= step)
        for number, row, score in zip(numbers[:_SHOWN], rows, scores, strict=False):
            answer = run.words.decode(row[(row >= 0) & ~np.isin(row, self._ends)])
            said = {"messages": prompts[number].messages, "answer": answer}
            lines.write({"step": step} | said | {"score": float(score)})
        lines.close()


def _recipe(verb: str, critic: bool) -> Recipe:
    parts = _Learning(critic)
    return Recipe(
        verb,
        data=parts.data,
        objective=lambda config: policy(inner(config), config.model.vocab_size),
        suffix=SUFFIX,
        counts_epochs=True,
        unit="of negative reward an answer",
        frozen=parts.frozen,
        beside=parts.beside,
        step=parts.step,
        validation=parts.validation,
    )


def ppo(config: cfg.Config) -> Recipe:
    """PPO from people's preferences (InstructGPT, arXiv 2203.02155, section 3.5 and appendix C.4), with or without ptx.

    Each token costs the coefficient times its log-ratio to the reference, and the answer's score comes with its last
    token. The value function begins as the reward model, or as the policy with a new head if a function scores.
    """
    return _recipe("align ppo", critic=True)


def grpo(config: cfg.Config) -> Recipe:
    """Group relative policy optimization (arXiv 2402.03300): an answer's advantage is that over its group's mean."""
    return _recipe("align grpo", critic=False)


def _where(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, tree)
