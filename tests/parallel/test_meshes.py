import jax
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.parallel import sharding
from scaling.parallel.mesh import make_mesh
from scaling.parallel.sharding import MESH_AXES
from scaling.train import state as train_state
from tests import tiny

STEPS = 20
# Each axis at its largest, and axes together: a smaller size of an axis takes the same paths through the code. Meshes
# with the axis `context` are in tests/model/test_ring.py, those with `stage` in tests/model/test_pipeline.py.
MESHES = {
    "data8": (8, cfg.Mesh()),
    "fsdp8": (8, cfg.Mesh(fsdp=8)),
    "data2-fsdp2-tensor2": (8, cfg.Mesh(fsdp=2, tensor=2)),
    "slices2-fsdp2-tensor2": (8, cfg.Mesh(slices=2, fsdp=2, tensor=2)),
    "fsdp2-tensor4": (8, cfg.Mesh(fsdp=2, tensor=4)),
}


@pytest.fixture(scope="module")
def one_device():
    return tiny.train_on_one(STEPS)


FAST = ("data2-fsdp2-tensor2",)


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MESHES])
def test_same_loss_curve_and_weights_on_every_mesh(name, one_device):
    devices, mesh = MESHES[name]
    losses, state = tiny.train(tiny.config(), STEPS, mesh, devices)
    want, want_state = one_device
    np.testing.assert_allclose(losses, want, rtol=1e-5)
    for got, expected in zip(jax.tree.leaves(state["params"]), jax.tree.leaves(want_state["params"]), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-3)  # Adam divides rounding by rounding where gradients vanish


def test_the_curve_is_a_curve(one_device):
    losses, _ = one_device
    assert len(set(losses)) == STEPS and abs(losses[0] - np.log(tiny.VOCAB)) < 0.2


@pytest.mark.slow
def test_a_single_head_of_keys_lies_on_all_devices_of_tensor():
    config = tiny.config({**tiny.SWITCHES["qwen3"], "embedding_width": 16})
    alone, _ = tiny.train(config, 3)
    np.testing.assert_allclose(tiny.train(config, 3, cfg.Mesh(fsdp=2, tensor=2), 8)[0], alone, rtol=1e-5)


@pytest.mark.slow
def test_dropout_is_the_same_on_every_mesh():
    config = tiny.config({"dropout_residual": 0.2, "dropout_attention": 0.2})
    alone, _ = tiny.train(config, 3)
    sharded, _ = tiny.train(config, 3, cfg.Mesh(fsdp=2, tensor=2), 8)
    np.testing.assert_allclose(sharded, alone, rtol=1e-5)
    assert np.abs(np.subtract(alone, tiny.train_on_one(STEPS)[0][:3])).max() > 1e-4


def test_state_is_really_sharded():
    """Every device of an fsdp=4 x tensor=2 mesh holds about an eighth of parameters and of moments."""
    mesh = make_mesh(cfg.Mesh(fsdp=4, tensor=2))
    state = train_state.create_state(tiny.config(), mesh)
    total = sum(leaf.size for leaf in jax.tree.leaves(state))
    held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(state))
    assert held < 0.2 * total
    query = state["optimizer"][2].mu["blocks"]["attention"]["query"]
    assert query.sharding == state["params"]["blocks"]["attention"]["query"].sharding
    assert query.sharding.spec == jax.sharding.PartitionSpec("stage", ("fsdp", "expert", "context"), "tensor", None)


def test_parameters_are_gathered_narrow():
    """FSDP casts to bfloat16, then gathers: what crosses the network is the narrow copy.

    The CPU has no bfloat16 collectives and widens the cast copy again, hence the test on the operand.
    """
    mesh = make_mesh(cfg.Mesh(fsdp=8))
    spec = sharding.stored_spec(("embed", "mlp"))

    def product(w, x):
        return x @ sharding.gathered(w.astype("bfloat16"), ("embed", "mlp"))

    with jax.set_mesh(mesh):
        w = jax.device_put(np.ones((64, 32), np.float32), jax.NamedSharding(mesh, spec))
        x = jax.device_put(np.ones((8, 64), "bfloat16"), jax.NamedSharding(mesh, sharding.used_spec(("batch", None))))
        text = jax.jit(product).lower(w, x).compile().as_text()
    gathers = [line for line in text.splitlines() if " all-gather(" in line]
    assert gathers and all("all-gather(%convert" in line for line in gathers), gathers


