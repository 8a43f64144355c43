"""The decoder: embeddings, a scanned stack of blocks, a final norm; and its parameters as a plain tree.

Modules only hold parameters. ``initialize`` and ``abstract`` turn a config into a nested dict of arrays
or shapes, ``merge`` turns such a dict back into a callable module; in between, everything is JAX.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scaling.config import schema as cfg
from scaling.model.block import Block
from scaling.model.context import AttentionContext
from scaling.model.experts import Counted, RouterSums
from scaling.model.layers import Parameter, constant, dropout, lookup, normal, product, use
from scaling.model.mlp import ACTIVATIONS
from scaling.model.norms import make_norm
from scaling.model.parametrization import parametrization
from scaling.model.pipeline import Layers, pipelined, stages
from scaling.model.positions import sinusoids
from scaling.parallel.sharding import Axes, constrain, stored_spec

Params = dict[str, Any]
PLAIN = AttentionContext()  # one text a row
STACK, EXPERT_STACK = "blocks", "expert_blocks"  # the subtrees whose leaves carry a leading layer axis
STACKS = (STACK, EXPERT_STACK)
HEAD = ("head", "head_bias")  # the parameters that config.model.outputs adds

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "projections": jax.checkpoint_policies.save_only_these_names("projections"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Output(NamedTuple):
    """What makes logits of final hidden states: a table [V, D], and a bias [V] in float32 where the model has one."""

    table: jax.Array
    bias: jax.Array | None = None


class Decoder(nnx.Module):
    """GPT-1, GPT-2 and GPT-3 by config (Radford et al. 2018, 2019; arXiv 2005.14165, section 2.1), and their family."""

    def __init__(self, network: cfg.Network, rngs: nnx.Rngs):
        config = network.model
        std = parametrization(config).embedding_std
        vocab = config.padded_vocab
        self.config, self.compute = config, network.compute
        d, width = config.d_model, config.d_embedding
        self.tokens = normal(rngs.params(), (vocab, width), std, ("vocab", "embed"), "embedding")
        if config.positions == "learned":
            rows = config.position_offset + config.context_length
            self.positions = normal(rngs.params(), (rows, config.d_summed), std, (None, "embed"), "position")
        if config.token_types:
            self.types = normal(rngs.params(), (config.token_types, config.d_summed), std, (None, "embed"), "position")
        if config.positions == "relative":
            shape = (config.relative_buckets, config.num_heads)
            self.relative = normal(rngs.params(), shape, config.init_std, (None, "heads"), "position")
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
            make = functools.partial(_make_block, network, name)
            setattr(self, name, jax.vmap(make)(layer_keys[np.asarray(layers)]))
        if config.norm == "pre":
            self.final_norm = make_norm(config, d)
        if not config.tied_embedding and not config.outputs:
            self.unembedding = normal(rngs.params(), (vocab, width), std, ("vocab", "embed"), "embedding")
        if config.logit_bias and not config.outputs:
            self.logit_bias = constant(0.0, (vocab,), ("vocab",), "bias")
        if config.transforms:
            self.transform = normal(rngs.params(), (d, width), config.init_std, ("embed", None))
            self.transform_bias = constant(0.0, (width,), (None,), "bias")
            self.transform_norm = make_norm(config, width)
        if config.pooler:
            self.pooler = normal(rngs.params(), (d, d), config.init_std, ("embed", None))
            self.pooler_bias = constant(0.0, (d,), (None,), "bias")
        if config.pairs:
            self.pair_head = normal(rngs.params(), (d, 2), config.init_std, ("embed", None))
            self.pair_bias = constant(0.0, (2,), (None,), "bias")
        if config.outputs:
            self.head = normal(rngs.params(), (config.d_output, config.outputs), std, ("embed", None))
            self.head_bias = constant(0.0, (config.outputs,), (None,), "bias")

    def __call__(
        self,
        tokens: jax.Array,
        context: AttentionContext = PLAIN,
        *,
        key: jax.Array | None = None,
        pipeline_microbatches: int = 0,
    ) -> jax.Array:
        """Final hidden states.

        Args:
            tokens: ids, int32 [B, T], at most ``context_length`` of a text.
            context: who sees whom, and where each token stands; not cached (see ``kv_cache``).
            key: dropout key; None = no dropout.
            pipeline_microbatches: parts of the rows that pass through the stages of the mesh one after the other;
                0 = the mesh has no stages.

        Returns:
            [B, T, D] in the compute dtype, after the final norm; D is the width of the embedding.

        Raises:
            ValueError: more tokens than positions, or a mesh with stages without ``pipeline_microbatches``.
        """
        return self.hidden_and_sums(tokens, context, None, key=key, pipeline_microbatches=pipeline_microbatches)[0]

    def hidden_and_sums(
        self,
        tokens: jax.Array,
        context: AttentionContext,
        counted: Counted | None,
        *,
        key: jax.Array | None = None,
        pipeline_microbatches: int = 0,
    ) -> tuple[jax.Array, RouterSums | None]:
        """As a call; with ``counted``, experts have the capacity of training, and their sums over layers come, too."""
        config = self.config
        branched = context.branches is not None
        if stages() > 1 and (branched or not pipeline_microbatches):
            raise ValueError(
                f"the layers lie in {stages()} stages of the mesh, and only training and validation loss run through a "
                "pipeline; use a mesh without stages"
            )
        if tokens.shape[1] > config.context_length and not branched:  # a row of branches holds several texts
            raise ValueError(f"{tokens.shape[1]} tokens do not fit the {config.context_length} positions of the model")
        x = self.embed(tokens, context.positions, context.types)
        context = self.informed(context)
        embedding_key, layers_key = (None, None) if key is None else jax.random.split(key)
        x = dropout(x, config.dropout_embedding, embedding_key)
        if not branched:
            x = constrain(x, "rows", "sequence", None)
        keys = None if layers_key is None else jax.random.split(layers_key, config.num_layers)
        if pipeline_microbatches:
            recompute, sums = self.compute.remat != "none", None
            x = pipelined(self._stage, (self._stacks(), keys), x, context, pipeline_microbatches, recompute)
        else:
            x, sums = self._layers((self._stacks(), keys), x, context, counted)
        return self.finish(x), sums

    def _stacks(self) -> dict[str, Block]:
        return {name: getattr(self, name) for name in layers_of(self.config)}

    def _stage(self, layers: Layers, x: jax.Array, context: AttentionContext) -> jax.Array:
        """Layers of one stage of a pipeline; they have no experts."""
        return self._layers(layers, x, context, None)[0]

    def embed(self, tokens: jax.Array, positions: jax.Array | None = None, types: jax.Array | None = None) -> jax.Array:
        """Tokens [B, T] at positions [B or 1, T] (None: 0, 1, ...), of types (None: 0), to [B, T, D], compute dtype."""
        config, dtype, length = self.config, jnp.dtype(self.compute.dtype), tokens.shape[1]
        x = lookup(use(self.tokens, dtype), tokens)
        if config.d_summed != config.d_embedding:
            x = product(x, use(self.project_in, dtype))
        x = x.astype(jnp.float32)
        if config.scaled_embedding:
            x = x * math.sqrt(config.d_model)
        if config.positions == "learned":
            # Whole in the backward pass too: its gradient is summed over the batch first, and then cut.
            table = constrain(use(self.positions, jnp.dtype(jnp.float32)), None, None)[config.position_offset :]
            x = x + (table[:length] if positions is None else table[positions])
        elif config.positions == "sinusoidal":
            where = jnp.arange(length)[None] if positions is None else positions
            x = x + sinusoids(where, config.d_model, config.sinusoid)
        if config.token_types:
            table = constrain(use(self.types, jnp.dtype(jnp.float32)), None, None)
            x = x + (table[0] if types is None else table[types])
        x = x.astype(dtype)
        x = self.embedding_norm(x) if config.embedding_norm else x
        if config.d_summed != config.d_model:  # after dropout in the papers' code, which differs in training alone
            x = product(x, use(self.project_in, dtype)) + use(self.project_in_bias, dtype)
        return x

    def informed(self, context: AttentionContext) -> AttentionContext:
        """The context with what all layers share: whether they look ahead, and the table of relative positions."""
        if not self.config.causal:
            context = dataclasses.replace(context, causal=False)
        if self.config.positions != "relative":
            return context
        return dataclasses.replace(context, relative=use(self.relative, jnp.dtype(jnp.float32)))

    def finish(self, x: jax.Array) -> jax.Array:
        """What the output table multiplies, from the last block's [B, T, D]: by final norm and projection, if any.

        Where there is a ``head_transform``, that comes between (``transformed``).
        """
        x = self.final_norm(x) if self.config.norm == "pre" else x
        return product(x, use(self.project_out, x.dtype)) if self.config.d_output != self.config.d_model else x

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

        if compute.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[compute.remat], prevent_cse=False)

        def group(carry: tuple[jax.Array, Any], inputs: Any) -> tuple[tuple[jax.Array, Any], None]:
            x, total = carry
            blocks, keys = inputs
            for i, here in enumerate(layers):
                block = jax.tree.map(lambda a, here=here: a[here.place], blocks[here.stack])
                x, sums = layer(block, x, context.within(here.sight), None if keys is None else keys[i])
                total = total if sums is None else jax.tree.map(jnp.add, total, sums)
            return (x, total), None

        counts = counted is not None and model.experts.count
        zeros = RouterSums.zeros(model.experts.count) if counts else None
        return jax.lax.scan(group, (x, zeros), groups, unroll=compute.scan_unroll)[0]

    def pair_logits(self, hidden: jax.Array) -> jax.Array:
        """Of the first states [..., D] of pairs of texts, float32 [..., 2]: for in order, and for not in order."""
        return _affine(self.pooled(hidden), self.pair_head, self.pair_bias)

    def transformed(self, hidden: jax.Array) -> jax.Array:
        """Final hidden states [..., D] as the output table multiplies them: by the head's transform, if any."""
        if not self.config.transforms:
            return hidden
        made = product(hidden, use(self.transform, hidden.dtype)) + use(self.transform_bias, hidden.dtype)
        return self.transform_norm(ACTIVATIONS[self.config.activation](made))

    def _shared(self, stacks: Layers, x: jax.Array, context: AttentionContext) -> jax.Array:
        """Scans over groups of layers, and in each over layers that have the same weights."""
        blocks, keys = stacks
        each = self.config.num_layers // self.config.layer_groups
        context = context.within(self.config.sights[0])

        def group(x: jax.Array, inputs: Any) -> tuple[jax.Array, None]:
            block, keys = inputs

            def layer(x: jax.Array, key: jax.Array | None) -> tuple[jax.Array, None]:
                return block(x, context, key)[0], None

            if self.compute.remat != "none":
                layer = jax.checkpoint(layer, policy=REMAT_POLICIES[self.compute.remat], prevent_cse=False)
            return jax.lax.scan(layer, x, keys, length=each)

        return jax.lax.scan(group, x, (blocks[STACK], _grouped(keys, each)))[0]

    def output(self, dtype: Any) -> Output:
        """The output projection, laid out for use."""
        table = use(self.tokens if self.config.tied_embedding else self.unembedding, jnp.dtype(dtype))
        return Output(table, use(self.logit_bias, jnp.dtype(jnp.float32)) if self.config.logit_bias else None)

    def outputs(self, hidden: jax.Array) -> jax.Array:
        """Final hidden states [..., D] to the model's numbers, float32 [..., outputs]."""
        hidden = self.pooled(hidden) if self.config.pooler else hidden
        return _affine(hidden, self.head, self.head_bias)

    def pooled(self, hidden: jax.Array) -> jax.Array:
        """tanh(W h + b) of final hidden states [..., D], float32 [..., D] (arXiv 1810.04805; ``config.pooler``)."""
        return jnp.tanh(_affine(hidden, self.pooler, self.pooler_bias))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [B, T, D] to float32 logits [B, T, vocab_size] (whole: for tests and generation)."""
        hidden = self.transformed(hidden)
        output = self.output(hidden.dtype)
        logits = jnp.einsum("btd,vd->btv", hidden, output.table, preferred_element_type=jnp.float32)
        logits = logits * parametrization(self.config).logit_multiplier
        if output.bias is not None:
            logits = logits + output.bias
        return logits[..., : self.config.vocab_size]


def _affine(x: jax.Array, weights: Parameter, bias: Parameter) -> jax.Array:
    """x W + b in float32, for the few rows of a head: [..., D] to [..., O]."""
    matrix = use(weights, jnp.dtype(jnp.float32))
    made = jnp.einsum("...d,do->...o", x.astype(jnp.float32), matrix, precision=jax.lax.Precision.HIGHEST)
    return made + use(bias, jnp.dtype(jnp.float32))


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


def _grouped(stack: Any, each: int) -> Any:
    """Arrays [L, ...] as [L / each, each, ...]."""
    return jax.tree.map(lambda a: a.reshape(-1, each, *a.shape[1:]), stack)


def _make_block(network: cfg.Network, stack: str, key: jax.Array) -> Block:
    return Block(network, nnx.Rngs(params=key), experts=stack == EXPERT_STACK)


@functools.lru_cache(maxsize=16)
def _template(network: cfg.Network) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Decoder(network, nnx.Rngs(0))))


def initialize(config: cfg.Model, key: jax.Array) -> Params:
    """Random initial parameters as a nested dict of float32 arrays; call it under jit with out_shardings."""
    return nnx.to_pure_dict(nnx.state(Decoder(cfg.Network(config), nnx.Rngs(params=key))))


def abstract(config: cfg.Model) -> Params:
    """The parameter tree as ``jax.ShapeDtypeStruct``: nothing is allocated."""
    return nnx.to_pure_dict(_template(cfg.Network(config))[1])


def metadata(config: cfg.Model, name: str) -> Params:
    """A tree like ``abstract`` holding one metadata entry a leaf: ``axes`` (with the layer axis) or ``kind``."""

    def read(path: tuple[Any, ...], variable: Any) -> Any:
        value = variable.get_metadata(name)
        return ("layers", *value) if name == "axes" and path[0] in STACKS else value

    flat = {path: read(path, variable) for path, variable in nnx.to_flat_state(_template(cfg.Network(config))[1])}
    return nnx.traversals.unflatten_mapping(flat)


def axes_tree(config: cfg.Model) -> dict[str, Axes]:
    """Logical axes of every parameter."""
    return metadata(config, "axes")


def shardings(config: cfg.Model, mesh: Mesh, spec: Callable[[Axes], PartitionSpec] = stored_spec) -> Params:
    """Where every parameter is stored on a mesh; with another ``spec``, what belongs to it (gradient, moments)."""
    return jax.tree.map(
        lambda axes: NamedSharding(mesh, spec(axes)), axes_tree(config), is_leaf=lambda x: isinstance(x, tuple)
    )


def merge(network: cfg.Network, params: Params) -> Decoder:
    """A callable decoder around a parameter tree."""
    return _filled(_template(network), params)


def merge_layers(network: cfg.Network, params: Params) -> tuple[Decoder, list[Block]]:
    """A decoder and its blocks, around a tree of ``kv_cache.split_layers``.

    Of the decoder, only what lies outside the blocks can be called.
    """
    outside = {name: value for name, value in params.items() if name != STACK}
    layers = zip(itertools.cycle(period(network.model)), params[STACK], strict=False)
    blocks = [_filled(_block_template(network, layer.stack), values) for layer, values in layers]
    return _filled(_template(network), outside), blocks


@functools.lru_cache(maxsize=16)
def _block_template(network: cfg.Network, stack: str) -> tuple[nnx.GraphDef, nnx.State]:
    """Of a layer of a stack as ``kv_cache.split_layers`` leaves it."""

    def make() -> Block:
        block = _make_block(network, stack, jax.random.key(0))
        if not network.model.has_grouped_heads:
            block.attention.fuse()
        return block

    return nnx.split(nnx.eval_shape(make))


def _filled(template: tuple[nnx.GraphDef, nnx.State], params: Params) -> Any:
    """The module of a template with these parameters; of a stack, if it is left out, only the shapes."""
    graph, state = template
    flat = nnx.traversals.flatten_mapping(params)
    state = nnx.from_flat_state(
        [
            (path, variable if path[0] in STACKS and path[0] not in params else variable.replace(flat[path]))
            for path, variable in nnx.to_flat_state(state)
        ]
    )
    return nnx.merge(graph, state)
