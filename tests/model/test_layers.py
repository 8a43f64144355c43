"""Tables of embeddings, whose gradients are sums over tokens on every mesh; norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from scaling.config import schema as cfg
from scaling.model.layers import Parameter, add_bias, lookup
from scaling.model.norms import LayerNorm
from scaling.parallel.mesh import make_mesh, one_device
from scaling.parallel.sharding import gathered, stored_spec, used_spec

V, B, T, D = 40, 16, 32, 64
AXES = ("vocab", "embed")


def table_gradient(table, ids, weights):
    def loss(table):
        return (lookup(gathered(table, AXES), ids) * weights).sum()

    return jax.grad(loss)(table)


@pytest.mark.parametrize(
    "mesh", [cfg.Mesh(fsdp=4), cfg.Mesh(slices=2, fsdp=4), cfg.Mesh(fsdp=2, tensor=2), cfg.Mesh(data=8)]
)
def test_the_gradient_of_a_table_comes_as_it_is_stored(mesh):
    """The same numbers as on one device, and nowhere the gradients of all tokens: they change places within fsdp."""
    rng = np.random.default_rng(0)
    table, weights = rng.normal(size=(V, D)).astype("float32"), rng.normal(size=(B, T, D)).astype("float32")
    ids = rng.integers(V, size=(B, T))
    alone = np.zeros((V, D), np.float32)
    np.add.at(alone, ids, weights)
    grid = make_mesh(mesh)
    stored = NamedSharding(grid, stored_spec(AXES))
    batch = NamedSharding(grid, used_spec(("batch", None, None)))
    with jax.set_mesh(grid):
        step = jax.jit(table_gradient, out_shardings=stored)
        arguments = (
            jax.device_put(table, stored),
            jax.device_put(ids, NamedSharding(grid, used_spec(("batch", None)))),
            jax.device_put(weights, batch),
        )
        found, text = step(*arguments), step.lower(*arguments).compile().as_text()
    np.testing.assert_allclose(found, alone, atol=1e-5)
    assert f"f32[{B},{T},{D}]" not in text
    assert ("all-to-all" in text) == (mesh.fsdp > 1)


def test_what_does_not_divide_is_left_as_it_is():
    with jax.set_mesh(make_mesh(cfg.Mesh(fsdp=8))):
        found = jax.jit(table_gradient)(jnp.zeros((V, D)), jnp.zeros((3, T), int), jnp.ones((3, T, D)))
    np.testing.assert_allclose(found[0], 3.0 * T)


def test_the_gradient_of_a_bias_of_bfloat16_heads_is_a_float32_sum():
    """Also of thousands of tokens, where a sum in bfloat16 would stop growing at 256."""
    x, ones = jnp.ones((2, 2, 1000, 8), jnp.bfloat16), jnp.ones((2, 2, 1000, 8), jnp.bfloat16)

    def out(x, value):
        return add_bias(x, Parameter(value, axes=(None, None), kind="bias"), 1)

    with jax.set_mesh(one_device()):
        found, back = jax.vjp(out, x, jnp.full((2, 8), 0.5))
        of_x, of_bias = back(ones)
    assert (found == 1.5).all() and (of_x == 1).all()
    np.testing.assert_array_equal(of_bias, np.full((2, 8), 2000.0))


def test_bfloat16_norms_take_both_sums_at_once_and_stay_near_float32():
    """Also where the mean is ten times the spread, more than residual streams show."""
    norm = LayerNorm(256, 1e-5)
    x = (10 + jax.random.normal(jax.random.key(0), (4, 256))).astype(jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    want = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(np.asarray(norm(x), np.float64), want, rtol=2**-8, atol=1e-3)
    constant = jnp.full((1, 256), 3.3, jnp.bfloat16)
    assert np.isfinite(np.asarray(norm(constant), np.float32)).all()
