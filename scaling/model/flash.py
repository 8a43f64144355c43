"""Flash attention for TPUs: two kernels that never write scores, and add all gradients of a head in fast memory.

The formulas are FlashAttention's (arXiv 2307.08691, algorithms 1 and 2). JAX's splash kernel does the same, but writes
a gradient of the queries for each block of keys, which XLA adds afterwards, and each logarithm of a sum of exponentials
128 times, of which XLA takes one; and XLA copies what was kept for it out of the stacks of all layers. These are about
76M of the 671M cycles of a step of 1.3B (docs/notes/compiling.md). The gradients of a head must fit into the fast
memory: rows of up to 18,944 tokens on v5e, v5p and v6e, and of 1,280 before v5e, with heads of up to 128 features. For
longer rows splash remains.

Scores are [keys, queries], so that the numbers of a query lie along the lanes, and are added over sublanes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FORWARD, GRADIENTS = "flash_forward", "flash_gradients"  # names of the kernels, which end in their block
LANES = 128  # of a TPU's vector registers: blocks of the sequence are multiples of it
_UNSEEN = -1e30
_ROOM = 8 << 20  # bytes for blocks of operands and of scores, at least, beside the gradients
_FIRST = ((1,), (1,))  # contracts the features of both
_SECOND = ((1,), (0,))


class Seen(NamedTuple):
    """Which keys a query sees, by their places in the row.

    Attributes:
        causal: none after it.
        window: of those before and itself this many; 0 = all. Only where causal.
    """

    causal: bool = True
    window: int = 0


def bytes_needed(queries: int, keys: int, d_head: int, block: int) -> int:
    """Fast memory for rows of so many tokens in such blocks, of both kernels.

    Sums are float32, and of results, which are bfloat16, two are in flight; about eight float32 arrays have the size of
    a block's scores.
    """
    lanes = -(-d_head // LANES) * LANES
    return (queries + 2 * keys) * lanes * (4 + 2 * 2) + max(_ROOM, 8 * 4 * block * block)


class Tensors(NamedTuple):
    """Of one device.

    Attributes:
        queries: [B, H, T, K], scaled.
        keys: [B, N, S, K]; N divides H.
        values: as keys.
        segments: document numbers int32 of queries [B, T] and of keys [B, S]; a query sees its own. None = all are one.
    """

    queries: jax.Array
    keys: jax.Array
    values: jax.Array
    segments: tuple[jax.Array, jax.Array] | None = None


class Way(NamedTuple):
    """How the kernels work.

    Attributes:
        seen: who sees whom.
        block: tokens of a block, a multiple of 128 that divides T and S.
        stacked: whether queries, keys and values of the backward pass are parts of stacks of all layers. Its kernel
            then reads them, and the output if it is kept, where they lie, and no copy of a layer's part is made.
        interpret: run without a TPU, for tests.
    """

    seen: Seen
    block: int
    stacked: bool = False
    interpret: bool = False


def side_by_side(d_head: int) -> bool:
    """Whether the output of all heads lies in one row of features, as the projection after it reads it.

    Blocks of a head are then columns of a matrix, which must fill the lanes.
    """
    return d_head % LANES == 0


def by_head(out: jax.Array, heads: int) -> jax.Array:
    """The output of ``forward``, or its gradient, as [B, H, T, K]."""
    return out if out.ndim == 4 else out.reshape(*out.shape[:2], heads, -1).swapaxes(1, 2)


def block_pairs(queries: int, keys: int, block: int, seen: Seen) -> np.ndarray:
    """The pairs of blocks that have something to compute.

    Args:
        queries: tokens of a row.
        keys: tokens of a row.
        block: tokens of a block of each; divides both.
        seen: who sees whom.

    Returns:
        int32 [5, P]: block of queries, block of keys, whether each of the queries sees each of the keys, and whether it
        is the first and the last pair of its block of queries, which stays while blocks of keys pass.
    """
    rows, columns = np.meshgrid(np.arange(queries // block), np.arange(keys // block), indexing="ij")
    least = (rows - columns) * block - (block - 1)  # distance of the last key and the first query
    most = (rows - columns) * block + (block - 1)
    some, all_of_them = np.full(rows.shape, True), np.full(rows.shape, True)
    if seen.causal:
        some, all_of_them = most >= 0, least >= 0
        if seen.window:
            some, all_of_them = some & (least < seen.window), all_of_them & (most < seen.window)
    changes = np.diff(rows[some]) != 0
    ends = np.append(True, changes), np.append(changes, True)
    return np.stack([rows[some], columns[some], all_of_them[some], *ends]).astype(np.int32)


def forward(tensors: Tensors, way: Way) -> tuple[jax.Array, jax.Array]:
    """Attention.

    Returns:
        The output, [B, T, H * K] if heads lie ``side_by_side``, else [B, H, T, K], and the logarithms of the sums of
        exponentials, float32 [B, H, T].
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    call = _Call.of(tensors, way)
    pairs = block_pairs(call.queries, call.keys, way.block, way.seen)
    out, lse = pl.pallas_call(
        functools.partial(_forward_kernel, way=way),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(*call.grid, pairs.shape[1]),
            in_specs=call.specs,
            out_specs=[call.of_output, call.number],
            scratch_shapes=[
                pltpu.VMEM(shape, jnp.float32) for shape in ((1, way.block),) * 2 + ((call.d_head, way.block),)
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(call.output, tensors.queries.dtype),
            jax.ShapeDtypeStruct((*call.grid, 1, call.queries), jnp.float32),
        ],
        compiler_params=call.parameters,
        name=f"{FORWARD}_{way.block}",
        interpret=way.interpret,
    )(pairs, *call.operands)
    return out if out.ndim == 3 else out.reshape(tensors.queries.shape), lse.reshape(tensors.queries.shape[:3])


