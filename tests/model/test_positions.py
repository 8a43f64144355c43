"""Rotary positions: as a TPU turns features, against turning them in place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.model import positions
from scaling.parallel.mesh import one_device


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [0, 4])
def test_a_product_turns_features_as_they_are_turned_in_place(interleaved, dim, monkeypatch):
    """Equal to the bit in bfloat16, and so are gradients; some features may stay as they are."""
    rotary = cfg.Rotary(dim=dim, interleaved=interleaved)
    x, weights = (
        jax.random.normal(key, (2, 3, 7, 8)).astype(jnp.bfloat16) for key in jax.random.split(jax.random.key(0))
    )

    def both(where):
        monkeypatch.setattr(positions, "platform", lambda: where)
        out, back = jax.vjp(lambda x: positions.rotate(x, jnp.arange(7)[None], rotary), x)
        return np.asarray(out, np.float32), np.asarray(back(weights)[0], np.float32)

    with jax.set_mesh(one_device()):
        for mine, other in zip(both("tpu"), both("cpu"), strict=True):
            np.testing.assert_array_equal(mine, other)
