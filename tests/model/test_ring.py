"""Ring attention on virtual devices: the reference's numbers, the parts of the work, the train step on every mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.config.resolve import resolve
from scaling.data.batch import of_sequences
from scaling.model import decoder, ring
from scaling.model.attend import Softmax, attend
from scaling.model.context import AttentionContext
from scaling.model.fused import fused
from scaling.objectives.next_token import next_token
from scaling.parallel.mesh import make_mesh
from scaling.parallel.sharding import batch_sharding
from scaling.plan.compiled import compile_step
from scaling.train import state as train_state
from scaling.train.step import make_eval_step, make_train_step
from tests import tiny

STEPS = 4


def mesh(**axes):
    sizes = cfg.Mesh(**({"data": 1} | axes))
    return make_mesh(sizes, jax.devices()[: sizes.data * sizes.fsdp * sizes.context * sizes.tensor])


def inputs(length, d_head, dtype=jnp.float32, batch=2, heads=2):
    """Queries, keys, values and weights of the output."""
    return list(np.random.default_rng(0).standard_normal((4, batch, heads, length, d_head)).astype(dtype))


def documents(length):
    return jnp.cumsum(jnp.arange(length) % 11 == 10)[None] * jnp.ones((2, 1), jnp.int32)


def with_gradients(function, q, k, v, weights):
    @jax.jit
    def run(q, k, v, weights):
        out, back = jax.vjp(function, q, k, v)
        return out, *back(weights)

    return run(q, k, v, weights)


def reference(tensors, window=0, segments=None):
    """Output and gradients in the text's order, on one device."""
    context = AttentionContext(segments=segments, window=window)
    with jax.set_mesh(mesh()):
        return jax.device_get(with_gradients(lambda *y: attend(*y, context, Softmax(0.3)), *tensors))


def by_ring(devices, q, k, v, weights, window, segments, block=512, kernel=False):
    """Output and gradients in zigzag order."""

    @jax.jit
    def run(q, k, v, weights, segments):
        segments = None if segments is None else ring.zigzag(segments)
        q, k, v, weights = (ring.zigzag(x, 2) for x in (q, k, v, weights))

        def attention(q, k, v):
            if kernel:
                return ring.attend(q, k, v, segments, ring.Setup(0.3, window, block, kernel))
            context = AttentionContext(segments=segments, window=window, zigzag=True)
            return attend(q, k, v, context, Softmax(0.3), block)

        return with_gradients(attention, q, k, v, weights)

    with jax.set_mesh(devices):
        return run(q, k, v, weights, segments)


@pytest.mark.parametrize(
    ("axes", "length", "window", "segments", "d_head", "block"),
    [
        (dict(context=2), 16, 0, False, 8, 512),
        pytest.param(dict(context=2), 24, 7, True, 7, 3, marks=pytest.mark.slow),
        (dict(context=4), 64, 0, True, 5, 4),
        (dict(context=4), 64, 5, False, 8, 512),
        (dict(context=8), 64, 0, False, 3, 2),
        pytest.param(dict(context=8), 64, 20, True, 8, 4, marks=pytest.mark.slow),
        pytest.param(dict(context=8), 64, 63, False, 1, 4, marks=pytest.mark.slow),
        pytest.param(dict(context=8), 16, 1, False, 8, 512, marks=pytest.mark.slow),
        (dict(data=2, context=2, tensor=2), 32, 0, True, 9, 4),
        pytest.param(dict(fsdp=2, context=4), 40, 9, False, 9, 5, marks=pytest.mark.slow),
    ],
)
def test_the_ring_is_the_reference_with_its_gradients(axes, length, window, segments, d_head, block):
    """Float32, to 2e-6 of the largest number."""
    tensors = inputs(length, d_head)
    segments = documents(length) if segments else None
    want = reference(tensors, window, segments)
    devices = mesh(**axes)
    got = by_ring(devices, *tensors, window, segments, block=block)
    with jax.set_mesh(devices):
        want = [ring.zigzag(x, 2) for x in want]
    for mine, other in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=2e-6 * np.abs(other).max())


@pytest.mark.slow
@pytest.mark.parametrize(("context", "heads", "window"), [(2, 2, 0), (4, 1, 9)])
def test_grouped_heads_on_the_ring_are_the_reference_with_its_gradients(context, heads, window):
    q, k, v, weights = inputs(32, 8, heads=4)
    tensors = q, k[:, :heads], v[:, :heads], weights
    want = reference(tensors, window)
    devices = mesh(context=context, tensor=2)
    got = by_ring(devices, *tensors, window, None, block=4)
    with jax.set_mesh(devices):
        want = [ring.zigzag(x, 2) for x in want]
    for mine, other in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=2e-6 * np.abs(other).max())


