"""Attention around the residual stream, of a text over itself or over another: projections, positions, cache."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from scaling.config import schema as cfg
from scaling.config.remat import QKV, all_keep
from scaling.model import disentangled, flash, kernels
from scaling.model.attend import Softmax, across, attend
from scaling.model.context import AttentionContext, Cached, Memory
from scaling.model.fused import stacked
from scaling.model.layers import Parameter, add_bias, constant, normal, normal_parts
from scaling.model.norms import make_norm
from scaling.model.parametrization import parametrization
from scaling.model.positions import alibi_slopes, rotate
from scaling.model.quantized import project
from scaling.model.rounded import Kept, rounded, wide
from scaling.model.transformer_xl import RelativeScores
from scaling.parallel.sharding import constrain, current_mesh


class Attention(nnx.Module):
    """What both kinds have: queries, keys and values have a projection each, keys and values maybe fewer heads."""

    def __init__(self, network: cfg.Network, rngs: nnx.Rngs):
        config = network.model
        d, h, n, k = config.d_model, config.num_heads, config.kv_heads, config.d_head
        scales = parametrization(config)
        self.config, self.compute = config, network.compute
        slopes = alibi_slopes(h) if config.positions == "alibi" else ()
        self.softmax = Softmax(scales.attention_scale, slopes=slopes, distance=config.relative_distance)
        # A single head of keys serves the queries of all devices.
        shared = None if config.has_grouped_heads and n == 1 else "heads"
        axes = [("embed", name, None) for name in ("heads", shared, shared)]
        # Drawn as one array, as they were stored once: the same seed gives the same model as ever.
        self.query, self.key, self.value = normal_parts(rngs.params(), (d, (h, n, n), k), scales.hidden_std, axes)
        if config.qkv_bias:
            self.query_bias = constant(0.0, (h, k), ("heads", None), "bias")
            if config.has_key_bias:
                self.key_bias = constant(0.0, (n, k), (shared, None), "bias")
            self.value_bias = constant(0.0, (n, k), (shared, None), "bias")
        if config.qk_norm:
            self.query_norm, self.key_norm = make_norm(config, k), make_norm(config, k)
        self.out = normal(rngs.params(), (h, k, d), scales.residual_std, ("heads", None, "embed"))
        if config.out_bias:
            self.out_bias = constant(0.0, (d,), (None,), "bias")
        if config.distances and not config.disentangled.shared:
            self.distances = disentangled.Projections(config, rngs)

    def _headed(self, part: jax.Array, bias: Parameter | None, time: str | None = None) -> jax.Array:
        """A projection [B, T, H, K] with its bias, as [B, H, T, K]."""
        part = part.swapaxes(1, 2)
        part = part if bias is None else add_bias(part, bias, 1)
        return checkpoint_name(constrain(part, "batch", "heads", time, None), QKV)

    def _merge(self, mixed: jax.Array, context: AttentionContext) -> jax.Array:
        """Heads [B, H, T, K] back into the residual stream [B, T, D]."""
        mixed = constrain(mixed, "batch", "heads", "time" if context.zigzag else None, None)
        mixed, merged = mixed.swapaxes(1, 2), 2
        if flash.side_by_side(mixed.shape[-1]):  # as the kernel wrote them; others would be moved
            mixed, merged = mixed.reshape(*mixed.shape[:2], -1), 1
        out = project(mixed, _as_matrix(self.out), self.compute.quantization, merged)
        return constrain(add_bias(out, self.out_bias) if self.config.out_bias else out, "batch", "sequence", None)


class SelfAttention(Attention):
    """Attention of a text over itself."""

    def __init__(self, network: cfg.Network, rngs: nnx.Rngs):
        super().__init__(network, rngs)
        if network.model.is_relative:
            self.relative = RelativeScores(network.model, rngs)

    def fuse(self) -> None:
        """Makes one parameter of the three projections, as ``model.fused`` does of arrays.

        For decoding, where products are so small that one costs less than three.
        """
        self.qkv = _in_one(self.query, self.key, self.value)
        names = ["query", "key", "value"]
        if self.config.qkv_bias:
            self.qkv_bias = _in_one(self.query_bias, self.key_bias, self.value_bias)
            names += [f"{name}_bias" for name in names]
        for name in names:
            delattr(self, name)

    def __call__(
        self, x: jax.Array, context: AttentionContext, key: jax.Array | None = None
    ) -> tuple[jax.Array, Memory]:
        """Attention around the residual stream.

        Args:
            x: [B, T, D].
            context: who sees whom.
            key: of the dropout on weights; None = no dropout.

        Returns:
            [B, T, D], and of a cached context the layer's cache with the new tokens in it, of any other x.
        """
        rate = self.config.dropout_attention
        softmax = self.softmax._replace(relative=context.relative, rate=rate, key=key if rate > 0 else None)
        softmax = softmax._replace(causal=context.causal)
        q, k, v = self._project(x, context)
        if self.config.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.config.positions == "rotary":
            where = jnp.arange(x.shape[1])[None] if context.positions is None else context.positions
            q, k = (rotate(part, where, self.config.rotary) for part in (q, k))
        if self.config.distances:
            assert context.relative is not None
            by = self if self.config.disentangled.shared else self.distances
            added = disentangled.scores(q, k, context.relative, by, self.config)
            softmax = softmax._replace(relative=None, added=added)
        if self.config.is_relative:
            keys = context.cached.slots + x.shape[1] if context.cached and context.cached.memory else k.shape[2]
            q, added = self.relative(q, keys, context)
            softmax = softmax._replace(added=added)
        new: Memory = (k, v)
        if self.compute.int8_cache and self.config.causal:  # an encoder has no cache
            # Read at once as it will be read from the cache: so a text is the same in whatever pieces it is read.
            new, (k, v) = _in_8_bits(k, v)
        stacked = all_keep(self.compute.remat, QKV)
        mixed = attend(q, k, v, context, softmax, self.compute.attention_block, stacked)
        memory = _extended(context.cached, new, mixed) if context.cached else (x,)
        return self._merge(mixed, context), memory

    def _project(self, x: jax.Array, context: AttentionContext) -> list[jax.Array]:
        """Queries [B, H, T, K], keys and values [B, N, T, K]; the sequence whole, unless the ring attends."""
        time = "time" if context.zigzag else None
        biases: list[Parameter | None] = [None, None, None]
        if hasattr(self, "qkv"):
            parts = self._together(x, self.qkv, time)
            if self.config.qkv_bias:
                biases = [Parameter(bias, axes=("heads", None), kind="bias") for bias in self.qkv_bias[...]]
        else:
            weights = (self.query, self.key, self.value)
            if self.config.qkv_bias:
                biases = [self.query_bias, getattr(self, "key_bias", None), self.value_bias]
            seen = x if context.content is None else context.content.seen(x)
            if seen is x and not self.config.has_grouped_heads and current_mesh().shape[kernels.HEAD_AXIS] > 1:
                # The gradient of x is a sum over the devices of the heads: once, and not thrice.
                parts = self._together(x, _in_one(*weights), time)
            else:
                inputs = zip((x, seen, seen), weights, strict=True)
                parts = [project(states, w, self.compute.quantization) for states, w in inputs]
        return [self._headed(part, bias, time) for part, bias in zip(parts, biases, strict=True)]

    def _together(self, x: jax.Array, weights: Parameter, time: str | None) -> list[jax.Array]:
        """One product for queries, keys and values, [B, T, H, K] each, with weights [D, 3, H, K]."""
        product = constrain(project(x, weights, self.compute.quantization), "batch", time, None, "heads", None)
        # Not by indexing: its gradient is a sum of padded arrays, that of a split puts them together.
        return [part.squeeze(2) for part in jnp.split(product, 3, axis=2)]


class CrossAttention(Attention):
    """Attention over what an encoder has made of another text (arXiv 1706.03762, section 3.2.3)."""

    def __call__(self, x: jax.Array, context: AttentionContext, key: jax.Array | None = None) -> jax.Array:
        """Attention of tokens [B, T, D] over ``context.source``: [B, T, D]; ``key`` is that of dropout on weights."""
        source, rate = context.source, self.config.dropout_attention
        assert source is not None
        keys, values = source.memory or self.memory(source.states)
        q = self._one(x, "query")
        softmax = Softmax(self.softmax.scale, rate=rate, key=key if rate > 0 else None)
        return self._merge(across(q, keys, values, (context.segments, source.segments), softmax), context)

    def memory(self, states: jax.Array | None) -> Memory:
        """Keys and values [B, N, S, K] of the encoder's final states [B, S, D]."""
        assert states is not None
        keys, values = self._one(states, "key"), self._one(states, "value")
        return _in_8_bits(keys, values)[0] if self.compute.int8_cache else (keys, values)

    def _one(self, x: jax.Array, name: str) -> jax.Array:
        bias = getattr(self, f"{name}_bias") if self.config.qkv_bias else None
        found = self._headed(project(x, getattr(self, name), self.compute.quantization), bias)
        return getattr(self, f"{name}_norm")(found) if self.config.qk_norm and name != "value" else found


