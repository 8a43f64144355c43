"""A scanned stack of blocks between token embeddings and final states: the body of a decoder, or of its encoder."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scaling.config import remat
from scaling.config import schema as cfg
from scaling.model.block import Block
from scaling.model.context import AttentionContext
from scaling.model.experts import Counted, RouterSums
from scaling.model.layers import constant, dropout, normal, product, use
from scaling.model.norms import make_norm
from scaling.model.parametrization import parametrization
from scaling.model.pipeline import Layers, pipelined
from scaling.model.positions import sinusoids
from scaling.model.transformer_xl import KeepingLayer, by_segments
from scaling.parallel.sharding import constrain, platform

STACK, EXPERT_STACK = "blocks", "expert_blocks"  # the subtrees whose leaves carry a leading layer axis
STACKS = (STACK, EXPERT_STACK)


class Stack(nnx.Module):
    """Positions and types, a norm of embeddings, blocks, and a final norm, as far as the model has them."""

    def __init__(self, network: cfg.Network, rngs: nnx.Rngs):
        config = network.model
        self.config, self.compute = config, network.compute
        std, d, width = parametrization(config).embedding_std, config.d_model, config.d_embedding
        if config.has_position_table:
            rows = config.position_offset + config.context_length
            self.positions = normal(rngs.params(), (rows, config.d_summed), std, (None, "embed"), "position")
        if config.has_type_table:
            self.types = normal(rngs.params(), (config.token_types, config.d_summed), std, (None, "embed"), "position")
        if config.positions == "relative":
            shape = (config.relative_buckets, config.num_heads)
            self.relative = normal(rngs.params(), shape, config.init_std, (None, "heads"), "position")
        if config.distances:
            self.distances = normal(rngs.params(), (2 * config.distances, d), std, (None, "embed"), "position")
            if config.disentangled.norm:
                self.distances_norm = make_norm(config, d)
        if width != d:
            scales = parametrization(config)
            self.project_in = normal(rngs.params(), (width, d), scales.hidden_std, ("embed", None))
            if config.narrow_embedding:
                self.project_in_bias = constant(0.0, (d,), (None,), "bias")
            if config.d_output != d:
                self.project_out = normal(rngs.params(), (d, width), scales.hidden_std, ("embed", None))
        if config.embedding_norm:
            self.embedding_norm = make_norm(config, config.d_summed)
        layer_keys = jax.random.split(rngs.params(), config.num_layers)
        for name, layers in layers_of(config).items():
            make = functools.partial(make_block, network, name)
            setattr(self, name, jax.vmap(make)(layer_keys[np.asarray(layers)]))
        if config.norm == "pre":
            self.final_norm = make_norm(config, d)

    def placed(self, x: jax.Array, positions: jax.Array | None = None, types: jax.Array | None = None) -> jax.Array:
        """Embeddings [B, T, W] of tokens at positions [B or 1, T] (None: 0, 1, ...), of types (None: 0): [B, T, D].

        In the compute dtype. W is the width of the embedding.
        """
        config, dtype, length = self.config, jnp.dtype(self.compute.dtype), x.shape[1]
        if config.d_summed != config.d_embedding:
            x = product(x, use(self.project_in, dtype))
        x = x.astype(jnp.float32)
        if config.scaled_embedding:
            x = x * math.sqrt(config.d_model)
        if config.has_position_table:
            # Whole in the backward pass too: its gradient is summed over the batch first, and then cut.
            table = constrain(use(self.positions, jnp.dtype(jnp.float32)), None, None)[config.position_offset :]
            x = x + (table[:length] if positions is None else table[positions])
        elif config.positions == "sinusoidal":
            where = jnp.arange(length)[None] if positions is None else positions
            x = x + sinusoids(where, config.d_model, config.sinusoid)
        if config.has_type_table:
            table = constrain(use(self.types, jnp.dtype(jnp.float32)), None, None)
            x = x + (table[0] if types is None else table[types])
        x = x.astype(dtype)
        x = self.embedding_norm(x) if config.embedding_norm else x
        if config.d_summed != config.d_model:  # after dropout in the papers' code, which differs in training alone
            x = product(x, use(self.project_in, dtype)) + use(self.project_in_bias, dtype)
        return x

    def informed(self, context: AttentionContext) -> AttentionContext:
        """The context with what all layers share: whether they look ahead, and a table of relative positions."""
        config = self.config
        if not config.causal or context.order is not None or (config.prefix_lm and context.branches is not None):
            context = dataclasses.replace(context, causal=False)
        if self.config.positions == "relative":
            return dataclasses.replace(context, relative=use(self.relative, jnp.dtype(jnp.float32)))
        if self.config.distances:
            table = constrain(use(self.distances, jnp.dtype(self.compute.dtype)), None, None)
            table = self.distances_norm(table) if self.config.disentangled.norm else table
            return dataclasses.replace(context, relative=table)
        return context

    def through(
        self,
        x: jax.Array,
        context: AttentionContext,
        counted: Counted | None = None,
        key: jax.Array | None = None,
        pipeline_microbatches: int = 0,
    ) -> tuple[jax.Array, RouterSums | None]:
        """Final states of placed embeddings.

        Args:
            x: [B, T, D].
            context: not informed yet.
            counted: as of ``Decoder.hidden_and_sums``.
            key: dropout key; None = no dropout.
            pipeline_microbatches: as there.

        Returns:
            What ``finish`` makes, and the sums of experts.
        """
        config = self.config
        context = self.informed(context)
        embedding_key, layers_key = (None, None) if key is None else jax.random.split(key)
        x = dropout(x, config.dropout_embedding, embedding_key)
        if context.branches is None:
            x = constrain(x, "rows", "sequence", None)
        keys = None if layers_key is None else jax.random.split(layers_key, config.num_layers)
        if pipeline_microbatches:
            recompute, sums = self.compute.remat not in remat.NOTHING_TWICE, None
            x = pipelined(self._stage, (self._stacks(), keys), x, context, pipeline_microbatches, recompute)
        elif config.segment_length and x.shape[1] > config.segment_length and context.branches is None:
            x, sums = by_segments(self.keeping(), (getattr(self, STACK), keys), x, context, config), None
        else:
            x, sums = self._layers((self._stacks(), keys), x, context, counted)
        return self.finish(x), sums

    def finish(self, x: jax.Array) -> jax.Array:
        """What the output table multiplies, from the last block's [B, T, D]: by final norm and projection, if any.

        Where there is a ``head_transform``, that comes between (``Decoder.transformed``).
        """
        x = self.final_norm(x) if self.config.norm == "pre" else x
        return product(x, use(self.project_out, x.dtype)) if self.config.d_output != self.config.d_model else x

    def keeping(self) -> KeepingLayer:
        """A layer that also gives the states of which its keys are made; it is recomputed as the others are."""

        def layer(
            block: Block, x: jax.Array, context: AttentionContext, key: jax.Array | None
        ) -> tuple[jax.Array, jax.Array]:
            x, (states,), _ = block(x, context, key)
            assert isinstance(states, jax.Array)
            return x, states

        return _recomputed(layer, self.compute.remat)

    def _stacks(self) -> dict[str, Block]:
        return {name: getattr(self, name) for name in layers_of(self.config)}

    def _stage(self, layers: Layers, x: jax.Array, context: AttentionContext) -> jax.Array:
        """Layers of one stage of a pipeline; they have no experts."""
        return self._layers(layers, x, context, None)[0]

    def _layers(
        self, stacks: Layers, x: jax.Array, context: AttentionContext, counted: Counted | None
    ) -> tuple[jax.Array, RouterSums | None]:
        """Scans over groups of layers, one period a group: so each layer's sight and kind are static."""
        compute, model = self.compute, self.config
        layers, (blocks, keys) = period(model), stacks
        if model.layer_groups:
            return self._shared(stacks, x, context), None
        inputs = {name: (stack, sum(layer.stack == name for layer in layers)) for name, stack in blocks.items()}
        groups = {name: _grouped(stack, each) for name, (stack, each) in inputs.items()}, _grouped(keys, len(layers))

        def layer(
            block: Block, x: jax.Array, context: AttentionContext, key: jax.Array | None
        ) -> tuple[jax.Array, RouterSums | None]:
            x, _, sums = block(x, context, key, counted)
            return x, sums

        def group(layer: Any, carry: tuple[jax.Array, Any], inputs: Any) -> tuple[tuple[jax.Array, Any], None]:
            x, total = carry
            blocks, keys = inputs
            for i, here in enumerate(layers):
                block = jax.tree.map(lambda a, here=here: a[here.place], blocks[here.stack])
                x, sums = layer(block, x, context.within(here.sight), None if keys is None else keys[i])
                total = total if sums is None else jax.tree.map(jnp.add, total, sums)
            return (x, total), None

        counts = counted is not None and model.experts.count
        carry = x, RouterSums.zeros(model.experts.count) if counts else None
        for part, policy in _parts(groups, compute.remat, len(layers)):
            body = functools.partial(group, _recomputed(layer, policy))
            carry = jax.lax.scan(body, carry, part, unroll=compute.scan_unroll)[0]
        return carry

    def _shared(self, stacks: Layers, x: jax.Array, context: AttentionContext) -> jax.Array:
        """Scans over groups of layers, and in each over layers that have the same weights."""
        blocks, keys = stacks
        each = self.config.num_layers // self.config.layer_groups
        context = context.within(self.config.sights[0])

        def group(x: jax.Array, inputs: Any) -> tuple[jax.Array, None]:
            block, keys = inputs

            def layer(x: jax.Array, key: jax.Array | None) -> tuple[jax.Array, None]:
                return block(x, context, key)[0], None

            return jax.lax.scan(_recomputed(layer, self.compute.remat), x, keys, length=each)

        return jax.lax.scan(group, x, (blocks[STACK], _grouped(keys, each)))[0]


