"""Mixtures of experts in the place of an MLP: a router sends each token to a few of many networks.

The router computes logits and a softmax over all experts in float32. A token takes the ``per_token`` experts with the
largest logits, of equal ones that with the lowest index (Mixtral, arXiv 2401.04088, section 2.1; GLaM, arXiv
2112.06905). In training each expert has the same number of slots (GShard, arXiv 2006.16668, section 2.2). Each sequence
has slots of its own, so neither the mesh nor accumulation changes which tokens are dropped. Tokens take slots in the
order of the text, so no token depends on a later one. Validation loss is computed as in training. Scoring, tasks and
generation drop nothing.

Legend beside the package's: E experts, N experts that a token takes, C slots of an expert in a sequence.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from scaling.config import schema as cfg
from scaling.config.remat import HIDDEN
from scaling.model.layers import Parameter, normal, use
from scaling.model.mlp import ACTIVATIONS
from scaling.model.parametrization import parametrization
from scaling.model.ring import text_places
from scaling.model.rounded import Kept, Rounded, factor, scaled, used
from scaling.parallel.sharding import constrain, dividing_spec, kept_in_rows

_LARGEST_BLOCK = 128  # tokens in one product of dropless experts


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counted:
    """What training knows of the tokens of its rows.

    Attributes:
        real: True up to and including the last target that counts, bool [B, T]; what follows is padding, without slots.
        weight: of each row, the sum of the weights of its targets, float32 [B].
        zigzag: the tokens lie in the order of ``ring.zigzag``.
    """

    real: jax.Array
    weight: jax.Array
    zigzag: bool = dataclasses.field(default=False, metadata={"static": True})


class RouterSums(NamedTuple):
    """For each row a mean over its real tokens, times the row's weight; then summed over rows, so they add up. Float32.

    Attributes:
        balance: E / N * sum over experts of (share of tokens that take it) * (mean probability); 1 at equal load
            (Switch Transformer, arXiv 2101.03961, equation 4, for N experts a token).
        z: squared log-partition of the router (ST-MoE, arXiv 2202.08906, equation 5).
        dropped: share of the choices that got no slot.
        load: share of the choices that fall on each expert, [E].
    """

    balance: jax.Array
    z: jax.Array
    dropped: jax.Array
    load: jax.Array

    @classmethod
    def zeros(cls, count: int) -> "RouterSums":
        """The sums over no rows."""
        zero = jnp.zeros((), jnp.float32)
        return cls(zero, zero, zero, jnp.zeros(count, jnp.float32))


class Experts(nnx.Module):
    """The sum of a few experts' outputs, each times its weight; an expert is an MLP without biases."""

    def __init__(self, network: cfg.Network, rngs: nnx.Rngs):
        config = network.model
        self.config = experts = config.experts
        self.activation = config.activation
        scales = parametrization(config)
        count, d, f = experts.count, config.d_model, config.d_expert
        into, out = ("experts", "expert_embed", "mlp"), ("experts", "mlp", "expert_embed")
        self.router = normal(rngs.params(), (d, count), scales.hidden_std, ("embed", None))
        self.up = normal(rngs.params(), (count, d, f), scales.hidden_std, into)
        self.down = normal(rngs.params(), (count, f, d), scales.residual_std, out)
        if experts.gated:
            self.gate = normal(rngs.params(), (count, d, f), scales.hidden_std, into)

    def __call__(self, x: jax.Array, counted: Counted | None = None) -> tuple[jax.Array, RouterSums | None]:
        """One layer's experts.

        Args:
            x: [B, T, D], in the compute dtype.
            counted: in training and for the validation loss; None = drop nothing and count nothing.

        Returns:
            [B, T, D], and the sums if ``counted``.
        """
        x = constrain(x, "batch", "time", None)
        router = use(self.router, jnp.dtype(jnp.float32))
        logits = jnp.einsum("btd,de->bte", x.astype(jnp.float32), router, precision=jax.lax.Precision.HIGHEST)
        probabilities = jax.nn.softmax(logits)
        chosen = _largest(logits, self.config.per_token)
        weights = jnp.take_along_axis(probabilities, chosen, axis=-1)
        if self.config.normalize:
            weights = weights / weights.sum(-1, keepdims=True)
        if counted is None or not self.config.capacity:
            out, kept = self._dropless(x, chosen, weights), None
        else:
            out, kept = self._within_capacity(x, chosen, weights, counted)
        out = constrain(out, "batch", "sequence", None)
        return out, None if counted is None else self._sums(logits, probabilities, chosen, kept, counted)

    def _sums(
        self, logits: jax.Array, probabilities: jax.Array, chosen: jax.Array, kept: jax.Array | None, counted: Counted
    ) -> RouterSums:
        """``kept`` [B, T, N] says which choices got a slot; None = all."""
        count, each = self.config.count, self.config.per_token
        real = counted.real.astype(jnp.float32)
        tokens = jnp.maximum(real.sum(1), 1)
        taken = (_hot(chosen, count) * real[..., None]).sum(1) / tokens[:, None]
        mean = (probabilities * real[..., None]).sum(1) / tokens[:, None]
        balance = count / each * (taken * mean).sum(-1)
        z = (jnp.square(jax.nn.logsumexp(logits, -1)) * real).sum(1) / tokens
        lost = jnp.zeros_like(z) if kept is None else (real[..., None] * (1 - kept)).sum((1, 2)) / (each * tokens)
        each_row = RouterSums(balance, z, lost, taken / each)
        return jax.tree.map(lambda rows: jnp.tensordot(counted.weight, rows, 1), each_row)

    def _within_capacity(
        self, x: jax.Array, chosen: jax.Array, weights: jax.Array, counted: Counted
    ) -> tuple[jax.Array, jax.Array]:
        """[B, T, D], and which choices got a slot, float32 [B, T, N]."""
        count, (batch, length, width) = self.config.count, x.shape
        activation = ACTIVATIONS[self.activation]
        slots = capacity(self.config, length)
        x, chosen, weights = (constrain(a, "batch", None, None) for a in (x, chosen, weights))
        hot = _hot(chosen, count).astype(jnp.int32) * constrain(counted.real, "batch", None)[..., None]
        if counted.zigzag:
            order = text_places(length)
            upto = jnp.cumsum(hot[:, np.argsort(order)], axis=1)[:, order]
        else:
            upto = jnp.cumsum(hot, axis=1)
        place = jnp.take_along_axis(upto - hot, chosen, axis=-1)
        kept = counted.real[..., None] & (place < slots)
        slot = jnp.where(kept, chosen * slots + place, count * slots)

        def to_experts(slotted: jax.Array) -> jax.Array:
            # Rows of the batch against experts, over the devices of ``expert``: an all-to-all.
            slotted = constrain(slotted.reshape(batch, count, slots, -1), "batch", None, "slots", None)
            return constrain(slotted, "groups", "experts", "slots", None)

        def products(rows: jax.Array, weight: jax.Array) -> jax.Array:
            rows, weight = to_experts(rows), to_experts(weight)
            up = self._hidden("becd,edf->becf", rows, self.up)
            if self.config.gated:
                hidden = activation(self._hidden("becd,edf->becf", rows, self.gate)) * up
            else:
                hidden = activation(up)
            rows = jnp.einsum("becf,efd->becd", (hidden * weight).astype(x.dtype), use(self.down, x.dtype))
            rows = constrain(constrain(rows, "groups", "experts", "slots", None), "batch", None, "slots", None)
            return rows.reshape(batch, count * slots, width)

        return _exchanged(x, slot, count * slots, weights, products), kept.astype(jnp.float32)

    def _hidden(self, product: str, rows: jax.Array, parameter: Any) -> jax.Array:
        hidden = jnp.einsum(product, rows, use(parameter, rows.dtype))
        axes = "groups", "experts", "slots", "mlp"
        return checkpoint_name(kept_in_rows(constrain(hidden, *axes), *axes), HIDDEN)

    def _dropless(self, x: jax.Array, chosen: jax.Array, weights: jax.Array) -> jax.Array:
        """[B, T, D]: of the choices of its group's tokens, each device computes those of its experts."""
        names = ("up", "down", "gate")[: 2 + self.config.gated]
        parameters = {name: _as_kept(getattr(self, name), x.dtype) for name in names}
        local = functools.partial(_of_own_experts, activation=ACTIVATIONS[self.activation])
        tokens = dividing_spec(x, "groups", "time", None)
        specs = {"up": P("expert", None, "tensor"), "down": P("expert", "tensor"), "gate": P("expert", None, "tensor")}

        def on_device(x: jax.Array, chosen: jax.Array, weights: jax.Array, parameters: Any) -> jax.Array:
            first = jax.lax.axis_index("expert") * parameters["up"].shape[0]
            return jax.lax.psum(local(x, chosen, weights, parameters, first), ("expert", "tensor"))

        each = {name: _specs(specs[name], parameters[name]) for name in names}
        run = jax.shard_map(on_device, in_specs=(tokens,) * 3 + (each,), out_specs=tokens, check_vma=False)
        return run(x, chosen, weights, parameters)


