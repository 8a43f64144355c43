"""The TPU's attention kernels, interpreted, against the reference; and which kernel serves which call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.model import flash, kernels
from scaling.model.attend import Softmax, attend
from scaling.model.context import AttentionContext
from scaling.parallel.mesh import make_mesh
from scaling.parallel.sharding import MESH_AXES, platform

pytestmark = pytest.mark.usefixtures("on_one_device")

B, H, T, K = 2, 2, 256, 64


def inputs(dtype=jnp.float32, features=K):
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, (B, H, T, features), dtype) for key in keys]


def on_tpu(q, k, v, window, segments=None):
    return kernels.flash_attention(q, k, v, AttentionContext(segments=segments, window=window), 0.3, 128)


def with_gradients(function, q, k, v, weights):
    """Output, and gradients with respect to queries, keys and values of a weighed sum of it."""
    out, back = jax.vjp(function, q, k, v)
    return out, *back(weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("window", "documents", "features"),
    [(0, False, 64), (96, False, 64), (200, True, 64), (0, True, 128), (96, False, 128), (200, False, 192)],
)
def test_flash_is_the_reference_with_its_gradients(window, documents, features):
    """Also with heads that fill whole lanes, whose output lies in rows of all heads."""
    check_against_reference(*inputs(features=features), window, documents)


def test_the_backward_kernel_reads_by_name_what_a_policy_may_keep():
    """Queries, keys and values, the output, and the sums of the softmax under a name of their own."""
    traced = jax.make_jaxpr(lambda *x: jax.vjp(lambda *y: on_tpu(*y, 0), *x)[0])(*inputs()[:3])
    names = [word.split("]")[0] for word in str(traced).split("name[name=")[1:]]
    assert names == ["qkv"] * 3 + ["attention", "softmax"]


@pytest.fixture
def small_memory(monkeypatch):
    """There is no room for the gradients of a row, as in rows of 16,384 tokens."""
    monkeypatch.setattr(kernels, "fast_memory", lambda: 0)


@pytest.mark.slow
@pytest.mark.parametrize(("window", "documents"), [(0, False), (96, True)])
def test_without_room_splash_is_the_reference_with_its_gradients(window, documents, small_memory):
    check_against_reference(*inputs(), window, documents)


def check_against_reference(q, k, v, weights, window, documents):
    segments = jnp.cumsum(jnp.arange(T) % 100 == 99) * jnp.ones((B, 1), jnp.int32) if documents else None
    ours = jax.jit(lambda *x: with_gradients(lambda *y: on_tpu(*y, window, segments), *x))(q, k, v, weights)
    reference = with_gradients(
        lambda *y: attend(*y, AttentionContext(segments=segments, window=window), Softmax(0.3)), q, k, v, weights
    )
    for mine, other in zip(ours, reference, strict=True):
        assert mine.shape == other.shape
        np.testing.assert_allclose(mine, other, atol=2e-5 * float(jnp.abs(other).max()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heads", "window", "documents", "features"), [(1, 96, True, 64), (2, 0, False, 64), (2, 96, True, 128)]
)
def test_flash_with_grouped_heads_is_the_reference_with_its_gradients(heads, window, documents, features):
    q, k, v, weights = inputs(features=features)
    q, weights = (jnp.concatenate([x, -x[:, ::-1]], axis=1)[:, : 2 * heads] for x in (q, weights))
    check_against_reference(q, *(x[:, :heads] for x in (k, v)), weights, window, documents)


@pytest.mark.slow
def test_splash_with_grouped_heads_is_the_reference_with_its_gradients(small_memory):
    q, k, v, weights = inputs()
    q, weights = (jnp.concatenate([x, -x[:, ::-1]], axis=1) for x in (q, weights))
    check_against_reference(q, k, v, weights, 0, False)


@pytest.mark.parametrize(
    "seen",
    [flash.Seen(), flash.Seen(window=1), flash.Seen(window=100), flash.Seen(window=300), flash.Seen(causal=False)],
)
def test_pairs_of_blocks_are_those_with_something_to_see(seen):
    length, block = 512, 128
    distance = np.arange(length)[:, None] - np.arange(length)[None]
    mask = (distance >= 0) if seen.causal else np.full(distance.shape, True)
    if seen.window:
        mask &= distance < seen.window
    blocks = mask.reshape(4, block, 4, block).swapaxes(1, 2)
    want = list[tuple[int, ...]]()
    for i in range(4):
        used = [j for j in range(4) if blocks[i, j].any()]
        want += [(i, j, int(blocks[i, j].all()), int(j == used[0]), int(j == used[-1])) for j in used]
    assert [tuple(pair) for pair in flash.block_pairs(length, length, block, seen).T] == want


def test_fast_memory_grows_with_row_features_and_block():
    """The largest of each that 64 MiB hold, which compilers of v5e, v5p and v6e were asked for."""
    limit = 64 << 20
    assert flash.bytes_needed(16_384, 16_384, 128, 512) <= limit < flash.bytes_needed(20_480, 20_480, 128, 512)
    assert flash.bytes_needed(2048, 2048, 128, 1024) <= limit < flash.bytes_needed(2048, 2048, 128, 2048)
    assert flash.bytes_needed(2048, 2048, 192, 512) == flash.bytes_needed(2048, 2048, 256, 512)


@pytest.mark.parametrize("window", [128, 256, 512])
def test_a_band_costs_splash_its_band(window):
    """The grids of splash's three kernels, which are what is computed, against the band and against the square."""
    length = 4096
    kernel = kernels._splash_kernel(1, length, window, 512)
    block = kernel.kwargs["block_sizes"].block_q
    for grid in (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info):
        area = grid.block_mask.size * block**2
        assert length * window <= area <= 2 * length * max(window, block), (area, block)


