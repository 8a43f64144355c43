"""The code of docs/how-to/objective.md does what the page says."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.model import decoder
from scaling.parallel.mesh import make_mesh, one_device
from scaling.parallel.sharding import batch_sharding
from scaling.train import state as train_state
from scaling.train.step import make_train_step
from tests import tiny

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "objective.md"


@pytest.mark.slow
def test_the_objective_of_the_page_is_direct_preference_optimisation():
    names: dict = {}
    exec(re.search(r"```python\n(import jax.*?)```", PAGE.read_text(), re.DOTALL)[1], names)
    config = tiny.config(microbatch_sequences=4)
    batch = tiny.batch(0, 2, 4)
    batch.weights[..., :6] = 0  # the prompt
    mesh = make_mesh(cfg.Mesh(fsdp=2, tensor=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        state = train_state.create_state(config, mesh)
        reference = decoder.initialize(config.model, jax.random.key(7))
        params = jax.device_get(state["params"])
        step = make_train_step(config, mesh, names["dpo"](config, beta=0.3))
        _, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)), 1e-3, 2, reference)

    def by_whole_logits(params):
        def of_rows(params, tokens, targets, weights):
            model = decoder.merge(config.network, params)
            found = jax.nn.log_softmax(model.logits(model(tokens)))
            return (weights * jnp.take_along_axis(found, targets[..., None], -1)[..., 0]).sum(-1)

        rows = [x.reshape(8, -1) for x in batch[:3]]
        ratio = of_rows(params, *rows) - of_rows(reference, *rows)
        return -jax.nn.log_sigmoid(0.3 * (ratio[::2] - ratio[1::2])).mean(), ratio

    reference = jax.device_get(reference)
    with jax.set_mesh(one_device()):
        (loss, ratio), grads = jax.jit(jax.value_and_grad(by_whole_logits, has_aux=True))(params)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    norm = np.sqrt(sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    assert float(metrics["accuracy"]) == np.mean(np.asarray(ratio[::2]) > np.asarray(ratio[1::2]))