class Layer(NamedTuple):
    """What is static of a layer.

    Attributes:
        sight: how far back its attention sees.
        stack: which of ``STACKS`` holds it.
        place: its number there, among the layers of the same period.
    """

    sight: cfg.Sight
    stack: str
    place: int


def period(config: cfg.Model) -> list[Layer]:
    """The layers after which the attention pattern and the experts repeat."""
    sights, every = config.sights, config.experts.every if config.experts.count else 1
    found: list[Layer] = []
    for i in range(math.lcm(len(sights), every)):
        stack = EXPERT_STACK if config.experts.count and i % every == every - 1 else STACK
        found.append(Layer(sights[i % len(sights)], stack, sum(layer.stack == stack for layer in found)))
    return found


def layers_of(config: cfg.Model) -> dict[str, list[int]]:
    """Which layers of the model lie in each stack, in order; stacks without layers are left out.

    Where layers share weights, what is counted is the groups.
    """
    names = [layer.stack for layer in period(config)]
    every = [names[i % len(names)] for i in range(config.stored_layers)]
    return {name: [i for i, other in enumerate(every) if other == name] for name in STACKS if name in every}


def _recomputed(layer: Any, policy: str) -> Any:
    """A layer whose backward pass computes again what the policy, a value of ``compute.remat``, does not keep."""
    if policy in remat.NOTHING_TWICE:
        return layer
    kept, saved = remat.parse(policy), jax.checkpoint_policies
    if kept is None:
        keep = saved.dots_with_no_batch_dims_saveable
    elif kept.host and platform() != "cpu":  # a CPU has no other memory
        keep = saved.save_and_offload_only_these_names(
            names_which_can_be_saved=kept.here,
            names_which_can_be_offloaded=list(kept.host),
            offload_src="device",
            offload_dst="pinned_host",
        )
    elif kept.kinds:
        keep = saved.save_only_these_names(*kept.here, *kept.host)
    else:
        keep = saved.nothing_saveable
    return jax.checkpoint(layer, policy=keep, prevent_cse=False)


