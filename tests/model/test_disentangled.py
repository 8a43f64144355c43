"""Scores of contents with distances, against their definition (DeBERTa: arXiv 2006.03654, equation 4)."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from scaling.catalog import flops, sizes
from scaling.config import schema as cfg
from scaling.config.resolve import resolve
from scaling.model import decoder, disentangled
from scaling.model.layers import Parameter
from tests import tiny

pytestmark = pytest.mark.usefixtures("on_one_device")
ENCODER = dict(causal=False, norm="post", attention_pattern=("dense",), positions="disentangled")


def model(**by):
    return tiny.model(**ENCODER, disentangled=cfg.Disentangled(**by))


def test_rows_of_single_distances():
    found = disentangled.rows(6, model(distance=3))
    np.testing.assert_array_equal(found[0], [3, 2, 1, 0, 0, 0])  # later keys
    np.testing.assert_array_equal(found[5], [5, 5, 5, 5, 4, 3])
    np.testing.assert_array_equal(disentangled.rows(32, model())[31], np.arange(63, 31, -1))


def test_rows_of_buckets():
    """Those of DeBERTa 3; half are single distances, and the rest are as wide as the logarithm makes them."""
    found = disentangled.rows(600, model(distance=512, buckets=256))[599, ::-1] - 256
    np.testing.assert_array_equal(found[:129], np.arange(129))
    assert (
        found[511] == found[599] == 255
        and found[509] == 255
        and found[400] == 233 == 128 + np.ceil(np.log(400 / 128) / np.log(511 / 128) * 127)
    )
    assert (np.diff(found) >= 0).all() and (np.diff(found) <= 1).all()
    small = disentangled.rows(512, model(distance=512, buckets=256)) - 256
    np.testing.assert_array_equal(small, -small.T)


@pytest.mark.parametrize("both", [(True, True), (True, False), (False, True)])
def test_scores_are_those_of_the_definition(both):
    config = model(distance=4, content_to_position=both[0], position_to_content=both[1])
    random = np.random.default_rng(0)
    q, k = random.standard_normal((2, 2, 4, 6, 8)).astype(np.float32)
    table, bias = random.standard_normal((8, 32)).astype(np.float32), random.standard_normal((4, 8)).astype(np.float32)
    weights = random.standard_normal((2, 32, 4, 8)).astype(np.float32)

    own = types.SimpleNamespace(
        key=Parameter(weights[0], axes=("embed", "heads", None)),
        query=Parameter(weights[1], axes=("embed", "heads", None)),
        query_bias=Parameter(bias, axes=("heads", None)),
    )
    found = disentangled.scores(q, k, jax.numpy.asarray(table), own, config)
    keys = np.einsum("rd,dhk->rhk", table, weights[0])
    queries = np.einsum("rd,dhk->rhk", table, weights[1]) + bias
    want = np.zeros((2, 4, 6, 6))
    for i in range(6):
        for j in range(6):
            row = min(max(i - j, -4), 3) + 4
            want[:, :, i, j] += both[0] * np.einsum("bhk,hk->bh", q[:, :, i], keys[row])
            want[:, :, i, j] += both[1] * np.einsum("bhk,hk->bh", k[:, :, j], queries[row])
    np.testing.assert_allclose(found, want, atol=1e-4)


@pytest.mark.slow
def test_every_parameter_of_positions_counts_and_gets_a_gradient():
    network = tiny.in_float32(model(distance=9, buckets=6, norm=True, absolute=True))
    params = tiny.parameters(network.model, 0.2)
    tokens = np.arange(1, 17)[None]

    def loss(params):
        module = decoder.merge(network, params)
        return (module(tokens) * jax.numpy.cos(np.arange(32))).sum()

    grads = jax.jit(jax.grad(loss))(params)
    own = grads["blocks"]["attention"]["distances"]
    # A bias of the keys of distances adds the same to all scores of a query, and so nothing.
    assert np.abs(own.pop("key_bias")).max() < 1e-3
    for leaf in jax.tree.leaves((own, grads["positions"], grads["distances_norm"])):
        assert np.abs(leaf).max() > 1e-3
    assert (np.abs(grads["distances"]).max(1) > 0).all()


def test_flops_count_products_with_distances():
    plain, config = tiny.model(**(ENCODER | {"positions": "none"})), model(distance=4)
    width, layers, length = 32, 2, 16
    more = flops.forward_per_token(config, length) - flops.forward_per_token(plain, length)
    assert more == layers * 2 * (2 * width * 8 + 2 * width * 32 * 8 / length)
    shared = dataclasses.replace(config, disentangled=cfg.Disentangled(distance=4, shared=True))
    assert flops.forward_per_token(shared, length) == flops.forward_per_token(config, length)
    assert sizes.parameters(config).tree - sizes.parameters(shared).tree == layers * 2 * (32 * 32 + 32)


@pytest.mark.parametrize(
    ("changes", "by", "sentence"),
    [
        ({"causal": True}, {}, "config.model.causal=True must be False with config.model.positions='disentangled'"),
        ({"num_kv_heads": 2}, {}, "config.model.num_kv_heads=2 must be 4"),
        ({"attention_pattern": ("banded",)}, {}, r"config.model.attention_pattern=\('banded',\) must be \('dense',\)"),
        ({"parametrization": "mup"}, {}, "config.model.parametrization='mup' must be 'standard'"),
        ({}, {"content_to_position": False, "position_to_content": False}, "disentangled.content_to_position=False"),
        ({}, {"buckets": 62}, r"disentangled.buckets=62 must be 0, or at least 2 and less than 2 \(N - 1\)"),
        ({}, {"distance": -1}, "disentangled.distance=-1 must be 0 or more"),
    ],
)
def test_what_it_cannot_be_with_is_refused(changes, by, sentence):
    found = tiny.config()
    changed = dataclasses.replace(model(**by), **changes)
    with pytest.raises(ValueError, match=sentence):
        resolve(dataclasses.replace(found, model=changed, data=cfg.Data(objective="mlm")))


@pytest.mark.parametrize("mesh", [cfg.Mesh(context=2), cfg.Mesh(stage=2)])
def test_meshes_that_it_has_no_code_for_are_refused(mesh):
    found = dataclasses.replace(tiny.config(), model=model(), data=cfg.Data(objective="mlm"), mesh=mesh)
    with pytest.raises(ValueError, match=r"mesh\.(context|stage)=2 must be 1 with config\.model\."):
        resolve(found)
