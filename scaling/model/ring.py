"""Ring attention: the sequence lies over the ``context`` axis, and keys and values travel round it.

Each device keeps its queries and meets the keys and values of all others, one hop after another, with a softmax that
is merged as it goes (Liu, Zaharia, Abbeel, arXiv 2310.01889). No device holds more than its part of the sequence, and
the backward pass goes round once more, with the gradients of keys and values travelling beside them.

The order is a zigzag, as under causality contiguous parts would leave the first devices idle (Brandon et al.,
arXiv 2311.09431; chunks as in Llama 3, arXiv 2407.21783, section 3.3.2): of 2 n chunks, device i holds chunks i and
2 n - 1 - i. Of what it meets at a hop, exactly half is visible: the keys' first chunk to all of its queries, or both
chunks to its second queries. ``hops`` lists the visible blocks of each device beforehand; nothing else is computed, and
hops at which no device sees anything, behind the end of a band, are passed over.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from scaling.config.remat import ATTENTION, SOFTMAX
from scaling.model import kernels
from scaling.model.kernels import Keys, Queries, Result
from scaling.parallel.sharding import BATCH_AXES, CONTEXT_AXIS, context_devices

_MASKED = -1e30  # not -inf: a row that sees nothing at a hop must give finite numbers
_NEVER = -(2**30)  # an offset that masks a whole block
_HEADS = P(BATCH_AXES, kernels.HEAD_AXIS, CONTEXT_AXIS, None)
_ROWS = P(BATCH_AXES, kernels.HEAD_AXIS, CONTEXT_AXIS)
_TOKENS = P(BATCH_AXES, CONTEXT_AXIS)
_RESULT = Result(_HEADS, _ROWS, _HEADS)  # type: ignore[arg-type]


def zigzag(x: jax.Array, axis: int = 1) -> jax.Array:
    """Positions of the text reordered so that equal parts of the result, one a device, see equally much.

    Args:
        x: any array, its positions along ``axis``, a multiple of twice the devices of ``context``.
        axis: of the positions.
    """
    order = _chunk_order()
    assert x.shape[axis] % len(order) == 0
    chunks = x.reshape(*x.shape[:axis], len(order), -1, *x.shape[axis + 1 :])
    return jnp.take(chunks, order, axis=axis).reshape(x.shape)


def text_places(length: int) -> np.ndarray:
    """Of each position in the order of ``zigzag``, its place in the text: int [T]."""
    order = _chunk_order()
    return np.arange(length).reshape(len(order), -1)[order].reshape(-1)


def _chunk_order() -> np.ndarray:
    count = context_devices()
    return np.asarray([chunk for device in range(count) for chunk in (device, 2 * count - 1 - device)])


class Setup(NamedTuple):
    """What of a ring is static.

    Attributes:
        scale: multiplies q.k.
        window: band width; 0 = dense.
        block: positions in a block of queries and of keys, at most: the largest divisor of a chunk is taken.
        kernel: dense attention by the TPU's kernel (a chunk must be a multiple of 128 positions).
    """

    scale: float
    window: int
    block: int
    kernel: bool
    single: bool = False  # set by ``attend``: one head of keys serves the queries of all devices of ``tensor``


def attend(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None, setup: Setup) -> jax.Array:
    """Causal attention over positions in the order of ``zigzag``.

    Args:
        q: [B, H, T, K], T a multiple of twice the devices of the mesh's ``context`` axis.
        k: [B, N, T, K]; N divides H.
        v: as k.
        segments: document numbers [B, T] in the same order, or None.
        setup: what is static.

    Returns:
        [B, H, T, K], in q's dtype; scores and softmax are float32.
    """
    return _attend(q, k, v, segments, setup._replace(single=k.shape[1] == 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None, setup: Setup) -> jax.Array:
    return _attend_forward(q, k, v, segments, setup)[0]


def _attend_forward(q, k, v, segments, setup):
    run = jax.shard_map(
        functools.partial(_forward, setup=setup),
        in_specs=(_HEADS, _of_keys(k), _of_keys(v), None if segments is None else _TOKENS),
        out_specs=(_HEADS, _ROWS),
        check_vma=False,
    )
    out, lse = run(q, k, v, segments)
    out, lse = checkpoint_name(out, ATTENTION), checkpoint_name(lse, SOFTMAX)
    return out, (q, k, v, segments, out, lse)


def _attend_backward(setup, saved, grad):
    q, k, v, segments, out, lse = saved
    run = jax.shard_map(
        functools.partial(_backward, setup=setup),
        in_specs=(_HEADS, _of_keys(k), _of_keys(v), None if segments is None else _TOKENS, _RESULT),
        out_specs=(_HEADS, _of_keys(k), _of_keys(v)),
        check_vma=False,
    )
    dq, dk, dv = run(q, k, v, segments, Result(out, lse, grad))
    return dq, dk, dv, None


_attend.defvjp(_attend_forward, _attend_backward)


def _of_keys(x: jax.Array) -> P:
    """Where keys or values lie: as queries do, but a single head on all devices of ``tensor``."""
    return _HEADS if x.shape[1] > 1 else P(BATCH_AXES, None, CONTEXT_AXIS, None)


class Hop(NamedTuple):
    """What every device computes while the keys and values of the device ``number`` before it are there.

    Attributes:
        number: 0 = its own.
        lists: visible blocks, int32 [lists, blocks, 3]: number of the block of queries, of that of keys, and how
            many positions the first query is after the first key.
        choice: which of the lists is whose, int32 [devices].
        masked: whether some block is only partly visible.
    """

    number: int
    lists: np.ndarray
    choice: np.ndarray
    masked: bool


@functools.lru_cache(maxsize=64)
def hops(devices: int, chunk: int, size: int, window: int) -> tuple[Hop, ...]:
    """The hops at which a device sees something, and what.

    Args:
        devices: of the ring.
        chunk: positions in a chunk, two of which a device holds.
        size: positions in a block, a divisor of ``chunk``.
        window: band width; 0 = dense.
    """
    blocks = np.arange(0, chunk, size)
    starts = [np.concatenate([blocks + c * chunk for c in (i, 2 * devices - 1 - i)]) for i in range(devices)]
    found = []
    for number in range(devices):
        lists, masked = [], False
        for i in range(devices):
            offset = starts[i][:, None] - starts[i - number]
            visible = offset > -size
            whole = offset >= size - 1
            if window:
                visible &= offset - (size - 1) < window
                whole &= offset + size - 1 < window
            masked = masked or bool((visible & ~whole).any())
            where = np.argwhere(visible)
            lists.append(np.concatenate([where, offset[visible][:, None]], axis=1))
        most = max(map(len, lists))
        if not most:
            continue
        # Devices that see less wait for the others anyway: their lists end with masked blocks.
        masked = masked or min(map(len, lists)) < most
        filled = np.tile(np.array([0, 0, _NEVER], np.int32), (devices, most, 1))
        for i, one in enumerate(lists):
            filled[i, : len(one)] = one if masked else one * [1, 1, 0]
        distinct, choice = np.unique(filled, axis=0, return_inverse=True)
        found.append(Hop(number, distinct, choice.reshape(-1).astype(np.int32), masked))
    return tuple(found)


class _Run(NamedTuple):
    """Hops in a row that differ in number and choice only, and how far their keys and values come and go on."""

    hops: tuple[Hop, ...]
    arrive: int
    depart: int


def _runs(all_hops: tuple[Hop, ...]) -> Iterator[_Run]:
    """Hops put together into runs, each of which is one loop of the compiled program."""
    numbers = [hop.number for hop in all_hops]
    steps = [after - before for before, after in itertools.pairwise(numbers)]
    waiting: list[_Run] = []
    for hop, arrive, depart in zip(all_hops, [0, *steps], [*steps, 0], strict=True):
        before = waiting[-1] if waiting else None
        if before and before[1:] == (arrive, depart) and np.array_equal(before.hops[-1].lists, hop.lists):
            waiting[-1] = before._replace(hops=(*before.hops, hop))
        else:
            waiting.append(_Run((hop,), arrive, depart))
    return iter(waiting)


def _shift(x: Any, distance: int) -> Any:
    """Every device's arrays handed to the device ``distance`` behind it."""
    count = jax.lax.axis_size(CONTEXT_AXIS)
    if distance % count == 0:
        return x
    return jax.lax.ppermute(x, CONTEXT_AXIS, [(i, (i + distance) % count) for i in range(count)])


