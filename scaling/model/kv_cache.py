"""Decoding with a key-value cache: the prompt once (``prefill``), then a few tokens at a time (``extend``).

Rows of a batch are padded at the front, so that all of them write to the same slot of the cache, in place. A cache
is a plain tree: for each layer keys and values, [B, N, S, K] each, batch and heads sharded as in training. Keys and
values of what an encoder has read are computed once, and lie beside them.

With ``compute.decode_int8``, matrices and tables, or keys and values, or both are in 8 bits (``rounded``).

Layers are separate arrays here and not a stack as in training. A scan over a stack reads each layer through a
dynamic slice, which is a copy of the weights a token; decoding is bound by reading the weights once
(docs/generation.md has the measurements).
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from scaling.config import schema as cfg
from scaling.model import decoder
from scaling.model.context import AttentionContext, Cached, Memory, Source
from scaling.model.fused import fused
from scaling.model.parametrization import parametrization
from scaling.model.rounded import factor, rounded, rounded_axes, scaled, wide
from scaling.model.stack import STACKS, layers_of
from scaling.parallel.sharding import constrain, is_axes, stored_spec

# What each token reads: the tables, and of blocks the matrices [L, ...], with the dimensions over which products sum.
_SUMMED = {"qkv": (1,), "query": (1,), "key": (1,), "value": (1,), "out": (1, 2)}
_SUMMED |= {"up": (1,), "gate": (1,), "down": (1,)}
_OF_EXPERTS = ("up", "gate", "down")  # which have a dimension of experts before those
_TABLES = ("tokens", "unembedding")
# Of each layer the keys and values of the tokens, and those of the source where there is one.
Cache = tuple[Memory, ...]


def split_layers(network: cfg.Network, params: decoder.Params, mesh: Mesh) -> decoder.Params:
    """Parameters for decoding: each layer's by itself, queries, keys and values in one, matrices in the compute dtype.

    Or in 8 bits, as ``network.compute`` says.

    Args:
        network: resolved.
        params: as ``decoder.initialize`` makes them, anywhere.
        mesh: they are laid out on it as in training.

    Returns:
        The tree, with a tuple of ``num_layers`` trees as ``blocks``.
    """
    # From one device or the host; where they lie as in training, nothing moves.
    params = jax.device_put(params, decoder.shardings(network.model, mesh))
    return splitter(network, mesh)(params)


def splitter(network: cfg.Network, mesh: Mesh) -> Callable[[decoder.Params], decoder.Params]:
    """``split_layers`` of parameters that lie as in training, as one compiled function for weights that change."""
    layouts = _shardings(_split_axes(network), mesh)
    return jax.jit(functools.partial(_split, network), out_shardings=layouts)


def abstract_layers(network: cfg.Network, mesh: Mesh) -> decoder.Params:
    """Shapes, types and layouts of what ``split_layers`` makes; nothing is allocated."""
    shapes = jax.eval_shape(functools.partial(_split, network), decoder.abstract(network.model))
    layouts = _shardings(_split_axes(network), mesh)
    return jax.tree.map(lambda x, layout: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), shapes, layouts)


def _split(network: cfg.Network, params: decoder.Params) -> decoder.Params:
    config = network.model
    # Biases, gains and positions (kinds of their own) are added in float32 whatever the compute dtype.
    narrow = jax.tree.map_with_path(
        functools.partial(_narrow, network.compute), params, decoder.metadata(config, "kind")
    )
    return _unstacked(config, _rounded(network, rounded, _together(config, narrow)), lambda i, x: x[i])


def _narrow(compute: cfg.Compute, path: Any, x: jax.Array, kind: str) -> jax.Array:
    routes = path[-1].key == "router"  # decides in float32
    if routes or kind not in ("matrix", "embedding") or (compute.int8_weights and _summed(path)):
        return x
    return x.astype(jnp.dtype(compute.dtype))


def _split_axes(network: cfg.Network) -> Any:
    config = network.model
    axes = _rounded(network, rounded_axes, _together(config, decoder.axes_tree(config)))
    return _unstacked(config, axes, lambda _, names: names[1:])


def _rounded(network: cfg.Network, function: Callable[[Any, tuple[int, ...]], Any], tree: Any) -> Any:
    """A tree of arrays or axes, with ``function`` of those that are in 8 bits."""
    if not network.compute.int8_weights:
        return tree

    def one(path: Any, x: Any) -> Any:
        summed = _summed(path)
        return function(x, summed) if summed else x

    return jax.tree.map_with_path(one, tree, is_leaf=is_axes)


def _summed(path: Any) -> tuple[int, ...]:
    """Dimensions of a table, or of a stack of matrices, over which products sum; () = it stays wide."""
    names = [step.key for step in path]
    if names[0] in _TABLES:
        return (1,)
    if names[0] not in STACKS:
        return ()
    return (2,) if "experts" in names and names[-1] in _OF_EXPERTS else _SUMMED.get(names[-1], ())


def in_8_bits(network: cfg.Network, params: decoder.Params, mesh: Mesh) -> decoder.Params:
    """Parameters as training has them, with the numbers that ``split_layers`` makes of them in 8 bits.

    For scoring, which has no layers by themselves: it computes with these numbers in the compute dtype.
    """
    through = functools.partial(_rounded, network, lambda x, summed: wide(rounded(x, summed), summed, x.dtype))
    found: decoder.Params = jax.jit(through, out_shardings=decoder.shardings(network.model, mesh))(params)
    return found


def _together(config: cfg.Model, tree: Any) -> Any:
    """Queries, keys and values in one where they have the same shape."""
    if config.has_grouped_heads:
        return tree
    blocks = {name: tree[name] | {"attention": fused(tree[name]["attention"])} for name in layers_of(config)}
    return tree | blocks


def _unstacked(config: cfg.Model, tree: Any, layer: Any) -> Any:
    """The tree with a tuple of layers in the place of its stacks; ``layer(i, leaf)`` takes the i-th of a stack."""
    found = {}
    for name, layers in layers_of(config).items():
        for i, number in enumerate(layers):
            found[number] = jax.tree.map(functools.partial(layer, i), tree[name], is_leaf=is_axes)
    outside = {name: value for name, value in tree.items() if name not in decoder.STACKS}
    return outside | {decoder.STACK: tuple(found[number] for number in range(config.num_layers))}


def _shardings(axes: Any, mesh: Mesh) -> Any:
    return jax.tree.map(lambda names: NamedSharding(mesh, stored_spec(names)), axes, is_leaf=is_axes)


def encoded(
    network: cfg.Network, params: decoder.Params, ids: jax.Array | None, segments: jax.Array | None
) -> Source | None:
    """What the encoder makes of its texts (``Decoder.encode``), for ``prefill``; None where there are none."""
    return None if ids is None else decoder.merge_layers(network, params)[0].encode(ids, segments)


def prefill(
    network: cfg.Network,
    params: decoder.Params,
    tokens: jax.Array,
    starts: jax.Array,
    slots: int,
    source: Source | None = None,
) -> tuple[jax.Array, Cache]:
    """Reads the prompts.

    Args:
        network: resolved.
        params: from ``split_layers``.
        tokens: ids, int32 [B, T], padded at the front with any ids.
        starts: first slot of each row that is not padding, int32 [B]; T for a row that is all padding.
        slots: S, of the cache; at least T.
        source: what the encoder has read; its keys and values are computed here, once.

    Returns:
        Final hidden states [B, T, D] (those of padding mean nothing), and the cache with slots 0 to T - 1 filled.
    """
    cached, none = Cached(starts, 0, slots), [None] * network.model.num_layers
    return _through(network, params, tokens, cached, none, source, causal=not network.model.prefix_lm)


def extend(
    network: cfg.Network,
    params: decoder.Params,
    tokens: jax.Array,
    cache: Cache,
    slot: jax.Array,
    starts: jax.Array,
    source_segments: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    """Reads the next tokens [B, T] of every row, at slots ``slot`` to ``slot + T - 1``.

    What lies in later slots is not seen. ``slot`` is one for all rows, which is faster, or one a row, int32 [B].
    ``source_segments`` are those of the source that ``prefill`` has read.

    Returns:
        Final hidden states [B, T, D], and the cache with these slots filled.
    """
    source = Source(None, source_segments) if network.model.encoder_layers else None
    return _through(network, params, tokens, Cached(starts, slot, cache[0][0].shape[2]), cache, source)


def _through(
    network: cfg.Network,
    params: decoder.Params,
    tokens: jax.Array,
    cached: Cached,
    cache: Sequence[Memory | None],
    source: Source | None,
    causal: bool = True,
) -> tuple[jax.Array, Cache]:
    """Tokens through all layers, each with its cache (None: it has none yet)."""
    model, blocks = decoder.merge_layers(network, params)
    slot = cached.slot
    there = (jnp.asarray(slot)[:, None] if jnp.ndim(slot) else slot) + jnp.arange(tokens.shape[1])
    # Padding stands at position 0, in a document of its own.
    positions = jnp.clip(there - cached.starts[:, None], 0, network.model.context_length - 1)
    segments = -(there < cached.starts[:, None]).astype(jnp.int32)
    context = model.informed(AttentionContext(positions, segments, cached=cached, source=source, causal=causal))
    x, grown = model.embed(tokens, positions), []
    layers = itertools.cycle(decoder.period(network.model))
    for block, layer, memory in zip(blocks, layers, cache, strict=False):
        here = context.within(layer.sight)
        read: Memory = ()
        if source is not None:
            read = block.cross.memory(source.states) if memory is None else memory[2:]
            here = here.reading(read)
        x, after, _ = block(x, here if memory is None else here.after(memory[:2]))
        assert after is not None
        grown.append((*after, *read))
    return model.finish(x), tuple(grown)


def next_logits(network: cfg.Network, params: decoder.Params, hidden: jax.Array, vocab: int) -> jax.Array:
    """Logits of the next token.

    Args:
        network: resolved.
        params: from ``split_layers``.
        hidden: final hidden states [B, D].
        vocab: ids from here on get -inf.

    Returns:
        float32 [B, padded_vocab].
    """
    model = decoder.merge_layers(network, params)[0]
    table, bias = model.output_table(hidden.dtype), model.output_bias()
    # XLA's CPU products read a large matrix about twice as fast as the left factor. The mask keeps the compiler
    # from turning the product round again.
    logits = jnp.einsum("vd,bd->vb", factor(table, hidden.dtype), hidden, preferred_element_type=jnp.float32)
    logits = scaled(logits, table, 1)
    logits = jnp.where(jnp.arange(table.shape[0])[:, None] < vocab, logits, -jnp.inf).T
    logits = logits * parametrization(network.model).logit_multiplier
    if bias is not None:
        logits = logits + bias
    return constrain(logits, "batch", "vocab")