def _forward_kernel(at: Any, q: Any, k: Any, v: Any, *rest: Any, way: Way) -> None:
    """One pair of blocks; the output is [features, queries] while it is added up."""
    from jax.experimental import pallas as pl

    *segments, out, lse, most, total, mixed = rest
    pair = pl.program_id(3)

    @pl.when(at[3, pair] == 1)
    def begin() -> None:
        most[...] = jnp.full_like(most, _UNSEEN)
        total[...] = jnp.zeros_like(total)
        mixed[...] = jnp.zeros_like(mixed)

    def add(masked: bool) -> None:
        scores = _scores(q, k, at, pair, segments, way, masked)
        greatest = jnp.maximum(most[...], scores.max(0, keepdims=True))
        weights, less = jnp.exp(scores - greatest), jnp.exp(most[...] - greatest)
        most[...] = greatest
        total[...] = less * total[...] + weights.sum(0, keepdims=True)
        mixed[...] = less * mixed[...] + _product(v[...].T, weights.astype(v.dtype), _SECOND)

    _where_visible(at, pair, segments, add)

    @pl.when(at[4, pair] == 1)
    def end() -> None:
        out[...] = (mixed[...] / total[...]).T.astype(out.dtype)
        lse[...] = most[...] + jnp.log(total[...])


