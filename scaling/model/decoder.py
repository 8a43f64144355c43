"""The decoder: token embeddings, a stack, maybe another one for an encoder, heads; its parameters as a plain tree.

Modules only hold parameters. ``initialize`` and ``abstract`` turn a config into a nested dict of arrays
or shapes, ``merge`` turns such a dict back into a callable module; in between, everything is JAX.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scaling.config import schema as cfg
from scaling.model.block import Block
from scaling.model.context import AttentionContext, Source
from scaling.model.experts import Counted, RouterSums
from scaling.model.layers import Parameter, constant, lookup, normal, product, use
from scaling.model.mlp import ACTIVATIONS
from scaling.model.norms import make_norm
from scaling.model.parametrization import parametrization
from scaling.model.pipeline import stages
from scaling.model.rounded import Kept, Rounded, factor, scaled, used, wide
from scaling.model.stack import STACK, STACKS, Stack, make_block, period
from scaling.parallel.sharding import Axes, stored_spec

Params = dict[str, Any]
PLAIN = AttentionContext()  # one text a row
HEAD = ("head", "head_bias")  # the parameters that config.model.outputs adds
_OWNERS = ("encoder", "generator")  # parts of a model with stacks of their own
# What a generator and its discriminator have in common (ELECTRA: arXiv 2003.10555, section 3.2, and the released code).
_SHARED = ("tokens", "positions", "types", "embedding_norm")


class Output(NamedTuple):
    """What makes logits of final hidden states: a table [V, D], and a bias [V] in float32 where the model has one."""

    table: jax.Array
    bias: jax.Array | None = None


class Decoder(Stack):
    """GPT-1, GPT-2 and GPT-3 by config (Radford et al. 2018, 2019; arXiv 2005.14165, section 2.1), and their family."""

    def __init__(self, network: cfg.Network, rngs: nnx.Rngs):
        config = network.model
        std = parametrization(config).embedding_std
        vocab = config.padded_vocab
        d, width = config.d_model, config.d_embedding
        self.tokens = normal(rngs.params(), (vocab, width), std, ("vocab", "embed"), "embedding")
        super().__init__(network, rngs)
        if config.positions == "xlnet":
            self.query_embedding = normal(rngs.params(), (d,), std, (None,), "position")
        if config.encoder_layers:
            self.encoder = Stack(cfg.Network(config.encoder, network.compute), rngs)
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
        if config.discriminates:
            self.discriminator = normal(rngs.params(), (d, d), config.init_std, ("embed", None))
            self.discriminator_bias = constant(0.0, (d,), (None,), "bias")
            self.replaced_head = normal(rngs.params(), (d, 1), config.init_std, ("embed", None))
            self.replaced_bias = constant(0.0, (1,), (None,), "bias")
        if config.generates:
            self.generator = Decoder(network.of_generator, rngs)
            for name in _SHARED:
                if hasattr(self.generator, name):
                    delattr(self.generator, name)
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
        if config.encoder_layers and context.source is None:
            raise ValueError("the model has an encoder, and there is no source for it to read")
        x = self.embed(tokens, context.positions, context.types)
        return self.through(x, context, counted, key, pipeline_microbatches)

    def encode(
        self,
        source: jax.Array,
        segments: jax.Array | None = None,
        key: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> Source:
        """What the encoder makes of its tokens, for ``AttentionContext.source``.

        Args:
            source: ids, int32 [B, S].
            segments: as of ``Batch.source_segments``; None = no padding.
            key: dropout key; None = no dropout.
            positions: as of ``Batch.source_positions``.
        """
        x = self.encoder.placed(self._looked_up(source), positions)
        return Source(self.encoder.through(x, AttentionContext(positions, segments), key=key)[0], segments)

    def embed(self, tokens: jax.Array, positions: jax.Array | None = None, types: jax.Array | None = None) -> jax.Array:
        """Tokens [B, T] at positions [B or 1, T] (None: 0, 1, ...), of types (None: 0), to [B, T, D], compute dtype."""
        return self.placed(self._looked_up(tokens), positions, types)

    def _looked_up(self, tokens: jax.Array) -> jax.Array:
        dtype = jnp.dtype(self.compute.dtype)
        table = used(self.tokens[...], self.tokens.axes, (1,), dtype)
        if isinstance(table, Rounded):
            return wide(Rounded(table.values[tokens], table.scale[tokens]), (2,), dtype)
        return lookup(table, tokens)

    def pair_logits(self, hidden: jax.Array) -> jax.Array:
        """Of the first states [..., D] of pairs of texts, float32 [..., 2]: for in order, and for not in order."""
        return _affine(self.pooled(hidden), self.pair_head, self.pair_bias)

    def replaced_logits(self, hidden: jax.Array) -> jax.Array:
        """Of final hidden states [..., D], that the token there is not the text's own, float32 [...] (ELECTRA)."""
        made = product(hidden, use(self.discriminator, hidden.dtype)) + use(self.discriminator_bias, hidden.dtype)
        made = ACTIVATIONS[self.config.activation](made)
        return _affine(made, self.replaced_head, self.replaced_bias)[..., 0]

    def transformed(self, hidden: jax.Array) -> jax.Array:
        """Final hidden states [..., D] as the output table multiplies them: by the head's transform, if any."""
        if not self.config.transforms:
            return hidden
        made = product(hidden, use(self.transform, hidden.dtype)) + use(self.transform_bias, hidden.dtype)
        return self.transform_norm(ACTIVATIONS[self.config.activation](made))

    def output(self, dtype: Any) -> Output:
        """The output projection, laid out for use."""
        table = self.output_table(dtype)
        assert not isinstance(table, Rounded), "rounded tables are for decoding"
        return Output(table, self.output_bias())

    def output_table(self, dtype: Any) -> Kept:
        """The table [V, D] of the output projection, laid out for use; while decoding maybe rounded."""
        parameter = self.tokens if self.config.tied_embedding else self.unembedding
        return used(parameter[...], parameter.axes, (1,), jnp.dtype(dtype))

    def output_bias(self) -> jax.Array | None:
        """The bias [V] of the output projection, float32, where the model has one."""
        return use(self.logit_bias, jnp.dtype(jnp.float32)) if self.config.logit_bias else None

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
        table, bias = self.output_table(hidden.dtype), self.output_bias()
        logits = jnp.einsum("btd,vd->btv", hidden, factor(table, hidden.dtype), preferred_element_type=jnp.float32)
        logits = scaled(logits, table) * parametrization(self.config).logit_multiplier
        if bias is not None:
            logits = logits + bias
        return logits[..., : self.config.vocab_size]


