import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling import config as cfg
from scaling.model.loss import LossConfig, cross_entropy
from scaling.parallel.mesh import make_mesh

KEYS = jax.random.split(jax.random.key(0), 3)
HIDDEN = jax.random.normal(KEYS[0], (8, 12, 16))
TABLE = jax.random.normal(KEYS[1], (64, 16))
TARGETS = jax.random.randint(KEYS[2], (8, 12), -1, 50)  # -1: does not count


def reference(hidden, table):
    logits = (jnp.einsum("btd,vd->btv", hidden, table) * 0.5)[..., :50]
    log_z = jax.nn.logsumexp(logits, -1)
    nll = log_z - jnp.take_along_axis(logits, jnp.maximum(TARGETS, 0)[..., None], -1)[..., 0]
    return jnp.where(TARGETS >= 0, nll + 0.01 * log_z**2, 0).sum()


MIXED = cfg.Mesh(fsdp=2, tensor=2)


@pytest.mark.parametrize(
    ("chunk", "mesh"),
    [*((chunk, None) for chunk in (0, 4, 5, 100)), (0, MIXED), (5, MIXED), (5, cfg.Mesh()), (5, cfg.Mesh(tensor=8))],
)
def test_value_and_gradients_equal_the_whole_logits(chunk, mesh):
    config = LossConfig(vocab_size=50, logit_multiplier=0.5, z_loss=0.01, chunk=chunk)

    def objective(hidden, table):
        sums = cross_entropy(hidden, table, TARGETS, config)
        return 2.0 * sums.objective, sums  # the factor tests the incoming cotangent

    run = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))
    if mesh is None:
        (value, sums), grads = run(HIDDEN, TABLE)
    else:
        with jax.set_mesh(make_mesh(mesh)):
            (value, sums), grads = run(HIDDEN, TABLE)
    want, want_grads = jax.value_and_grad(reference, (0, 1))(HIDDEN, TABLE)
    np.testing.assert_allclose(value, 2 * want, rtol=1e-6)
    assert sums.targets == (TARGETS >= 0).sum()
    assert sums.nll < sums.objective
    for got, expected in zip(grads, want_grads, strict=True):
        np.testing.assert_allclose(got, 2 * expected, atol=5e-6)


def test_whole_logits_never_exist():
    """With chunks, no array of the compiled program holds batch x time x vocabulary."""
    config = LossConfig(vocab_size=1000, chunk=8)
    shapes = [jax.ShapeDtypeStruct(s, d) for s, d in [((2, 64, 16), jnp.float32), ((1024, 16), jnp.float32)]]
    targets = jnp.zeros((2, 64), jnp.int32)
    grad = jax.jit(jax.grad(lambda h, w: cross_entropy(h, w, targets, config).objective, (0, 1)))
    compiled = grad.lower(*shapes).compile()
    whole = 2 * 64 * 1024 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < whole
    assert "f32[2,8,1024]" in compiled.as_text() and "f32[2,64,1024]" not in compiled.as_text()
