"""Encoders against transformers: fixtures made by tests/fixtures/make_encoders.py, so that no PyTorch is needed."""

import json
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.interop import config_keys, huggingface
from scaling.interop.families import FAMILIES
from scaling.interop.logits import compute, logits
from scaling.interop.vectors import states
from scaling.model import decoder
from scaling.parallel.mesh import one_device
from tests import tiny

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "encoders"
SHAPES = sorted(path.name for path in FIXTURES.iterdir())
WITHOUT_TYPES = ("distilbert", "xlm_relu", "deberta_absolute", "deberta_v2_buckets")
WITH_LOGITS = [name for name in SHAPES if not name.endswith("_bare")]


def expected(name):
    found = dict(np.load(FIXTURES / name / "expected.npz"))
    types = None if name in WITHOUT_TYPES else found["types"]
    return found, (found["ids"], found["mask"], types)


@pytest.mark.parametrize("name", WITH_LOGITS)
def test_logits_equal_transformers(name):
    found, given = expected(name)
    model, params = huggingface.load(FIXTURES / name, vocab_multiple=8)
    ours = compute(tiny.in_float32(model), params, *given)
    real = found["mask"] == 1
    assert found["ids"].shape[1] == model.context_length
    assert np.abs(ours - found["logits"])[real].max() < 2e-5 * max(1, found["logits"].std() / 2)


@pytest.mark.parametrize("name", sorted(set(SHAPES) - set(WITH_LOGITS)))
def test_states_of_a_bare_encoder_equal_transformers(name):
    found, given = expected(name)
    model, params = huggingface.load(FIXTURES / name)
    ours = states(tiny.in_float32(model), params, *given)
    real = found["mask"] == 1
    assert np.abs(ours - found["states"])[real].max() < 1e-5
    with jax.set_mesh(one_device()):
        pooled = decoder.merge(tiny.in_float32(model), params).pooled(ours[:, 0])
    assert np.abs(pooled - found["pooled"]).max() < 1e-5


@pytest.mark.parametrize("name", ["bert_old", "albert"])
def test_the_pair_head_equals_transformers(name):
    found, given = expected(name)
    model, params = huggingface.load(FIXTURES / name)
    ours = states(tiny.in_float32(model), params, *given)
    with jax.set_mesh(one_device()):
        pairs = decoder.merge(tiny.in_float32(model), params).pair_logits(ours[:, 0])
    assert np.abs(pairs - found["pairs"]).max() < 1e-5


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("bert", {"layer_norm_eps": 0.031}),
        ("bert", {"hidden_act": "gelu_new"}),
        ("bert_old", {"hidden_act": "gelu"}),
        ("roberta", {"layer_norm_eps": 0.031}),
        ("distilbert", {"activation": "relu"}),
        ("electra_discriminator", {"layer_norm_eps": 0.031}),
        ("xlm", {"gelu_activation": False}),
        ("xlm", {"layer_norm_eps": 0.031}),
        ("deberta", {"layer_norm_eps": 0.031}),
        ("deberta_v3", {"max_relative_positions": 11}),
    ],
)
def test_the_comparison_sees_small_mistakes(name, change, tmp_path):
    found, given = expected(name)
    folder = Path(shutil.copytree(FIXTURES / name, tmp_path / name))
    values = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(values))
    model, params = huggingface.load(folder)
    real = found["mask"] == 1
    assert np.abs(compute(tiny.in_float32(model), params, *given) - found["logits"])[real].max() > 5e-4


@pytest.mark.parametrize("place", ["mask", "types"])
def test_mask_and_types_count(place):
    found, (ids, mask, types) = expected("bert")
    model, params = huggingface.load(FIXTURES / "bert")
    given = (ids, None, types) if place == "mask" else (ids, mask, None)
    ours = compute(tiny.in_float32(model), params, *given)
    assert np.abs(ours - found["logits"])[found["mask"] == 1].max() > 1e-2


