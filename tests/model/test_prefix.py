"""A decoder whose prompt sees itself on both sides."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.config.resolve import resolve
from scaling.data import pairs, tokenizer
from scaling.data.noise.prefix import _alone
from scaling.data.noise.row import prefix_order
from scaling.evaluate.scoring.likelihoods import Group, Scorer
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling
from scaling.model import decoder, kv_cache
from scaling.model.context import AttentionContext
from scaling.objectives.next_token import next_token
from scaling.objectives.objective import forward
from scaling.parallel.mesh import make_mesh, one_device
from scaling.parallel.sharding import batch_sharding
from scaling.plan import compiled
from scaling.train import state as train_state
from scaling.train.step import make_train_step
from tests import tiny

pytestmark = pytest.mark.usefixtures("on_one_device")
MODELS = {"learned": {}, "rotary": tiny.SWITCHES["llama"], "none": {"positions": "none"}}
TOKENS = np.random.default_rng(0).integers(1, tiny.VOCAB, (2, 16)).astype(np.int32)
PREFIX = 6


def network(name="learned"):
    return tiny.network(**(dict(attention_pattern=("dense",), prefix_lm=True) | MODELS[name]))


@functools.cache
def parameters(name="learned"):
    return tiny.parameters(network(name).model)


@functools.partial(jax.jit, static_argnums=0)
def _whole(network, params, tokens, order):
    model = decoder.merge(network, params)
    return model.logits(model(tokens, AttentionContext(order=order)))


def whole(tokens, prefix, name="learned"):
    """Logits of rows whose first tokens are the prefix."""
    order = np.broadcast_to(prefix_order(prefix, tokens.shape[1]), tokens.shape)
    return np.asarray(_whole(network(name), parameters(name), tokens, order))


@pytest.mark.parametrize("name", MODELS)
def test_the_prefix_sees_itself_and_the_rest_what_is_before_it(name):
    got, changed = whole(TOKENS, PREFIX, name), TOKENS.copy()
    changed[:, PREFIX - 1] = TOKENS[:, PREFIX - 1] % (tiny.VOCAB - 1) + 1
    assert (np.abs(whole(changed, PREFIX, name) - got).max(axis=(0, 2)) > 1e-4).all()  # all see the prefix's last token
    for place in (PREFIX, 11):
        changed = TOKENS.copy()
        changed[:, place] = TOKENS[:, place] % (tiny.VOCAB - 1) + 1
        differs = np.abs(whole(changed, PREFIX, name) - got).max(axis=(0, 2))
        assert not differs[:place].any() and (differs[place:] > 1e-4).all()


def test_a_prefix_of_one_token_is_the_causal_model():
    causal = decoder.merge(network(), parameters())
    np.testing.assert_allclose(whole(TOKENS, 1), causal.logits(causal(TOKENS)), atol=2e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_cached_prompt_sees_itself_also_where_it_is_padded(name):
    at, params = network(name), parameters(name)
    layers = kv_cache.split_layers(at, params, one_device())
    starts = np.asarray([2, 0], np.int32)
    padded = TOKENS.copy()
    padded[0, :2] = 7  # anything
    prefill, extend = jax.jit(kv_cache.prefill, static_argnums=(0, 4)), jax.jit(kv_cache.extend, static_argnums=0)
    hidden, memory = prefill(at, layers, padded[:, :PREFIX], starts, 20)
    parts = [hidden]
    for first, size in ((PREFIX, 1), (PREFIX + 1, 5), (PREFIX + 6, 4)):
        hidden, memory = extend(at, layers, padded[:, first : first + size], memory, first, starts)
        parts.append(hidden)
    got = decoder.merge_layers(at, layers)[0].logits(jnp.concatenate(parts, 1))
    for row, start in enumerate(starts):
        want = whole(TOKENS[row : row + 1, start:], PREFIX - start, name)[0]
        np.testing.assert_allclose(got[row, start:], want, atol=1e-5)


def test_greedy_texts_are_those_of_whole_passes():
    prompts = [TOKENS[0, :5].tolist(), TOKENS[1, :9].tolist()]
    found = Generator(network(), parameters(), None).generate(prompts, Sampling(6, temperature=0.0, end_ids=()))
    for prompt, (text,) in zip(prompts, found, strict=True):
        ids = list(prompt)
        for _ in range(6):
            padded = np.zeros((1, 16), np.int32)  # no token sees what follows it
            padded[0, : len(ids)] = ids
            ids.append(int(whole(padded, len(prompt))[0, len(ids) - 1, : tiny.VOCAB].argmax()))
        assert list(text.ids) == ids[-6:]


def test_completions_side_by_side_score_as_whole_passes_do():
    rng = np.random.default_rng(1)
    groups = [
        Group(
            tuple(rng.integers(1, tiny.VOCAB, size).tolist()), tuple(map(tuple, rng.integers(1, 50, (3, 4)).tolist()))
        )
        for size in (1, 5, 12)
    ]
    for group, scores in zip(groups, Scorer(network(), parameters()).score(groups), strict=True):
        for completion, score in zip(group.completions, scores, strict=True):
            ids, first = np.asarray([*group.context, *completion], np.int32), len(group.context)
            logits = whole(ids[None, :-1], first)[0, first - 1 :].astype(np.float64)
            logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            assert score.logprob == pytest.approx(logprobs[np.arange(4), completion].sum(), abs=2e-5)
            assert score.greedy == bool((logits.argmax(-1) == completion).all())


def test_pairs_that_share_a_row_have_the_losses_of_rows_of_their_own():
    words = tokenizer.load("bytes+mask")
    small = tiny.model(prefix_lm=True, attention_pattern=("dense",), vocab_size=words.vocab_size)
    config = cfg.Config(model=small, data=cfg.Data(objective="pairs"), train=cfg.Train(sequence_length=32))
    layout = pairs.layout_of(config, words)
    given = [pairs.Pair(*words.encode_batch(texts)) for texts in (["abcdef", "xy"], ["g", "hijk"], ["lmn", "o"])]
    params = decoder.initialize(small, jax.random.key(0))

    @jax.jit
    def losses(params, batch):
        model = decoder.merge(tiny.in_float32(small), params)
        logits = model.logits(forward(model, batch, None)[0])
        return batch.weights * jnp.take_along_axis(jax.nn.log_softmax(logits), batch.targets[..., None], -1)[..., 0]

    apart = losses(params, jax.tree.map(lambda *x: np.stack(x), *(layout.row(pair) for pair in given)))
    together = losses(params, jax.tree.map(lambda x: x[None], layout.packed(given)))
    wanted = np.asarray(apart)[np.asarray(apart) != 0]
    np.testing.assert_allclose(np.asarray(together)[0][np.asarray(together)[0] != 0], wanted, atol=1e-5)
    assert len(wanted) == 3 + 5 + 2  # the ends, too
    # The source is read in both directions: a causal model has other losses.
    causal = jax.tree.map(lambda *x: np.stack(x), *(layout.row(pair)._replace(order=None) for pair in given))
    assert np.abs(losses(params, causal) - apart).max() > 1e-3


@pytest.mark.slow
def test_the_step_is_the_same_on_eight_devices_and_in_parts():
    rows = [_alone([tokens], 0, np.random.default_rng(i)) for i, tokens in enumerate(tiny.batch(0).tokens[0])]
    batch = jax.tree.map(lambda *x: np.stack(x), *rows)

    def step(mesh, parts):
        devices = make_mesh(mesh, jax.devices()[: mesh.devices])
        config = tiny.config(dict(attention_pattern=("dense",), prefix_lm=True), microbatch_sequences=8 // parts)
        data = jax.tree.map(lambda x: x.reshape(parts, 8 // parts, *x.shape[1:]), batch)
        with jax.set_mesh(devices):
            state = train_state.create_state(config, devices)
            run = make_train_step(config, devices, next_token(config))
            state, metrics = run(state, jax.device_put(data, batch_sharding(devices)), 1e-2, parts)
            return float(metrics["loss"]), jax.device_get(state["params"])

    loss, params = step(cfg.Mesh(data=1), 1)
    for mesh, parts in ((cfg.Mesh(data=2, fsdp=2, tensor=2), 1), (cfg.Mesh(data=1), 2)):
        found, others = step(mesh, parts)
        assert found == pytest.approx(loss, rel=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), params, others)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(model=dict(positions="alibi")),
            r"config\.model\.positions='alibi' must be one of 'learned', .*prefix_lm",
        ),
        (dict(model=dict(causal=False)), r"config\.model\.causal=False must be True with config\.model\.prefix_lm"),
        (
            dict(model=dict(encoder_layers=1)),
            r"config\.model\.encoder_layers=1 must be 0 with config\.model\.prefix_lm",
        ),
        (dict(model=dict(attention_pattern=("dense", "banded"))), r"attention_pattern=.* must be \('dense', 'dense'\)"),
        (dict(mesh=dict(context=2)), r"config\.mesh\.context=2 must be 1 with config\.model\.prefix_lm"),
        (dict(mesh=dict(stage=2)), r"config\.mesh\.stage=2 must be 1 with config\.model\.prefix_lm"),
    ],
)
def test_what_it_cannot_have_is_refused(changes, message):
    model = dict(prefix_lm=True, attention_pattern=("dense",), num_layers=2) | changes.get("model", {})
    config = cfg.Config(model=cfg.Model(**model), mesh=cfg.Mesh(**changes.get("mesh", {})))
    with pytest.raises(ValueError, match=message):
        resolve(config, 50, 2)


def test_a_plan_compiles_the_mask():
    config = tiny.config(dict(attention_pattern=("dense",), prefix_lm=True))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, objective="prefix"))
    assert compiled._batch(config, one_device(), (1, 8, 16)).order.shape == (1, 8, 16)
    causal = dataclasses.replace(config, model=dataclasses.replace(config.model, prefix_lm=False))
    assert compiled._batch(causal, one_device(), (1, 8, 16)).order is None