def _affine(x: jax.Array, weights: Parameter, bias: Parameter) -> jax.Array:
    """x W + b in float32, for the few rows of a head: [..., D] to [..., O]."""
    matrix = use(weights, jnp.dtype(jnp.float32))
    made = jnp.einsum("...d,do->...o", x.astype(jnp.float32), matrix, precision=jax.lax.Precision.HIGHEST)
    return made + use(bias, jnp.dtype(jnp.float32))


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
        return ("layers", *value) if name == "axes" and is_stacked(path) else value

    flat = {path: read(path, variable) for path, variable in nnx.to_flat_state(_template(cfg.Network(config))[1])}
    return nnx.traversals.unflatten_mapping(flat)


def is_stacked(path: Sequence[Any]) -> bool:
    """Whether the parameter at this path, a name for each level, has a leading axis of layers."""
    return path[path[0] in _OWNERS] in STACKS


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


def generator(params: Params) -> Params:
    """The parameters of a generator, as ``Model.generator`` has them: its own, and those of its discriminator's."""
    return dict(params["generator"]) | {name: params[name] for name in _SHARED if name in params}


def generator_of(model: Decoder) -> Decoder:
    """The generator of a model that has one, on the same embeddings."""
    network = cfg.Network(model.config, model.compute).of_generator
    return merge(network, generator(nnx.to_pure_dict(nnx.state(model))))


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
        block = make_block(network, stack, jax.random.key(0))
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