def capacity(experts: cfg.Experts, length: int) -> int:
    """C, the slots of each expert for a sequence of ``length`` tokens, in training."""
    return min(length, math.ceil(experts.capacity * experts.per_token * length / experts.count))


def _largest(logits: jax.Array, count: int) -> jax.Array:
    """Indices of the largest logits of [B, T, E], int32 [B, T, count], of equal ones the lowest first.

    As ``jax.lax.top_k``, for which the compiler would gather the logits of all devices.
    """
    found = []
    for _ in range(count):
        found.append(jnp.argmax(logits, axis=-1))
        logits = jnp.where(jnp.arange(logits.shape[-1]) == found[-1][..., None], -jnp.inf, logits)
    return jnp.stack(found, axis=-1)


def _hot(chosen: jax.Array, count: int) -> jax.Array:
    """Choices [B, T, N] as 0 and 1 for each expert, float32 [B, T, E]."""
    return jax.nn.one_hot(chosen, count).sum(-2)


def _of_own_experts(
    x: jax.Array, chosen: jax.Array, weights: jax.Array, parameters: Any, first: Any, *, activation: Any
) -> jax.Array:
    """[B, T, D]: of all choices those that fall on the experts from ``first`` on, in blocks of one expert each."""
    count, tokens, choices = parameters["up"].shape[0], x.shape[0] * x.shape[1], chosen.size
    block = 1 << max(0, min(choices // (2 * count), _LARGEST_BLOCK).bit_length() - 1)
    blocks = (choices + min(count, choices) * (block - 1)) // block
    expert = chosen.reshape(-1) - first
    expert = jnp.where((expert >= 0) & (expert < count), expert, count)
    hot = jax.nn.one_hot(expert, count, dtype=jnp.int32)
    before = jnp.cumsum(hot, axis=0) - hot
    ends = jnp.cumsum(-(-hot.sum(0) // block))  # of the experts' blocks
    starts = jnp.concatenate([jnp.zeros(1, jnp.int32), ends])[:-1] * block
    slot = jnp.where(expert < count, (hot * (starts + before)).sum(1), blocks * block)

    def one(_: None, inputs: Any) -> tuple[None, jax.Array]:
        rows, weight, expert = inputs

        def product() -> jax.Array:
            mine = {name: _one_of(a, expert) for name, a in parameters.items()}
            up = checkpoint_name(_times(rows, mine["up"]), HIDDEN)
            gated = "gate" in mine
            hidden = activation(checkpoint_name(_times(rows, mine["gate"]), HIDDEN)) * up if gated else activation(up)
            return _times((hidden * weight).astype(rows.dtype), mine["down"])

        return None, jax.lax.cond(expert < count, product, lambda: jnp.zeros_like(rows))

    def products(rows: jax.Array, weight: jax.Array) -> jax.Array:
        of_block = jnp.searchsorted(ends, jnp.arange(blocks), side="right")
        rows_of_blocks, weight = (a.reshape(blocks, block, -1) for a in (rows, weight))
        return jax.lax.scan(one, None, (rows_of_blocks, weight, of_block))[1].reshape(rows.shape)

    rows, slot, flat = (a.reshape(1, tokens, -1) for a in (x, slot, weights))
    return _exchanged(rows, slot, blocks * block, flat, products).reshape(x.shape)


def _as_kept(parameter: Parameter, dtype: Any) -> Kept:
    """Matrices [E, D, F], or [E, F, D], as they enter products; rounded ones with a scale for each column."""
    return used(parameter[...], parameter.axes, (1,), dtype)


def _specs(spec: P, weights: Kept) -> Any:
    """Where the parts of matrices lie that lie so."""
    return Rounded(spec, P(spec[0], *spec[2:])) if isinstance(weights, Rounded) else spec


def _one_of(weights: Kept, expert: jax.Array) -> Any:
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, expert, keepdims=False), weights)


def _times(rows: jax.Array, weights: Kept) -> jax.Array:
    return scaled(rows @ factor(weights, rows.dtype), weights)


def _exchanged(x: jax.Array, slot: jax.Array, count: int, weights: jax.Array, products: Any) -> jax.Array:
    """Tokens to slots, through ``products``, and back.

    An expert's features are multiplied by the weight before its last product. So the gradient of the weight is a sum
    over features, and the backward pass need not compute the expert's output again.

    Args:
        x: [B, T, D].
        slot: of each choice, int32 [B, T, N]; ``count`` = none.
        count: of the slots.
        weights: of each choice, float32 [B, T, N].
        products: rows [B, count, D] and the weight of each, float32 [B, count, 1], to weighted rows [B, count, D].

    Returns:
        [B, T, D]: of each token the sum of what its slots hold.
    """
    batch, length, each = slot.shape
    flat = slot.reshape(batch, length * each)
    choice = jnp.full((batch, count), length * each, jnp.int32)  # of each slot
    choice = jax.vmap(lambda c, s: c.at[s].set(jnp.arange(length * each, dtype=jnp.int32), mode="drop"))(choice, flat)
    token = choice // each
    weight = _to_slots(weights.reshape(batch, length * each, 1), choice, flat[..., None])
    return _to_tokens(products(_to_slots(x, token, slot), weight), slot, token)


# Each of the two is the gradient of the other, so all are gathers: a scatter is slow, and adds in no certain order on
# GPUs.


@jax.custom_vjp
def _to_slots(x: jax.Array, token: jax.Array, slot: jax.Array) -> jax.Array:
    """Of x [B, T, D] the row of each slot's ``token`` [B, S], T = none; ``slot`` [B, T, N], S = none, says the same."""
    return _rows(x, token)


@jax.custom_vjp
def _to_tokens(rows: jax.Array, slot: jax.Array, token: jax.Array) -> jax.Array:
    """Of each token the sum of its slots' ``rows`` [B, S, D], [B, T, D]."""
    # One gather for each choice: with choices as a dimension between tokens and features, arrays were padded to 8.
    parts = (_rows(rows, slot[..., n]).astype(jnp.float32) for n in range(slot.shape[-1]))
    return functools.reduce(jnp.add, parts).astype(rows.dtype)


def _rows(x: jax.Array, index: jax.Array) -> jax.Array:
    """Rows of x [B, n, D] by ``index`` [B, m]; index n gives zeros."""
    return jax.vmap(lambda rows, i: rows.at[i].get(mode="fill", fill_value=0))(x, index)


_to_slots.defvjp(
    lambda x, token, slot: (_to_slots(x, token, slot), (slot, token)),
    lambda places, grad: (_to_tokens(grad, *places), None, None),
)
_to_tokens.defvjp(
    lambda rows, slot, token: (_to_tokens(rows, slot, token), (token, slot)),
    lambda places, grad: (_to_slots(grad, *places), None, None),
)
