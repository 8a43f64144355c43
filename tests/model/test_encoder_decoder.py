"""A decoder with an encoder beside it: who sees whom, the cache, devices, microbatches and recomputation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.config.resolve import resolve
from scaling.data.batch import Batch
from scaling.data.noise.row import sequence_to_sequence
from scaling.data.pairs import side_by_side
from scaling.model import decoder, kv_cache
from scaling.model.context import AttentionContext
from scaling.objectives.next_token import next_token
from scaling.objectives.objective import forward
from scaling.parallel.mesh import make_mesh, one_device
from scaling.parallel.sharding import batch_sharding
from scaling.train import state as train_state
from scaling.train.step import make_train_step
from tests import tiny

T5 = dict(
    positions="relative", relative_buckets=8, relative_distance=9, norm_kind="rms", gated=True, qkv_bias=False,
    out_bias=False, mlp_bias=False, attention_scale=1.0, scaled_output=True,
)  # fmt: skip
BART = dict(norm="post", embedding_norm=True, position_offset=2, activation="gelu", logit_bias=True)
FAMILIES = {
    "t5": T5,
    "bart": BART,
    "grouped": dict(num_kv_heads=2, qk_norm=True, positions="sinusoidal", tied_embedding=False),
}


def changes(name):
    return FAMILIES[name] | {"encoder_layers": 3, "attention_pattern": ("dense",)}


def data(count=8, length=16, source=11):
    """Rows whose sources and targets have different lengths."""
    rng = np.random.default_rng(0)

    def draw(n):
        return rng.integers(1, tiny.VOCAB, (count, n)).astype(np.int32)

    lengths = rng.integers(3, source + 1, (count, 1))
    weights = (np.arange(length) < rng.integers(4, length + 1, (count, 1))).astype(np.float32)
    segments = (np.arange(source) >= lengths).astype(np.int32)
    return Batch(draw(length), draw(length), weights, source=draw(source), source_segments=segments)


def config(name, **train):
    found = tiny.config(changes(name), **train)
    objective = cfg.Data(objective="pairs", source_length=11)
    return dataclasses.replace(found, data=objective)


def logits(network):
    @jax.jit
    def run(params, tokens, source, segments):
        model = decoder.merge(network, params)
        return model.logits(model(tokens, AttentionContext(source=model.encode(source, segments))))

    return run


def parameters(network):
    return tiny.parameters(network.model)


@pytest.mark.slow
@pytest.mark.usefixtures("on_one_device")
@pytest.mark.parametrize("name", FAMILIES)
def test_who_sees_whom(name):
    network, batch = tiny.network(**changes(name)), data(2)
    run, params = logits(network), parameters(network)
    found = run(params, batch.tokens, batch.source, batch.source_segments)
    # Padding of the source is not seen, and rows do not see each other.
    real = int((batch.source_segments[0] == 0).sum())
    alone = run(params, batch.tokens[:1], batch.source[:1, :real], None)
    np.testing.assert_allclose(found[:1], alone, atol=1e-5)
    # Every token of the target sees every token of the source: the last one changes all logits.
    other = batch.source.copy()
    other[0, real - 1] += 1
    changed = run(params, batch.tokens, other, batch.source_segments)
    assert (np.abs(changed - found)[0].max(-1) > 1e-5).all() and (changed[1] == found[1]).all()
    # And none sees the targets that come after it.
    tokens = batch.tokens.copy()
    tokens[:, 9] += 1
    later = np.abs(run(params, tokens, batch.source, batch.source_segments) - found).max((0, 2))
    assert (later[:9] == 0).all() and (later[9:] > 1e-6).all()


@pytest.mark.slow
@pytest.mark.usefixtures("on_one_device")
@pytest.mark.parametrize("int8", ["none", "both"])
@pytest.mark.parametrize("name", FAMILIES)
def test_cached_logits_equal_uncached(name, int8):
    """Also of rows that are padded at the front, with sources that are padded at the end."""
    network, batch = tiny.network(decode_int8=int8, **changes(name)), data(2)
    params = parameters(network)
    stored = kv_cache.in_8_bits(network, params, one_device())
    want = logits(network)(stored, batch.tokens, batch.source, batch.source_segments)
    layers = kv_cache.split_layers(network, params, one_device())
    source = jax.jit(kv_cache.encoded, static_argnums=0)(network, layers, batch.source, batch.source_segments)
    prefill = jax.jit(kv_cache.prefill, static_argnums=(0, 4))
    extend = jax.jit(kv_cache.extend, static_argnums=0)
    starts = np.array([0, 3], np.int32)
    tokens = np.stack([np.roll(row, start) for row, start in zip(batch.tokens, starts, strict=True)])
    hidden, memory = prefill(network, layers, tokens[:, :6], starts, 20, source)
    crossed = memory[0][2]
    parts = [hidden]
    for slot in range(6, 16, 2):
        hidden, memory = extend(
            network, layers, tokens[:, slot : slot + 2], memory, slot, starts, batch.source_segments
        )
        parts.append(hidden)
    same = jax.tree.map(lambda now, then: bool((now == then).all()), memory[0][2], crossed)
    assert all(jax.tree.leaves(same)) and len(jax.tree.leaves(same)) == (2 if int8 == "both" else 1)
    found = decoder.merge_layers(network, layers)[0].logits(jnp.concatenate(parts, axis=1))
    # In 8 bits, a number that rounds otherwise moves by a whole step.
    near = dict(atol=1e-5) if int8 == "none" else dict(atol=0.01 * np.abs(want).max())
    np.testing.assert_allclose(found[0], want[0], **near)
    np.testing.assert_allclose(found[1, 3:], want[1, :13], **near)


def step(config, mesh, microbatches):
    devices = make_mesh(mesh, jax.devices()[: mesh.devices])
    rows = 8 // microbatches
    batch = jax.tree.map(lambda x: x.reshape(microbatches, rows, *x.shape[1:]), data())
    with jax.set_mesh(devices):
        state = train_state.create_state(config, devices)
        run = make_train_step(config, devices, next_token(config))
        state, metrics = run(state, jax.device_put(batch, batch_sharding(devices)), 1e-2, microbatches)
        return jax.device_get(state["params"]), jax.device_get(metrics)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "microbatches", "compute"),
    [
        (cfg.Mesh(data=1), 2, {}),
        (cfg.Mesh(data=2, fsdp=2, tensor=2), 1, {}),
        (cfg.Mesh(data=1), 1, {"remat": "full"}),
    ],
    ids=["microbatches", "eight devices", "recomputed"],
)
def test_microbatches_devices_and_recomputation_change_nothing(mesh, microbatches, compute):
    params, expected = step(config("t5"), cfg.Mesh(data=1), 1)
    other = config("t5", microbatch_sequences=8 // microbatches)
    other = dataclasses.replace(other, compute=dataclasses.replace(other.compute, **compute))
    found, metrics = step(other, mesh, microbatches)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], expected["grad_norm"], rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), found, params)


@pytest.mark.slow
def test_dropout_reaches_both_stacks():
    with jax.set_mesh(one_device()):
        for where in ("dropout_embedding", "dropout_residual", "dropout_attention"):
            network = tiny.network(**changes("bart"), **{where: 0.5})
            batch, params = data(2), parameters(network)

            @jax.jit
            def states(params, key, network=network, batch=batch):
                model = decoder.merge(network, params)
                source = model.encode(batch.source, batch.source_segments, key)
                return source.states, model(batch.tokens, AttentionContext(source=source), key=key)

            found = [states(params, jax.random.key(i)) for i in (0, 0, 1)]
            same = [np.array_equal(a, b) for a, b in zip(found[0], found[1], strict=True)]
            other = [np.array_equal(a, b) for a, b in zip(found[0], found[2], strict=True)]
            assert all(same) and not any(other), where


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ({"causal": False}, "model.causal"),
        ({"parallel": "one_norm"}, "model.parallel"),
        ({"embedding_width": 8}, "model.embedding_width"),
        ({"document_mask": True}, "model.document_mask"),
        ({"attention_pattern": ("dense", "banded")}, "model.attention_pattern"),
    ],
)
def test_what_does_not_go_together_is_refused(model, name):
    base = config("t5" if name == "model.parallel" else "bart")
    wrong = dataclasses.replace(base, model=dataclasses.replace(base.model, **model))
    with pytest.raises(ValueError, match=rf"config\.{name}=.* must be .* with config\.model\.encoder_layers > 0"):
        resolve(wrong)


def test_a_source_is_needed():
    network = tiny.network(**changes("t5"))
    with jax.set_mesh(one_device()), pytest.raises(ValueError, match="there is no source for it to read"):
        decoder.merge(network, parameters(network))(data(2).tokens)


@pytest.mark.parametrize("name", FAMILIES)
def test_pairs_that_share_a_row_have_the_losses_of_rows_of_their_own(name):
    network = tiny.in_float32(tiny.model(**changes(name)))
    rng, room = np.random.default_rng(0), 24
    rows, places = [], [(5, 7), (9, 3), (4, 11)]
    for target, source in places:
        ids = [rng.integers(1, tiny.VOCAB, size).astype(np.int32) for size in (source, target)]
        rows.append(sequence_to_sequence(*ids, 0, room, room))
    params = decoder.initialize(network.model, jax.random.key(0))

    @jax.jit
    def losses(params, batch):
        model = decoder.merge(network, params)
        logits = model.logits(forward(model, batch, None)[0])
        return batch.weights * jnp.take_along_axis(jax.nn.log_softmax(logits), batch.targets[..., None], -1)[..., 0]

    with jax.set_mesh(one_device()):
        apart = jax.tree.map(lambda *x: np.stack(x), *rows)
        together = jax.tree.map(lambda x: x[None], side_by_side(rows, places))
        apart, together = (np.asarray(losses(params, batch)) for batch in (apart, together))
    wanted = np.concatenate([apart[i, :target] for i, (target, _) in enumerate(places)])
    np.testing.assert_allclose(together[0, : len(wanted)], wanted, atol=1e-5)
