"""What scores the answers of an iteration: a reward model on the devices, or a function of texts on the host."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from scaling import json_text
from scaling.align.rewards import Reward
from scaling.align.rl.texts import Texts
from scaling.align.score import FILE
from scaling.config import schema as cfg
from scaling.config.refusal import refused
from scaling.data.batch import Scored
from scaling.data.chat.prompts import Prompt
from scaling.data.chat.template import read_template
from scaling.data.tokenizer import Tokenizer
from scaling.model import decoder
from scaling.objectives.objective import forward, read
from scaling.parallel import compiler
from scaling.parallel.sharding import batch_sharding, on_every_device, replicated
from scaling.runs import tokenizer as run_tokenizer
from scaling.runs.config_json import read_config_json
from scaling.runs.start import Start

# (parameters of a reward model or None, texts, drawn tokens [B, N], numbers of prompts [B]) -> scores float32 [B]
Judge = Callable[[decoder.Params | None, Texts, jax.Array, jax.Array], jax.Array]


def check_run(spec: str, start: Start, config: cfg.Config, words: Tokenizer) -> None:
    """Refuses a run that cannot score the answers of this training (ValueError)."""
    model, room = start.model, config.train.sequence_length
    if model.outputs != 1:
        raise refused("rl.reward", spec, "is no reward model; `scaling align reward` trains one")
    if model.context_length < room:
        right = f"reads {model.context_length} tokens, less than config.train.sequence_length={room}"
        raise refused("rl.reward", spec, right)
    record = read_config_json(spec)
    theirs = run_tokenizer.load(spec, record)
    if theirs.fingerprint != words.fingerprint:
        right = f"has the tokenizer {theirs.name!r}, and must have {words.name!r}, that of the run"
        raise refused("rl.reward", spec, right)
    template = cfg.freeze(record["config"]).chat.template
    if read_template(template) != read_template(config.chat.template):
        right = f"reads dialogues by config.chat.template={template!r}, and must do so by that of the run"
        raise refused("rl.reward", spec, right)


def by_model(spec: str, model: cfg.Model, config: cfg.Config, mesh: jax.sharding.Mesh) -> Judge:
    """A reward model, which reads the ids as they were drawn, at the last one."""
    path = epath.Path(spec) / FILE
    bias = json_text.parse(path.read_bytes(), str(path))["bias"] if path.exists() else 0.0
    read_scores = scorer(model, config, mesh, bias)
    return lambda params, texts, chosen, numbers: read_scores(params, texts)


def scorer(model: cfg.Model, config: cfg.Config, mesh: jax.sharding.Mesh, bias: float = 0.0) -> Any:
    """The compiled function that gives the scores [B] of ``Texts`` by the parameters of a reward model."""
    network, rows = cfg.Network(model, config.compute), config.train.microbatch_sequences

    def score(params: decoder.Params, texts: Texts) -> jax.Array:
        judge = decoder.merge(network, params)
        reads = (jnp.arange(texts.tokens.shape[1]) == texts.lengths[:, None] - 1).astype(jnp.float32)
        batch = Scored(texts.tokens, texts.targets, texts.mask, None, None, reads, reads)
        batch = jax.tree.map(lambda x: x.reshape(-1, rows, x.shape[1]), batch)
        batch = jax.lax.with_sharding_constraint(batch, batch_sharding(mesh))

        def some(batch: Scored) -> jax.Array:
            hidden, batch, _ = forward(judge, batch, None)
            return read(judge, hidden, batch)[:, 0]

        return jax.lax.map(some, batch).reshape(-1) + np.float32(bias)

    return jax.jit(score, out_shardings=replicated(mesh), compiler_options=compiler.options(list(mesh.devices.flat)))


def by_function(
    reward: Reward, prompts: Sequence[Prompt], words: Tokenizer, ends: tuple[int, ...], mesh: jax.sharding.Mesh
) -> Judge:
    """A function of prompts and texts; every process calls it with all answers."""

    def score(params: Any, texts: Texts, chosen: jax.Array, numbers: jax.Array) -> jax.Array:
        ids = np.asarray(chosen)
        answers = [words.decode(row[(row >= 0) & ~np.isin(row, ends)]) for row in ids]
        found = reward([prompts[number] for number in np.asarray(numbers)], answers)
        return on_every_device(found, mesh)

    return score