def gradients(
    tensors: Tensors, saved: tuple[jax.Array, jax.Array], grad: jax.Array, way: Way
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of queries, keys and values.

    Args:
        tensors: as of ``forward``.
        saved: what ``forward`` returned.
        grad: of the output, as it lies.
        way: as of ``forward``.

    Returns:
        In the dtypes and shapes of the tensors; sums are float32.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    call = _Call.of(tensors, way)
    (queries, keys), d_head = (call.queries, call.keys), call.d_head
    out, lse = saved
    out, grad = (x.reshape(call.output) for x in (out, grad))
    number = lse.reshape(*call.grid, 1, queries)
    beside = side_by_side(d_head)
    # Of other heads the compiler keeps the output as the product after it wants it, and would turn it for the kernel.
    last = out if beside else (out.astype(jnp.float32) * grad.astype(jnp.float32)).sum(-1).reshape(number.shape)
    whole_query = pl.BlockSpec((None, None, None, queries, d_head), lambda b, n, g, p, at: (b, n, g, 0, 0))
    whole_keys = pl.BlockSpec((None, None, keys, d_head), lambda b, n, g, p, at: (b, n, 0, 0))
    pairs = block_pairs(queries, keys, way.block, way.seen)
    dq, dk, dv = pl.pallas_call(
        functools.partial(_gradients_kernel, way=way),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(*call.grid, pairs.shape[1]),
            in_specs=[call.of_output, call.number, call.of_output if beside else call.number, *call.specs],
            out_specs=[whole_query, whole_keys, whole_keys],
            scratch_shapes=[
                pltpu.VMEM(shape, jnp.float32)
                for shape in ((1, way.block), *((length, d_head) for length in (queries, keys, keys)))
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in call.operands[:3]],
        compiler_params=dataclasses.replace(
            call.parameters,  # the first operand holds the pairs
            allow_input_fusion=[False] * 3
            + [way.stacked and beside, *[way.stacked] * 3]
            + [False] * (len(call.operands) - 3),
        ),
        name=f"{GRADIENTS}_{way.block}",
        interpret=way.interpret,
    )(pairs, grad, number, last, *call.operands)
    return dq.reshape(tensors.queries.shape), dk, dv


def _gradients_kernel(at: Any, grad: Any, lse: Any, last: Any, q: Any, k: Any, v: Any, *rest: Any, way: Way) -> None:
    """One pair of blocks; ``last`` is the output, or the sums of its product with the gradient."""
    from jax.experimental import pallas as pl

    *segments, results, delta, sums = *rest[:-7], rest[-7:-4], rest[-4], rest[-3:]
    group, pair = pl.program_id(2), pl.program_id(3)

    @pl.when(pair == 0)
    def begin_queries() -> None:
        sums[0][...] = jnp.zeros_like(sums[0])

    @pl.when(at[3, pair] == 1)
    def begin_block() -> None:
        if last.shape == grad.shape:
            product = last[...].astype(jnp.float32) * grad[...].astype(jnp.float32)
            delta[...] = product.T.sum(0, keepdims=True)
        else:
            delta[...] = last[...]

    @pl.when((pair == 0) & (group == 0))
    def begin_keys() -> None:
        for total in sums[1:]:
            total[...] = jnp.zeros_like(total)

    def add(masked: bool) -> None:
        queries, upstream = q[...], grad[...]
        weights = jnp.exp(_scores(q, k, at, pair, segments, way, masked) - lse[...])
        slope = (weights * (_product(v[...], upstream, _FIRST) - delta[...])).astype(queries.dtype)
        mine, theirs = (pl.ds(pl.multiple_of(at[i, pair] * way.block, way.block), way.block) for i in (0, 1))
        sums[0][mine, :] += _product(slope.T, k[...], _SECOND)
        sums[1][theirs, :] += _product(slope, queries, _SECOND)
        sums[2][theirs, :] += _product(weights.astype(upstream.dtype), upstream, _SECOND)

    _where_visible(at, pair, segments, add)
    ends = pair == pl.num_programs(3) - 1

    @pl.when(ends)
    def end_queries() -> None:
        results[0][...] = sums[0][...].astype(results[0].dtype)

    @pl.when(ends & (group == pl.num_programs(2) - 1))
    def end_keys() -> None:
        for result, total in zip(results[1:], sums[1:], strict=True):
            result[...] = total[...].astype(result.dtype)


class _Call(NamedTuple):
    """What both kernels are called with. The grid is rows, heads of keys, queries' heads of each, pairs of blocks."""

    operands: list[jax.Array]
    specs: list[Any]
    of_output: Any
    output: tuple[int, ...]
    number: Any
    grid: tuple[int, int, int]
    queries: int
    keys: int
    d_head: int
    parameters: Any

    @classmethod
    def of(cls, tensors: Tensors, way: Way) -> "_Call":
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import tpu as pltpu

        q, k, v, segments = tensors
        (rows, groups, keys, d_head), (_, heads, queries, _) = k.shape, q.shape
        grid, block = (rows, groups, heads // groups), way.block
        of_query = pl.BlockSpec((None, None, None, block, d_head), lambda b, n, g, p, at: (b, n, g, at[0, p], 0))
        of_output = of_query
        output: tuple[int, ...] = (*grid, queries, d_head)
        if side_by_side(d_head):
            each = heads // groups
            of_output = pl.BlockSpec((None, block, d_head), lambda b, n, g, p, at: (b, at[0, p], n * each + g))
            output = (rows, queries, heads * d_head)
        of_keys = pl.BlockSpec((None, None, block, d_head), lambda b, n, g, p, at: (b, n, at[1, p], 0))
        number = pl.BlockSpec((None, None, None, 1, block), lambda b, n, g, p, at: (b, n, g, 0, at[0, p]))
        operands, specs = [q.reshape(*grid, queries, d_head), k, v], [of_query, of_keys, of_keys]
        if segments is not None:
            mine, theirs = segments
            operands += [mine[:, None], jnp.broadcast_to(theirs[..., None], (*theirs.shape, LANES))]
            specs += [
                pl.BlockSpec((None, 1, block), lambda b, n, g, p, at: (b, 0, at[0, p])),
                pl.BlockSpec((None, block, LANES), lambda b, n, g, p, at: (b, at[1, p], 0)),
            ]
        parameters = pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=bytes_needed(queries, keys, d_head, block),
        )
        return cls(operands, specs, of_output, output, number, grid, queries, keys, d_head, parameters)


def _where_visible(at: Any, pair: jax.Array, segments: list[Any], add: Callable[[bool], None]) -> None:
    """Masks scores only where that changes something."""
    from jax.experimental import pallas as pl

    if segments:
        add(True)
    else:
        pl.when(at[2, pair] == 1)(lambda: add(False))
        pl.when(at[2, pair] == 0)(lambda: add(True))


def _scores(q: Any, k: Any, at: Any, pair: jax.Array, segments: list[Any], way: Way, masked: bool) -> jax.Array:
    """Of a pair of blocks, float32 [keys, queries]."""
    scores = _product(k[...], q[...], _FIRST)
    if not masked:
        return scores
    seen, shift = way.seen, (at[0, pair] - at[1, pair]) * way.block
    query, key = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in (1, 0))
    distance = shift + query - key
    visible = distance >= 0 if seen.causal else jnp.full(scores.shape, True)
    if seen.causal and seen.window:
        visible &= distance < seen.window
    if segments:
        mine, theirs = segments  # [1, queries], [keys, lanes]
        visible &= mine[...] == theirs[:, :1]
    return jnp.where(visible, scores, _UNSEEN)


def _product(left: jax.Array, right: jax.Array, axes: Any) -> jax.Array:
    return jax.lax.dot_general(left, right, (axes, ((), ())), preferred_element_type=jnp.float32)
