"""XLNet against transformers beyond what tests/interop/test_encoders.py compares: plain texts, and the query stream."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.interop import huggingface
from scaling.interop.logits import compute
from scaling.model import decoder
from scaling.model.context import AttentionContext
from scaling.model.two_streams import two_streams
from scaling.parallel.mesh import one_device
from tests import tiny

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "encoders" / "xlnet"


def test_logits_of_a_plain_text_equal_transformers():
    found = np.load(FOLDER / "expected.npz")
    model, params = huggingface.load(FOLDER)
    ours = compute(tiny.in_float32(model), params, found["ids"])
    assert np.abs(ours - found["plain"]).max() < 2e-5


def test_logits_of_the_query_stream_equal_transformers():
    found = np.load(FOLDER / "expected.npz")
    model, params = huggingface.load(FOLDER)
    context = AttentionContext(
        segments=jnp.asarray(1 - found["mask"]), types=jnp.asarray(found["types"]), order=jnp.asarray(found["order"])
    )
    with jax.set_mesh(one_device()):
        network = decoder.merge(tiny.in_float32(model), params)
        hidden = two_streams(network, jnp.asarray(found["ids"]), jnp.asarray(found["places"]), context)
        ours = network.logits(hidden)
    assert np.abs(ours - found["query_logits"]).max() < 2e-5
    assert (
        np.abs(found["query_logits"] - np.take_along_axis(found["logits"], found["places"][..., None], 1)).max() > 0.1
    )


def test_the_number_of_types_changes_nothing(tmp_path):
    model, params = huggingface.load(FOLDER)
    huggingface.save(dataclasses.replace(model, token_types=0), params, tmp_path / "out")
    again, same = huggingface.load(tmp_path / "out")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, same, params)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attn_type": "uni"}, "attn_type='uni' .* must be \"bi\""),
        ({"bi_data": True}, "bi_data=True .* must be false"),
        ({"clamp_len": 4}, "clamp_len=4 .* must be -1"),
        ({"same_length": True}, "same_length=True .* must be false"),
    ],
    ids=str,
)
def test_what_is_not_built_is_refused(change, words, tmp_path):
    folder = Path(shutil.copytree(FOLDER, tmp_path / "xlnet"))
    values = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=words):
        huggingface.load(folder)
