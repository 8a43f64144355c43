"""One optimizer step, and one evaluation step, as compiled functions of plain arrays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from scaling.config import schema as cfg
from scaling.data.batch import Batch
from scaling.model import decoder, lora
from scaling.objectives.objective import Objective, Sums
from scaling.parallel import compiler
from scaling.parallel.sharding import replicated, scattered_gradients
from scaling.train import state as train_state
from scaling.train.optimizer import make_optimizer
from scaling.train.reliability import guard
from scaling.train.schedule import BatchSchedule

Metrics = dict[str, jax.Array]


def dropout_key(seed: int) -> jax.Array:
    """Key of all dropout of a run, apart from the one that initial weights come from."""
    return jax.random.fold_in(jax.random.key(seed), 1)


def make_train_step(
    config: cfg.Config, mesh: Mesh, objective: Objective
) -> Callable[..., tuple[train_state.TrainState, Metrics]]:
    """Compiles (lazily) ``step(state, batch, lr, microbatches, frozen=None, base=None)``; it takes the state over.

    It returns the next state, and the means of the objective's metrics with what the guard saw.

    The batch is a ``Batch`` of arrays [microbatches, rows, T], laid out by ``batch_sharding``. Only its first
    ``microbatches`` are computed, a number known when the step runs: so the batch ramp needs one compilation. Sums of
    gradients and metrics over all of them are divided once, by the weight of all, which makes accumulation equal to the
    large batch. A bad step (``guard.judge``) counts, and leaves parameters and moments as they are. ``frozen`` is
    what the objective takes besides the model that is trained, and ``base`` what adapters change (``model.lora``).
    """
    schedule = BatchSchedule.from_config(config.train)
    optimizer = make_optimizer(config.optimizer, config.model, config.lora)
    rates = (config.model.dropout_embedding, config.model.dropout_attention, config.model.dropout_residual)
    uses_dropout = any((*rates, config.align.dropout))

    def sums_of(params: Any, fixed: Any, batch: Batch, key: Any) -> Sums:
        frozen, base = fixed
        return objective(decoder.merge(config.network, lora.whole(config, params, base)), frozen, batch, key)

    def gradients(params: Any, fixed: Any, batch: Batch, key: Any) -> tuple[Any, Sums]:
        def minimised(params: Any) -> tuple[jax.Array, Sums]:
            sums = sums_of(params, fixed, batch, key)
            return sums.objective, sums

        with scattered_gradients(config.mesh.shard_optimizer):
            return jax.grad(minimised, has_aux=True)(params)

    def scattered(tree: Any) -> Any:
        """Gradients or updates pinned to where the moments lie, lest the moments be gathered instead."""
        if not config.mesh.shard_optimizer:
            return tree
        return jax.lax.with_sharding_constraint(tree, train_state.gradient_shardings(config, mesh))

    def accumulate(params: Any, fixed: Any, batch: Batch, key: Any, microbatches: Any) -> tuple[Any, Sums]:
        def given(i: Any) -> tuple[Any, Batch, Any]:
            return fixed, jax.tree.map(lambda x: x[i], batch), jax.random.fold_in(key, i) if uses_dropout else None

        def one(i: Any) -> tuple[Any, Sums]:
            return gradients(params, *given(i))

        if schedule.max_microbatches == 1:
            return one(0)
        # Without a ramp the trip count is static, which the compiler (and its cost estimates) can use.
        count = microbatches if schedule.ramp_tokens else schedule.max_microbatches
        sums = jax.eval_shape(lambda: sums_of(params, *given(0)))  # which metrics there are
        start = (scattered(jax.tree.map(jnp.zeros_like, params)), jax.tree.map(jnp.zeros_like, sums))
        return jax.lax.fori_loop(0, count, lambda i, total: jax.tree.map(jnp.add, total, one(i)), start)

    def step(
        state: Any, batch: Batch, lr: Any, microbatches: Any, frozen: Any = None, base: Any = None
    ) -> tuple[Any, Metrics]:
        key = jax.random.fold_in(dropout_key(config.seed), state["step"])
        grads, sums = accumulate(state["params"], (frozen, base), batch, key, microbatches)
        grads = jax.tree.map(lambda g: g / sums.weight, scattered(grads))
        updates, moments = optimizer.update(grads, state["optimizer"], state["params"])
        params = jax.tree.map(lambda p, u: p + lr * u, state["params"], scattered(updates))
        means = {name: total / sums.weight for name, total in sums.metrics.items()}
        means |= {name: total / jnp.maximum(whole, 1) for name, (total, whole) in sums.ratios.items()}
        norm = optax.tree.norm(grads)
        good, judged = guard.judge(state["guard"], means["loss"], norm, config.guard.spike_factor)
        new = train_state.TrainState(
            params=guard.keep_if(good, params, state["params"]),
            optimizer=guard.keep_if(good, moments, state["optimizer"]),
            step=state["step"] + 1,
            guard=judged,
        )
        return new, means | {
            "grad_norm": norm,
            "skipped": judged["skipped"],
            "bad_in_a_row": judged["in_a_row"],
        }

    return jax.jit(
        step,  # what goes in lies where it was put: the state as ``train_state`` says, the batch as ``batch_sharding``
        out_shardings=(train_state.shardings(config, mesh), replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler.options(list(mesh.devices.flat), config.network),
    )


def make_eval_step(config: cfg.Config, mesh: Mesh, objective: Objective) -> Callable[..., Sums]:
    """Compiles ``eval_step(params, batch, frozen=None, base=None) -> Sums`` over all microbatches of a batch.

    Without dropout; arguments as of the train step.
    """

    def evaluate(params: Any, batch: Batch, frozen: Any = None, base: Any = None) -> Sums:
        params = lora.whole(config, params, base)

        def one(batch: Batch) -> Sums:
            return objective(decoder.merge(config.network, params), frozen, batch, None)

        return jax.tree.map(lambda parts: parts.sum(0), jax.lax.map(one, batch))

    options = compiler.options(list(mesh.devices.flat), config.network)
    return jax.jit(evaluate, out_shardings=replicated(mesh), compiler_options=options)
