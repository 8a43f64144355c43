"""Ranking of translations against its definition (LaBSE: arXiv 2007.01852, section 2.1), and on several devices."""

import dataclasses

import jax
import numpy as np
import pytest

from scaling.catalog import flops
from scaling.config import schema as cfg
from scaling.data import pairs
from scaling.data.batch import filled
from scaling.model import decoder
from scaling.objectives.pretraining import pretraining
from scaling.parallel.mesh import make_mesh, one_device
from scaling.parallel.sharding import batch_sharding
from scaling.train import state as train_state
from scaling.train.step import make_train_step
from tests import tiny
from tests.objectives.test_masked import ENCODER, WORDS

TEXTS = [("ein Hund", "a dog"), ("zwei", "two"), ("drei Kühe", "3 cows"), ("ja", "yes"), ("nein", "no"), ("ab", "off")]


def config(**model):
    # Larger weights than usual: otherwise cosines differ by less than rounding, and the nearest text is any.
    found = tiny.config(ENCODER | {"init_std": 0.3} | model, margin=0.2, cosine_scale=5.0)
    data = cfg.Data(objective="translations", source_length=12)
    return dataclasses.replace(found, data=data)


def batch(config):
    """Six pairs and two rows of padding, in a microbatch of eight."""
    layout = pairs.layout_of(config, WORDS)
    rows = [layout.row(pairs.Pair(*WORDS.encode_batch(texts))) for texts in TEXTS]
    return filled((1, 8), {(0, i + (i > 2)): row for i, row in enumerate(rows)})


def step(config, mesh):
    devices = make_mesh(mesh, jax.devices()[: mesh.devices])
    with jax.set_mesh(devices):
        state = train_state.create_state(config, devices)
        params = jax.device_get(state["params"])
        run = make_train_step(config, devices, pretraining(config))
        _, metrics = run(state, jax.device_put(batch(config), batch_sharding(devices)), 1e-2, 1)
        return params, jax.device_get(metrics)


@pytest.mark.parametrize("pooler", [False, True])
def test_the_loss_is_that_of_the_definition(pooler):
    chosen = config(pooler=pooler)
    params, metrics = step(chosen, cfg.Mesh(data=1))
    found = []
    with jax.set_mesh(one_device()):
        model = decoder.merge(chosen.network, params)
        run = jax.jit(lambda ids: model.pooled(model(ids)[0, 0]) if pooler else model(ids)[0, 0])
        for language in (0, 1):
            ids = WORDS.encode_batch([texts[language] for texts in TEXTS])
            framed = [[WORDS.special("<|begin|>"), *text, WORDS.special("<|separator|>")] for text in ids]
            first = np.asarray([run(np.asarray([text], np.int32)) for text in framed], np.float64)
            found.append(first / np.linalg.norm(first, axis=1, keepdims=True))
    cosines = found[0] @ found[1].T
    loss = 0.0
    for table in (cosines, cosines.T):
        for i, row in enumerate(table):
            scores = np.exp(5.0 * np.where(np.arange(6) == i, row - 0.2, row))
            loss -= np.log(scores[i] / scores.sum()) / 6
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-4)
    right = [(table.argmax(1) == np.arange(6)).mean() for table in (cosines, cosines.T)]
    np.testing.assert_allclose(metrics["accuracy"], np.mean(right), rtol=1e-6)


@pytest.mark.slow
def test_devices_change_nothing():
    """A text is ranked among those of all devices."""
    _, expected = step(config(), cfg.Mesh(data=1))
    _, found = step(config(), cfg.Mesh(data=2, fsdp=2, tensor=2))
    for name in ("loss", "accuracy", "grad_norm"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4)


def test_flops_are_those_of_both_texts():
    chosen = config()
    model, length = chosen.model, chosen.train.sequence_length
    both = [flops.training_per_token(model, size, 0.0) * size for size in (length, 12)]
    assert flops.of_pretraining(chosen) == pytest.approx(sum(both) / length)