def _around(
    setup: Setup, length: int, keys: Keys, state: Any, meet: Callable[[Hop, Any, Keys, Any, int], Any]
) -> tuple[Any, int]:
    """Sends keys and values round; ``meet`` turns the state over to the next at each hop.

    ``meet`` is told the hop (of a run the first: number and choice are those of ``here``), for this device the
    number of the hop and the list, the keys and values, the state, and how far they have come since the last hop.

    Returns:
        The state, and how far the last keys and values still are from home.
    """
    count, device = jax.lax.axis_size(CONTEXT_AXIS), jax.lax.axis_index(CONTEXT_AXIS)
    chunk = length // 2
    every = hops(count, chunk, block_size(chunk, setup.block), setup.window)
    for run in _runs(every):
        hop = run.hops[0]

        def one(carry: Any, here: Any, run: _Run = run, hop: Hop = hop) -> tuple[Any, None]:
            keys, state = carry
            # First sent on, then used: the network and the products work at the same time.
            following = _shift(keys, run.depart)
            return (following, meet(hop, (here[0], here[1][device]), keys, state, run.arrive)), None

        numbers = np.asarray([h.number for h in run.hops], np.int32)
        choices = np.stack([h.choice for h in run.hops])
        (keys, state), _ = jax.lax.scan(one, (keys, state), (numbers, choices))
    return state, count - every[-1].number


