"""Every family against transformers: fixtures made by tests/fixtures/make_families.py, so that no PyTorch is needed."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from scaling.config import schema as cfg
from scaling.interop import config_keys, huggingface, rope, windows
from scaling.interop.families import FAMILIES
from scaling.interop.family import RopeKeys
from scaling.interop.logits import compute
from scaling.model import decoder
from tests import tiny

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "families"
SHAPES = sorted(path.name for path in FIXTURES.iterdir())


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True), one, other)


def copied(name, tmp_path, **changes):
    folder = Path(shutil.copytree(FIXTURES / name, tmp_path / name))
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "remove"}))
    return folder


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_transformers(name):
    expected = np.load(FIXTURES / name / "expected.npz")
    model, params = huggingface.load(FIXTURES / name, vocab_multiple=8)
    found = compute(tiny.in_float32(model), params, expected["ids"])
    most = 2e-5 * max(1, expected["logits"].std() / 2)
    assert expected["ids"].shape[1] == model.context_length
    assert np.abs(found - expected["logits"]).max() < most


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gpt_neo", {"window_size": 6}),
        ("gpt2_scaled_by_layer", {"scale_attn_by_inverse_layer_idx": False}),
        ("neox_parallel", {"layer_norm_eps": 0.031}),
        ("llama3", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
        ("mistral", {"sliding_window": None}),
        ("opt", {"activation_function": "gelu"}),
        ("mixtral", {"num_experts_per_tok": 1}),
        ("mixtral_fused", {"sliding_window": 6}),
    ],
)
def test_the_comparison_sees_small_mistakes(name, change, tmp_path):
    expected = np.load(FIXTURES / name / "expected.npz")
    model, params = huggingface.load(copied(name, tmp_path, **change))
    assert np.abs(compute(tiny.in_float32(model), params, expected["ids"]) - expected["logits"]).max() > 5e-4


@pytest.mark.parametrize("name", SHAPES)
def test_import_export_import_is_bit_identical(name, tmp_path):
    model, params = huggingface.load(FIXTURES / name)
    huggingface.save(model, params, tmp_path / "out", shard_gb=8e-6)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    again, same = huggingface.load(tmp_path / "out")
    assert_same(same, params)
    ids = np.arange(model.context_length)[None] % model.vocab_size
    np.testing.assert_array_equal(
        compute(tiny.in_float32(again), same, ids), compute(tiny.in_float32(model), params, ids)
    )
    theirs = json.loads((FIXTURES / name / "config.json").read_text())
    ours = json.loads((tmp_path / "out" / "config.json").read_text())
    if ours["model_type"] == theirs["model_type"] and "scaled" not in name and "fused" not in name:
        of_theirs = safetensors.numpy.load_file(FIXTURES / name / "model.safetensors")
        of_ours = {}
        for path in (tmp_path / "out").glob("*.safetensors"):
            of_ours |= safetensors.numpy.load_file(path)
        assert of_ours.keys() == of_theirs.keys()
        for key, tensor in of_theirs.items():
            np.testing.assert_array_equal(of_ours[key], tensor.astype(np.float32))


def test_each_family_is_among_the_shapes():
    kinds = ("families", "encoders", "seq2seq")  # test_encoders.py and test_seq2seq.py have those of the other two
    folders = [folder for kind in kinds for folder in (FIXTURES.parent / kind).iterdir()]
    assert {json.loads((folder / "config.json").read_text())["model_type"] for folder in folders} == set(FAMILIES)


def test_half_precision_tensors_and_what_they_cannot_hold(tmp_path):
    model, params = huggingface.load(FIXTURES / "llama")
    huggingface.save(model, params, tmp_path / "float16", "float16")
    assert_same(huggingface.load(tmp_path / "float16")[1], params)
    params["tokens"][3, 4] = 1e5
    with pytest.raises(ValueError, match=r"float16 cannot hold 100000, .*embed_tokens.*bfloat16"):
        huggingface.save(model, params, tmp_path / "out", "float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float16"]
    huggingface.save(model, params, tmp_path / "out", "bfloat16")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("llama", {"attn_temperature": 2}, ["attn_temperature=2", "may change the numbers"]),
        ("gemma", {"final_logit_softcapping": 30.0}, ["final_logit_softcapping=30.0", "must be null"]),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None}, ["'dynamic'", "yarn"]),
        ("llama", {"rope_scaling": {"rope_type": "longrope"}, "rope_parameters": None}, ["'longrope'"]),
        ("llama", {"rope_theta": 5.0}, ["rope_parameters and rope_theta contradict", "10000.0 and 5.0"]),
        ("llama3", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, ["contradict", "rope_type"]),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, ["one JSON object of numbers"]),
        ("linear", {"rope_parameters": {"rope_type": "linear"}}, ["lack factor"]),
        ("linear", {"rope_parameters": {"rope_type": "linear", "factor": 2, "turbo": 1}}, ["unknown key turbo"]),
        ("yarn", {"rope_parameters": {"rope_type": "yarn", "factor": "4"}}, ["factor", "'4'"]),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, ["apply_residual", "must be false"]),
        ("ctrl", {"layer_norm_epsilon": 1e-5}, ["layer_norm_epsilon=1e-05", "must be 1e-06"]),
        ("opt", {"_remove_final_layer_norm": True}, ["_remove_final_layer_norm"]),
        ("gptj", {"rotary_dim": None}, ["rotary_dim", "None"]),
        ("gptj", {"rotary_dim": 3}, ["rotary_dim=3", "even"]),
        ("gpt_neo", {"attention_layers": ["global"]}, ["attention_layers", "4 layers"]),
        ("gpt_neo", {"attention_types": 3, "attention_layers": "remove"}, ["attention_types=3"]),
        ("mistral", {"sliding_window": 0}, ["sliding_window", "at least 1"]),
        ("llama", {"num_key_value_heads": 3}, ["num_key_value_heads=3", "num_attention_heads=4"]),
        ("llama", {"attention_bias": 1}, ["attention_bias", "true or false"]),
        ("llama", {"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ("llama", {"attention_bias": True}, ["lacks", "layers.0.self_attn.q_proj.bias"]),
        ("llama_biases", {"attention_bias": False}, ["unknown", "_proj.bias"]),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": "false"}, ["scale_attn_by_inverse", "true or false", "'false'"]),
        ("gpt2", {"scale_attn_weights": 1}, ["scale_attn_weights=1", "must be true"]),
        ("qwen2", {"use_sliding_window": "false"}, ["use_sliding_window", "true or false", "'false'"]),
        ("neox_parallel", {"use_parallel_residual": 1}, ["use_parallel_residual", "true or false", "got 1"]),
        ("opt", {"do_layer_norm_before": "true"}, ["do_layer_norm_before", "true or false", "'true'"]),
        ("mixtral", {"num_experts_per_tok": 5}, ["num_experts_per_tok=5", "num_local_experts=4"]),
        ("mixtral", {"num_local_experts": 5}, ["lacks", "layers.0.block_sparse_moe.experts.4.w1.weight"]),
        ("mixtral", {"num_local_experts": 3}, ["unknown", "layers.0.block_sparse_moe.experts.3.w1.weight"]),
        ("mixtral_fused", {"num_local_experts": 4}, ["mlp.gate.weight", "[5, 16]", "[4, 16]"]),
        ("mixtral", {"router_jitter_noise": 0.1}, ["router_jitter_noise=0.1", "must be 0.0"]),
        ("mixtral", {"num_local_experts": None, "num_experts": 4}, ["num_experts=4", "mixtral"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_we_cannot_honour_is_refused(name, change, words, tmp_path):
    with pytest.raises(ValueError) as caught:
        huggingface.load(copied(name, tmp_path, **change))
    for word in (name, *words):
        assert word in str(caught.value)


def test_a_tied_flag_with_another_head(tmp_path):
    folder = copied("llama", tmp_path, tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from embed_tokens\.weight"):
        huggingface.load(folder)


def test_experts_in_one_tensor_are_those_in_many(tmp_path):
    folder = copied("mixtral", tmp_path)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    for layer in range(2):
        old, new = (f"model.layers.{layer}.{name}" for name in ("block_sparse_moe", "mlp"))
        gate, down, up = (
            np.stack([tensors.pop(f"{old}.experts.{e}.w{i}.weight") for e in range(4)]) for i in (1, 2, 3)
        )
        tensors[f"{new}.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        tensors[f"{new}.experts.down_proj"] = down
        tensors[f"{new}.gate.weight"] = tensors.pop(f"{old}.gate.weight")
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    assert_same(huggingface.load(folder)[1], huggingface.load(FIXTURES / "mixtral")[1])
    tensors.pop("model.layers.1.mlp.experts.down_proj")
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks .*layers\.1\.mlp\.experts\.down_proj"):
        huggingface.load(folder)


def test_the_keys_of_experts():
    values = json.loads((FIXTURES / "mixtral" / "config.json").read_text()) | {"router_aux_loss_coef": 0.003}
    del values["rope_parameters"], values["rms_norm_eps"], values["sliding_window"]
    model = config_keys.to_model(values, "config.json", 1)[0]
    assert (model.rotary.theta, model.norm_epsilon, model.attention_pattern) == (1e6, 1e-5, ("dense",))
    # Theirs is a mean over layers of what is N at equal load, ours a sum over layers of what is 1.
    assert model.experts.balance_loss == pytest.approx(0.003 * 2 / 2)
    written = config_keys.from_model(dataclasses.replace(model, num_layers=6))[0]
    assert written["router_aux_loss_coef"] == 0.009
    assert config_keys.from_model(model)[0]["intermediate_size"] == 24


def test_bare_names_are_read(tmp_path):
    for name, prefix in (("opt", "model."), ("llama_biases", "model."), ("bloom", "transformer.")):
        folder = copied(name, tmp_path)
        tensors = safetensors.numpy.load_file(folder / "model.safetensors")
        bare = {key.removeprefix(prefix): value for key, value in tensors.items()}
        safetensors.numpy.save_file(bare, folder / "model.safetensors")
        assert_same(huggingface.load(folder)[1], huggingface.load(FIXTURES / name)[1])


def test_rope_keys_come_back_in_both_spellings():
    for rotary in (
        cfg.Rotary(theta=5e5),
        cfg.Rotary(scaling="linear", factor=4.0),
        cfg.Rotary(scaling="llama3", factor=8.0, original_length=16, low=1.0, high=4.0),
        cfg.Rotary(scaling="yarn", factor=4.0, original_length=16, low=2.0, high=9.0, attention_factor=1.2,
                   truncate=False),
    ):  # fmt: skip
        names = RopeKeys()
        written = rope.write(rotary, names, 8)
        modern = {"rope_parameters": written["rope_parameters"]}
        old = {key: value for key, value in written.items() if key != "rope_parameters"}
        for values in (written, modern, old):
            assert rope.read(values, names, 8, 64) == rotary
    for width in range(2, 97, 2):  # int(96 * fraction) must not fall short by rounding
        names = RopeKeys("rotary_emb_base", "rotary_pct", 0.25)
        assert rope.read(rope.write(cfg.Rotary(dim=width), names, 96), names, 96, 64).dim == width % 96


def test_mscale_stands_for_an_attention_factor():
    values = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 2.0}
    found = rope.read({"rope_parameters": values | {"mscale_all_dim": 1.0}}, RopeKeys(), 8, 64)
    np.testing.assert_allclose(found.attention_factor, (0.2 * np.log(4) + 1) / (0.1 * np.log(4) + 1))


def test_every_way_to_say_windows_comes_back():
    pattern = ("dense", "banded", "banded", "dense")
    model = tiny.model(num_layers=4, attention_pattern=pattern, band_width=5)
    for kind in ("attention_types", "layer_types"):
        assert windows.read(kind, windows.write(kind, model), 4) == {"attention_pattern": pattern, "band_width": 5}
    assert windows.shortest_period(["banded", "dense"] * 3) == ("banded", "dense")


@pytest.mark.parametrize("name", [*tiny.SWITCHES, "plain"])
def test_a_model_is_exported_whole_or_refused_by_name(name, tmp_path):
    """Whatever has a family comes back with the same logits; whatever has none is refused, and nothing is written."""
    model = tiny.model(**{"attention_pattern": ("dense",), "band_width": 256} | tiny.SWITCHES.get(name, {}))
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: random.standard_normal(x.shape, np.float32), decoder.abstract(model))
    try:
        huggingface.save(model, params, tmp_path / "out")
    except ValueError as error:
        assert "cannot be exported" in str(error)
        assert not list(tmp_path.iterdir())
        return
    again, same = huggingface.load(tmp_path / "out")
    ids = np.arange(16)[None]
    np.testing.assert_array_equal(
        compute(tiny.in_float32(again), same, ids), compute(tiny.in_float32(model), params, ids)
    )


def test_the_family_of_a_model():
    def family(**changes):
        base = {"attention_pattern": ("dense",), "band_width": 256} | changes
        return config_keys.from_model(tiny.model(**base))[1].model_type

    rope_only = dict(positions="rotary", norm_kind="rms", gated=True, activation="silu", mlp_bias=False)
    assert family() == "gpt2"
    assert family(**tiny.SWITCHES["llama"]) == "llama"
    assert family(**rope_only, qkv_bias=True, out_bias=False) == "qwen2"
    assert family(**tiny.SWITCHES["neox"]) == "gpt_neox"
    assert family(**tiny.SWITCHES["mixtral"]) == "mixtral"
    nothing = cfg.Experts(per_token=3, every=2, d_ff=7, gated=False, normalize=False, capacity=2.0)
    assert family(relative_buckets=6, relative_distance=9, experts=nothing) == "gpt2"
    no_window = tiny.model(**tiny.SWITCHES["llama"] | {"attention_pattern": ("banded",)})
    assert config_keys.from_model(no_window)[1].model_type == "mistral"
    assert config_keys.from_model(dataclasses.replace(no_window, band_width=32))[1].model_type == "llama"
    assert config_keys.from_model(dataclasses.replace(no_window, band_width=32), "mistral")[1].model_type == "mistral"


LLAMA, FOUR = tiny.SWITCHES["llama"], cfg.Experts(count=4)
STRIDED = {"attention_pattern": ("dense", "strided"), "band_width": 3}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"experts": FOUR}, "experts.count=4 .* gpt2; there it must be 0"),
        (tiny.SWITCHES["neox"] | {"experts": FOUR}, "experts.count=4 .* gpt_neox; there it must be 0"),
        (tiny.SWITCHES["glam"], "experts.count=8 .* gpt2; there it must be 0"),
        (LLAMA | {"experts": cfg.Experts(count=4, every=2)}, "experts.every=2 .* mixtral; there it must be 1"),
        (
            LLAMA | {"experts": cfg.Experts(count=4, gated=False)},
            "experts.gated=False .* mixtral; there it must be True",
        ),
        (LLAMA | {"experts": FOUR, "qkv_bias": True}, "qkv_bias=True .* mixtral; there it must be False"),
        (STRIDED, r"attention_pattern=\('dense', 'strided'\) .* gpt2; there it must be \('dense',\)"),
        (LLAMA | STRIDED | {"experts": FOUR}, r"attention_pattern=\('dense', 'strided'\) .* mixtral; "),
        (STRIDED | {"d_head": 7, "norm_epsilon": 1e-3}, r"attention_pattern=\('dense', 'strided'\)"),
        (tiny.SWITCHES["lamda"], "positions='relative' .* llama; there it must be 'rotary'"),
        ({"num_heads": 5}, "num_heads=5 .* gpt2; there it must be a divisor of config.model.d_model=32"),
    ],
)
def test_a_refused_export_names_the_knob_that_matters(changes, words):
    base = {"attention_pattern": ("dense",), "band_width": 256} | changes
    with pytest.raises(ValueError, match=rf"^config\.model\.{words}"):
        config_keys.from_model(tiny.model(**base))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("neox_parallel", {"rotary_pct": 0.01}, "no pair"),
        ("llama", {"rope_parameters": {"rope_type": ["x"]}}, "rope_type"),
        ("llama", {"rope_parameters": {"rope_theta": 10**400}}, "rope_theta"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 8.5}}, "whole number"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 0}}, "more than 0"),
    ],
)
def test_rope_keys_that_cannot_be_are_refused(name, changes, words):
    values = json.loads((FIXTURES / name / "config.json").read_text())
    old = ("rope_parameters", "rope_scaling", "rope_theta", "rotary_emb_base", "rotary_pct", "partial_rotary_factor")
    values = {key: value for key, value in values.items() if key not in old} | changes
    with pytest.raises(ValueError, match=words):
        config_keys.to_model(values, "config.json", 1)
