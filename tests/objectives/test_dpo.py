"""Direct preference optimisation against whole logits, in parts and on meshes, and against its closed-form optimum."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax

from scaling.config import schema as cfg
from scaling.data.batch import Batch
from scaling.model import decoder
from scaling.objectives.dpo import answered, compare, dpo
from scaling.parallel.mesh import make_mesh, one_device
from scaling.parallel.sharding import batch_sharding
from tests import tiny

PAIRS, ROOM = 8, 12
KINDS = {
    "sigmoid": {},
    "sigmoid with NLL, smoothed": {"nll": 0.7, "label_smoothing": 0.2},
    "ipo with NLL, smoothed": {"loss": "ipo", "beta": 0.5, "nll": 0.3, "label_smoothing": 0.1},
}
WITH_NLL = KINDS["sigmoid with NLL, smoothed"]


def config_of(model=None, **knobs):
    return cfg.Config(model=tiny.model(**(model or {})), compute=tiny.COMPUTE, dpo=cfg.Dpo(**{"beta": 0.3} | knobs))


def rows(padding=0):
    """Pairs of answers of different lengths to prompts of different lengths, and rows of padding after them."""
    rng = np.random.default_rng(5)
    shape = (2 * PAIRS + padding, ROOM)
    tokens, targets, weights = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for i in range(PAIRS):
        prompt = rng.integers(2, 5)
        for j in (2 * i, 2 * i + 1):
            n = rng.integers(prompt + 1, ROOM + 1)
            ids = rng.integers(1, tiny.VOCAB, n + 1)
            tokens[j, :n], targets[j, :n], weights[j, prompt - 1 : n] = ids[:-1], ids[1:], 1
    return Batch(tokens, targets, weights)


@functools.cache
def params_of(seed, model=()):
    return decoder.initialize(tiny.model(**dict(model)), jax.random.key(seed))


@functools.cache
def compiled(config):
    objective = dpo(config)

    def total(params, frozen, batch):
        sums = objective(decoder.merge(config.network, params), frozen, batch, None)
        return sums.objective, sums

    return jax.jit(jax.grad(total, has_aux=True))


def sums_of(config, params, frozen, batch, mesh=None):
    """The gradient of what the objective minimises, and its sums."""
    with jax.set_mesh(mesh or one_device()):
        return compiled(config)(params, frozen, batch)


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * max(1.0, float(np.abs(wanted).max())))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_loss_and_gradient_are_those_of_whole_logits(name):
    config, batch = config_of(**KINDS[name]), rows()
    knobs, params, frozen = config.dpo, params_of(0), params_of(7)

    def direct(params):
        logs = []
        for each in (params, frozen):
            model = decoder.merge(config.network, each)
            found = jax.nn.log_softmax(model.logits(model(jnp.asarray(batch.tokens))))
            logs.append((jnp.take_along_axis(found, batch.targets[..., None], -1)[..., 0] * batch.weights).sum(1))
        (chosen, rejected), (old_chosen, old_rejected) = ((x[::2], x[1::2]) for x in logs)
        h = (chosen - old_chosen) - (rejected - old_rejected)
        if knobs.loss == "ipo":
            right, wrong = (h - 1 / (2 * knobs.beta)) ** 2, (-h - 1 / (2 * knobs.beta)) ** 2
        else:
            right, wrong = -jax.nn.log_sigmoid(knobs.beta * h), -jax.nn.log_sigmoid(-knobs.beta * h)
        loss = ((1 - knobs.label_smoothing) * right + knobs.label_smoothing * wrong).sum()
        nll = -(chosen / batch.weights[::2].sum(1)).sum()
        metrics = {
            "loss": loss,
            "nll_loss": nll,
            "logps/chosen": chosen.sum(),
            "logps/rejected": rejected.sum(),
            "rewards/chosen": knobs.beta * (chosen - old_chosen).sum(),
            "rewards/rejected": knobs.beta * (rejected - old_rejected).sum(),
            "rewards/margins": knobs.beta * h.sum(),
            "rewards/accuracies": (h > 0).sum().astype(jnp.float32),
        }
        return loss + knobs.nll * nll, metrics

    with jax.set_mesh(one_device()):
        wanted, metrics = jax.jit(jax.grad(direct, has_aux=True))(params)
    gradient, sums = sums_of(config, params, frozen, batch)
    assert sums.weight == PAIRS and sums.metrics.keys() == metrics.keys()
    for key, value in metrics.items():
        # Rewards are differences of log-probabilities, which have a rounding of about 1e-7 of their size.
        np.testing.assert_allclose(sums.metrics[key], value, rtol=2e-5, atol=2e-7 * PAIRS * 50, err_msg=key)
    jax.tree.map(close, gradient, wanted)


@pytest.mark.slow
def test_before_the_first_update_the_loss_is_log_2():
    for name, knobs in KINDS.items():
        _, sums = sums_of(config_of(**knobs), params_of(0), params_of(0), rows())
        wanted = 1.0 if name.startswith("ipo") else math.log(2)  # IPO's is 1 / (2 beta)^2
        np.testing.assert_allclose(sums.metrics["loss"] / PAIRS, wanted, rtol=1e-6)
        np.testing.assert_allclose(sums.metrics["rewards/margins"], 0, atol=1e-5)
        assert sums.metrics["logps/chosen"] < -PAIRS and sums.metrics["logps/rejected"] < -PAIRS


def added(parts):
    return jax.tree.map(lambda *each: sum(each), *parts)


@pytest.mark.slow
def test_padding_and_parts_change_nothing():
    config, batch, both = config_of(**WITH_NLL), rows(), (params_of(0), params_of(7))
    whole = sums_of(config, *both, batch)
    padded = sums_of(config, *both, rows(padding=4))
    parts = [sums_of(config, *both, jax.tree.map(lambda x, i=i: x[i : i + 4], batch)) for i in range(0, 2 * PAIRS, 4)]
    for other in (padded, added(parts)):
        jax.tree.map(close, other, whole)
    assert padded[1].weight == PAIRS


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [cfg.Mesh(data=2, fsdp=2, tensor=2), cfg.Mesh(fsdp=8), cfg.Mesh(fsdp=4, context=2)])
def test_devices_change_nothing(mesh):
    """Also where a pair is on two devices, and where a row is."""
    config, batch = config_of(**WITH_NLL), rows()
    if mesh.fsdp == 8:
        batch = jax.tree.map(lambda x: x[:8], batch)
    whole = sums_of(config, params_of(0), params_of(7), batch)
    devices = make_mesh(mesh)
    placed = jax.device_put(jax.tree.map(lambda x: x[None], batch), batch_sharding(devices))
    where = decoder.shardings(config.model, devices)
    there = [jax.device_put(params_of(seed), where) for seed in (0, 7)]
    found = sums_of(config, *there, jax.tree.map(lambda x: x[0], placed), devices)
    jax.tree.map(close, jax.device_get(found), jax.device_get(whole))


@pytest.mark.slow
def test_routers_count_by_pairs():
    """A model with experts: a pair counts once in the routers' losses, and parts of a batch add up."""
    model = {"experts": cfg.Experts(count=4, d_ff=24, capacity=0.0, balance_loss=0.1, z_loss=0.1)}
    config, batch = config_of(model), rows()
    both = [params_of(seed, tuple(model.items())) for seed in (0, 7)]
    gradient, whole = sums_of(config, *both, batch)
    parts = [sums_of(config, *both, jax.tree.map(lambda x, i=i: x[i : i + 4], batch)) for i in range(0, 2 * PAIRS, 4)]
    jax.tree.map(close, added(parts), (gradient, whole))
    balance, z = (whole.metrics[name] / PAIRS for name in ("balance_loss", "router_z_loss"))
    assert 0.9 < balance < 2  # 1 where all experts are used alike
    np.testing.assert_allclose(whole.objective, whole.metrics["loss"] + 2 * 0.1 * PAIRS * (balance + z), rtol=1e-5)