def block_size(chunk: int, most: int) -> int:
    """The largest divisor of a chunk up to ``most``."""
    return max(d for n in range(1, math.isqrt(chunk) + 1) if chunk % n == 0 for d in (n, chunk // n) if d <= most)


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None, *, setup: Setup
) -> tuple[jax.Array, jax.Array]:
    """One device's attention, and the logarithm of each row's sum of exponentials, float32 [B, H, T]."""
    queries = Queries(q, segments)

    def meet(hop: Hop, here: Any, keys: Keys, state: Any, arrive: int) -> Any:
        keys = _for_heads(keys, q.shape[1])
        if setup.kernel:
            return _merged(state, kernels.splash_hop(queries, keys, _meeting(hop, here, setup)))
        return _blocks_forward(hop, here[1], queries, keys, state, setup)

    start = jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:3], _MASKED, jnp.float32)
    (out, lse), _ = _around(setup, q.shape[2], Keys(k, v, segments), start, meet)
    return out.astype(q.dtype), lse


def _backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array | None,
    result: Result,
    *,
    setup: Setup,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One device's gradients; those of keys and values travel with them and come home at the end."""
    queries = Queries(q, segments)
    inner = (result.out.astype(jnp.float32) * result.grad.astype(jnp.float32)).sum(-1)

    def meet(hop: Hop, here: Any, keys: Keys, state: Any, arrive: int) -> Any:
        dq, travelling = state
        travelling = _shift(travelling, arrive)
        heads = keys.keys.shape[1]
        keys = _for_heads(keys, q.shape[1])
        if setup.kernel:
            found = kernels.splash_hop_gradients(queries, keys, result, _meeting(hop, here, setup))
        else:
            given = _Given(result.lse, inner, result.grad)
            found = _blocks_backward(hop, here[1], queries, keys, given, setup)
        theirs = (_of_group(x, heads) for x in found[1:])
        return dq + found[0], tuple(total + new for total, new in zip(travelling, theirs, strict=True))

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (q, k, v)]
    (dq, travelling), home = _around(setup, q.shape[2], Keys(k, v, segments), (zeros[0], tuple(zeros[1:])), meet)
    dk, dv = _shift(travelling, home)
    if setup.single:
        dk, dv = (jax.lax.psum(x, kernels.HEAD_AXIS) for x in (dk, dv))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


