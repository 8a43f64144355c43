"""The MLP of a block: two projections with a nonlinearity between, gated or not."""

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from scaling.config import schema as cfg
from scaling.config.remat import HIDDEN
from scaling.model.layers import Parameter, add_bias, constant, normal
from scaling.model.parametrization import parametrization
from scaling.model.quantized import project
from scaling.parallel.sharding import constrain, kept_in_rows

ACTIVATIONS = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class MLP(nnx.Module):
    """down(activation(up(x))), or down(activation(gate(x)) * up(x)) (GLU variants, arXiv 2002.05202)."""

    def __init__(self, network: cfg.Network, rngs: nnx.Rngs):
        config = network.model
        d, f = config.d_model, config.d_ff
        scales = parametrization(config)
        self.activation, self.gated, self.biased = config.activation, config.gated, config.mlp_bias
        self.quantization = network.compute.quantization
        self.up = normal(rngs.params(), (d, f), scales.hidden_std, ("embed", "mlp"))
        self.down = normal(rngs.params(), (f, d), scales.residual_std, ("mlp", "embed"))
        if self.gated:
            self.gate = normal(rngs.params(), (d, f), scales.hidden_std, ("embed", "mlp"))
        if self.biased:
            self.up_bias = constant(0.0, (f,), ("mlp",), "bias")
            self.down_bias = constant(0.0, (d,), (None,), "bias")
            if self.gated:
                self.gate_bias = constant(0.0, (f,), ("mlp",), "bias")

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, D] to [B, T, D]."""
        hidden = self._hidden(x, self.up, "up_bias")
        if self.gated:
            hidden = ACTIVATIONS[self.activation](self._hidden(x, self.gate, "gate_bias")) * hidden
        else:
            hidden = ACTIVATIONS[self.activation](hidden)
        out = project(hidden, self.down, self.quantization)
        return constrain(add_bias(out, self.down_bias) if self.biased else out, "batch", "sequence", None)

    def _hidden(self, x: jax.Array, weights: Parameter, bias: str) -> jax.Array:
        """[B, T, D] to [B, T, F]."""
        hidden = project(x, weights, self.quantization)
        if self.biased:
            hidden = add_bias(hidden, getattr(self, bias))
        axes = "batch", "time", "mlp"
        return checkpoint_name(kept_in_rows(constrain(hidden, *axes), *axes), HIDDEN)