def _in_one(*parts: Parameter) -> Parameter:
    """Parameters [..., H, K] as one [..., 3, H, K]."""
    whole, axes = stacked([part[...] for part in parts]), stacked([part.axes for part in parts])
    return Parameter(whole, axes=axes, kind=parts[0].kind)


def _as_matrix(parameter: Parameter) -> Parameter:
    """A parameter [H, K, D] as [H * K, D].

    Devices may store rows of it, which need no new order when they are gathered; those of [H, K, D] would. In 8 bits it
    has a scale [D], which stays.
    """
    value = parameter[...]
    merged = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]) if x.ndim == 3 else x, value)
    return Parameter(merged, axes=(parameter.axes[0], parameter.axes[2]), kind=parameter.kind)


def _extended(cached: Cached, new: Memory, mixed: jax.Array) -> Memory:
    """A layer's cache with the keys and values [B, H, T, K] of this call in it; ``mixed`` is what attention gave."""
    if cached.memory is None:
        room = [(0, 0), (0, 0), (0, cached.slots - mixed.shape[2]), (0, 0)]
        return jax.tree.map(lambda x: laid_out(jnp.pad(x, room[: x.ndim])), new)
    slot = _once_known(mixed, cached.slot)
    write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=2)
    if jnp.ndim(slot):
        write = jax.vmap(functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1))
    return jax.tree.map(lambda old, x: laid_out(write(old, x.astype(old.dtype), slot)), cached.memory, new)


def laid_out(cache: jax.Array) -> jax.Array:
    """Keys or values of a cache [B, H, S, K], or their scales [B, H, S], where they lie on the mesh."""
    return constrain(cache, *("batch", "heads", None, None)[: cache.ndim])


def _in_8_bits(*parts: jax.Array) -> tuple[tuple[Kept, ...], list[jax.Array]]:
    """Keys and values [B, H, T, K] in 8 bits, one scale for each token and head; and what these stand for."""
    found = tuple(rounded(x, (3,)) for x in parts)
    return found, [wide(narrow, (3,), x.dtype) for narrow, x in zip(found, parts, strict=True)]


def _once_known(mixed: jax.Array, slot: jax.Array | int) -> jax.Array | int:
    """``slot``, in a form that XLA can only compute after ``mixed``.

    So the cache is read before it is written, and written in place. XLA's CPU compiler otherwise keeps the order open
    and copies the cache each step, and optimisation barriers are gone before it decides. Over several devices the
    dependence would cost a broadcast, so it is left out.
    """
    if current_mesh().size > 1:
        return slot
    return slot + (mixed[0, 0, 0, 0] > jnp.inf)  # adds 0: nothing is more than infinite