def _parts(groups: Any, policy: str, each: int) -> list[tuple[Any, str]]:
    """Groups of ``each`` layers in one part, or in two if the first layers keep more; with each part's policy."""
    kept, count = remat.parse(policy), len(jax.tree.leaves(groups)[0])
    first = count if kept is None or kept.layers is None else kept.layers // each
    if kept is None or first in (0, count):
        return [(groups, policy if first else "full")]
    blocks, keys = groups
    # Not by indexing, whose gradient is a sum of two padded arrays; that of a split puts its parts side by side.
    leaves, tree = jax.tree.flatten(blocks)
    split = zip(*(jnp.split(leaf, [first]) for leaf in leaves), strict=True)
    here, rest = (jax.tree.unflatten(tree, part) for part in split)
    ends = (None, None) if keys is None else (keys[:first], keys[first:])
    return [((here, ends[0]), policy), ((rest, ends[1]), "full")]


def _grouped(stack: Any, each: int) -> Any:
    """Arrays [L, ...] as [L / each, each, ...]."""
    return jax.tree.map(lambda a: a.reshape(-1, each, *a.shape[1:]), stack)


def make_block(network: cfg.Network, stack: str, key: jax.Array) -> Block:
    """A layer of a stack."""
    return Block(network, nnx.Rngs(params=key), experts=stack == EXPERT_STACK)
