"""One Transformer block: attention, maybe over another text, too, and MLP around a residual stream."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from scaling.config import schema as cfg
from scaling.config.remat import SUM
from scaling.model.attention import CrossAttention, SelfAttention
from scaling.model.context import AttentionContext, Memory
from scaling.model.experts import Counted, Experts, RouterSums
from scaling.model.layers import dropout
from scaling.model.mlp import MLP
from scaling.model.norms import make_norm
from scaling.model.parametrization import parametrization
from scaling.model.quantized import check
from scaling.parallel.sharding import kept_in_rows

_STREAM = ("batch", "sequence", None)  # logical axes of the residual stream


class Block(nnx.Module):
    """Attention and MLP, or experts in its place, around a residual stream.

    One after the other, with a norm before each (GPT-2/3) or after each sum (GPT-1); or side by side on the same stream
    (``parallel``), with a norm for both (GPT-J, PaLM) or one each (GPT-NeoX). Where there is an encoder, attention over
    its states comes between the two, in the same way.
    """

    def __init__(self, network: cfg.Network, rngs: nnx.Rngs, experts: bool = False):
        check(network.compute.quantization)
        self.config = config = network.model
        self.attention_norm = make_norm(config, config.d_model)
        self.attention = SelfAttention(network, rngs)
        if config.encoder_layers:
            self.cross_norm = make_norm(config, config.d_model)
            self.cross = CrossAttention(network, rngs)
        if config.parallel != "one_norm":
            self.mlp_norm = make_norm(config, config.d_model)
        self.routes = experts
        if experts:
            self.experts = Experts(network, rngs)
        else:
            self.mlp = MLP(network, rngs)

    def __call__(
        self,
        x: jax.Array,
        context: AttentionContext,
        key: jax.Array | None = None,
        counted: Counted | None = None,
    ) -> tuple[jax.Array, Memory, RouterSums | None]:
        """One layer.

        Args:
            x: the residual stream [B, T, D], in the compute dtype.
            context: who sees whom in this layer.
            key: dropout key of this layer; None = no dropout.
            counted: as of ``Experts``.

        Returns:
            The residual stream, what attention gives beside it, and of experts that count their sums.
        """
        keys = (None,) * 5 if key is None else jax.random.split(key, 5 if self.config.encoder_layers else 3)
        rate = self.config.dropout_residual
        # A kept sum spares the backward pass the product before it; a pre-norm block's last is the next one's input.
        if self.config.parallel != "no":
            normal = self.attention_norm(x)
            update, memory = self.attention(normal, context, keys[0])
            update = dropout(update, rate, keys[1])
            other, sums = self._feed(normal if self.config.parallel == "one_norm" else self.mlp_norm(x), counted)
            return kept_in_rows(self._plus(x, update + dropout(other, rate, keys[2])), *_STREAM), memory, sums
        if self.config.norm == "pre":
            update, memory = self.attention(self.attention_norm(x), context, keys[0])
            x = checkpoint_name(kept_in_rows(self._plus(x, dropout(update, rate, keys[1])), *_STREAM), SUM)
            if self.config.encoder_layers:
                update = self.cross(self.cross_norm(x), context, keys[3])
                x = checkpoint_name(kept_in_rows(self._plus(x, dropout(update, rate, keys[4])), *_STREAM), SUM)
            update, sums = self._feed(self.mlp_norm(x), counted)
            return kept_in_rows(self._plus(x, dropout(update, rate, keys[2])), *_STREAM), memory, sums
        update, memory = self.attention(x, context, keys[0])
        x = self.attention_norm(checkpoint_name(self._plus(x, dropout(update, rate, keys[1])), SUM))
        if self.config.encoder_layers:
            update = self.cross(x, context, keys[3])
            x = self.cross_norm(checkpoint_name(self._plus(x, dropout(update, rate, keys[4])), SUM))
        update, sums = self._feed(x, counted)
        x = self._plus(x, dropout(update, rate, keys[2]))
        return self.mlp_norm(checkpoint_name(x, SUM)), memory, sums

    def _feed(self, x: jax.Array, counted: Counted | None) -> tuple[jax.Array, RouterSums | None]:
        return self.experts(x, counted) if self.routes else (self.mlp(x), None)

    def _plus(self, x: jax.Array, update: jax.Array) -> jax.Array:
        multiplier = parametrization(self.config).residual_multiplier
        return x + (update if multiplier == 1.0 else update * jnp.asarray(multiplier, x.dtype))
