"""An iteration of learning from rewards, which is one step of the loop: answers, scores, advantages, updates.

Everything is a function of the state and the step: prompts, draws and the order of the updates. So a run that is killed
anywhere goes on from its last checkpoint to the same numbers.
"""

import dataclasses
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaling.align.rl import advantages
from scaling.align.rl.judges import Judge
from scaling.align.rl.prompts import Row
from scaling.align.rl.texts import Texts, left_aligned
from scaling.config import schema as cfg
from scaling.data.batch import Batch
from scaling.data.chat.template import Chat, read_template
from scaling.generate.rollout import Rollouts
from scaling.generate.sampling import Sampling
from scaling.model import decoder
from scaling.objectives import means
from scaling.objectives.log_probs import log_probs
from scaling.objectives.objective import forward
from scaling.objectives.policy import Answers, Minibatch, policy, unembedding, value
from scaling.parallel import compiler
from scaling.parallel.sharding import batch_sharding, replicated
from scaling.train.run import Run
from scaling.train.state import TrainState
from scaling.train.step import Metrics, make_train_step


class Frozen(NamedTuple):
    """Parameters that no update changes.

    Attributes:
        reference: of the model that the run began with.
        reward: of the reward model; None = a function scores.
        gold: of the reward model of ``config.rl.gold``; None = a function scores, or there is none.
    """

    reference: decoder.Params
    reward: decoder.Params | None
    gold: decoder.Params | None = None


