"""The decoder: embeddings, a scanned stack of blocks, a final norm; and its parameters as a plain tree.

Modules only hold parameters. ``initialize`` and ``abstract`` turn a config into a nested dict of arrays
or shapes, ``merge`` turns such a dict back into a callable module; in between, everything is JAX.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scaling.config import schema as cfg
from scaling.model.block import Block
from scaling.model.context import AttentionContext
from scaling.model.layers import LayerNorm, dropout, lookup, normal, use
from scaling.model.parametrization import parametrization
from scaling.model.pipeline import Layers, pipelined, stages
from scaling.parallel.sharding import Axes, constrain, stored_spec

Params = dict[str, Any]
PLAIN = AttentionContext()  # causal, one text a row
STACK = "blocks"  # the subtree whose leaves carry a leading layer axis

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "projections": jax.checkpoint_policies.save_only_these_names("projections"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Decoder(nnx.Module):
    """GPT-1, GPT-2 and GPT-3 by config (Radford et al. 2018, 2019; arXiv 2005.14165, section 2.1)."""

    def __init__(self, network: cfg.Network, rngs: nnx.Rngs):
        config = network.model
        std = parametrization(config).embedding_std
        vocab = config.padded_vocab
        self.config, self.compute = config, network.compute
        self.tokens = normal(rngs.params(), (vocab, config.d_model), std, ("vocab", "embed"), "embedding")
        self.positions = normal(
            rngs.params(), (config.context_length, config.d_model), std, (None, "embed"), "position"
        )
        layer_keys = jax.random.split(rngs.params(), config.num_layers)
        self.blocks = jax.vmap(lambda key: Block(network, nnx.Rngs(params=key)))(layer_keys)
        if config.norm == "pre":
            self.final_norm = LayerNorm(config.d_model, config.norm_epsilon)
        if not config.tied_embedding:
            self.unembedding = normal(rngs.params(), (vocab, config.d_model), std, ("vocab", "embed"), "embedding")

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
            pipeline_microbatches: parts of the rows that pass through the stages of the mesh one behind the other;
                0 = the mesh has no stages.

        Returns:
            [B, T, D] in the compute dtype, after the final norm.

        Raises:
            ValueError: more tokens than positions, or a mesh with stages without ``pipeline_microbatches``.
        """
        config = self.config
        branched = context.branches is not None
        if stages() > 1 and (branched or not pipeline_microbatches):
            raise ValueError(
                f"the layers lie in {stages()} stages of the mesh, and only training and validation loss run through a "
                "pipeline; use a mesh without stages"
            )
        if tokens.shape[1] > config.context_length and not branched:  # a row of branches holds several texts
            raise ValueError(f"{tokens.shape[1]} tokens do not fit the {config.context_length} positions of the model")
        x = self.embed(tokens, context.positions)
        embedding_key, layers_key = (None, None) if key is None else jax.random.split(key)
        x = dropout(x, config.dropout_embedding, embedding_key)
        if not branched:
            x = constrain(x, "rows", "sequence", None)
        keys = None if layers_key is None else jax.random.split(layers_key, config.num_layers)
        if pipeline_microbatches:
            recompute = self.compute.remat != "none"
            x = pipelined(self._layers, (self.blocks, keys), x, context, pipeline_microbatches, recompute)
        else:
            x = self._layers((self.blocks, keys), x, context)
        return self.normalize(x)

    def embed(self, tokens: jax.Array, positions: jax.Array | None = None) -> jax.Array:
        """Tokens [B, T] at positions [B or 1, T] (None: 0, 1, ...) to [B, T, D] in the compute dtype."""
        dtype = jnp.dtype(self.compute.dtype)
        x = lookup(use(self.tokens, dtype), tokens).astype(jnp.float32)
        # Whole in the backward pass too: its gradient is summed over the batch first, and then cut.
        table = constrain(use(self.positions, jnp.dtype(jnp.float32)), None, None)
        return (x + (table[: tokens.shape[1]] if positions is None else table[positions])).astype(dtype)

    def normalize(self, x: jax.Array) -> jax.Array:
        """The norm after the last block, if the model has one."""
        return self.final_norm(x) if self.config.norm == "pre" else x

    def _layers(self, layers: Layers, x: jax.Array, context: AttentionContext) -> jax.Array:
        """Scans over groups of stacked layers, one period of the attention pattern a group: so windows are static."""
        compute = self.compute
        period = windows(self.config)
        groups = jax.tree.map(lambda a: a.reshape(-1, len(period), *a.shape[1:]), layers)

        def layer(block: Block, x: jax.Array, context: AttentionContext, key: jax.Array | None) -> jax.Array:
            return block(x, context, key)[0]

        if compute.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[compute.remat], prevent_cse=False)

        def group(x: jax.Array, inputs: Any) -> tuple[jax.Array, None]:
            for i, window in enumerate(period):
                block, key = jax.tree.map(lambda a, i=i: a[i], inputs)
                x = layer(block, x, context.within(window), key)
            return x, None

        return jax.lax.scan(group, x, groups, unroll=compute.scan_unroll)[0]

    def output_table(self, dtype: Any) -> jax.Array:
        """The output projection [V, D], laid out for use."""
        return use(self.tokens if self.config.tied_embedding else self.unembedding, jnp.dtype(dtype))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [B, T, D] to float32 logits [B, T, vocab_size] (whole: for tests and generation)."""
        table = self.output_table(hidden.dtype)
        logits = jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=jnp.float32)
        return logits[..., : self.config.vocab_size] * parametrization(self.config).logit_multiplier


def windows(config: cfg.Model) -> list[int]:
    """Window of the attention in each layer of one period of the pattern; 0 = dense."""
    return [config.band_width if kind == "banded" else 0 for kind in config.attention_pattern]


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
        return ("layers", *value) if name == "axes" and path[0] == STACK else value

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
    return _filled(_template(network), outside), [_filled(_block_template(network), layer) for layer in params[STACK]]


@functools.lru_cache(maxsize=16)
def _block_template(network: cfg.Network) -> tuple[nnx.GraphDef, nnx.State]:
    """Of a layer as ``kv_cache.split_layers`` leaves it."""

    def make() -> Block:
        block = Block(network, nnx.Rngs(0))
        block.attention.fuse()
        return block

    return nnx.split(nnx.eval_shape(make))


def _filled(template: tuple[nnx.GraphDef, nnx.State], params: Params) -> Any:
    """The module of a template with these parameters; of the stack, if it is left out, only the shapes."""
    graph, state = template
    flat = nnx.traversals.flatten_mapping(params)
    state = nnx.from_flat_state(
        [
            (path, variable if path[0] == STACK and STACK not in params else variable.replace(flat[path]))
            for path, variable in nnx.to_flat_state(state)
        ]
    )
    return nnx.merge(graph, state)
