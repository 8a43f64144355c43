"""Experts beside a loop over tokens in NumPy, on meshes, and beside what the compiler counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scaling.config import schema as cfg
from scaling.model import decoder
from scaling.model.context import AttentionContext
from scaling.model.experts import Counted, Experts, capacity
from scaling.parallel.mesh import make_mesh
from scaling.parallel.sharding import stored_spec, used_spec
from tests import tiny

pytestmark = pytest.mark.usefixtures("on_one_device")

ROWS = np.asarray(jax.random.normal(jax.random.key(0), (3, 16, 32)))


def layer(**changes):
    """Experts with a router that has favourites, so that slots run out."""
    experts = cfg.Experts(**({"count": 4, "d_ff": 24} | changes))
    module = Experts(tiny.network(experts=experts), nnx.Rngs(0))
    return with_router(module, jax.random.normal(jax.random.key(1), module.router.shape))


def with_router(module, router):
    module.router[...] = router
    return module


def all_real(rows=ROWS):
    return Counted(jnp.ones(rows.shape[:2], bool), jnp.full(rows.shape[0], float(rows.shape[1])))


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def by_hand(module, rows, real=None, slots=None):
    """Outputs, and the share of lost choices of each row; ``slots`` None = no bound."""
    experts, parts = module.config, {name: np.asarray(a) for name, a in nnx.to_pure_dict(nnx.state(module)).items()}
    logits = np.asarray(rows, np.float64) @ parts["router"]
    out, lost = np.zeros(rows.shape), np.zeros(len(rows))
    for b, row in enumerate(np.asarray(rows, np.float64)):
        taken, asked = np.zeros(experts.count, int), 0
        for t, x in enumerate(row):
            if real is not None and not real[b, t]:
                continue
            chosen = np.argsort(-logits[b, t], kind="stable")[: experts.per_token]
            odds = np.exp(logits[b, t]) / np.exp(logits[b, t]).sum()
            weights = odds[chosen] / (odds[chosen].sum() if experts.normalize else 1)
            for e, weight in zip(chosen, weights, strict=True):
                asked += 1
                if slots is not None and taken[e] == slots:
                    lost[b] += 1
                    continue
                taken[e] += 1
                up = x @ parts["up"][e]
                hidden = gelu(x @ parts["gate"][e]) * up if experts.gated else gelu(up)
                out[b, t] += weight * hidden @ parts["down"][e]
        lost[b] /= max(asked, 1)
    return out, lost


@pytest.mark.parametrize("changes", [{}, {"gated": False, "normalize": False}, {"per_token": 4}, {"per_token": 1}])
def test_without_a_bound_every_choice_counts(changes):
    module = layer(**changes)
    want, _ = by_hand(module, ROWS)
    got, sums = jax.jit(lambda x: module(x))(ROWS)
    assert sums is None
    np.testing.assert_allclose(got, want, atol=2e-6)
    for factor in (0.0, 4.0):  # in training, without slots or with slots for all
        module.config = dataclasses.replace(module.config, capacity=factor)
        got, sums = jax.jit(lambda x, real: module(x, real))(ROWS, all_real())
        np.testing.assert_allclose(got, want, atol=2e-6)
        assert sums.dropped == 0 and sums.load.sum() == pytest.approx(ROWS.shape[0] * ROWS.shape[1])


@pytest.mark.slow
def test_the_first_tokens_of_the_text_take_the_slots_and_padding_takes_none():
    module = layer(capacity=0.5)
    real = np.random.default_rng(0).random(ROWS.shape[:2]) < 0.7
    weight = real.sum(1).astype(np.float32)
    slots = capacity(module.config, ROWS.shape[1])
    want, lost = by_hand(module, ROWS, real, slots)
    got, sums = jax.jit(lambda x, counted: module(x, counted))(ROWS, Counted(jnp.asarray(real), jnp.asarray(weight)))
    assert slots == 4 and (lost > 0).all()
    np.testing.assert_allclose(got, want, atol=2e-6)
    np.testing.assert_allclose(sums.dropped, (weight * lost).sum(), rtol=1e-5)
    other = jnp.where(real[..., None], ROWS, 7.0)
    again, same = module(other, Counted(jnp.asarray(real), jnp.asarray(weight)))
    np.testing.assert_allclose(again, got, atol=1e-6)
    np.testing.assert_allclose(jnp.hstack(same), jnp.hstack(sums), rtol=1e-5)


def test_gradients_are_those_of_the_dense_sum():
    module = layer(capacity=4.0)

    def dense(x, parts):
        probabilities = jax.nn.softmax(x @ parts["router"])
        _, chosen = jax.lax.top_k(probabilities, 2)
        weights = probabilities * jax.nn.one_hot(chosen, 4).sum(-2)
        hidden = jax.nn.gelu(jnp.einsum("btd,edf->betf", x, parts["gate"]))
        hidden = hidden * jnp.einsum("btd,edf->betf", x, parts["up"])
        out = jnp.einsum("betf,efd->betd", hidden, parts["down"])
        return jnp.einsum("betd,bte->btd", out, weights / weights.sum(-1, keepdims=True))

    graph, state = nnx.split(module)
    parts = nnx.to_pure_dict(state)

    def ours(counted):
        def run(x, parts):
            filled = nnx.merge(graph, nnx.from_flat_state([(p, v.replace(parts[p[0]])) for p, v in flat]))
            return filled(x, counted)[0]

        flat = nnx.to_flat_state(state)
        return run

    def gradients(run):
        return jax.jit(jax.grad(lambda x, parts: jnp.sin(3 * run(x, parts)).sum(), (0, 1)))(ROWS, parts)

    want = gradients(dense)
    for counted in (None, all_real()):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), gradients(ours(counted)), want)


def test_the_balance_loss_is_one_at_equal_load_and_grows_with_favourites():
    rows = jnp.eye(32)[None, :16]
    weight = Counted(jnp.ones((1, 16), bool), jnp.ones(1))
    pairs = jnp.asarray([[1.0, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0]])

    @jax.jit
    def sums_of(router):
        return with_router(layer(), router)(rows, weight)[1]

    sums = sums_of(jnp.tile(20 * pairs, (8, 1)))
    np.testing.assert_allclose(sums.load, 0.25)
    np.testing.assert_allclose(sums.balance, 1, rtol=1e-5)
    sums = sums_of(jnp.tile(20 * pairs[:1], (32, 1)))
    np.testing.assert_allclose([sums.balance, *sums.load], [2, 0.5, 0.5, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(sums.z, (20 + np.log(2)) ** 2, rtol=1e-5)
    np.testing.assert_allclose(sums_of(jnp.zeros((32, 4))).balance, 1, rtol=1e-6)


def flops(**changes):
    module = layer(**({"d_ff": 256, "capacity": 1.0} | changes))
    rows = jax.random.normal(jax.random.key(0), (2, 64, 32))
    compiled = jax.jit(lambda x, counted: module(x, counted)[0]).lower(rows, all_real(rows)).compile()
    return compiled.cost_analysis()["flops"]


def test_work_grows_with_the_experts_of_a_token_and_not_with_all():
    one = flops(per_token=1)
    assert flops(per_token=2) == pytest.approx(2 * one, rel=0.05)
    assert flops(per_token=1, count=16) == pytest.approx(one, rel=0.05)


TOKENS = np.random.default_rng(0).integers(1, tiny.VOCAB, (8, 16)).astype(np.int32)
COUNTED = Counted(np.ones((8, 16), bool), np.full(8, 16, np.float32))
GLAM = dict(num_layers=4, experts=cfg.Experts(count=4, every=2, d_ff=32, gated=False, capacity=0.75, z_loss=1e-3))


def favourites(params):
    """Parameters with routers that have favourites."""
    stack = params["expert_blocks"]
    router = jax.random.normal(jax.random.key(5), stack["experts"]["router"].shape)
    return params | {"expert_blocks": stack | {"experts": stack["experts"] | {"router": router}}}


def test_no_token_depends_on_a_later_one():
    network = tiny.network(**GLAM)
    params = favourites(decoder.initialize(network.model, jax.random.key(0)))

    @jax.jit
    def hidden(tokens):
        return decoder.merge(network, params).hidden_and_sums(tokens, decoder.PLAIN, COUNTED)

    other = TOKENS.copy()
    other[:, 9:] = tiny.VOCAB - 1 - other[:, 9:]
    (one, sums), (two, _) = hidden(TOKENS), hidden(other)
    assert sums.dropped > 0.1 * 2 * TOKENS.size
    np.testing.assert_array_equal(one[:, :9], two[:, :9])
    assert np.abs(one - two)[:, 9:].max() > 0.1


MESHES = {
    "fsdp2-expert2-tensor2": cfg.Mesh(fsdp=2, expert=2, tensor=2),
    "data2-expert4": cfg.Mesh(expert=4),
    "expert4-context2": cfg.Mesh(expert=4, context=2),
    "slices2-expert2": cfg.Mesh(slices=2, expert=2, shard_optimizer=True),
    "fsdp8": cfg.Mesh(fsdp=8),
}
each_mesh = pytest.mark.parametrize(
    "name", [n if n == "fsdp2-expert2-tensor2" else pytest.param(n, marks=pytest.mark.slow) for n in MESHES]
)


@pytest.fixture(scope="module")
def one_device():
    return tiny.train(tiny.config(GLAM), 5)


def same(got, want):
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    moments, expected = (x[1]["optimizer"][2].mu for x in (got, want))  # means of the gradients
    for a, b in zip(jax.tree.leaves(moments), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4 * float(jnp.abs(b).max()) + 1e-7)


@pytest.mark.slow
@each_mesh
def test_same_losses_and_gradients_on_every_mesh(name, one_device):
    same(tiny.train(tiny.config(GLAM), 5, MESHES[name], 8), one_device)


@pytest.mark.slow
def test_same_losses_and_gradients_accumulated(one_device):
    same(tiny.train(tiny.config(GLAM, microbatch_sequences=2), 5), one_device)


@pytest.mark.slow
def test_same_losses_and_gradients_without_capacity():
    dropless = tiny.config(GLAM | {"experts": dataclasses.replace(GLAM["experts"], capacity=0.0), "remat": "full"})
    same(tiny.train(dropless, 5, cfg.Mesh(fsdp=2, context=2, tensor=2), 8), tiny.train(dropless, 5))


@pytest.mark.slow
@each_mesh
def test_equal_experts_are_taken_by_their_index_and_scoring_drops_nothing(name):
    network = tiny.network(**GLAM)
    params = decoder.initialize(network.model, jax.random.key(0))
    experts = params["expert_blocks"]["experts"]
    experts["router"] = jnp.repeat(jax.random.normal(jax.random.key(2), (2, 32, 1)), 4, axis=-1)

    def run(params, tokens):
        model = decoder.merge(network, params)
        return model.hidden_and_sums(tokens, decoder.PLAIN, COUNTED)[1].load, model(tokens, AttentionContext())

    _, want = jax.jit(run)(params, TOKENS)
    mesh = make_mesh(MESHES[name], jax.devices()[:8])
    with jax.set_mesh(mesh):
        load, got = jax.jit(run)(jax.device_put(params, decoder.shardings(network.model, mesh)), TOKENS)
    np.testing.assert_array_equal(load, np.asarray([1, 1, 0, 0]) * TOKENS.size)  # two layers, half of each
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_slots_cross_devices_by_all_to_all():
    """And experts lie apart: no device gathers those of others."""
    graph, state = nnx.split(layer(count=8))
    mesh = make_mesh(cfg.Mesh(expert=4, tensor=2), jax.devices()[:8])
    rows = jax.random.normal(jax.random.key(0), (8, 16, 32))

    def run(state, rows):
        return nnx.merge(graph, state)(rows, all_real(rows))[0]

    def stored(variable):
        return variable.replace(jax.device_put(variable[...], jax.NamedSharding(mesh, stored_spec(variable.axes))))

    with jax.set_mesh(mesh):
        state = nnx.from_flat_state([(path, stored(variable)) for path, variable in nnx.to_flat_state(state)])
        where = jax.NamedSharding(mesh, used_spec(("batch", "sequence", None)))
        text = jax.jit(run, out_shardings=where).lower(state, jax.device_put(rows, where)).compile().as_text()
    gathers = [line.split(" all-gather(")[0] for line in text.splitlines() if " all-gather(" in line]
    assert text.count(" all-to-all(") == 3  # rows and their weights to the experts, and rows back
    assert gathers and not any("[8," in made for made in gathers), gathers  # of the rows, or of the experts