@pytest.mark.slow
def test_bfloat16_is_as_near_as_the_reference():
    """Against float32: the ring in bfloat16 errs no more than twice the reference in bfloat16."""
    wide = inputs(64, 16)
    narrow = [x.astype(jnp.bfloat16) for x in wide]
    exact, rounded = reference(wide), reference(narrow)
    devices = mesh(context=4)
    got = by_ring(devices, *narrow, 0, None)
    with jax.set_mesh(devices):
        exact, rounded = ([ring.zigzag(x, 2) for x in xs] for xs in (exact, rounded))
    for mine, other, true in zip(got, rounded, exact, strict=True):
        assert mine.dtype == jnp.bfloat16
        assert jnp.abs(mine - true).max() < 2 * jnp.abs(other - true).max()


@pytest.mark.slow
@pytest.mark.parametrize("segments", [False, True])
def test_the_kernel_in_the_ring_is_the_reference(segments):
    """The TPU's kernel, interpreted, at every kind of hop: own, earlier, later."""
    tensors = inputs(768, 64, batch=1, heads=1)
    segments = documents(768)[:1] // 20 if segments else None
    want = reference(tensors, segments=segments)
    devices = mesh(context=3)
    got = by_ring(devices, *tensors, 0, segments, block=128, kernel=True)
    with jax.set_mesh(devices):
        want = [ring.zigzag(x, 2) for x in want]
    for mine, other in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=2e-5 * np.abs(other).max())


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
@pytest.mark.parametrize("window", [0, 1, 2, 7, 8, 9, 30, 1000])
def test_the_hops_hold_every_visible_pair_once(devices, window):
    """And, dense, every device computes as many blocks at each hop as the others, none of them without a pair."""
    chunk, size = 8, 4
    length = 2 * devices * chunk
    order = np.arange(length).reshape(2 * devices, chunk)
    order = [np.concatenate([order[i], order[2 * devices - 1 - i]]) for i in range(devices)]
    seen = np.zeros((length, length), int)
    for hop in ring.hops(devices, chunk, size, window):
        for i in range(devices):
            mine, theirs = order[i], order[i - hop.number]
            for row, column, offset in hop.lists[hop.choice[i]]:
                q, k = (x[n * size : (n + 1) * size] for x, n in ((mine, row), (theirs, column)))
                block = np.ones((size, size), bool)
                if hop.masked:
                    age = offset + np.arange(size)[:, None] - np.arange(size)
                    block = (age >= 0) & (age < window) if window else age >= 0
                    assert window or block.any()
                seen[np.ix_(q, k)] += block
    age = np.arange(length)[:, None] - np.arange(length)
    np.testing.assert_array_equal(seen, (age >= 0) & (age < window) if window else age >= 0)


