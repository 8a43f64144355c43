"""Distillation against its formulas on whole logits, on several devices, for encoders and decoders."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.model import decoder
from scaling.objectives.distillation import distillation
from scaling.parallel.mesh import make_mesh, one_device
from scaling.parallel.sharding import batch_sharding
from scaling.train import state as train_state
from scaling.train.step import make_train_step
from tests import tiny
from tests.objectives import test_masked

KNOBS = cfg.Distill(temperature=2.5, kl=3.0, lm=0.5, cosine=2.0)
SMOOTHING = 0.1
TEACHERS = {"decoder": dict(num_layers=4), "encoder": test_masked.ENCODER | {"num_layers": 4}}


def config(kind, **train):
    train["label_smoothing"] = SMOOTHING
    base = tiny.config(**train) if kind == "decoder" else test_masked.config(**train)
    return dataclasses.replace(base, distill=KNOBS)


def batch(kind, microbatches, rows):
    if kind == "encoder":
        return test_masked.batch(microbatches, rows)
    found = tiny.batch(0, microbatches, rows)
    weights = found.weights.copy()
    weights[:, ::2, 20:] = 0  # every other row ends with padding
    return found._replace(weights=weights)


def step(kind, mesh, microbatches):
    student, rows = config(kind, microbatch_sequences=8 // microbatches), 8 // microbatches
    teacher = tiny.model(**TEACHERS[kind])
    devices = make_mesh(mesh, jax.devices()[: mesh.devices])
    with jax.set_mesh(devices):
        state = train_state.create_state(student, devices)
        params = jax.device_get(state["params"])
        make = jax.jit(lambda: decoder.initialize(teacher, jax.random.key(7)))
        known = jax.device_put(make(), decoder.shardings(teacher, devices))
        run = make_train_step(student, devices, distillation(student, teacher))
        placed = jax.device_put(batch(kind, microbatches, rows), batch_sharding(devices))
        _, metrics = run(state, placed, 1e-2, microbatches, frozen=known)
        return student, teacher, params, jax.device_get(known), jax.device_get(metrics)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.parametrize(
    ("mesh", "microbatches"),
    [(cfg.Mesh(data=1), 1), (cfg.Mesh(data=1), 2), (cfg.Mesh(data=2, fsdp=2, tensor=2), 1)],
    ids=["one", "microbatches", "eight devices"],
)
def test_losses_and_gradient_are_those_of_whole_logits(kind, mesh, microbatches):
    student, teacher, params, known, metrics = step(kind, mesh, microbatches)
    given = jax.tree.map(lambda x: x.reshape(8, *x.shape[2:]), batch(kind, microbatches, 8 // microbatches))

    def losses(params):
        ours, theirs = (
            decoder.merge(cfg.Network(model, student.compute), tree)
            for model, tree in ((student.model, params), (teacher, known))
        )
        states = ours(given.tokens), theirs(given.tokens)
        logits = ours.logits(states[0]), theirs.logits(states[1])
        weights = given.weights / given.weights.sum()
        log_probs = jax.nn.log_softmax(logits[0])
        chosen = jnp.take_along_axis(log_probs, given.targets[..., None], -1)[..., 0]
        there = given.weights > 0 if kind == "decoder" else jnp.ones_like(given.weights)
        soft = [jax.nn.log_softmax(each / 2.5) for each in logits]
        kl = 2.5**2 * (weights * (jnp.exp(soft[1]) * (soft[1] - soft[0])).sum(-1)).sum()
        norms = [jnp.linalg.norm(each, axis=-1) for each in states]
        cosine = 1 - (states[0] * states[1]).sum(-1) / (norms[0] * norms[1])
        cosine = (weights.sum(1) * (there * cosine).sum(1) / there.sum(1)).sum()
        smoothed = (1 - SMOOTHING) * chosen + SMOOTHING * log_probs.mean(-1)
        return -(weights * chosen).sum(), kl, cosine, -(weights * smoothed).sum()

    with jax.set_mesh(one_device()):
        found = jax.jit(losses)(params)
        grads = jax.jit(jax.grad(lambda p: jnp.dot(jnp.asarray([3.0, 2.0, 0.5]), jnp.stack(losses(p)[1:]))))(params)
    np.testing.assert_allclose(
        [metrics[name] for name in ("loss", "kl", "cosine_loss")], found[:3], rtol=2e-5, atol=1e-6
    )
    norm = np.sqrt(sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)


@pytest.mark.slow
def test_a_student_that_is_its_teacher_has_no_divergence():
    student = dataclasses.replace(config("decoder"), distill=dataclasses.replace(KNOBS, lm=0.0))
    with jax.set_mesh(one_device()):
        state = train_state.create_state(student, one_device())
        run = make_train_step(student, one_device(), distillation(student, student.model))
        known = jax.tree.map(jnp.copy, state["params"])
        _, metrics = run(state, tiny.batch(0, 1, 8), 1e-2, 1, frozen=known)
    assert abs(metrics["kl"]) < 1e-5 and abs(metrics["cosine_loss"]) < 1e-5 and metrics["grad_norm"] < 1e-5