@pytest.mark.slow
@pytest.mark.parametrize("features", [64, 128])
def test_flash_over_a_mesh_is_the_kernel_on_one_device(features):
    arrays = inputs(features=features)
    single = jax.jit(lambda *x: with_gradients(lambda *y: on_tpu(*y, 96), *x))(*arrays)
    mesh = make_mesh(cfg.Mesh(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        sharded = jax.jit(lambda *x: with_gradients(lambda *y: on_tpu(*y, 96), *x))(*jax.device_get(arrays))
    for mine, other in zip(sharded, single, strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-6 * float(jnp.abs(other).max()))


def test_flash_keeps_its_precision_where_callers_ask_for_more():
    """Generation asks for exact float32 products; the TPU's compiler refuses that of bfloat16 ones in a kernel."""
    with jax.default_matmul_precision("highest"):
        program = str(jax.make_jaxpr(lambda *x: on_tpu(*x, 0))(*inputs(jnp.bfloat16)[:3]))
    assert "dot_general" in program and "HIGHEST" not in program


@pytest.mark.parametrize(
    ("call", "kernel"),
    [
        (("tpu", 2048, 64, jnp.bfloat16, False, False), "flash"),
        (("tpu", 2048, 80, jnp.bfloat16, True, False), "flash"),
        (("tpu", 2000, 64, jnp.bfloat16, False, False), "reference"),  # no multiple of 128
        (("tpu", 2048, 64, jnp.float32, False, False), "reference"),
        (("tpu", 2048, 64, jnp.bfloat16, False, True), "reference"),  # dropout
        (("gpu", 1000, 64, jnp.bfloat16, False, False), "cudnn"),
        (("gpu", 1000, 64, jnp.bfloat16, True, False), "reference"),  # documents
        (("gpu", 1000, 192, jnp.bfloat16, False, False), "reference"),
        (("cpu", 2048, 64, jnp.bfloat16, False, False), "reference"),
    ],
)
def test_which_kernel_serves(call, kernel):
    where, length, d_head, dtype, segments, dropout = call
    q = jax.ShapeDtypeStruct((1, 1, length, d_head), dtype)
    context = AttentionContext(segments=jnp.zeros((1, length), jnp.int32) if segments else None)
    assert kernels.serving(where, q, context, plain=not dropout) == kernel


def test_the_platform_is_that_of_the_mesh():
    assert platform() == "cpu"
    device = jax.sharding.AbstractDevice("TPU v5e", 1, "tpu")
    elsewhere = jax.sharding.AbstractMesh((1,) * len(MESH_AXES), MESH_AXES, abstract_device=device)
    with jax.sharding.use_abstract_mesh(elsewhere):
        assert platform() == "tpu"


def test_blocks_divide_the_sequence():
    assert [kernels.largest_block(length, 512) for length in (2048, 1024, 640, 384, 128)] == [512, 512, 128, 384, 128]
