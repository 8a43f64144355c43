"""Against transformers: fixtures made by tests/fixtures/make_huggingface.py, so that no PyTorch is needed here."""

import dataclasses
import errno
import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from scaling.config import schema as cfg
from scaling.config.resolve import resolve
from scaling.data.batch import of_sequences
from scaling.interop import huggingface, shards
from scaling.interop.logits import compute
from scaling.model import decoder
from scaling.model.fused import fused
from scaling.objectives.next_token import next_token
from scaling.parallel.mesh import make_mesh
from scaling.parallel.sharding import batch_sharding
from scaling.train import state as train_state
from scaling.train.step import make_train_step
from tests import tiny

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
NAMES = ("gpt2", "gpt1")
both = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny GPT-2, to be spoilt."""
    return Path(shutil.copytree(FIXTURES / "gpt2", tmp_path / "gpt2"))


def tensors_of(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def edit_tensors(folder, edit):
    tensors = tensors_of(folder)
    edit(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def edit_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def assert_same_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True)


def difference(folder, name):
    expected = np.load(FIXTURES / name / "expected.npz")
    model, params = huggingface.load(folder)
    return np.abs(compute(tiny.in_float32(model), params, expected["ids"]) - expected["logits"]).max()


@both
def test_logits_equal_transformers(name):
    assert difference(FIXTURES / name, name) < 2e-5


@pytest.mark.parametrize("change", [{"layer_norm_epsilon": 1e-4}, {"activation_function": "gelu"}])
def test_the_comparison_sees_small_mistakes(folder, change):
    edit_config(folder, **change)
    assert difference(folder, "gpt2") > 1e-4


@pytest.mark.slow
def test_adamw_steps_equal_pytorch():
    expected = np.load(FIXTURES / "gpt2" / "adamw.npz")
    batches = expected["batches"]
    model, params = huggingface.load(FIXTURES / "gpt2", vocab_multiple=8)  # 101 tokens in 104 rows
    steps, sequences, length = batches.shape[0], batches.shape[1], batches.shape[2] - 1
    config = cfg.Config(
        model=model,
        compute=tiny.COMPUTE,
        train=cfg.Train(tokens=steps * sequences * length, batch_tokens=sequences * length),
        optimizer=cfg.Optimizer(beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.1, clip_norm=1.0, warmup_tokens=0),
    )
    config = resolve(config, device_count=1)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    losses, norms = [], []
    with jax.set_mesh(mesh):
        state = train_state.create_state(config, mesh)
        state["params"] = jax.device_put(params, train_state.shardings(config, mesh)["params"])
        step = make_train_step(config, mesh, next_token(config))
        for tokens, lr in zip(batches, expected["learning_rates"], strict=True):
            batch = jax.device_put(of_sequences(tokens[None]), batch_sharding(mesh))
            state, metrics = step(state, batch, lr, 1)
            losses.append(float(metrics["loss"]))
            norms.append(float(metrics["grad_norm"]))
    assert expected["grad_norms"].min() > 1  # the clip is at work
    np.testing.assert_allclose(losses, expected["losses"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(norms, expected["grad_norms"], rtol=1e-5)

    final = jax.device_get(state["params"])
    blocks, width = fused(final["blocks"]), model.d_model
    ours = {
        "transformer.wte.weight": final["tokens"][: model.vocab_size],
        "transformer.wpe.weight": final["positions"],
        "transformer.h.0.ln_1.weight": blocks["attention_norm"]["gain"][0],
        "transformer.h.1.attn.c_attn.weight": blocks["attention"]["qkv"][1].reshape(width, 3 * width),
        "transformer.h.1.attn.c_attn.bias": blocks["attention"]["qkv_bias"][1].ravel(),
        "transformer.h.2.mlp.c_proj.weight": blocks["mlp"]["down"][2],
        "transformer.ln_f.bias": final["final_norm"]["bias"],
    }
    start = tensors_of(FIXTURES / "gpt2")
    for key, value in ours.items():
        # Where a gradient is about zero, Adam turns rounding into a step of up to lr: so keys' biases are left out.
        keep = np.ones(value.shape, bool)
        if key.endswith("c_attn.bias"):
            keep[width : 2 * width] = False
        np.testing.assert_allclose(value[keep], expected[key][keep], rtol=0, atol=2e-5, err_msg=key)
        assert np.abs(value - start[key]).max() > 1e-3, f"{key} was not trained"
    np.testing.assert_array_equal(final["tokens"][model.vocab_size :], 0)  # padding stays out of training


@both
def test_round_trip_is_exact_and_looks_like_transformers(name, tmp_path):
    model, params = huggingface.load(FIXTURES / name)
    huggingface.save(model, params, tmp_path / "out")
    again, same = huggingface.load(tmp_path / "out")
    assert again == model
    assert_same_trees(same, params)

    theirs, ours = tensors_of(FIXTURES / name), tensors_of(tmp_path / "out")
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        np.testing.assert_array_equal(ours[key], tensor, strict=True)
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}  # transformers refuses files without it
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    fixture = json.loads((FIXTURES / name / "config.json").read_text())
    assert {k: fixture[k] for k in written} == written
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_params_have_the_layout_of_the_decoder():
    for multiple, rows in ((1, 101), (64, 128)):
        model, params = huggingface.load(FIXTURES / "gpt2", vocab_multiple=multiple)
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), decoder.abstract(model))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == shapes
        assert params["tokens"].shape == (rows, 24)
        assert not params["tokens"][101:].any()


def test_config_fields_are_mapped(folder):
    edit_config(folder, embd_pdrop=0.1, attn_pdrop=0.2, resid_pdrop=0.3, layer_norm_epsilon=1e-6)
    model, _ = huggingface.load(folder)
    assert (model.dropout_embedding, model.dropout_attention, model.dropout_residual) == (0.1, 0.2, 0.3)
    assert (model.norm, model.norm_epsilon, model.activation) == ("pre", 1e-6, "gelu_tanh")
    gpt1, params = huggingface.load(FIXTURES / "gpt1")
    assert (gpt1.norm, gpt1.activation, gpt1.dropout_residual) == ("post", "gelu_tanh", 0.1)
    assert "final_norm" not in params


def test_untied_and_narrow_models_round_trip(tmp_path):
    model = cfg.Model(
        vocab_size=13, vocab_multiple=8, context_length=8, num_layers=2, d_model=8, num_heads=2, d_head=4, d_ff=24,
        tied_embedding=False, activation="relu", attention_pattern=("dense", "banded"), band_width=8,
    )  # fmt: skip
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: random.standard_normal(x.shape, np.float32), decoder.abstract(model))
    for table in ("tokens", "unembedding"):  # the padding is not exported
        params[table][model.vocab_size :] = 0
    huggingface.save(model, params, tmp_path / "out")
    assert tensors_of(tmp_path / "out")["lm_head.weight"].shape == (13, 8)
    again, same = huggingface.load(tmp_path / "out", vocab_multiple=8)
    assert_same_trees(same, params)
    assert (again.d_ff, again.activation, again.tied_embedding) == (24, "relu", False)


def test_bare_names_shards_masks_and_a_tied_head(folder, tmp_path):
    _, params = huggingface.load(folder)
    tensors = {key.removeprefix("transformer."): value for key, value in tensors_of(folder).items()}
    tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 32, 32), np.float32))
    tensors["h.0.attn.masked_bias"] = np.asarray(-1e4, np.float32)
    tensors["lm_head.weight"] = tensors["wte.weight"]
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-{number}.safetensors"
        safetensors.numpy.save_file({k: tensors[k] for k in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_same_trees(huggingface.load(folder)[1], params)

    (folder / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-1\.safetensors.* missing"):
        huggingface.load(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match="weight_map"):
        huggingface.load(folder)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened(folder, dtype):
    _, params = huggingface.load(folder)
    edit_tensors(folder, lambda t: t.update({k: v.astype(dtype) for k, v in t.items()}))
    expected = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params)
    assert_same_trees(huggingface.load(folder)[1], expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "xglm"}, ["'xglm'", "gpt2", "openai-gpt"]),
        ({"activation_function": "mish"}, ["activation_function='mish'", "gelu_new"]),
        ({"scale_attn_weights": False}, ["scale_attn_weights"]),
        ({"add_cross_attention": True}, ["add_cross_attention"]),
        ({"n_head": 5}, ["n_head=5", "n_embd=24"]),
        ({"n_layer": "3"}, ["n_layer", "'3'"]),
        ({"vocab_size": None}, ["vocab_size", "None"]),
        ({"attn_pdrop": 1.5}, ["attn_pdrop", "1.5"]),
        ({"n_layer": 4}, ["lacks", "h.3.ln_1.weight", "9 more"]),
        ({"n_layer": 2}, ["unknown", "h.2."]),
        ({"n_inner": 48}, ["h.0.mlp.c_fc.weight", "[24, 96]", "[24, 48]"]),
        ({"n_positions": 16}, ["wpe.weight", "[32, 24]", "[16, 24]"]),
        ({"tie_word_embeddings": False}, ["lacks", "lm_head.weight"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_configs_we_cannot_honour_are_refused(folder, change, words):
    edit_config(folder, **change)
    with pytest.raises(ValueError) as caught:
        huggingface.load(folder)
    for word in (str(folder), *words):
        assert word in str(caught.value)


def test_wrong_tensors_are_named(folder):
    def refused(match):
        with pytest.raises(ValueError, match=match):
            huggingface.load(folder)

    edit_tensors(folder, lambda t: t.update({"transformer.surprise": np.ones(3, np.float32)}))
    refused("unknown.*surprise")
    edit_tensors(folder, lambda t: t.pop("transformer.surprise"))
    edit_tensors(folder, lambda t: t.update({"ln_f.bias": np.ones(24, np.float32)}))
    refused("twice")
    edit_tensors(folder, lambda t: t.pop("ln_f.bias"))
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"] + 1}))
    refused("lm_head.weight differs")
    edit_tensors(folder, lambda t: t.pop("lm_head.weight"))
    edit_tensors(folder, lambda t: t.update({"transformer.ln_f.bias": np.ones(24, np.int32)}))
    refused("ln_f.bias is I32")
    edit_tensors(folder, lambda t: t.update({"transformer.ln_f.bias": np.ones(24, np.float32)}))
    for bad in (np.nan, np.inf):
        edit_tensors(folder, lambda t, bad=bad: t["transformer.h.1.mlp.c_fc.weight"].__setitem__((2, 3), bad))
        refused("1 of the .*h.1.mlp.c_fc.weight are NaN")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    refused("not a whole safetensors file")


def test_the_shared_embedding_may_stand_under_either_name(folder):
    _, params = huggingface.load(folder)
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": t.pop("transformer.wte.weight")}))
    assert_same_trees(huggingface.load(folder)[1], params)
    edit_tensors(folder, lambda t: t.pop("lm_head.weight"))
    with pytest.raises(ValueError, match=r"lacks.*wte\.weight"):
        huggingface.load(folder)


def test_missing_files_are_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="neither"):
        huggingface.load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin.*model\.safetensors"):
        huggingface.load(folder)
    (folder / "model.safetensors").mkdir()
    with pytest.raises(IsADirectoryError, match=r"model\.safetensors is a folder; it must be a file"):
        huggingface.load(folder)
    (folder / "config.json").write_bytes(b"\xff{")
    with pytest.raises(ValueError, match=r"config\.json.* 0xff .* 0"):
        huggingface.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        huggingface.load(folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gpt2", {"attention_pattern": ("dense", "banded", "dense"), "band_width": 4}),
        ("gpt2", {"parametrization": "mup"}),
        ("gpt2", {"d_head": 8}),
        ("gpt1", {"activation": "gelu"}),
        ("gpt1", {"d_ff": 48}),
    ],
)
def test_models_without_an_equal_are_not_exported(tmp_path, name, change):
    model, params = huggingface.load(FIXTURES / name)
    with pytest.raises(ValueError, match=f"config.model.{next(iter(change))}=.*exported"):
        huggingface.save(dataclasses.replace(model, **change), params, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path, monkeypatch):
    model, params = huggingface.load(FIXTURES / "gpt2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"nothing .*overwritten"):
        huggingface.save(model, params, tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["notes.txt"]

    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(shards, "_narrowed", full_disk)
    with pytest.raises(OSError, match=r"empty .*No space left"):
        huggingface.save(model, params, tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "full"]
    monkeypatch.undo()
    huggingface.save(model, params, tmp_path / "empty")
    assert_same_trees(huggingface.load(tmp_path / "empty")[1], params)
