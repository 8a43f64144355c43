"""Encoder-decoders against transformers: fixtures made by tests/fixtures/make_seq2seq.py, without PyTorch."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling
from scaling.interop import huggingface
from scaling.interop.logits import compute, logits
from tests import tiny

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "seq2seq"
SHAPES = sorted(path.name for path in FIXTURES.iterdir())


def found_and_ours(name, folder=None):
    found = dict(np.load(FIXTURES / name / "expected.npz"))
    model, params = huggingface.load(folder or FIXTURES / name, vocab_multiple=8)
    ours = compute(tiny.in_float32(model), params, found["ids"], found["mask"], None, found["decoder_ids"])
    assert found["decoder_ids"].shape[1] == model.context_length
    return found, ours


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_transformers(name):
    found, ours = found_and_ours(name)
    assert np.abs(ours - found["logits"]).max() < 2e-5 * max(1, found["logits"].std() / 2)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("t5", {"layer_norm_epsilon": 0.031}),
        ("t5", {"scale_decoder_outputs": False}),
        ("t5", {"relative_attention_max_distance": 10}),
        ("flan_t5", {"tie_word_embeddings": True}),
        ("bart", {"activation_function": "gelu_new"}),
        ("bart", {"scale_embedding": True}),
    ],
)
def test_the_comparison_sees_small_mistakes(name, change, tmp_path):
    folder = Path(shutil.copytree(FIXTURES / name, tmp_path / name))
    values = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(values))
    found, ours = found_and_ours(name, folder)
    assert np.abs(ours - found["logits"]).max() > 2e-4


@pytest.mark.parametrize("name", SHAPES)
def test_import_export_import_is_bit_identical(name, tmp_path):
    model, params = huggingface.load(FIXTURES / name)
    huggingface.save(model, params, tmp_path / "out")
    again, same = huggingface.load(tmp_path / "out")
    assert again == model
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), same, params)
    theirs = json.loads((FIXTURES / name / "config.json").read_text())
    ours = json.loads((tmp_path / "out" / "config.json").read_text())
    if ours["model_type"] == theirs["model_type"]:
        free = {"bos_token_id", "eos_token_id"}
        differing = {key for key in theirs.keys() & ours.keys() if theirs[key] != ours[key]}
        assert differing <= free | ({"tie_word_embeddings"} if name == "t5_unscaled" else set())


def test_bad_input(tmp_path):
    ids = np.ones((2, 4), int)
    with pytest.raises(ValueError, match="t5 has an encoder, so it needs decoder_ids"):
        logits(FIXTURES / "t5", ids)
    with pytest.raises(ValueError, match="decoder_ids must have as many rows as ids, 2, got 1"):
        logits(FIXTURES / "t5", ids, decoder_ids=ids[:1])
    with pytest.raises(ValueError, match=r"decoder_ids\[1, 0\] is 61, outside the vocabulary of 61"):
        logits(FIXTURES / "t5", ids, decoder_ids=np.asarray([[1], [61]]))
    with pytest.raises(ValueError, match=r"decoder_ids must have shape .* with at least one token"):
        logits(FIXTURES / "t5", ids, decoder_ids=ids[:, :0])
    with pytest.raises(ValueError, match="row 1 of the mask is padding alone"):
        logits(FIXTURES / "t5", ids, np.asarray([[1, 1, 1, 0], [0, 0, 0, 0]]), decoder_ids=ids)
    with pytest.raises(ValueError, match="gpt2 has no encoder beside a decoder, so it takes no decoder_ids"):
        logits(FIXTURES.parent / "families" / "gpt2", ids, decoder_ids=ids)
    folder = Path(shutil.copytree(FIXTURES / "bart", tmp_path / "bart"))
    values = json.loads((folder / "config.json").read_text()) | {"decoder_ffn_dim": 8}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"encoder_ffn_dim=24 and decoder_ffn_dim=8 must be equal"):
        huggingface.load(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_beam_search_equals_hugging_face(name):
    found = np.load(FIXTURES / name / "expected.npz")
    model, params = huggingface.load(FIXTURES / name)
    sources = [row[kept == 1] for row, kept in zip(found["ids"], found["mask"], strict=True)]
    generator = Generator(tiny.in_float32(model), params, None)
    sampling = Sampling(tokens=10, beams=3, length_penalty=0.7, end_ids=(3,))
    best = [each[0] for each in generator.generate([[3]] * 3, sampling, sources=sources)]
    for one, text, score in zip(best, found["beams"], found["scores"], strict=True):
        ended = [*one.ids, 3] if one.finish == "end" else list(one.ids)
        assert ended == text[: len(ended)].tolist() and not text[len(ended) :].any()
        assert one.score == pytest.approx(score, abs=2e-5)


def test_greedy_texts_are_those_of_the_whole_pass():
    """One token after the other with the cache, against logits of the whole text; batches change nothing."""
    found = np.load(FIXTURES / "t5" / "expected.npz")
    model, params = huggingface.load(FIXTURES / "t5")
    network = tiny.in_float32(model)
    sources = [row[kept == 1] for row, kept in zip(found["ids"], found["mask"], strict=True)]
    generator = Generator(network, params, None)
    sampling = Sampling(tokens=6, temperature=0.0, end_ids=())
    texts = [each[0].ids for each in generator.generate([[3, 9], [3], [3]], sampling, sources=sources)]
    for source, start, text in zip(sources, ([3, 9], [3], [3]), texts, strict=True):
        whole = np.asarray([[*start, *text]])
        best = compute(network, params, source[None], decoder_ids=whole).argmax(-1)[0]
        assert best[len(start) - 1 : -1].tolist() == list(text)
    streamed = list(generator.stream([3], sampling, 2, sources[1]))[-1]
    assert streamed.ids == texts[1]


def test_a_model_with_an_encoder_needs_sources():
    model, params = huggingface.load(FIXTURES / "t5")
    generator = Generator(tiny.in_float32(model), params, None)
    with pytest.raises(ValueError, match="has an encoder, so each prompt needs a source"):
        generator.generate([[3]], Sampling(tokens=2))
    with pytest.raises(ValueError, match="source 1 has 25 tokens, more than the model's context of 24"):
        generator.generate([[3]], Sampling(tokens=2), sources=[[1] * 25])
    gpt2, params = huggingface.load(FIXTURES.parent / "families" / "gpt2")
    with pytest.raises(ValueError, match="has no encoder, so prompts have no source"):
        Generator(tiny.in_float32(gpt2), params, None).generate([[3]], Sampling(tokens=2), sources=[[1]])
