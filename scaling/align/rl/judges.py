"""What scores the answers of an iteration: a reward model on the devices, or a function of texts on the host."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from scaling.align import rewards
from scaling.align.rewards import Reward
from scaling.align.rl.texts import Texts
from scaling.config import schema as cfg
from scaling.config.refusal import refused
from scaling.data.batch import Scored
from scaling.data.chat.prompts import Prompt
from scaling.data.chat.template import Chat, read_template
from scaling.data.tokenizer import Tokenizer
from scaling.model import decoder
from scaling.objectives.objective import forward, read
from scaling.parallel import compiler
from scaling.parallel.sharding import batch_sharding, on_every_device, replicated
from scaling.runs import tokenizer as run_tokenizer
from scaling.runs.bias import read_bias
from scaling.runs.config_json import read_config_json
from scaling.runs.start import Start
from scaling.train.run import Run

log = logging.getLogger(__name__)

# (parameters of a reward model or None, texts, drawn tokens [B, N], numbers of prompts [B]) -> scores float32 [B]
Judge = Callable[[decoder.Params | None, Texts, jax.Array, jax.Array], jax.Array]


class Named:
    """What a knob names to score answers: a function, or a run of a reward model.

    Args:
        knob: ``rl.reward`` or ``rl.gold``.
        config: resolved, with its value.
        words: tokenizer of the run.

    Attributes:
        start: the reward model; None if a function scores.

    Raises:
        FileNotFoundError, ValueError: as ``rewards.of_texts`` and ``check_run``.
    """

    def __init__(self, knob: str, config: cfg.Config, words: Tokenizer) -> None:
        self._spec = _value(knob, config)
        self._function = rewards.of_texts(self._spec)
        self.start: Start | None = None
        if self._function is None:
            self.start = Start.of(config, config.workdir, knob)
            check_run(self.start, config, words)

    def params(self, run: Run) -> decoder.Params | None:
        """The weights of the reward model, which the run's directory notes; None if a function scores."""
        if self.start is None:
            return None
        if run.is_first:
            self.start.note(run.directory)
        return self.start.params(self.start.model, run.mesh, run.config.seed)

    def judge(self, run: Run, prompts: Sequence[Prompt]) -> Judge:
        """What scores by it, where numbers of prompts are places in ``prompts``."""
        end = Chat(run.words, read_template(run.config.chat.template)).end
        if self.start is not None:
            return by_model(self._spec, self.start.model, run.config, end, run.mesh)
        assert self._function is not None
        ends = (end, run.words.eot)
        return by_function(self._function, prompts, run.words, ends, run.mesh)


def _value(knob: str, config: cfg.Config) -> str:
    return {"rl.reward": config.rl.reward, "rl.gold": config.rl.gold}[knob]


def check_run(start: Start, config: cfg.Config, words: Tokenizer) -> None:
    """Refuses a run that cannot score the answers of this training (ValueError); warns of another system message."""
    knob, spec = start.knob, _value(start.knob, config)
    model, room = start.model, config.train.sequence_length
    if model.outputs != 1:
        raise refused(knob, spec, "is no reward model; `scaling align reward` trains one")
    if model.context_length < room:
        right = f"reads {model.context_length} tokens, less than config.train.sequence_length={room}"
        raise refused(knob, spec, right)
    record = read_config_json(start.run)
    theirs = run_tokenizer.load(start.run, record)
    if theirs.fingerprint != words.fingerprint:
        right = f"has the tokenizer {theirs.name!r}, and must have {words.name!r}, that of the run"
        raise refused(knob, spec, right)
    chat = cfg.freeze(record["config"]).chat
    if rewards.template_of(start.run, chat) != read_template(config.chat.template):
        right = f"reads dialogues by config.chat.template={chat.template!r}, and must do so by that of the run"
        raise refused(knob, spec, right)
    if chat.system != config.chat.system:
        # Prompts may have system messages of their own, and a policy may have one that its reward model never saw.
        log.warning(
            "config.%s=%s was trained with config.chat.system=%r, and reads the answers of this run with %r",
            knob, spec, chat.system, config.chat.system,
        )  # fmt: skip


def by_model(spec: str, model: cfg.Model, config: cfg.Config, end: int, mesh: jax.sharding.Mesh) -> Judge:
    """A reward model with its bias, as ``scorer`` reads."""
    read_scores = scorer(model, config, end, mesh, read_bias(spec))
    return lambda params, texts, chosen, numbers: read_scores(params, texts)


def scorer(model: cfg.Model, config: cfg.Config, end: int, mesh: jax.sharding.Mesh, bias: float = 0.0) -> Any:
    """The compiled function that gives the scores [B] of ``Texts`` by the parameters of a reward model.

    It reads the ids as they were drawn, at the last one. Reward models learn to read at ends of turns alone, so of an
    answer that was cut at the limit of tokens, the last token is read as ``end``.
    """
    network, rows = cfg.Network(model, config.compute), config.train.microbatch_sequences

    def score(params: decoder.Params, texts: Texts) -> jax.Array:
        judge = decoder.merge(network, params)
        last = jnp.arange(texts.tokens.shape[1]) == texts.lengths[:, None] - 1
        tokens = jnp.where(last & ~texts.ended[:, None], end, texts.tokens)
        reads = last.astype(jnp.float32)
        batch = Scored(tokens, texts.targets, texts.mask, None, None, reads, reads)
        batch = jax.tree.map(lambda x: x.reshape(-1, rows, x.shape[1]), batch)
        batch = jax.lax.with_sharding_constraint(batch, batch_sharding(mesh))

        def some(batch: Scored) -> jax.Array:
            hidden, batch, _ = forward(judge, batch, None)
            return read(judge, hidden, batch)[:, 0]

        return jax.lax.map(some, batch).reshape(-1) + np.float32(bias)

    options = compiler.options(list(mesh.devices.flat), network)
    return jax.jit(score, out_shardings=replicated(mesh), compiler_options=options)


def by_function(
    reward: Reward, prompts: Sequence[Prompt], words: Tokenizer, ends: tuple[int, ...], mesh: jax.sharding.Mesh
) -> Judge:
    """A function of prompts and texts; every process calls it with all answers, and the first one's scores count."""

    def score(params: Any, texts: Texts, chosen: jax.Array, numbers: jax.Array) -> jax.Array:
        ids = np.asarray(chosen)
        answers = [words.decode(row[(row >= 0) & ~np.isin(row, ends)]) for row in ids]
        found = reward([prompts[number] for number in np.asarray(numbers)], answers)
        if jax.process_count() > 1:  # a function that draws, or asks elsewhere, may say something else in each
            found = multihost_utils.broadcast_one_to_all(found)
        return on_every_device(np.asarray(found), mesh)

    return score