def test_what_causality_forbids_is_not_computed():
    """Blocks a device and hop, dense: half of them, the same number for each; in all not much over half the square."""
    devices, chunk, size = 8, 64, 8
    per_hop = [hop.lists.shape[1] for hop in ring.hops(devices, chunk, size, 0)]
    whole = (2 * chunk // size) ** 2
    assert len(per_hop) == devices
    assert per_hop[0] == (whole + 2 * chunk // size) // 2  # with the diagonal
    assert per_hop[1:] == [whole // 2] * (devices - 1)


def test_a_band_goes_to_its_neighbours_only():
    """And its blocks are those of the band."""
    found = ring.hops(8, 64, 16, 32)
    assert [hop.number for hop in found] == [0, 1, 7]  # the neighbours in the text of both chunks
    assert sum(hop.lists.shape[1] for hop in found) <= 8 * 3 + 3  # 8 blocks of queries, 3 of keys each


def test_the_program_sends_only_what_the_hops_need():
    """Collectives of the compiled forward pass: one a tensor and kind of hop; none over a band inside a chunk's end."""

    def permutes(window):
        x = jax.ShapeDtypeStruct((2, 2, 128, 8), jnp.float32)
        context = AttentionContext(window=window, zigzag=True)
        run = jax.jit(lambda q, k, v: attend(q, k, v, context, Softmax(1.0), block=8))
        return run.lower(x, x, x).as_text().count("collective_permute")

    with jax.set_mesh(mesh(context=8)):
        # Keys and values, from the own hop and in the loop over the others; in a band to either side.
        assert permutes(0) == permutes(5) == 4
        assert permutes(1) == 0


@pytest.mark.slow
def test_causality_by_gradients():
    """The loss at position t has no gradient with respect to anything after t, through the whole model."""
    config = resolve(tiny.config({"context_length": 32}, sequence_length=32, batch_tokens=64, microbatch_sequences=2))
    devices = mesh(context=4)
    batch = jax.tree.map(lambda x: jnp.asarray(x[0]), tiny.batch(0, 1, 2, 32))
    with jax.set_mesh(devices):
        params = parameters(config.model, devices)

        @jax.jit
        def by_position(params, t):
            def loss(positions):
                only = batch._replace(weights=jnp.broadcast_to(1.0 * (jnp.arange(32) == t), (2, 32)))
                return minimised(config, params | {"positions": positions}, only)

            return jax.grad(loss)(params["positions"])

        for t in (0, 3, 4, 11, 16, 30):
            moved = np.abs(by_position(params, t)).max(-1) > 0
            assert moved[: t + 1].all() and not moved[t + 1 :].any()


@functools.cache
def initial(model):
    """Initial parameters on the host, for tests in which it does not matter where they were made."""
    return jax.device_get(decoder.initialize(model, jax.random.key(0)))


def parameters(model, devices):
    """The same on a mesh."""
    return jax.device_put(initial(model), decoder.shardings(model, devices))


def train(config, sizes, devices):
    """Losses and gradient norms of the first steps."""
    device_mesh = make_mesh(sizes, jax.devices()[:devices])
    found = []
    with jax.set_mesh(device_mesh):
        state = train_state.create_state(config, device_mesh)
        step = make_train_step(config, device_mesh, next_token(config))
        for number in range(STEPS):
            batch = jax.device_put(documents_in(tiny.batch(number, 2, 4), config), batch_sharding(device_mesh))
            state, metrics = step(state, batch, 1e-2, 2)
            found.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    return np.array(found), state


def documents_in(batch, config):
    """End-of-text tokens in a batch, so that documents end anywhere; attention stays inside if the config says so."""
    tokens = batch.tokens.copy()
    tokens[..., 5::7] = tiny.EOT
    ends = np.concatenate([tokens, batch.targets[..., -1:]], axis=-1)
    made = of_sequences(ends, separator=tiny.EOT if config.model.document_mask else None)
    return made._replace(targets=batch.targets)


def minimised(config, params, batch):
    return next_token(config)(decoder.merge(config.network, params), None, batch, None).objective


CONFIGS = {
    "plain": tiny.config(batch_tokens=128, microbatch_sequences=4),
    "documents": tiny.config({"document_mask": True, "remat": "projections"}, batch_tokens=128, microbatch_sequences=4),
}
MESHES = {
    "context2": cfg.Mesh(data=1, context=2),
    "context4": cfg.Mesh(data=1, context=4),
    "context8": cfg.Mesh(data=1, context=8),
    "fsdp2-context4": cfg.Mesh(data=1, fsdp=2, context=4),
    "data2-context2-tensor2": cfg.Mesh(data=2, context=2, tensor=2),
    "fsdp2-context2-tensor2": cfg.Mesh(data=1, fsdp=2, context=2, tensor=2),
}


@pytest.fixture(scope="module")
def one_device():
    return {name: train(config, cfg.Mesh(), 1) for name, config in CONFIGS.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("context2", "plain"),
        ("context8", "plain"),
        ("fsdp2-context4", "plain"),
        ("data2-context2-tensor2", "plain"),
        ("context4", "documents"),
        ("fsdp2-context2-tensor2", "documents"),
    ],
)
def test_training_is_the_same_on_meshes_with_context(name, kind, one_device):
    """Losses and gradient norms to 1e-5, and the weights afterwards."""
    sizes = MESHES[name]
    got, state = train(CONFIGS[kind], sizes, sizes.data * sizes.fsdp * sizes.context * sizes.tensor)
    want, want_state = one_device[kind]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for mine, other in zip(jax.tree.leaves(state["params"]), jax.tree.leaves(want_state["params"]), strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-3)  # Adam divides rounding by rounding where gradients vanish


@pytest.mark.slow
def test_every_gradient_is_that_of_one_device():
    """Leaf by leaf, to 1e-5 of its largest number, with documents."""
    config = CONFIGS["documents"]
    batch = jax.tree.map(lambda x: x[0], documents_in(tiny.batch(0, 2, 4), config))

    def gradients(devices):
        with jax.set_mesh(devices):
            params = parameters(config.model, devices)

            def objective(params):
                return minimised(config, params, batch)

            return jax.device_get(jax.jit(jax.grad(objective))(params))

    got, want = gradients(mesh(fsdp=2, context=2)), gradients(mesh())
    # Fused, since the bias of keys alone has no gradient in truth, which leaves nothing to compare with.
    for mine, other in zip(jax.tree.leaves(fused(got)), jax.tree.leaves(fused(want)), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5 * np.abs(other).max())


@pytest.mark.slow
def test_evaluation_is_the_same():
    config, found = CONFIGS["documents"], []
    for sizes, count in ((cfg.Mesh(), 1), (cfg.Mesh(data=1, fsdp=2, context=4), 8)):
        devices = make_mesh(sizes, jax.devices()[:count])
        with jax.set_mesh(devices):
            params = parameters(config.model, devices)
            batch = jax.device_put(documents_in(tiny.batch(0, 1, 4), config), batch_sharding(devices))
            found.append(make_eval_step(config, devices, next_token(config))(params, batch))
    for got, want in zip(jax.tree.leaves(found[1]), jax.tree.leaves(found[0]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_state_is_sharded_over_context_too():
    state = train_state.create_state(tiny.config(), mesh(fsdp=2, context=4))
    total = sum(leaf.size for leaf in jax.tree.leaves(state))
    held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(state))
    assert held < 0.2 * total
    up = state["params"]["blocks"]["mlp"]["up"]
    assert up.sharding.spec == jax.sharding.PartitionSpec("stage", ("fsdp", "expert", "context"), "tensor")


@pytest.mark.slow
def test_memory_a_device_falls_with_the_context_axis():
    """Temporary bytes of the train step at 4,096 tokens, dense: on four devices a fraction of one's, half of two's.

    One device's attention, without a kernel, is not by blocks of keys: the second comparison is of like with like.
    """
    model = {"context_length": 4096, "attention_pattern": ("dense",), "attention_block": 128, "remat": "projections"}
    model |= {"loss_chunk": 256}
    config = tiny.config(model, sequence_length=4096, batch_tokens=4096, microbatch_sequences=1)

    def temporary(context):
        sizes = cfg.Mesh(data=1, context=context)
        config_here = resolve(dataclasses.replace(config, mesh=sizes), device_count=context)
        return compile_step(config_here, jax.devices()[:context]).memory.temporary

    one, two, four = (temporary(context) for context in (1, 2, 4))
    assert four < 0.25 * one and four < 0.6 * two


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(sequence_length=36, batch_tokens=36 * 8), "config.train.sequence_length=36 .*8"),
        (dict(dropout_attention=0.1), "config.model.dropout_attention=0.1 .*0 .*config.mesh.context=4"),
        (dict(d_model=36, num_heads=4), "config.mesh.context=4 .*config.mesh.fsdp=2 .*divide"),
        (dict(context=3), "6 devices .*8 devices"),
    ],
)
def test_what_a_ring_cannot_do_is_refused(changes, words):
    def of(cls):
        return {k: v for k, v in changes.items() if k in {f.name for f in dataclasses.fields(cls)}}

    config = tiny.config({"context_length": 64} | of(cfg.Model), **of(cfg.Train))
    config = dataclasses.replace(config, mesh=cfg.Mesh(**({"data": 1, "fsdp": 2, "context": 4} | of(cfg.Mesh))))
    with pytest.raises(ValueError, match=words) as refused:
        resolve(config, device_count=8)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_paths_without_the_ring_give_the_same_on_a_mesh_with_context():
    """The model in the text's order (scoring, generation): the axis holds shards of parameters only."""
    network = tiny.network(context_length=32)
    tokens = jnp.asarray(tiny.batch(0, 1, 2, 16).tokens[0])

    def hidden(devices):
        with jax.set_mesh(devices):
            return jax.jit(lambda p, x: decoder.merge(network, p)(x))(parameters(network.model, devices), tokens)

    np.testing.assert_allclose(hidden(mesh(context=4, tensor=2)), hidden(mesh()), atol=1e-5)