def _for_heads(keys: Keys, heads: int) -> Keys:
    """Keys and values repeated for each head of a group; what travels is not."""
    k, v = (jnp.repeat(x, heads // x.shape[1], axis=1) for x in keys[:2])
    return Keys(k, v, keys.segments)


def _of_group(x: jax.Array, heads: int) -> jax.Array:
    """The reverse for gradients: a sum over the heads of each group."""
    return x.reshape(x.shape[0], heads, -1, *x.shape[2:]).sum(2) if heads < x.shape[1] else x


def _meeting(hop: Hop, here: Any, setup: Setup) -> kernels.Meeting:
    """What the kernel has to know of a hop."""
    earlier = jax.lax.axis_index(CONTEXT_AXIS) >= here[0]
    return kernels.Meeting(hop.number == 0, earlier, setup.scale, setup.block)


def _merged(one: Any, other: Any) -> tuple[jax.Array, jax.Array]:
    """Attention over two sets of keys, from that over each: outputs [..., K] and logarithms of sums [...]."""
    (out, lse), (new, new_lse) = one, other
    total = jnp.logaddexp(lse, new_lse)
    return out * jnp.exp(lse - total)[..., None] + new * jnp.exp(new_lse - total)[..., None], total


def _blocks_forward(hop: Hop, which: Any, queries: Queries, keys: Keys, state: Any, setup: Setup) -> Any:
    """``state`` with the attention of one hop merged in, block by block."""
    size = _size(queries, setup)

    def block(state: Any, entry: jax.Array) -> tuple[Any, None]:
        mine, theirs = entry[0] * size, entry[1] * size
        value = _cut(keys.values, theirs, size)
        scores = _scores(hop, entry, queries, keys, setup)
        peak = scores.max(-1)
        weights = jnp.exp(scores - peak[..., None])
        total = weights.sum(-1)
        out = jnp.einsum("bhts,bhsk->bhtk", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
        new = _merged([_cut(x, mine, size) for x in state], (out / total[..., None], peak + jnp.log(total)))
        return tuple(_written(x, y, mine) for x, y in zip(state, new, strict=True)), None

    return jax.lax.scan(block, state, jnp.asarray(hop.lists)[which])[0]


class _Given(NamedTuple):
    """What the backward pass knows of each query."""

    lse: jax.Array  # logarithm of the sum of exponentials, [B, H, T]
    inner: jax.Array  # product of the output and its gradient, [B, H, T]
    grad: jax.Array  # of the output, [B, H, T, K]


def _blocks_backward(hop: Hop, which: Any, queries: Queries, keys: Keys, given: _Given, setup: Setup) -> Any:
    """Gradients of queries, keys and values by one hop, float32."""
    q, size = queries.queries, _size(queries, setup)

    def block(totals: Any, entry: jax.Array) -> tuple[Any, None]:
        mine, theirs = entry[0] * size, entry[1] * size
        query, slope = _cut(q, mine, size), _cut(given.grad, mine, size)
        key, value = (_cut(x, theirs, size) for x in keys[:2])
        weights = jnp.exp(_scores(hop, entry, queries, keys, setup) - _cut(given.lse, mine, size)[..., None])
        dv = jnp.einsum("bhts,bhtk->bhsk", weights.astype(value.dtype), slope, preferred_element_type=jnp.float32)
        toward = jnp.einsum("bhtk,bhsk->bhts", slope, value, preferred_element_type=jnp.float32)
        ds = (weights * (toward - _cut(given.inner, mine, size)[..., None]) * setup.scale).astype(q.dtype)
        dq = jnp.einsum("bhts,bhsk->bhtk", ds, key, preferred_element_type=jnp.float32)
        dk = jnp.einsum("bhts,bhtk->bhsk", ds, query, preferred_element_type=jnp.float32)
        new = ((dq, mine), (dk, theirs), (dv, theirs))
        return tuple(_written(x, _cut(x, at, size) + y, at) for x, (y, at) in zip(totals, new, strict=True)), None

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, *keys[:2]))
    return jax.lax.scan(block, zeros, jnp.asarray(hop.lists)[which])[0]


def _size(queries: Queries, setup: Setup) -> int:
    """Positions in a block."""
    return block_size(queries.queries.shape[2] // 2, setup.block)


def _scores(hop: Hop, entry: jax.Array, queries: Queries, keys: Keys, setup: Setup) -> jax.Array:
    """Scaled and masked scores of one block, float32 [B, H, size, size]."""
    size = _size(queries, setup)
    mine, theirs = entry[0] * size, entry[1] * size
    query, key = _cut(queries.queries, mine, size), _cut(keys.keys, theirs, size)
    scores = jnp.einsum("bhtk,bhsk->bhts", query, key, preferred_element_type=jnp.float32) * setup.scale
    if hop.masked:
        age = entry[2] + jnp.arange(size)[:, None] - jnp.arange(size)
        mask = (age >= 0) & (age < setup.window) if setup.window else age >= 0
        scores = jnp.where(mask, scores, _MASKED)
    if queries.segments is not None:
        assert keys.segments is not None
        same = _cut(queries.segments, mine, size, 1)[:, :, None] == _cut(keys.segments, theirs, size, 1)[:, None, :]
        scores = jnp.where(same[:, None], scores, _MASKED)
    return scores


def _cut(x: jax.Array, start: jax.Array, size: int, axis: int = 2) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis)


def _written(x: jax.Array, block: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, block, start, axis=2)
