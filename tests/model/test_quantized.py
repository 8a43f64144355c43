"""Products in 8 bits: how far from float32, which operands are narrow, what training and meshes make of them."""

import sys

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.model import decoder
from scaling.model.layers import Parameter
from scaling.model.quantized import project
from scaling.parallel.mesh import make_mesh
from scaling.parallel.sharding import stored_spec, used_spec
from tests import tiny
from tests.quick_compilation import USUAL_CODE

pytestmark = pytest.mark.usefixtures("on_one_device")

pytest.importorskip("qwix", reason="qwix is not installed (extra 'quant')")

# Shapes of activations and weights, and the logical axes of the weights: every product of a block.
PRODUCTS = {
    "qkv": ((2, 8, 64), (64, 3, 4, 16), ("embed", None, "heads", None)),
    "out": ((2, 8, 64), (64, 64), ("heads", "embed")),
    "up": ((2, 8, 64), (64, 96), ("embed", "mlp")),
    "down": ((2, 8, 96), (96, 64), ("mlp", "embed")),
}
# Root mean square of the error over that of the result, forward and backward; measured: at most 0.0095 and 0.0128 in
# int8, 0.039 and 0.053 in fp8.
ERRORS = {"int8": (0.012, 0.016), "fp8": (0.045, 0.065)}


def normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


def relative(got, want):
    return float(jnp.linalg.norm((got - want).ravel()) / jnp.linalg.norm(want.ravel()))


def value_and_gradients(x, w, axes, quantization):
    def run(x, w):
        return project(x, Parameter(w, axes=axes), quantization)

    @jax.jit
    def both(x, w):
        out, pull = jax.vjp(run, x, w)
        return out, *pull(normal(2, out.shape))

    return both(x, w)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["int8", "fp8"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_close_to_float32(name, quantization):
    x, w, axes = PRODUCTS[name]
    # Channels and tokens of very different size cost nothing: each has its scale.
    x = normal(0, x) * np.logspace(-3, 3, 8, dtype=np.float32)[:, None]
    w = normal(1, w) * np.logspace(-3, 3, w[-1], dtype=np.float32)
    want, want_x, want_w = value_and_gradients(x, w, axes, "none")
    got, got_x, got_w = value_and_gradients(x, w, axes, quantization)
    forward, backward = ERRORS[quantization]
    print(relative(got, want), relative(got_x, want_x))
    assert 0 < relative(got, want) < forward
    assert 0 < relative(got_x, want_x) < backward
    assert relative(got_w, want_w) < 1e-6  # is not narrow
    for a, b in ((got, want), (got_x, want_x), (got_w, want_w)):
        assert a.dtype == b.dtype and a.shape == b.shape


def narrow_dots(jaxpr):
    """Operand types of every product in a program, those of inner programs too."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(sorted(str(v.aval.dtype) for v in equation.invars))
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found += narrow_dots(inner)
    return found


@pytest.mark.parametrize(
    ("quantization", "kinds"),
    [("int8", ("int8", "int8")), ("fp8", ("float8_e4m3fn", "float8_e5m2"))],
)
def test_two_of_three_products_are_narrow(quantization, kinds):
    def loss(x, w):
        return project(x, Parameter(w, axes=("embed", "mlp")), quantization).astype(jnp.float32).sum()

    x, w = normal(0, (2, 8, 64)).astype(jnp.bfloat16), normal(1, (64, 96))
    forward, backward = kinds
    dots = narrow_dots(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, w).jaxpr)
    assert sorted(dots) == sorted([[forward, forward], [forward, backward], ["bfloat16", "bfloat16"]])


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_training_learns_as_much(quantization):
    """20 steps on 20 batches of random tokens: the loss falls by the batches' own statistics."""
    wide, _ = tiny.train_on_one(20)
    narrow, _ = tiny.train(tiny.config({"quantization": quantization}), 20)
    assert narrow != wide
    # Single steps on random tokens differ by what rounding does to a batch; five seeds gave 6e-4 with int8.
    deviation = np.sqrt(np.square(np.divide(narrow, wide) - 1).mean())
    assert deviation < {"int8": 2e-3, "fp8": 6e-3}[quantization]


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots", "projections"])
def test_remat_changes_nothing(remat, monkeypatch):
    # Where the code of what is computed again rounds otherwise, some numbers become another of the 255.
    monkeypatch.setattr("scaling.parallel.compiler.options", lambda *_: USUAL_CODE)
    config = tiny.config({"quantization": "int8"})
    np.testing.assert_allclose(
        tiny.train(tiny.config({"quantization": "int8", "remat": remat}), 5)[0], tiny.train(config, 5)[0], rtol=1e-5
    )


@pytest.mark.parametrize("name", ["qkv", "out", "up", "down"])
def test_a_product_is_the_same_on_a_mesh(name):
    """Maxima and sums of integers do not depend on their order; other scales would show as errors of a hundredth."""
    x, w, axes = PRODUCTS[name]
    x, w = normal(0, (8, *x[1:])), normal(1, w)
    want = value_and_gradients(x, w, axes, "int8")
    mesh = make_mesh(cfg.Mesh(data=2, fsdp=2, tensor=2))
    inner = {"out": "heads", "down": "mlp"}.get(name)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(v, jax.NamedSharding(mesh, spec)) for v, spec in (
            (x, used_spec(("batch", None, inner))), (w, stored_spec(axes)),
        )]  # fmt: skip
        got = jax.jit(lambda x, w: value_and_gradients(x, w, axes, "int8"))(*placed)
    layout = got[2].sharding
    got, want = jax.device_get((got, want))
    assert relative(got[0], want[0]) < 1e-3  # where a rounding tips over, 8 bits make a step of it
    assert relative(got[1], want[1]) < 1e-3
    assert relative(got[2], want[2]) < 1e-6
    assert layout.is_equivalent_to(jax.NamedSharding(mesh, stored_spec(axes)), got[2].ndim)


@pytest.mark.slow
def test_same_losses_on_a_mesh():
    """Within what 8 bits make of float32's rounding: a number that it tips over moves by a whole step of 8 bits."""
    config = tiny.config({"quantization": "int8"})
    alone, _ = tiny.train(config, 8)
    sharded, _ = tiny.train(config, 8, cfg.Mesh(data=2, fsdp=2, tensor=2), 8)
    np.testing.assert_allclose(sharded[0], alone[0], rtol=1e-5)
    np.testing.assert_allclose(sharded, alone, rtol=2e-3)


def test_what_is_gathered_is_narrow():
    axes = ("embed", "mlp")
    mesh = make_mesh(cfg.Mesh(fsdp=8))

    def run(w, x):
        return project(x, Parameter(w, axes=axes), "int8")

    with jax.set_mesh(mesh):
        w = jax.device_put(np.ones((64, 32), np.float32), jax.NamedSharding(mesh, stored_spec(axes)))
        x = jax.device_put(np.ones((8, 4, 64), np.float32), jax.NamedSharding(mesh, jax.P("fsdp")))
        text = jax.jit(run).lower(w, x).compile().as_text()
    gathers = [line for line in text.splitlines() if " all-gather(" in line or " all-gather-start(" in line]
    assert gathers and all("s8[64,32]" in line for line in gathers), gathers


def test_a_model_without_qwix_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ValueError, match=r"config\.compute\.quantization='fp8' .*qwix"):
        decoder.merge(tiny.network(quantization="fp8", num_layers=4), {})
    decoder.abstract(tiny.model(num_layers=4))
