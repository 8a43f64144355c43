"""Attention kernels: ours and JAX's splash attention on TPUs, cuDNN's flash attention on GPUs.

Neither forms the scores [T, T] in memory, and both skip what lies outside a band: a banded layer costs its band. One
function, ``serving``, says which kernel serves a call; what none serves, the reference in ``attention`` does.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from scaling.config.remat import ATTENTION, QKV, SOFTMAX
from scaling.model import flash
from scaling.model.context import AttentionContext
from scaling.model.flash import LANES
from scaling.parallel.compiler import fast_memory
from scaling.parallel.sharding import BATCH_AXES, context_devices, in_rows, platform

HEAD_AXIS = "tensor"
_NOTHING = -1e30  # logarithm of the sum of a row that sees nothing
_BACKWARD_OPTIONS = (
    "save_residuals",
    "mask_value",
    "is_mqa",
    "block_sizes",
    "residual_checkpoint_name",
    "mask_function",
    "attn_logits_soft_cap",
    "interpret",
)


def serving(where: str, q: jax.Array, context: AttentionContext, plain: bool = True) -> str:
    """The kernel for a call: "flash", "cudnn" or "reference".

    Args:
        where: platform.
        q: queries [B, H, T, K]; float32 means float32 here, which the kernels' products do not keep.
        context: who sees whom; in zigzag order a kernel serves chunks of the sequence.
        plain: whether weights are the softmax of scores and nothing else: no dropout, nothing added to scores.
    """
    _, _, length, d_head = q.shape
    if context.zigzag:
        length //= 2 * context_devices()
    if not plain or not context.causal or context.strided or q.dtype != jnp.bfloat16:
        return "reference"
    if where == "tpu" and length % LANES == 0:
        return "flash"
    if where in ("gpu", "cuda") and context.segments is None and d_head % 8 == 0 and d_head <= 128:
        return "cudnn"
    return "reference"


def flash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    context: AttentionContext,
    scale: float,
    block: int,
    stacked: bool = False,
) -> jax.Array:
    """Causal attention by a kernel for TPUs: that of ``flash``, or for rows that it has no room for, JAX's splash.

    On other devices the kernel's program is interpreted, for tests.

    Args:
        q: [B, H, T, K], T a multiple of 128.
        k: [B, N, T, K]; N divides H.
        v: as k.
        context: who sees whom, by window and segments.
        scale: multiplies q.k.
        block: positions in a block of queries and of keys, at most; a multiple of 128.
        stacked: whether every layer keeps queries, keys and values for the backward pass.
    """
    segments = context.segments

    def local(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None) -> jax.Array:
        # Kept as the kernels read them. Before it scales them, the compiler would turn heads of fewer than 128 features
        # over, to save memory, and back afterwards: 6 % of the cycles of 2.7B.
        q, k, v = (checkpoint_name(in_rows(x), QKV) for x in (_scaled(q, scale), k, v))
        # The TPU's compiler refuses products of bfloat16 in the precision that callers may ask for float32.
        with jax.default_matmul_precision("default"):
            size = _block_size(q.shape[2], context.window, block)
            if flash.bytes_needed(q.shape[2], k.shape[2], q.shape[3], size) <= fast_memory():
                both = None if segments is None else (segments, segments)
                way = flash.Way(
                    flash.Seen(window=context.window),
                    size,
                    stacked=stacked,
                    interpret=platform() != "tpu",
                )
                return flash.by_head(_attention(flash.Tensors(q, k, v, both), way), q.shape[1])
            return _splash(q, k, v, segments, context.window, block)

    heads = P(BATCH_AXES, HEAD_AXIS, None, None)
    keys = heads if k.shape[1] > 1 else P(BATCH_AXES, None, None, None)  # a single head serves all devices
    tokens = None if segments is None else P(BATCH_AXES, None)
    # Pallas calls cannot be partitioned by the compiler; each device runs its rows and heads.
    sharded = jax.shard_map(local, in_specs=(heads, keys, keys, tokens), out_specs=heads, check_vma=False)
    return sharded(q, k, v, segments)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _attention(tensors: flash.Tensors, way: flash.Way) -> jax.Array:
    """Attention on one device by the kernels of ``flash``; the output is laid out as theirs."""
    return _attention_forward(tensors, way)[0]


def _attention_forward(tensors: flash.Tensors, way: flash.Way) -> tuple[jax.Array, Any]:
    out, lse = flash.forward(tensors, way)
    out, lse = checkpoint_name(out, ATTENTION), checkpoint_name(lse, SOFTMAX)
    return out, (tensors, out, lse)


def _attention_backward(way: flash.Way, saved: Any, grad: jax.Array) -> tuple[flash.Tensors]:
    tensors, out, lse = saved
    return (flash.Tensors(*flash.gradients(tensors, (out, lse), grad, way)),)


_attention.defvjp(_attention_forward, _attention_backward)


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None, window: int, block: int) -> jax.Array:
    """The library's kernel over the rows, and over the groups of heads if there are fewer of keys."""
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    grouped = q.shape[1] > k.shape[1]
    heads = q.shape[1] // k.shape[1] if grouped else q.shape[1]
    kernel = _splash_kernel(heads, q.shape[2], window, block, grouped)
    rest = () if segments is None else (SegmentIds(segments, segments),)
    if not grouped:
        out: jax.Array = jax.vmap(kernel)(q, k, v, *rest)
        return out
    groups = jax.vmap(kernel, in_axes=(0, 0, 0, *[None] * len(rest)))
    return jax.vmap(groups)(q.reshape(*k.shape[:2], -1, *q.shape[2:]), k, v, *rest).reshape(q.shape)


