"""Attention kernels: JAX's splash attention on TPUs, cuDNN's flash attention on GPUs.

Neither forms the scores [T, T] in memory, and both skip what lies outside a band: a banded layer costs its band. One
function, ``serving``, says which kernel serves a call; what none serves, the reference in ``attention`` does.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from scaling.parallel.sharding import BATCH_AXES

LANES = 128  # of a TPU's vector registers: blocks of the sequence are multiples of it
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


def platform() -> str:
    """Where the computation being traced will run: the platform of the mesh, else of this process."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else getattr(mesh, "abstract_device", None)
    return getattr(device, "platform", None) or jax.default_backend()


def serving(where: str, length: int, d_head: int, dtype: Any, *, segments: bool, plain: bool = True) -> str:
    """The kernel for a call: "splash", "cudnn" or "reference".

    Args:
        where: platform.
        length: positions of queries and keys.
        d_head: width of a head.
        dtype: of queries, keys and values; float32 means float32 here, which the kernels' products do not keep.
        segments: whether tokens see only their own document.
        plain: whether weights are the softmax of causal scores: no dropout, no slopes of ALiBi.
    """
    if not plain or dtype != jnp.bfloat16:
        return "reference"
    if where == "tpu" and length % LANES == 0:
        return "splash"
    if where in ("gpu", "cuda") and not segments and d_head % 8 == 0 and d_head <= 128:
        return "cudnn"
    return "reference"


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    window: int,
    segments: jax.Array | None,
    block: int,
    residuals: str,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention by JAX's Pallas kernel for TPUs; arguments as of ``attention.attend``.

    Args:
        q: [B, H, T, K], T a multiple of 128.
        k: [B, N, T, K].
        v: as k.
        scale: multiplies q.k.
        window: band width; 0 = dense.
        segments: document numbers [B, T], or None.
        block: positions in a block of queries and of keys, at most; a multiple of 128.
        residuals: name under which remat policies find what the backward pass needs.
        interpret: run the kernel's program without a TPU (for tests).
    """

    def local(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None) -> jax.Array:
        from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

        grouped = q.shape[1] > k.shape[1]
        kernel = _splash_kernel(
            q.shape[1] // (k.shape[1] if grouped else 1), q.shape[2], window, block, residuals, interpret, grouped
        )
        rest = () if segments is None else (SegmentIds(segments, segments),)
        # The TPU's compiler refuses products of bfloat16 in the precision that callers may ask for float32.
        with jax.default_matmul_precision("default"):
            return _each_row(kernel, q, k, v, *rest)

    q = checkpoint_name(_scaled(q, scale), residuals)
    if jax.sharding.get_abstract_mesh().empty:
        return local(q, k, v, segments)
    heads = P(BATCH_AXES, HEAD_AXIS, None, None)
    keys = heads if k.shape[1] > 1 else P(BATCH_AXES, None, None, None)  # a single head serves all devices
    tokens = None if segments is None else P(BATCH_AXES, None)
    # Pallas calls cannot be partitioned by the compiler; each device runs its rows and heads.
    sharded = jax.shard_map(local, in_specs=(heads, keys, keys, tokens), out_specs=heads, check_vma=False)
    return sharded(q, k, v, segments)


def _each_row(kernel: Any, q: jax.Array, k: jax.Array, v: jax.Array, *rest: Any) -> jax.Array:
    """A kernel of ``_splash_kernel`` over the rows, and over the groups of heads if there are fewer of keys."""
    if q.shape[1] == k.shape[1]:
        return jax.vmap(kernel)(q, k, v, *rest)
    grouped = q.reshape(*k.shape[:2], -1, *q.shape[2:])
    groups = jax.vmap(kernel, in_axes=(0, 0, 0, *[None] * len(rest)))
    return jax.vmap(groups)(grouped, k, v, *rest).reshape(q.shape)


def _splash_kernel(
    heads: int, length: int, window: int, block: int, residuals: str, interpret: bool, grouped: bool
) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    shape = (length, length)
    if 0 < window <= length // 2:
        # Blocks no wider than the band needs, and the backward pass in two kernels, whose grids shrink to the band. The
        # fused one's stays the square, and it writes a gradient of the queries for each block of keys.
        mask: Any = library.LocalMask(shape, (window - 1, 0), 0)
        size = largest_block(length, min(block, -(-window // LANES) * LANES))
        sizes = functools.partial(library.BlockSizes, block_q_dq=size, block_kv_dq=size)
    else:
        mask = library.LocalMask(shape, (window - 1, 0), 0) if window else library.CausalMask(shape)
        size = largest_block(length, block)
        sizes = functools.partial(library.BlockSizes, use_fused_bwd_kernel=True)
    make = library.make_splash_mqa if grouped else library.make_splash_mha
    return make(
        library.MultiHeadMask([mask] * heads),
        block_sizes=sizes(block_q=size, block_kv=size, block_q_dkv=size, block_kv_dkv=size),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=residuals,
        interpret=interpret,
    )


def splash_hop(
    q: jax.Array,
    keys: tuple[jax.Array, jax.Array, jax.Array | None],
    segments: jax.Array | None,
    *,
    causal: bool,
    earlier: jax.Array,
    scale: float,
    block: int,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """One device's part of one hop of ``ring``, by the kernel of ``splash``; for use under ``shard_map``.

    Args:
        q: queries of two chunks, [B, H, T, K].
        keys: keys and values [B, H, T, K] of two chunks, and their segments [B, T] or None.
        segments: of the queries.
        causal: keys are the queries' own; else whole chunks are seen or not.
        earlier: whether the keys' first chunk lies before both of the queries' (and their second behind both); else
            both of the keys' chunks lie between the queries'.
        scale: multiplies q.k.
        block: positions in a block, at most.
        interpret: run the kernel's program without a TPU.

    Returns:
        Output float32 [B, H, T, K] and the logarithms of the sums of exponentials [B, H, T]; where nothing is seen 0
        and a large negative number.
    """
    half = q.shape[2] // 2

    def seen(mine: slice, theirs: slice) -> tuple[jax.Array, jax.Array]:
        kernel, ids = _hop_kernel(q, keys, segments, mine, theirs, causal, block, interpret)
        key, value = (x[:, :, theirs] for x in keys[:2])
        out, (lse,) = jax.vmap(kernel)(_scaled(q[:, :, mine], scale), key, value, ids)
        front = mine.start or 0
        out = jnp.pad(out.astype(jnp.float32), ((0, 0), (0, 0), (front, 0), (0, 0)))
        return out, jnp.pad(lse, ((0, 0), (0, 0), (front, 0)), constant_values=_NOTHING)

    if causal:
        return seen(slice(None), slice(None))
    return jax.lax.cond(earlier, lambda: seen(slice(None), slice(half)), lambda: seen(slice(half, None), slice(None)))


def splash_hop_gradients(
    q: jax.Array,
    keys: tuple[jax.Array, jax.Array, jax.Array | None],
    segments: jax.Array | None,
    out: jax.Array,
    lse: jax.Array,
    grad: jax.Array,
    *,
    causal: bool,
    earlier: jax.Array,
    scale: float,
    block: int,
    interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of queries, keys and values, float32, by one hop; ``out`` and ``lse`` are those of all hops together.

    The kernel's own backward pass, which is no public function, is called with them in place of its own, as in
    tokamax's ring attention; a test compares it with the reference.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library

    half = q.shape[2] // 2

    def seen(mine: slice, theirs: slice) -> tuple[jax.Array, jax.Array, jax.Array]:
        kernel, ids = _hop_kernel(q, keys, segments, mine, theirs, causal, block, interpret)
        options = {name: kernel.kwargs[name] for name in _BACKWARD_OPTIONS}
        masks = kernel.dq_mask_info, kernel.dkv_mask_info

        def one(query, key, value, ids, out, lse, grad):
            saved = (query, key, value, ids, None, out, lse, *masks)
            return library._splash_attention_bwd(**options, res=saved, do=grad)[3:6]

        key, value = (x[:, :, theirs] for x in keys[:2])
        rows = (x[:, :, mine] for x in (out, lse, grad))
        dq, dk, dv = jax.vmap(one)(_scaled(q[:, :, mine], scale), key, value, ids, *rows)

        def whole(x: jax.Array, part: slice) -> jax.Array:
            front = part.start or 0
            back = q.shape[2] - front - x.shape[2]
            return jnp.pad(x.astype(jnp.float32), ((0, 0), (0, 0), (front, back), (0, 0)))

        return whole(dq, mine) * scale, whole(dk, theirs), whole(dv, theirs)

    if causal:
        return seen(slice(None), slice(None))
    return jax.lax.cond(earlier, lambda: seen(slice(None), slice(half)), lambda: seen(slice(half, None), slice(None)))


def _hop_kernel(q, keys, segments, mine, theirs, causal, block, interpret):
    """The kernel for some queries and keys, and their documents."""
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    length, heads = q.shape[2], q.shape[1]
    shape = len(range(length)[mine]), len(range(length)[theirs])
    size = largest_block(length // 2, block)
    kernel = library.make_splash_mha(
        library.MultiHeadMask([library.CausalMask(shape) if causal else library.FullMask(shape)] * heads),
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
        interpret=interpret,
    )
    if segments is None:
        return kernel, None
    return kernel, library.SegmentIds(segments[:, mine], keys[2][:, theirs])


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
