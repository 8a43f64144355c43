"""Replaced tokens: what is drawn, both losses against whole logits, who learns from whom, devices, refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.catalog import families
from scaling.config import schema as cfg
from scaling.config.resolve import resolve
from scaling.data import tokenizer
from scaling.data.batch import filled
from scaling.data.noise.by_name import noise_of
from scaling.model import decoder
from scaling.model.decoder import Output
from scaling.objectives.log_probs import Unembedding
from scaling.objectives.pretraining import must_fit, pretraining
from scaling.objectives.replaced import drawn
from scaling.parallel.mesh import make_mesh, one_device
from scaling.parallel.sharding import batch_sharding
from scaling.train import state as train_state
from scaling.train.step import make_train_step
from tests import tiny

WORDS = tokenizer.load("bytes+mask")
ROWS, LENGTH, RATE = 8, 16, 0.1
MODEL = families.ELECTRA | dict(
    norm="post", embedding_width=24, generator_layers=1, generator_width=16, attention_pattern=("dense",),
    vocab_size=WORDS.vocab_size, vocab_multiple=8,
)  # fmt: skip


def config(**train):
    found = tiny.config(MODEL, **train)
    found = dataclasses.replace(found, data=cfg.Data(objective="replaced_token"), noise=cfg.Noise(random=0, kept=0))
    model = dataclasses.replace(found.model, init_std=0.3)  # so that the generator has preferences
    noise = dataclasses.replace(found.noise, rate=0.3)
    plain = cfg.Optimizer(name="sgd", clip_norm=0.0, weight_decay=0.0, warmup_tokens=0)  # a step shows its gradient
    return dataclasses.replace(found, model=model, noise=noise, optimizer=plain)


def texts():
    """Some of many short documents, so that rows have different numbers of ordinary tokens."""
    found = np.random.default_rng(0).integers(0, 256, (ROWS, LENGTH)).astype(np.int32)
    found[::3, ::5] = WORDS.eot
    return list(found)


def rows(config):
    noise = noise_of(config, WORDS)
    return [noise(texts(), i) for i in range(ROWS)]


def test_rows_hide_equally_many_tokens_and_are_functions_of_their_index():
    whole = config()
    for one, same in zip(rows(whole), rows(whole), strict=True):
        for name in ("tokens", "targets", "weights", "draws"):
            np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
        hidden = one.weights == 1
        assert hidden.sum() == round(0.3 * LENGTH) and (one.tokens[hidden] == WORDS.special("<|mask|>")).all()
        assert not np.isin(one.targets[hidden], [WORDS.eot, *WORDS.controls.values()]).any()
        np.testing.assert_array_equal(one.tokens[~hidden], one.targets[~hidden])
        assert one.draws.dtype == np.float32 and (one.draws >= 0).all() and (one.draws < 1).all()
    other = rows(dataclasses.replace(whole, seed=1))
    assert (other[0].draws != rows(whole)[0].draws).all()


@pytest.mark.usefixtures("on_one_device")
def test_drawn_tokens_have_the_distribution_of_the_generator():
    """Shares within three standard errors, of every token and of those that are replaced; nothing of the padding."""
    rng, count = np.random.default_rng(0), 20_000
    table, bias = rng.normal(size=(16, 4)).astype(np.float32), rng.normal(size=16).astype(np.float32)
    state, how = rng.normal(size=4).astype(np.float32), Unembedding(13, chunk=999)
    hidden = np.broadcast_to(state, (2, count // 2, 4))
    draws = rng.random((2, count // 2), np.float32)
    found = np.asarray(jax.jit(drawn, static_argnums=3)(hidden, Output(table, bias), draws, how))
    logits = (table @ state + bias)[:13].astype(np.float64)
    right = np.exp(logits) / np.exp(logits).sum()
    shares = np.bincount(found.ravel(), minlength=16) / count
    assert (shares[13:] == 0).all()
    assert (np.abs(shares[:13] - right) < 3 * np.sqrt(right * (1 - right) / count)).all()
    targets = rng.integers(0, 13, found.shape)
    expected = 1 - right[targets]
    error = np.sqrt((expected * (1 - expected)).sum()) / count
    assert abs((found != targets).mean() - expected.mean()) < 3 * error
    whole = jax.jit(drawn, static_argnums=3)(hidden, Output(table, bias), draws, how._replace(chunk=0))
    np.testing.assert_array_equal(found, whole)
    edge = jax.jit(drawn, static_argnums=3)(
        hidden[:, :2], Output(table, bias), np.array([[0, 1 - 2**-24]] * 2, np.float32), how
    )
    np.testing.assert_array_equal(edge, [[0, 12]] * 2)


def step(config, mesh, microbatches):
    each = ROWS // microbatches
    placed = filled((microbatches, each), {divmod(i, each): row for i, row in enumerate(rows(config))})
    devices = make_mesh(mesh, jax.devices()[: mesh.devices])
    with jax.set_mesh(devices):
        state = train_state.create_state(config, devices)
        before = jax.device_get(state["params"])
        run = make_train_step(config, devices, pretraining(config))
        state, metrics = run(state, jax.device_put(placed, batch_sharding(devices)), RATE, microbatches)
        return before, jax.device_get(state["params"]), jax.device_get(metrics)


@pytest.fixture(scope="module")
def on_one():
    return step(config(), cfg.Mesh(data=1), 1)


@pytest.mark.slow
def test_losses_and_gradient_are_those_of_whole_logits(on_one):
    """The generator's gradient is that of its own loss; what both have in common learns from both losses."""
    whole = config()
    params, after, metrics = on_one
    tokens, targets, weights, draws = (
        np.stack([getattr(row, name) for row in rows(whole)]) for name in ("tokens", "targets", "weights", "draws")
    )

    def generator(params):
        shared = {name: params[name] for name in ("tokens", "positions", "types", "embedding_norm")}
        return decoder.merge(whole.network.of_generator, params["generator"] | shared)

    def logits(params):
        writer = generator(params)
        return writer.logits(writer(tokens))

    with jax.set_mesh(one_device()):
        shares = np.exp(np.asarray(jax.jit(logits)(params), np.float64))
    sums = np.cumsum(shares, axis=-1)
    new = (sums <= (draws * sums[..., -1])[..., None]).sum(-1)
    read = np.where(weights > 0, new, targets)
    replaced = read != targets
    assert replaced.any() and (weights.sum() > replaced.sum())  # the generator has also drawn a right one

    def losses(params):
        found = jax.nn.log_softmax(logits(params))
        lm = -(weights * jnp.take_along_axis(found, targets[..., None], -1)[..., 0]).sum() / weights.sum()
        model = decoder.merge(whole.network, params)
        made = jax.nn.gelu(model(read) @ params["discriminator"] + params["discriminator_bias"], approximate=False)
        score = (made @ params["replaced_head"])[..., 0] + params["replaced_bias"]
        chance = jax.nn.sigmoid(score)
        other = -jnp.where(replaced, jnp.log(chance), jnp.log(1 - chance)).mean()
        return (lm, other), score

    @jax.jit
    def of_both(params):
        values, pulled, score = jax.vjp(losses, params, has_aux=True)
        return values, score, [pulled(each)[0] for each in ((1.0, 0.0), (0.0, 50.0))]

    with jax.set_mesh(one_device()):
        (lm, other), score, (of_lm, of_other) = jax.device_get(of_both(params))
    names = ("loss", "generator_loss", "discriminator_loss")
    np.testing.assert_allclose([metrics[name] for name in names], [lm + 50 * other, lm, other], rtol=1e-5)
    found = jax.tree.map(lambda old, new: (old - new) / RATE, params, after)
    close = functools.partial(np.testing.assert_allclose, atol=2e-4, rtol=1e-3)
    jax.tree.map(lambda x, a, b: close(x, a + b), found, of_lm, of_other)
    jax.tree.map(close, found["generator"], of_lm["generator"])
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found))
    for name in ("tokens", "positions", "types"):
        assert min(np.abs(each[name]).max() for each in (of_lm, of_other)) > 0.01
    np.testing.assert_allclose(metrics["replaced"], replaced.mean(), rtol=1e-6)
    said = np.asarray(score) > 0
    np.testing.assert_allclose(metrics["accuracy_replaced"], said[replaced].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy_original"], (~said)[~replaced].mean(), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "microbatches"),
    [(cfg.Mesh(data=1), 2), (cfg.Mesh(data=2, fsdp=2, tensor=2), 1)],
    ids=["microbatches", "eight devices"],
)
def test_microbatches_and_devices_change_nothing(on_one, mesh, microbatches):
    _, expected, metrics = on_one
    whole = config(microbatch_sequences=ROWS // microbatches)
    resolve(dataclasses.replace(whole, mesh=mesh), device_count=mesh.devices)
    _, found, other = step(whole, mesh, microbatches)
    assert found.keys() == expected.keys()
    for name in metrics.keys() - {"grad_norm"}:
        np.testing.assert_allclose(other[name], metrics[name], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(other["grad_norm"], metrics["grad_norm"], rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), found, expected)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"causal": True}, r"discriminator=True must be False with config\.model\.causal=True"),
        ({"generator_width": 40}, r"generator_width=40 must be at least 1, and at most config\.model\.d_model=32"),
        ({"generator_width": 0}, r"generator_width=0 must be at least 1"),
        ({"generator_width": 12}, r"generator_width=12 must be a multiple of config\.model\.d_head=8, as 8 or 16"),
        ({"generator_layers": -1}, r"generator_layers=-1 must be 0 or more"),
        ({"generator_layers": 3, "attention_pattern": ("dense", "banded")}, "must be a multiple of the 2 entries"),
        ({"discriminator": False}, r"generator_layers=1 needs config\.model\.discriminator=True"),
        ({"narrow_embedding": False}, "narrow_embedding=False must be True with config.model.generator_layers > 0"),
        ({"head_transform": True}, "head_transform=True must be False with config.model.discriminator=True"),
        ({"tied_embedding": False}, "tied_embedding=False must be True with config.model.discriminator=True"),
        ({"pooler": True, "pair_head": True}, "pair_head=True must be False"),
        ({"layer_groups": 1}, "layer_groups=1 must be 0 with config.model.generator_layers > 0"),
        ({"positions": "sinusoidal"}, "positions='sinusoidal' must be another kind"),
        ({"num_kv_heads": 2}, "num_kv_heads=2 must be 4"),
        ({"d_ff": 129}, "generator_width=16 must leave a whole number of the 129 features"),
    ],
)
def test_models_that_cannot_work_are_refused(changes, sentence):
    whole = config()
    with pytest.raises(ValueError, match=sentence):
        resolve(dataclasses.replace(whole, model=dataclasses.replace(whole.model, **changes)), device_count=1)