def _block_size(length: int, window: int, block: int) -> int:
    """No wider than a band needs."""
    narrow = 0 < window <= length // 2
    return largest_block(length, min(block, -(-window // LANES) * LANES) if narrow else block)


def _splash_kernel(heads: int, length: int, window: int, block: int, grouped: bool = False) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    shape, size = (length, length), _block_size(length, window, block)
    if 0 < window <= length // 2:
        # The backward pass in two kernels, whose grids shrink to the band. The fused one's stays the square, and it
        # writes a gradient of the queries for each block of keys.
        sizes = functools.partial(library.BlockSizes, block_q_dq=size, block_kv_dq=size)
    else:
        sizes = functools.partial(library.BlockSizes, use_fused_bwd_kernel=True)
    mask = library.LocalMask(shape, (window - 1, 0), 0) if window else library.CausalMask(shape)
    make = library.make_splash_mqa if grouped else library.make_splash_mha
    return make(
        library.MultiHeadMask([mask] * heads),
        block_sizes=sizes(block_q=size, block_kv=size, block_q_dkv=size, block_kv_dkv=size),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENTION,
        interpret=platform() != "tpu",
    )


class Queries(NamedTuple):
    """Of two chunks of a sequence."""

    queries: jax.Array  # [B, H, T, K]
    segments: jax.Array | None  # document numbers [B, T]


class Keys(NamedTuple):
    """Of two chunks of a sequence."""

    keys: jax.Array  # [B, H, S, K]
    values: jax.Array  # [B, H, S, K]
    segments: jax.Array | None  # document numbers [B, S]


class Result(NamedTuple):
    """Of all hops together, as the backward pass needs it."""

    out: jax.Array  # [B, H, T, K]
    lse: jax.Array  # logarithms of the sums of exponentials [B, H, T]
    grad: jax.Array  # of the output, [B, H, T, K]


class Meeting(NamedTuple):
    """What a kernel is told of the queries and keys that meet at a hop of ``ring``.

    Attributes:
        causal: keys are the queries' own; else whole chunks are seen or not.
        earlier: whether the keys' first chunk lies before both of the queries' (and their second after both); else
            both of the keys' chunks lie between the queries'. A scalar, bool.
        scale: multiplies q.k.
        block: positions in a block, at most.
    """

    causal: bool
    earlier: jax.Array
    scale: float
    block: int

    def of_chunks(self, seen: Callable[[slice, slice], Any], length: int) -> Any:
        """``seen(queries, keys)`` of the positions, of ``length``, that see others at this hop."""
        half = length // 2
        if self.causal:
            return seen(slice(None), slice(None))
        return jax.lax.cond(
            self.earlier, lambda: seen(slice(None), slice(half)), lambda: seen(slice(half, None), slice(None))
        )


def splash_hop(mine: Queries, theirs: Keys, meeting: Meeting) -> tuple[jax.Array, jax.Array]:
    """One device's part of one hop of ``ring``, by splash; for use under ``shard_map``.

    Returns:
        Output float32 [B, H, T, K] and the logarithms of the sums of exponentials [B, H, T]; where nothing is seen 0
        and a large negative number.
    """

    def seen(rows: slice, columns: slice) -> tuple[jax.Array, jax.Array]:
        q, k, v, ids = _chunks(mine, theirs, rows, columns)
        out, (lse,) = jax.vmap(_hop_kernel(q, k, meeting))(_scaled(q, meeting.scale), k, v, ids)
        front = rows.start or 0
        out = jnp.pad(out.astype(jnp.float32), ((0, 0), (0, 0), (front, 0), (0, 0)))
        return out, jnp.pad(lse, ((0, 0), (0, 0), (front, 0)), constant_values=_NOTHING)

    return meeting.of_chunks(seen, mine.queries.shape[2])


def splash_hop_gradients(
    mine: Queries, theirs: Keys, result: Result, meeting: Meeting
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of queries, keys and values, float32, by one hop.

    The kernel's own backward pass, which is no public function, is called with them in place of its own, as in
    tokamax's ring attention; a test compares it with the reference.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library

    length = mine.queries.shape[2]

    def seen(rows: slice, columns: slice) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v, ids = _chunks(mine, theirs, rows, columns)
        kernel = _hop_kernel(q, k, meeting)
        options = {name: kernel.kwargs[name] for name in _BACKWARD_OPTIONS}
        masks = kernel.dq_mask_info, kernel.dkv_mask_info

        def one(tensors: tuple[jax.Array, ...], ids: Any, result: Result) -> Any:
            saved = (*tensors, ids, None, result.out, result.lse, *masks)
            return library._splash_attention_bwd(**options, res=saved, do=result.grad)[3:6]

        its_rows = jax.tree.map(lambda x: x[:, :, rows], result)
        dq, dk, dv = jax.vmap(one)((_scaled(q, meeting.scale), k, v), ids, its_rows)

        def whole(x: jax.Array, part: slice) -> jax.Array:
            front = part.start or 0
            back = length - front - x.shape[2]
            return jnp.pad(x.astype(jnp.float32), ((0, 0), (0, 0), (front, back), (0, 0)))

        return whole(dq, rows) * meeting.scale, whole(dk, columns), whole(dv, columns)

    return meeting.of_chunks(seen, length)


def _chunks(mine: Queries, theirs: Keys, rows: slice, columns: slice) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
    """Queries, keys and values at some positions, and their documents as the kernel takes them."""
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    ids = None
    if mine.segments is not None:
        assert theirs.segments is not None
        ids = SegmentIds(mine.segments[:, rows], theirs.segments[:, columns])
    return mine.queries[:, :, rows], theirs.keys[:, :, columns], theirs.values[:, :, columns], ids


def _hop_kernel(q: jax.Array, k: jax.Array, meeting: Meeting) -> Any:
    """The kernel for some queries and keys, of one chunk or of two."""
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    shape = q.shape[2], k.shape[2]
    size = largest_block(max(shape) // 2, meeting.block)
    return library.make_splash_mha(
        library.MultiHeadMask([library.CausalMask(shape) if meeting.causal else library.FullMask(shape)] * q.shape[1]),
        # Not the fused backward kernel: it keeps the gradient of the queries once for each block of keys.
        block_sizes=library.BlockSizes(
            block_q=size,
            block_kv=size,
            block_q_dkv=size,
            block_kv_dkv=size,
            block_q_dq=size,
            block_kv_dq=size,
        ),
        head_shards=1,
        q_seq_shards=1,
        save_residuals=True,
        interpret=platform() != "tpu",
    )


def _scaled(q: jax.Array, scale: float) -> jax.Array:
    """The kernel does not scale."""
    return (q * jnp.asarray(scale, jnp.float32)).astype(q.dtype)


def largest_block(length: int, most: int) -> int:
    """The largest multiple of 128 up to ``most`` that divides ``length``, itself a multiple of 128."""
    assert length % LANES == 0
    return max(size for size in range(LANES, max(most, LANES) + 1, LANES) if length % size == 0)


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, *, scale: float, window: int) -> jax.Array:
    """Causal attention by cuDNN; arguments as of ``attention.attend``."""
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # [B, T, H, K]
    band = (window - 1, 0) if window else None
    out = jax.nn.dot_product_attention(
        q, k, v, scale=scale, is_causal=True, local_window_size=band, implementation="cudnn"
    )
    return jnp.swapaxes(out, 1, 2)