@pytest.mark.parametrize("name", SHAPES)
def test_import_export_import_is_bit_identical(name, tmp_path):
    model, params = huggingface.load(FIXTURES / name)
    huggingface.save(model, params, tmp_path / "out")
    again, same = huggingface.load(tmp_path / "out")
    assert again == model
    assert jax.tree.structure(same) == jax.tree.structure(params)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), same, params)
    theirs = json.loads((FIXTURES / name / "config.json").read_text())
    ours = json.loads((tmp_path / "out" / "config.json").read_text())
    if name.startswith("electra"):
        assert ours["architectures"] == theirs["architectures"]
    if ours["model_type"] == theirs["model_type"]:
        spelled = FAMILIES[theirs["model_type"]].respelled_keys or dict
        ours, theirs = spelled(ours), spelled(theirs)
        left_out = {"transformers_version", "dtype", "architectures", "pad_token_id", "bos_token_id", "eos_token_id"}
        left_out |= {key for key in theirs if key not in ours}
        assert {key: ours[key] for key in theirs if key not in left_out} == {
            key: value for key, value in theirs.items() if key not in left_out
        }


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"mask": np.ones((1, 3), int)}, r"mask must be integers of the shape of ids, \[1, 4\], got \[1, 3\]"),
        ({"mask": np.full((1, 4), 2)}, r"mask must be in \[0, 1\], got 2 to 2"),
        ({"types": np.full((1, 4), 2)}, r"types must be in \[0, 1\], got 2 to 2"),
    ],
)
def test_bad_masks_and_types(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        logits(FIXTURES / "bert", np.ones((1, 4), int), **given)


def test_models_without_what_is_asked_for():
    ids = np.ones((1, 4), int)
    with pytest.raises(ValueError, match="is an encoder without logits; `scaling embed` gives its vectors"):
        logits(FIXTURES / "bert_bare", ids)
    with pytest.raises(ValueError, match="tells no types of tokens apart"):
        logits(FIXTURES / "distilbert", ids, types=ids * 0)
    gpt2 = FIXTURES.parent / "families" / "gpt2"
    with pytest.raises(ValueError, match="so it takes no mask"):
        logits(gpt2, ids, mask=ids)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("deberta", {"relative_attention": False}, "relative_attention=False is not supported; must be true"),
        ("deberta", {"pos_att_type": []}, "pos_att_type='' is not supported; must be one of c2p|p2c, c2p, p2c"),
        ("deberta", {"pos_att_type": [1]}, "pos_att_type must be a list of 'c2p' and 'p2c', got"),
        ("deberta", {"talking_head": True}, "talking_head=True is not supported; must be false"),
        ("deberta", {"embedding_size": 8}, "embedding_size=8 is not a key of deberta that is known here"),
        ("deberta_v3", {"conv_kernel_size": 3}, "conv_kernel_size=3 is not supported; must be 0"),
        ("deberta_v3", {"norm_rel_ebd": "rms"}, "norm_rel_ebd='rms' is not supported; must be one of none, layer_norm"),
        ("deberta_v3", {"position_buckets": 1}, "position_buckets=1 must be 0, or at least 2 and less than"),
        ("xlm", {"causal": True}, "causal=True is not supported; must be false"),
        ("xlm", {"asm": True}, "asm=True is not supported; must be false"),
        ("xlm", {"n_words": 60}, "vocab_size=61 and n_words=60 must be equal"),
        ("xlm", {"use_lang_emb": 1}, "use_lang_emb must be true or false, got 1"),
        (
            "xlm",
            {"use_lang_emb": False},
            "has unknown tensors for the model in its config.json: lang_embeddings.weight",
        ),
    ],
)
def test_options_that_are_not_there_are_refused(name, change, sentence, tmp_path):
    folder = Path(shutil.copytree(FIXTURES / name, tmp_path / name))
    values = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        huggingface.load(folder)


def test_keys_that_are_left_out_are_those_of_transformers(tmp_path):
    """Its default has no relative positions; those of -1 are as many as the positions."""
    values = json.loads((FIXTURES / "deberta" / "config.json").read_text())
    del values["relative_attention"]
    with pytest.raises(ValueError, match="relative_attention=False is not supported"):
        config_keys.to_model(values, "config.json", 1)
    values |= {"relative_attention": True, "max_relative_positions": 7, "pos_att_type": "P2C | c2p"}
    found = config_keys.to_model(values, "config.json", 1)[0]
    assert (found.distances, found.positional_scores) == (7, 2)


@pytest.mark.slow
@pytest.mark.skipif(
    "SCALING_REAL_MODELS" not in os.environ, reason="SCALING_REAL_MODELS names no folder of real models"
)
def test_states_of_a_real_encoder_are_those_of_transformers():
    """all-MiniLM-L6-v2: a bare BERT with the states that transformers computes for two sentences."""
    folder = Path(os.environ["SCALING_REAL_MODELS"]) / "minilm"
    given = np.load(folder / "reference.npz")
    model, params = huggingface.load(folder)
    names = ("input_ids", "attention_mask", "token_type_ids")
    ours = states(cfg.Network(model), params, *(given[name].astype(np.int32) for name in names))
    assert np.abs(ours - given["hidden"])[given["attention_mask"] == 1].max() < 1e-5
