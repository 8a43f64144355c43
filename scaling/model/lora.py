"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685), and with them what the trained parameters of a config are.

Without ``config.lora.rank`` all parameters of the model are trained. With it, a matrix W of a block computes
W + alpha / rank * A B (section 4.1): A has W's input axes and the rank, B the rank and W's output axes, and W stays as
``config.start`` has it, in a tree of all parameters that is called the base. The head of ``config.model.outputs`` and
the rows of new tokens, of which a base knows nothing, are trained whole beside the adapters.

A is drawn with the variance that loralib and PEFT use, 1 / (3 n) for n inputs, and B begins as zeros; so the first step
computes exactly what the base does, and learning rates of others apply.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scaling.config import schema as cfg
from scaling.config.refusal import refused
from scaling.model import decoder
from scaling.parallel.sharding import Axes, is_axes, stored_spec

Path = tuple[str, ...]
ROWS = "rows"  # of the trained tree: of new tokens, by the name of their table
A, B = "a", "b"
_TABLES = ("tokens", "unembedding", "logit_bias")  # with a row for each token
_STACKED = ("layers", "experts")
_SUBLAYERS = ("attention", "mlp", "experts")


class Adapted(NamedTuple):
    """A matrix with an adapter.

    Attributes:
        path: in the tree of all parameters.
        shape, axes: of the parameter; layers and experts come first, then inputs, then outputs.
        stacked: how many of its axes are layers and experts.
        inputs: how many of the others are inputs.
    """

    path: Path
    shape: tuple[int, ...]
    axes: Axes
    stacked: int
    inputs: int

    @property
    def sides(self) -> tuple[int, int]:
        """Number of inputs and of outputs."""
        split = self.stacked + self.inputs
        return math.prod(self.shape[self.stacked : split]), math.prod(self.shape[split:])


class _Leaf(NamedTuple):
    """A trained parameter; ``axes`` and ``kind`` as of ``decoder.metadata``."""

    shape: tuple[int, ...]
    axes: Axes
    kind: str


def adapted(model: cfg.Model, adapters: cfg.Lora) -> list[Adapted]:
    """The matrices that have adapters, in the order of the parameter tree."""
    shapes, axes = (_flat(tree) for tree in (decoder.abstract(model), decoder.axes_tree(model)))
    found = []
    for path in sorted(shapes):
        if path[0] not in decoder.STACKS or path[-1] not in adapters.matrices or path[-2] not in _SUBLAYERS:
            continue
        stacked = sum(name in _STACKED for name in axes[path])
        others = axes[path][stacked:]
        # The residual stream is one side, of one axis; if it comes first, it is the input.
        inputs = 1 if others[0] in ("embed", "expert_embed") else len(others) - 1
        found.append(Adapted(path, shapes[path].shape, axes[path], stacked, inputs))
    return found


def check(config: cfg.Config) -> None:
    """Refuses adapters that the model cannot have.

    Args:
        config: resolved, with the model of ``config.start``.

    Raises:
        ValueError: a rank above the smaller side of a matrix, no such matrix, or rows that the model does not have.
    """
    rank, first = config.lora.rank, config.lora.first_new_token
    if not rank:
        return
    found = adapted(config.model, config.lora)
    if not found:
        raise refused("lora.matrices", config.lora.matrices, "must name a matrix that the model has")
    least = min(found, key=lambda matrix: min(matrix.sides))
    if rank > min(least.sides):
        name = ".".join(least.path[-2:])
        raise refused("lora.rank", rank, f"must be at most {min(least.sides)}, the smaller side of the matrix {name}")
    if first > config.model.vocab_size:
        right = f"must be at most {config.model.vocab_size}, the size of the vocabulary, for no row"
        raise refused("lora.first_new_token", first, right)


def abstract(model: cfg.Model, adapters: cfg.Lora) -> decoder.Params:
    """The trained parameters as ``jax.ShapeDtypeStruct``, float32: nothing is allocated."""
    if not adapters.rank:
        return decoder.abstract(model)
    return _tree(model, adapters, lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32))


def metadata(model: cfg.Model, adapters: cfg.Lora, name: str) -> decoder.Params:
    """A tree like ``abstract`` of one metadata entry a leaf: ``axes`` or ``kind``."""
    if not adapters.rank:
        return decoder.metadata(model, name)
    return _tree(model, adapters, lambda leaf: getattr(leaf, name))


def shardings(
    model: cfg.Model, adapters: cfg.Lora, mesh: Mesh, spec: Callable[[Axes], PartitionSpec] = stored_spec
) -> decoder.Params:
    """Where every trained parameter is stored on a mesh; with another ``spec``, what belongs to it."""
    axes = metadata(model, adapters, "axes")
    return jax.tree.map(lambda names: NamedSharding(mesh, spec(names)), axes, is_leaf=is_axes)