def test_meshes_and_objectives_that_do_not_fit_are_refused():
    whole = config()
    for mesh, sentence in (
        (cfg.Mesh(data=1, stage=2), "stage=2 must be 1 with config.model.generator_layers > 0"),
        (cfg.Mesh(data=1, tensor=4), "generator_width=16 must be a multiple of 32, for the 1 shards of the state"),
    ):
        with pytest.raises(ValueError, match=sentence):
            resolve(dataclasses.replace(whole, mesh=mesh), device_count=mesh.devices)
    for objective, model, sentence in (
        ("mlm", whole.model, "discriminator=True must be False with config.data.objective='mlm'"),
        ("replaced_token", dataclasses.replace(whole.model, generator_layers=0), "generator_layers=0 must be set"),
    ):
        with pytest.raises(ValueError, match=sentence):
            must_fit(dataclasses.replace(whole, model=model, data=cfg.Data(objective=objective)))
    with pytest.raises(ValueError, match=r"noise\.kept=0\.1 must be 0 with config\.data\.objective='replaced_token'"):
        noise_of(dataclasses.replace(whole, noise=cfg.Noise(random=0)), WORDS)
    with pytest.raises(ValueError, match=r"the tokenizer 'bytes' has no token <\|mask\|>"):
        noise_of(whole, tokenizer.load("bytes"))
