"""One optimizer step, and one evaluation step, as compiled functions of plain arrays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from scaling import config as cfg
from scaling.model import decoder
from scaling.model.context import AttentionContext, document_segments, packed
from scaling.model.loss import LossConfig, Sums, cross_entropy
from scaling.model.parametrization import parametrization
from scaling.model.ring import in_zigzag
from scaling.parallel import compiler
from scaling.parallel.sharding import batch_sharding, constrain, context_devices, replicated, scattered_gradients
from scaling.train import state as train_state
from scaling.train.optimizer import adamw
from scaling.train.reliability import guard
from scaling.train.schedule import BatchSchedule

Batch = dict[str, jax.Array]  # inputs, targets: int32 [microbatches, sequences, tokens]
Metrics = dict[str, jax.Array]


def loss_sums(config: cfg.Config, params: Any, inputs: jax.Array, targets: jax.Array, eot: int, key: Any) -> Sums:
    """Loss sums of one microbatch, int32 [B, T] inputs and targets; ``key`` None = no dropout."""
    model = decoder.merge(config.network, params)
    inputs, targets = (constrain(tokens, "rows", None) for tokens in (inputs, targets))
    context = packed(document_segments(inputs, eot)) if config.model.document_mask else AttentionContext()
    if context_devices() > 1:
        # Here and once: the loss is a sum over positions, so nothing after it needs the text's order.
        inputs, targets, context = in_zigzag(inputs, targets, context)
    hidden = model(inputs, context, key=key, pipeline_microbatches=config.train.pipeline_microbatches)
    loss_config = LossConfig(
        vocab_size=config.model.vocab_size,
        logit_multiplier=parametrization(config.model).logit_multiplier,
        z_loss=config.train.z_loss,
        chunk=config.compute.loss_chunk,
    )
    return cross_entropy(hidden, model.output_table(hidden.dtype), targets, loss_config)


def dropout_key(seed: int) -> jax.Array:
    """Key of all dropout of a run, apart from the one that initial weights come from."""
    return jax.random.fold_in(jax.random.key(seed), 1)


def make_train_step(
    config: cfg.Config, mesh: Mesh, eot: int
) -> Callable[[train_state.TrainState, Batch, Any, Any], tuple[train_state.TrainState, Metrics]]:
    """Compiles (lazily) ``step(state, batch, lr, microbatches) -> (state, metrics)``; the state is donated.

    Only the first ``microbatches`` of the batch are computed, a number known when the step runs: so the
    batch ramp needs one compilation. Gradients of all of them are summed in float32 and divided by
    the number of target tokens, which makes accumulation equal to the large batch. A bad step (``guard.judge``)
    counts, and leaves parameters and moments as they are.
    """
    schedule = BatchSchedule.from_config(config.train)
    optimizer = adamw(config.optimizer, config.model)
    uses_dropout = any((config.model.dropout_embedding, config.model.dropout_attention, config.model.dropout_residual))

    def gradients(params: Any, inputs: jax.Array, targets: jax.Array, key: Any) -> tuple[Any, Sums]:
        def objective(params: Any) -> tuple[jax.Array, Sums]:
            sums = loss_sums(config, params, inputs, targets, eot, key)
            return sums.objective, sums

        with scattered_gradients(config.mesh.shard_optimizer):
            return jax.grad(objective, has_aux=True)(params)

    def scattered(tree: Any) -> Any:
        """Gradients or updates pinned to where the moments lie, lest the moments be gathered instead."""
        if not config.mesh.shard_optimizer:
            return tree
        return jax.lax.with_sharding_constraint(tree, train_state.gradient_shardings(config, mesh))

    def accumulate(params: Any, batch: Batch, key: Any, microbatches: Any) -> tuple[Any, Sums]:
        def keyed(i: Any) -> Any:
            return jax.random.fold_in(key, i) if uses_dropout else None

        if schedule.max_microbatches == 1:
            return gradients(params, batch["inputs"][0], batch["targets"][0], keyed(0))

        def body(i: Any, carry: Any) -> Any:
            one = gradients(params, batch["inputs"][i], batch["targets"][i], keyed(i))
            return jax.tree.map(jnp.add, carry, one)

        # Without a ramp the trip count is static, which the compiler (and its cost estimates) can use.
        count = microbatches if schedule.ramp_tokens else schedule.max_microbatches
        zero = jnp.zeros((), jnp.float32)
        start = (scattered(jax.tree.map(jnp.zeros_like, params)), Sums(zero, zero, zero))
        return jax.lax.fori_loop(0, count, body, start)

    def step(state: Any, batch: Batch, lr: Any, microbatches: Any) -> tuple[Any, Metrics]:
        key = jax.random.fold_in(dropout_key(config.seed), state["step"])
        grads, sums = accumulate(state["params"], batch, key, microbatches)
        grads = jax.tree.map(lambda g: g / sums.targets, scattered(grads))
        updates, moments = optimizer.update(grads, state["optimizer"], state["params"])
        params = jax.tree.map(lambda p, u: p + lr * u, state["params"], scattered(updates))
        loss, norm = sums.nll / sums.targets, optax.tree.norm(grads)
        good, judged = guard.judge(state["guard"], loss, norm, config.guard.spike_factor)
        new = train_state.TrainState(
            params=guard.keep_if(good, params, state["params"]),
            optimizer=guard.keep_if(good, moments, state["optimizer"]),
            step=state["step"] + 1,
            guard=judged,
        )
        return new, {
            "loss": loss,
            "grad_norm": norm,
            "skipped": judged["skipped"],
            "bad_in_a_row": judged["in_a_row"],
        }

    sharded = train_state.shardings(config, mesh)
    tokens = {"inputs": batch_sharding(mesh), "targets": batch_sharding(mesh)}
    none = replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(sharded, tokens, none, none),
        out_shardings=(sharded, none),
        donate_argnums=0,
        compiler_options=compiler.options(list(mesh.devices.flat)),
    )


def make_eval_step(config: cfg.Config, mesh: Mesh, eot: int) -> Callable[[Any, Batch], Sums]:
    """Compiles ``eval_step(params, batch) -> Sums`` over all microbatches of a batch, without dropout."""

    def evaluate(params: Any, batch: Batch) -> Sums:
        def one(batch: Batch) -> Sums:
            return loss_sums(config, params, batch["inputs"], batch["targets"], eot, None)

        return jax.tree.map(jnp.sum, jax.lax.map(one, batch))

    params = train_state.shardings(config, mesh)["params"]
    tokens = {"inputs": batch_sharding(mesh), "targets": batch_sharding(mesh)}
    none = replicated(mesh)
    return jax.jit(
        evaluate,
        in_shardings=(params, tokens),
        out_shardings=none,
        compiler_options=compiler.options(list(mesh.devices.flat)),
    )
