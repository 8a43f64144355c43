"""One Transformer block: attention and MLP around a residual stream."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

from scaling import config as cfg
from scaling.model import kernels
from scaling.model.attention import Memory, SelfAttention, Tree
from scaling.model.layers import SAVED, LayerNorm, add_bias, constant, dropout, normal
from scaling.model.parametrization import parametrization
from scaling.model.quantized import check, project
from scaling.parallel.sharding import constrain, dividing_spec

Sublayer = Callable[[jax.Array], jax.Array]

ACTIVATIONS = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
}


class MLP(nnx.Module):
    """Two projections with a nonlinearity between."""

    def __init__(self, network: cfg.Network, rngs: nnx.Rngs):
        config = network.model
        d, f = config.d_model, config.d_ff
        scales = parametrization(config)
        self.activation = config.activation
        self.quantization = network.compute.quantization
        self.up = normal(rngs.params(), (d, f), scales.hidden_std, ("embed", "mlp"))
        self.up_bias = constant(0.0, (f,), ("mlp",), "bias")
        self.down = normal(rngs.params(), (f, d), scales.residual_std, ("mlp", "embed"))
        self.down_bias = constant(0.0, (d,), (None,), "bias")

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, D] to [B, T, D]."""
        hidden = add_bias(project(x, self.up, self.quantization), self.up_bias)
        hidden = checkpoint_name(constrain(hidden, "batch", "time", "mlp"), SAVED)
        out = project(ACTIVATIONS[self.activation](hidden), self.down, self.quantization)
        return constrain(add_bias(out, self.down_bias), "batch", "sequence", None)


class Block(nnx.Module):
    """Attention then MLP; LayerNorm before each sublayer (GPT-2/3) or after each sum (GPT-1)."""

    def __init__(self, network: cfg.Network, rngs: nnx.Rngs):
        check(network.compute.quantization)
        self.config = config = network.model
        self.attention_norm = LayerNorm(config.d_model, config.norm_epsilon)
        self.attention = SelfAttention(network, rngs)
        self.mlp_norm = LayerNorm(config.d_model, config.norm_epsilon)
        self.mlp = MLP(network, rngs)

    def __call__(
        self,
        x: jax.Array,
        window: int,
        segments: jax.Array | None = None,
        key: jax.Array | None = None,
        tree: Tree | None = None,
        zigzag: bool = False,
    ) -> jax.Array:
        """[B, T, D] to [B, T, D].

        Args:
            x: the residual stream, in the compute dtype.
            window: band width of the attention; 0 = dense.
            segments: document number of each token [B, T], or None.
            key: dropout key of this layer; None = no dropout.
            tree: rows are a context and several continuations; then neither segments nor dropout.
            zigzag: positions lie in the order of ``ring.zigzag``.
        """
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        rate = self.config.dropout_residual

        def attention(h: jax.Array) -> jax.Array:
            return dropout(self.attention(h, window, segments, keys[0], tree, zigzag), rate, keys[1])

        def mlp(h: jax.Array) -> jax.Array:
            return dropout(self.mlp(h), rate, keys[2])

        return self._around(x, attention, mlp)

    def prefill(self, x: jax.Array, window: int, starts: jax.Array, slots: int) -> tuple[jax.Array, Memory]:
        """``__call__`` on the first tokens of padded rows, and their cache; see ``SelfAttention.prefill``."""
        memory: list[Memory] = []

        def attention(h: jax.Array) -> jax.Array:
            out, new = self.attention.prefill(h, window, starts, slots)
            memory.append(new)
            return out

        return self._around(x, attention, self.mlp), memory[0]

    def extend(
        self, x: jax.Array, window: int, memory: Memory, slot: jax.Array, starts: jax.Array
    ) -> tuple[jax.Array, Memory]:
        """``__call__`` on the next tokens, and the cache with them; see ``SelfAttention.extend``."""
        extended: list[Memory] = []

        def attention(h: jax.Array) -> jax.Array:
            out, new = self.attention.extend(h, window, memory, slot, starts)
            extended.append(new)
            return out

        return self._around(x, attention, self.mlp), extended[0]

    def _around(self, x: jax.Array, attention: Sublayer, mlp: Sublayer) -> jax.Array:
        """The residual stream around both sublayers."""
        # A kept sum spares the backward pass the product before it; a pre-norm block's last is the next one's input.
        if self.config.norm == "pre":
            x = checkpoint_name(_in_rows(self._plus(x, attention(self.attention_norm(x)))), SAVED)
            return _in_rows(self._plus(x, mlp(self.mlp_norm(x))))
        x = self.attention_norm(checkpoint_name(self._plus(x, attention(x)), SAVED))
        return self.mlp_norm(checkpoint_name(self._plus(x, mlp(x)), SAVED))

    def _plus(self, x: jax.Array, update: jax.Array) -> jax.Array:
        multiplier = parametrization(self.config).residual_multiplier
        return x + (update if multiplier == 1.0 else update * jnp.asarray(multiplier, x.dtype))


def _in_rows(x: jax.Array) -> jax.Array:
    """x with its features side by side in memory, as the products of the backward pass want it.

    The TPU's compiler would rather keep what a layer saves the other way round, for the product that made it, and turn
    each layer's share again when it is read: 4 % of the cycles of a step (docs/planning.md).
    """
    if kernels.platform() != "tpu":
        return x
    layout = Layout(tuple(range(x.ndim)))
    if jax.sharding.get_abstract_mesh().empty:
        return with_layout_constraint(x, layout)
    # On each device's own part: of the whole, the compiler's partitioner would make each device hold all.
    spec = dividing_spec(x, "batch", "sequence", None)
    return jax.shard_map(lambda x: with_layout_constraint(x, layout), in_specs=spec, out_specs=spec)(x)