class Drawn(NamedTuple):
    """Answers of a policy, and what the models say of them.

    Attributes:
        texts: prompts with answers.
        chosen: the drawn tokens, int32 [B, N].
        numbers: of the prompts, int32 [B].
        log_probs: by the policy, float32 [B, T].
        reference: by the reference, float32 [B, T].
        scores: after the rule for answers without an end, float32 [B].
    """

    texts: Texts
    chosen: jax.Array
    numbers: jax.Array
    log_probs: jax.Array
    reference: jax.Array
    scores: jax.Array


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the programs of an iteration are compiled for.

    Attributes:
        config: resolved.
        mesh: devices.
        vocab_size: of the tokenizer, whose ids alone are drawn.
        ends: tokens that end an answer.
        eot: the token between documents.
    """

    config: cfg.Config
    mesh: jax.sharding.Mesh
    vocab_size: int
    ends: tuple[int, ...]
    eot: int

    @classmethod
    def of(cls, run: Run) -> "Setting":
        """That of a run."""
        chat = Chat(run.words, read_template(run.config.chat.template))
        return cls(run.config, run.mesh, run.words.vocab_size, (chat.end, run.words.eot), run.words.eot)


class Sampler:
    """Draws answers and has them scored: what an iteration and a validation begin with.

    Args:
        setting: see there.
        judge: scores the answers.

    Attributes:
        align: the compiled ``left_aligned``.
        log_probs: log-probabilities float32 [B, T] of ``Texts`` by parameters, compiled.
    """

    def __init__(self, setting: Setting, judge: Judge) -> None:
        config, self._judge, self._vocab = setting.config, judge, setting.vocab_size
        self._config, self._mesh = config, setting.mesh
        self._options = compiler.options(list(setting.mesh.devices.flat), config.network)
        sampling = Sampling(tokens=config.rl.response_tokens, temperature=config.rl.temperature, end_ids=setting.ends)
        self._rollouts = Rollouts(config.network, setting.vocab_size, setting.mesh, sampling)
        whole = replicated(setting.mesh)
        self._flat = self.compiled(lambda batch: (_flat(batch.tokens), _flat(batch.start), _flat(batch.number)))
        self.align = self.compiled(functools.partial(left_aligned, end_ids=setting.ends), out_shardings=whole)
        self._whole = self.compiled(lambda x: x, out_shardings=whole)
        self.log_probs = self.compiled(self._log_probs_of)
        self._ruled = self.compiled(self._after_rule)

    def compiled(self, function: Any, **options: Any) -> Any:
        """A compiled function with the options of the mesh."""
        return jax.jit(function, compiler_options=self._options, **options)

    def __call__(self, params: decoder.Params, frozen: Frozen, batch: Row, key: jax.Array) -> tuple[Drawn, float]:
        """Answers the prompts of a batch of arrays [microbatches, rows, ...], all draws by the key.

        Returns:
            The answers, and the seconds that drawing them took, without scoring.
        """
        begin = time.perf_counter()
        tokens, starts, numbers = self._flat(batch)
        chosen = self._rollouts(params, tokens, starts, key)
        texts = jax.block_until_ready(self.align(tokens, starts, chosen))
        drawn = time.perf_counter()
        found = self.log_probs(params, texts)
        reference = self.log_probs(frozen.reference, texts)
        numbers = self._whole(numbers)
        scores = self._ruled(self._judge(frozen.reward, texts, chosen, numbers), texts.ended)
        return Drawn(texts, chosen, numbers, found, reference, scores), drawn - begin

    def _after_rule(self, scores: jax.Array, ended: jax.Array) -> jax.Array:
        rl = self._config.rl
        return advantages.scored(scores, ended, rl.missing_end, rl.missing_end_value)

    def _log_probs_of(self, params: decoder.Params, texts: Texts) -> jax.Array:
        """Of the targets, float32 [B, T], by the forward pass of training at the temperature of the draws."""
        how, model = unembedding(self._config, self._vocab), decoder.merge(self._config.network, params)

        def some(batch: Batch) -> jax.Array:
            hidden, batch, _ = forward(model, batch, None)
            return log_probs(hidden, model.output(hidden.dtype), batch.targets, how)[0]

        return in_parts(some, texts, self._config, self._mesh)


def in_parts(function: Any, texts: Texts, config: cfg.Config, mesh: jax.sharding.Mesh) -> jax.Array:
    """What a function of a ``Batch`` of a microbatch's rows gives for all rows."""
    rows, length = texts.tokens.shape
    parts = (rows // config.train.microbatch_sequences, config.train.microbatch_sequences, length)
    batch = Batch(*(x.reshape(parts) for x in (texts.tokens, texts.targets, texts.mask)))
    batch = jax.lax.with_sharding_constraint(batch, batch_sharding(mesh))
    found: jax.Array = jax.lax.map(function, batch)
    return found.reshape(rows, length)


def mean_of_finite(x: jax.Array) -> jax.Array:
    """The mean of the numbers that are finite, if there are any, and else NaN."""
    x = x.astype(jnp.float32)
    return jnp.nanmean(jnp.where(jnp.isfinite(x), x, jnp.nan))


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(-1, *x.shape[2:])


def inner(config: cfg.Config) -> cfg.Config:
    """The config of the update on a minibatch."""
    train = config.train
    tokens = train.batch_tokens // config.rl.minibatches
    rows = min(train.microbatch_sequences, tokens // train.sequence_length)
    return dataclasses.replace(
        config, train=dataclasses.replace(train, batch_tokens=tokens, microbatch_sequences=rows, ramp_tokens=0)
    )


def of_value(config: cfg.Config, model: cfg.Model) -> cfg.Config:
    """The config of the value function, all of whose parameters are trained."""
    return dataclasses.replace(config, model=model, lora=cfg.Lora())


class Iteration:
    """The step of a run that learns from rewards, by PPO with a value function, or by GRPO without.

    Args:
        setting: see there.
        judge: scores the answers.
        value_model: of the value function; None = GRPO.
        frozen: see there; the batches of a call are of ``prompts.Row``. Both may be None for programs alone.
        run: see there.

    Attributes:
        sampler: see there.
        updates: in an iteration.
        learned: what the updates learn from, of what was drawn, compiled; others likewise.
        take: a minibatch.
        policy_step, value_step: updates, as ``make_train_step`` makes them.
        values: what the value function says, float32 [B, T].
    """

    def __init__(
        self,
        setting: Setting,
        judge: Judge,
        value_model: cfg.Model | None,
        frozen: Frozen | None = None,
        run: Run | None = None,
    ) -> None:
        self._run, self._frozen, self._config, self._value = run, frozen, setting.config, value_model
        self._setting, self.sampler = setting, Sampler(setting, judge)
        compiled, small, mesh = self.sampler.compiled, inner(setting.config), setting.mesh
        self.policy_step = make_train_step(small, mesh, policy(small, setting.vocab_size))
        if value_model is not None:
            of_values = of_value(small, value_model)
            self.value_step = make_train_step(of_values, mesh, value(of_values))
            self.values = compiled(self._values_of)
        self.updates = self._config.rl.minibatches * self._config.rl.passes
        self._plan = compiled(self._planned)
        self.learned = compiled(self._answers)
        self.take = compiled(self._minibatch)
        self._average = compiled(self._averaged, donate_argnums=0)
        self._steps = jax.jit(lambda step: (step * self.updates, step + 1), out_shardings=replicated(mesh))
        self._mean = jax.jit(lambda each: jax.tree.map(lambda *x: mean_of_finite(jnp.stack(x)), *each))

    def __call__(self, state: TrainState, batch: Row, lr: Any, microbatches: Any) -> tuple[TrainState, Metrics]:
        """The next state, and what is logged; ``microbatches`` are all that the batch has."""
        assert self._run is not None and self._frozen is not None
        beside, config, begin = dict(state["beside"]), self._config, time.perf_counter()
        draws, order = self._plan(state["step"])
        inner_step, next_step = self._steps(state["step"])
        drawn, drawing = self.sampler(self._run.whole(state["params"]), self._frozen, batch, draws)
        values = self.values(beside["value"]["params"], drawn.texts) if self._value else None
        coefficient = beside["kl"] if config.rl.kl_in == "loss" else jnp.zeros_like(beside["kl"])
        answers, beside["kl"], metrics = jax.block_until_ready(self.learned(drawn, values, beside["kl"]))
        scored = time.perf_counter()
        learner = TrainState(**{**state, "step": inner_step})
        del learner["beside"]
        value_lr = lr * (config.rl.value_rate or config.optimizer.peak_lr) / config.optimizer.peak_lr
        policies, critics = list[Metrics](), list[Metrics]()
        for groups in order:
            minibatch = self.take(answers, batch.pretraining, groups, coefficient)
            parts = np.int32(len(minibatch.kl))
            learner, seen = self.policy_step(learner, minibatch, lr, parts, base=self._run.base)
            policies.append(seen)
            if self._value:
                minibatch = minibatch._replace(pretraining=None)
                beside["value"], seen = self.value_step(beside["value"], minibatch, value_lr, parts)
                critics.append(seen)
        if "ema" in beside:
            beside["ema"] = self._average(beside["ema"], learner["params"])
        metrics |= self._logged(policies, critics)
        after = TrainState(**{**learner, "step": next_step, "beside": beside})
        jax.block_until_ready(after)
        seconds = {"rollout": drawing, "scoring": scored - begin - drawing, "update": time.perf_counter() - scored}
        shares = {f"time/{name}": np.float32(spent / sum(seconds.values())) for name, spent in seconds.items()}
        speed = {"rollout_tokens_per_second": metrics.pop("tokens") / np.float32(drawing)}
        return after, metrics | shares | speed

    def _planned(self, step: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """The key of the draws, and the groups of each update, int32 [groups] each."""
        config = self._config
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 3), step)
        groups = config.train.batch_tokens // config.train.sequence_length // config.rl.samples
        passes = [
            jax.random.permutation(jax.random.fold_in(key, number + 1), groups).reshape(config.rl.minibatches, -1)
            for number in range(config.rl.passes)
        ]
        return jax.random.fold_in(key, 0), [groups for each in passes for groups in each]

    def _values_of(self, params: decoder.Params, texts: Texts) -> jax.Array:
        assert self._value is not None
        model = decoder.merge(cfg.Network(self._value, self._config.compute), params)

        def some(batch: Batch) -> jax.Array:
            return model.outputs(forward(model, batch, None)[0])[..., 0]

        return in_parts(some, texts, self._config, self._setting.mesh)

    def _answers(self, drawn: Drawn, values: jax.Array | None, kl: jax.Array) -> tuple[Answers, jax.Array, Metrics]:
        """What the updates learn from, the coefficient of the next iteration, and what is logged of the answers."""
        rl, texts, mask = self._config.rl, drawn.texts, drawn.texts.mask
        log_ratio = jnp.where(mask > 0, drawn.log_probs - drawn.reference, 0.0)
        divergence = log_ratio.sum(1)
        penalty = kl if rl.kl_in == "reward" else jnp.zeros_like(kl)
        returns = None
        if values is not None:
            rewards = advantages.token_rewards(drawn.scores, drawn.log_probs, drawn.reference, mask, penalty)
            gained = advantages.gae(rewards, values, mask, rl.gamma, rl.gae_lambda)
            returns = gained + jnp.where(mask > 0, values, 0.0)
            gained = advantages.whitened(gained, mask, rl.whiten)
        else:
            total = drawn.scores - penalty * divergence
            gained = advantages.group_advantages(total, rl.samples, rl.by_spread)[:, None] * mask
        none = jnp.zeros_like(mask)
        answers = Answers(
            texts.tokens, texts.targets, mask, none, none, drawn.log_probs, drawn.reference, gained, returns, values
        )
        metrics = described(drawn) | {
            "objective/non_score_reward": -(penalty * divergence).mean(),
            "objective/rlhf_reward": (drawn.scores - penalty * divergence).mean(),
            "objective/kl_coefficient": kl,
            "tokens": mask.sum(),
        }
        after = advantages.next_kl(kl, divergence.mean(), rl.kl_target, len(mask), rl.kl_horizon)
        return answers, after, metrics

    def _minibatch(self, answers: Answers, text: jax.Array | None, groups: jax.Array, kl: jax.Array) -> Minibatch:
        """The answers of some groups, as microbatches."""
        rl, small = self._config.rl, inner(self._config)
        rows = (groups[:, None] * rl.samples + jnp.arange(rl.samples)).reshape(-1)
        parts = (len(rows) // small.train.microbatch_sequences, small.train.microbatch_sequences)
        mask = answers.mask[rows]
        weights = {
            "token": lambda: means.token(mask),
            "sequence": lambda: means.sequence(mask),
            "constant": lambda: means.constant(mask, rl.response_tokens),
            "prompt": lambda: means.prompt(mask, rl.samples),
        }[rl.mean]()
        chosen: Answers = jax.tree.map(lambda x: x[rows], answers)
        chosen = chosen._replace(counts=means.token(mask), weights=weights)
        chosen = self._placed(chosen, parts)
        pretraining = None
        if text is not None:
            sequences = _flat(text)[rows].reshape(-1, text.shape[-1])
            pretraining = self._placed(self._text(sequences), (parts[0], parts[1] * text.shape[2]))
        return Minibatch(chosen, jnp.full(parts[0], kl), pretraining)

    def _text(self, sequences: jax.Array) -> Batch:
        """Rows of pre-training text, int32 [n, T + 1], whose weights sum to 1."""
        tokens, targets = sequences[:, :-1], sequences[:, 1:]
        weights = jnp.full(tokens.shape, 1 / tokens.size, jnp.float32)
        if not self._config.model.document_mask:
            return Batch(tokens, targets, weights)
        begins = tokens == self._setting.eot
        index = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        positions = index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)
        return Batch(tokens, targets, weights, positions, jnp.cumsum(begins, axis=1, dtype=jnp.int32))

    def _placed(self, tree: Any, parts: tuple[int, int]) -> Any:
        """Arrays [rows, T] as microbatches on the mesh."""
        tree = jax.tree.map(lambda x: x.reshape(*parts, *x.shape[1:]), tree)
        return jax.lax.with_sharding_constraint(tree, batch_sharding(self._setting.mesh))

    def _averaged(self, mean: decoder.Params, params: decoder.Params) -> decoder.Params:
        decay = self._config.rl.ema
        return jax.tree.map(lambda m, p: decay * m + (1 - decay) * p, mean, params)

    def _logged(self, policies: list[Metrics], critics: list[Metrics]) -> Metrics:
        """Means over the updates, of which bad ones are left out and counted."""
        found = self._mean(policies)
        found["val/ratio_var"] = jnp.maximum(found.pop("val/ratio_squared") - jnp.square(found["val/ratio"]), 0)
        last = [each[-1] for each in (policies, critics) if each]
        for name, function in (("skipped", sum), ("bad_in_a_row", max)):
            found[name] = function(int(x[name]) for x in jax.device_get(last))
            found[name] = np.int32(found[name])
        if critics:
            of_values = self._mean(critics)
            found["loss/value_avg"], found["val/clipfrac_avg"] = of_values["loss"], of_values["val/clipfrac_avg"]
        return found


def described(drawn: Drawn) -> Metrics:
    """What is logged of answers, by the usual names; means over answers."""
    mask = drawn.texts.mask
    chosen = jnp.where(mask > 0, drawn.log_probs, 0.0)
    return {
        "objective/kl": jnp.where(mask > 0, drawn.log_probs - drawn.reference, 0.0).sum(1).mean(),
        "objective/entropy": -chosen.sum(1).mean(),
        "objective/scores": drawn.scores.mean(),
        "objective/scores_std": drawn.scores.std(),
        "objective/response_length": mask.sum(1).mean(),
        "val/num_eos_tokens": drawn.texts.ended.sum().astype(jnp.float32),
    }