def test_what_is_masked_has_no_part_in_loss_or_gradient():
    weights = jnp.asarray([[0.0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    found = jnp.where(weights > 0, -1.5, jnp.nan)

    def loss(found, reference):
        policy, old = (answered(x, weights).reshape(-1, 2) for x in (found, reference))
        policy = policy.at[1].set(jnp.nan)  # a pair that is not there
        return sum(value.sum() for value in compare(policy, old, jnp.asarray([True, False]), cfg.Dpo()).values())

    reference = jnp.where(weights > 0, -2.0, jnp.inf)
    value, gradient = jax.value_and_grad(loss)(found, reference)
    assert np.isfinite(value)
    np.testing.assert_array_equal(np.asarray(gradient) != 0, np.asarray(weights) > 0)


def test_half_a_pair_is_none():
    batch = rows()
    batch.weights[-1] = 0  # the rejected row of the last pair
    config, both = config_of(**WITH_NLL), (params_of(0), params_of(7))
    without = sums_of(config, *both, jax.tree.map(lambda x: np.concatenate([x[:-2], 0 * x[-2:]]), batch))
    jax.tree.map(close, sums_of(config, *both, batch), without)
    assert without[1].weight == PAIRS - 1


ANSWERS, BETA = 512, 0.5


@pytest.mark.slow
def test_the_optimum_is_that_of_the_closed_form():
    """A bandit of 512 answers of one token: E[r] - beta KL(policy | reference) against beta log E_ref exp(r / beta).

    People prefer by a Bradley-Terry model of the reward r, whose mean under the reference is 0, so that of the two the
    reference itself reaches nothing. The bias of the logits can express every distribution.
    """
    model = cfg.Model(
        vocab_size=ANSWERS, vocab_multiple=8, context_length=1, num_layers=1, d_model=8, num_heads=1, d_head=8, d_ff=8,
        tied_embedding=False, logit_bias=True,
    )  # fmt: skip
    config = cfg.Config(model=model, compute=dataclasses.replace(tiny.COMPUTE, loss_chunk=0), dpo=cfg.Dpo(beta=BETA))
    rng = np.random.default_rng(0)
    frozen = decoder.initialize(model, jax.random.key(0))
    frozen["logit_bias"] = jnp.asarray(rng.normal(0, 0.5, ANSWERS), jnp.float32)

    @jax.jit
    def logits(params):
        network = decoder.merge(config.network, params)
        return network.logits(network(jnp.zeros((1, 1), jnp.int32)))[0, 0]

    pairs, steps = 2048, 150
    tokens, weights = np.zeros((2 * pairs, 1), np.int32), np.ones((2 * pairs, 1), np.float32)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.15, steps))

    @jax.jit
    def step(params, moments, targets):
        gradient, sums = compiled(config)(params, frozen, Batch(tokens, targets, weights))
        updates, moments = optimizer.update(jax.tree.map(lambda g: g / sums.weight, gradient), moments)
        return optax.apply_updates(params, updates), moments

    with jax.set_mesh(one_device()):
        reference = log_softmax(logits(frozen))
        reward = rng.normal(size=ANSWERS)
        reward -= np.exp(reference) @ reward
        best = BETA * np.log(np.exp(reference) @ np.exp(reward / BETA))
        params, moments = frozen, optimizer.init(frozen)
        for _ in range(steps):
            drawn = rng.choice(ANSWERS, (pairs, 2), p=np.exp(reference))
            first_wins = rng.random(pairs) < 1 / (1 + np.exp(reward[drawn[:, 1]] - reward[drawn[:, 0]]))
            drawn = np.where(first_wins[:, None], drawn, drawn[:, ::-1]).astype(np.int32)
            params, moments = step(params, moments, drawn.reshape(-1, 1))
        policy = log_softmax(logits(params))
    found = np.exp(policy) @ (reward - BETA * (policy - reference))
    assert 0.98 * best < found <= best