def test_the_gradient_of_a_gathered_parameter_is_asked_for_in_shards():
    """Nothing asks for it whole, which would be an all-reduce, before it is cut."""

    def loss(w, x):
        return jax.numpy.square(x @ sharding.gathered(w, ("embed", "mlp"))).sum()

    with jax.set_mesh(make_mesh(cfg.Mesh(fsdp=8))):
        program = jax.make_jaxpr(jax.grad(loss))(np.ones((64, 32), np.float32), np.ones((8, 64), np.float32))
    asked = [e.params["sharding"].spec for e in program.jaxpr.eqns if e.primitive.name == "sharding_constraint"]
    assert asked == [sharding.stored_spec(("embed", "mlp"))]  # those of the forward pass are inside the function


@pytest.mark.parametrize(
    ("shape", "axes", "mesh", "turned"),
    [
        ((128, 32), ("mlp", "embed"), cfg.Mesh(fsdp=8), True),  # 4 columns a device, or 16 rows
        ((128, 32), ("mlp", "embed"), cfg.Mesh(fsdp=4, tensor=2), False),  # 8 columns
        ((128, 16), ("mlp", "embed"), cfg.Mesh(fsdp=4, tensor=2), True),
        ((96, 32), ("mlp", "embed"), cfg.Mesh(fsdp=8), False),  # 12 rows are no better
        ((32, 128), ("embed", "mlp"), cfg.Mesh(fsdp=8), False),
        ((128, 32), ("heads", "embed"), cfg.Mesh(fsdp=8), True),  # heads side by side, after attention
        ((128, 16), ("embed", "mlp"), cfg.Mesh(fsdp=2, tensor=4), False),  # the 4 columns of a device are not gathered
        ((128, 32), ("mlp", "embed"), cfg.Mesh(), False),
        ((2, 128, 16), ("experts", "mlp", "expert_embed"), cfg.Mesh(fsdp=4, expert=2), True),
    ],
)
def test_a_tpu_gathers_parts_that_fill_no_tile_as_rows(shape, axes, mesh, turned, monkeypatch):
    weights = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def value_and_gradient(w):
        return jax.value_and_grad(lambda w: (jax.numpy.sin(sharding.gathered(w, axes)) * weights).sum())(w)

    with jax.set_mesh(grid := make_mesh(mesh)):
        stored = jax.NamedSharding(grid, sharding.stored_spec(axes))
        w = jax.device_put(weights, stored)
        monkeypatch.setattr(sharding, "platform", lambda: "tpu")
        text = jax.jit(value_and_gradient).lower(w).compile().as_text()
        assert (" all-to-all(" in text) == turned
        value, gradient = jax.jit(value_and_gradient)(w)
    np.testing.assert_allclose(value, (np.sin(weights) * weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.cos(weights) * weights, rtol=1e-5, atol=1e-6)
    assert gradient.sharding.spec == stored.spec


@pytest.mark.parametrize("mesh", [cfg.Mesh(fsdp=3), cfg.Mesh(data=4, tensor=4), cfg.Mesh(data=1), cfg.Mesh(slices=16)])
def test_a_mesh_that_does_not_fit_is_refused(mesh):
    with pytest.raises(ValueError, match="8 devices"):
        make_mesh(mesh)


def test_slices_are_the_outer_part_of_the_data_axis():
    grid = make_mesh(cfg.Mesh(slices=2, fsdp=2, tensor=2)).devices
    data = MESH_AXES.index("data")
    assert [{d.id for d in grid.take(i, axis=data).flat} for i in (0, 1)] == [{0, 1, 2, 3}, {4, 5, 6, 7}]
