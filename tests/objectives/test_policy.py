"""The losses of a policy and of its value function, against whole logits; and their parts, whatever the devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.data.batch import of_sequences
from scaling.model import decoder
from scaling.objectives import means
from scaling.objectives.policy import Answers, Minibatch, policy, value
from scaling.parallel.mesh import make_mesh, one_device
from scaling.parallel.sharding import batch_sharding
from scaling.train import state as train_state
from scaling.train.step import make_eval_step, make_train_step
from tests import tiny

ROWS, LENGTH, DRAWN = 8, 12, tiny.VOCAB - 3


def config(microbatch=8, rl=None, **model):
    made = tiny.config(microbatch_sequences=microbatch)
    train = dataclasses.replace(
        made.train, sequence_length=LENGTH, batch_tokens=ROWS * LENGTH, microbatch_sequences=microbatch, ramp_tokens=0
    )
    shape = dataclasses.replace(made.model, **model)
    return dataclasses.replace(made, train=train, model=shape, rl=rl or cfg.Reinforcement(temperature=0.7))


def minibatch(parts=1, text=True):
    random = np.random.default_rng(0)
    ids = random.integers(1, DRAWN, (ROWS, LENGTH + 1)).astype(np.int32)
    mask = np.zeros((ROWS, LENGTH), np.float32)
    for row, (first, last) in enumerate(zip(random.integers(0, 5, ROWS), random.integers(6, 12, ROWS), strict=True)):
        mask[row, first:last] = 1
    old, reference, gained, returns, values = random.normal(0, 0.3, (5, ROWS, LENGTH)).astype(np.float32)
    weights, counts = means.sequence(mask), means.token(mask)
    answers = Answers(ids[:, :-1], ids[:, 1:], mask, counts, weights, old - 4, reference - 4, gained, returns, values)
    read = None
    if text:
        read = of_sequences(random.integers(1, tiny.VOCAB, (2 * ROWS, LENGTH + 1)).astype(np.int32))
        read = read._replace(weights=np.full_like(read.weights, 1 / read.weights.size))
    tree = jax.tree.map(lambda x: jnp.asarray(x).reshape(parts, -1, LENGTH), (answers, read))
    return Minibatch(tree[0], jnp.full(parts, 0.3), tree[1])


def by_whole_logits(made, params, batch):
    """The loss as its formula says."""
    answers, text, rl = *jax.tree.map(lambda x: x[0], (batch.answers, batch.pretraining)), made.rl
    model = decoder.merge(made.network, params)
    logits = model.logits(model(answers.tokens))[..., :DRAWN] / rl.temperature
    found = jnp.take_along_axis(jax.nn.log_softmax(logits), answers.targets[..., None], -1)[..., 0]
    ratio = jnp.exp(found - answers.log_probs)
    loss = -jnp.minimum(answers.advantages * ratio, answers.advantages * jnp.clip(ratio, 1 - rl.clip, 1 + rl.clip))
    far = found - answers.reference
    loss += batch.kl[0] * (jnp.exp(-far) - 1 + far)
    lengths = answers.mask.sum(1, keepdims=True)
    mean = (answers.mask / lengths * loss).sum() / ROWS
    read = jax.nn.log_softmax(model.logits(model(text.tokens)))
    return mean - rl.pretraining_weight * jnp.take_along_axis(read, text.targets[..., None], -1).mean()


@pytest.mark.slow
def test_the_loss_of_a_policy_and_its_gradient():
    made, batch = config(), minibatch()
    with jax.set_mesh(one_device()):
        params = decoder.initialize(made.model, jax.random.key(3))

        def loss(params):
            one = jax.tree.map(lambda x: x[0], batch)
            return policy(made, DRAWN)(decoder.merge(made.network, params), None, one, None).objective

        found, gradient = jax.jit(jax.value_and_grad(loss))(params)
        expected, slopes = jax.jit(jax.value_and_grad(lambda p: by_whole_logits(made, p, batch)))(params)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), gradient, slopes)


@pytest.mark.slow
def test_the_loss_of_a_value_function():
    made, batch = config(outputs=1), minibatch(text=False)
    with jax.set_mesh(one_device()):
        params = decoder.initialize(made.model, jax.random.key(3))
        sums = make_eval_step(made, one_device(), value(made))(params, batch)
        model = decoder.merge(made.network, params)
        answers = jax.tree.map(lambda x: x[0], batch.answers)
        said = model.outputs(model(answers.tokens))[..., 0]
    near = np.clip(said, answers.values - 0.2, answers.values + 0.2)
    worse = np.maximum((said - answers.returns) ** 2, (near - answers.returns) ** 2)
    assert float(sums.objective) == pytest.approx(float((answers.counts * worse).sum() / 2), rel=1e-5)
    assert 0 < float(sums.metrics["val/clipfrac_avg"]) < 1 and float(sums.weight) == 1


@pytest.mark.slow
def test_entropy_is_that_of_the_distribution_that_was_drawn_from():
    made, batch = config(), minibatch()
    with jax.set_mesh(one_device()):
        params = decoder.initialize(made.model, jax.random.key(3))
        sums = make_eval_step(made, one_device(), policy(made, DRAWN))(params, batch)
        model = decoder.merge(made.network, params)
        answers = jax.tree.map(lambda x: x[0], batch.answers)
        found = jax.nn.log_softmax(model.logits(model(answers.tokens))[..., :DRAWN] / made.rl.temperature)
    entropy = -(jnp.exp(found) * found).sum(-1)
    expected = float((entropy * answers.mask).sum() / answers.mask.sum())
    assert float(sums.metrics["policy/entropy_avg"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("which", [policy, value])
@pytest.mark.parametrize("sizes", [cfg.Mesh(), cfg.Mesh(data=2, fsdp=2, tensor=2)], ids=["1", "8"])
def test_microbatches_and_devices_change_nothing(which, sizes):
    found = []
    for parts in (1, 2):
        made = config(ROWS // parts, **({"outputs": 1} if which is value else {}))
        mesh = make_mesh(sizes, jax.devices()[: sizes.devices])
        with jax.set_mesh(mesh):
            state = train_state.create_state(made, mesh)
            objective = value(made) if which is value else policy(made, DRAWN)
            batch = minibatch(parts, text=which is policy)
            placed = batch._replace(
                answers=jax.device_put(batch.answers, batch_sharding(mesh)),
                pretraining=jax.device_put(batch.pretraining, batch_sharding(mesh)) if batch.pretraining else None,
            )
            state, metrics = make_train_step(made, mesh, objective)(state, placed, 1e-2, parts)
            found.append(jax.device_get((state["params"], metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), *found)


@pytest.mark.slow
def test_what_is_no_token_of_an_answer_has_no_part_in_loss_or_gradient():
    made, batch = config(), minibatch()
    there = batch.answers.mask > 0
    fields = ("log_probs", "reference", "advantages")
    dirty = {name: jnp.where(there, getattr(batch.answers, name), jnp.nan) for name in fields}
    found = []
    with jax.set_mesh(one_device()):
        step = make_train_step(made, one_device(), policy(made, DRAWN))
        for answers in (batch.answers, batch.answers._replace(**dirty)):
            state = train_state.create_state(made, one_device())
            found.append(jax.device_get(step(state, batch._replace(answers=answers), 1e-2, 1)))
    jax.tree.map(np.testing.assert_array_equal, *found)