def initialize(config: cfg.Config, key: jax.Array, base: decoder.Params | None) -> decoder.Params:
    """The trained parameters before the first step, float32; call it under jit with out_shardings.

    Args:
        config: resolved.
        key: of what is random.
        base: all parameters of the model that adapters are trained for; None without adapters.
    """
    if not config.lora.rank:
        return decoder.initialize(config.model, key)
    assert base is not None
    key, model = jax.random.fold_in(key, 3), config.model
    found = {}
    for i, matrix in enumerate(adapted(model, config.lora)):
        a, b = (leaf.shape for leaf in _pair(matrix, config.lora.rank))
        std = 1 / math.sqrt(3 * matrix.sides[0])
        found[*matrix.path, A] = std * jax.random.normal(jax.random.fold_in(key, i), a, jnp.float32)
        found[*matrix.path, B] = jnp.zeros(b, jnp.float32)
    for name in _tables(model, config.lora):
        found[ROWS, name] = base[name][config.lora.first_new_token : model.vocab_size]
    for name in _heads(model):
        found[name,] = jnp.copy(base[name])  # training takes the copy over, and the base stays
    return nnx.traversals.unflatten_mapping(found)


def whole(config: cfg.Config, params: decoder.Params, base: decoder.Params | None) -> decoder.Params:
    """All parameters of the model, of those that are trained; differentiable.

    Args:
        config: resolved.
        params: laid out as ``abstract`` says.
        base: the parameters that adapters change; None without adapters, when ``params`` are all there are.
    """
    if not config.lora.rank:
        return params
    assert base is not None
    model, scale = config.model, config.lora.alpha / config.lora.rank
    found, own = _flat(base), _flat(params)
    for matrix in adapted(model, config.lora):
        product = _product(own[*matrix.path, A], own[*matrix.path, B], matrix.stacked)
        found[matrix.path] = found[matrix.path] + scale * product
    for name in _tables(model, config.lora):
        found[name,] = _with_rows(found[name,], own[ROWS, name], config.lora.first_new_token)
    for name in _heads(model):
        found[name,] = own[name,]
    return nnx.traversals.unflatten_mapping(found)


def _product(a: jax.Array, b: jax.Array, stacked: int) -> jax.Array:
    """A [..., inputs, r] times B [..., r, outputs], layer by layer; in float32 on every platform."""
    layers = tuple(range(stacked))
    dimensions = (((a.ndim - 1,), (stacked,)), (layers, layers))
    return jax.lax.dot_general(a, b, dimensions, precision=jax.lax.Precision.HIGHEST)


def _with_rows(table: jax.Array, rows: jax.Array, first: int) -> jax.Array:
    """A table [V, ...] with these rows [n, ...] from ``first`` on. A select, so the table may be sharded over rows."""
    room = [(first, len(table) - first - len(rows)), *[(0, 0)] * (table.ndim - 1)]
    places = jnp.arange(len(table)).reshape(-1, *[1] * (table.ndim - 1))
    return jnp.where((places >= first) & (places < first + len(rows)), jnp.pad(rows, room), table)


def _flat(tree: decoder.Params) -> dict[Path, Any]:
    return dict(nnx.traversals.flatten_mapping(tree))


def _tree(model: cfg.Model, adapters: cfg.Lora, entry: Callable[[_Leaf], Any]) -> decoder.Params:
    return nnx.traversals.unflatten_mapping({path: entry(leaf) for path, leaf in _leaves(model, adapters)})


def _leaves(model: cfg.Model, adapters: cfg.Lora) -> Iterator[tuple[Path, _Leaf]]:
    """What is trained with adapters."""
    for matrix in adapted(model, adapters):
        a, b = _pair(matrix, adapters.rank)
        yield (*matrix.path, A), a
        yield (*matrix.path, B), b
    shapes, axes, kinds = decoder.abstract(model), decoder.axes_tree(model), decoder.metadata(model, "kind")
    for name in _tables(model, adapters):
        rows = model.vocab_size - adapters.first_new_token
        yield (ROWS, name), _Leaf((rows, *shapes[name].shape[1:]), (None, *axes[name][1:]), kinds[name])
    for name in _heads(model):
        yield (name,), _Leaf(shapes[name].shape, axes[name], kinds[name])


def _pair(matrix: Adapted, rank: int) -> tuple[_Leaf, _Leaf]:
    """A and B of a matrix."""
    stacked, split = matrix.stacked, matrix.stacked + matrix.inputs
    shape, axes = matrix.shape, matrix.axes
    a = _Leaf((*shape[:split], rank), (*axes[:split], "rank"), "matrix")
    b = _Leaf((*shape[:stacked], rank, *shape[split:]), (*axes[:stacked], "rank", *axes[split:]), "matrix")
    return a, b


def _tables(model: cfg.Model, adapters: cfg.Lora) -> list[str]:
    """Tables with rows that are trained whole."""
    has_rows = 0 <= adapters.first_new_token < model.vocab_size
    return [name for name in _TABLES if has_rows and name in decoder.abstract(model)]


def _heads(model: cfg.Model) -> tuple[str, ...]:
    return decoder.HEAD if model.outputs else ()
