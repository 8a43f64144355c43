"""GGUF files: fixtures that tests/fixtures/make_gguf.py made with llama.cpp's own converter."""

import dataclasses
import json
import shutil
import struct
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest

from scaling import cli
from scaling.data import tokenizer
from scaling.interop import gguf_file, gguf_rope, gguf_tokenizer, huggingface
from scaling.interop.logits import compute, load_model
from tests import tiny

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
OURS = FIXTURES / "gguf"
WHOLE = ("sentencepiece", "byte_level")
# What a GGUF file of a shape cannot say: the knobs that come out otherwise.
LOST = {
    "gpt2_scaled_by_layer": {},
    "neox_parallel": {"activation": "gelu_tanh", "rotary": {"theta": 10_000.0}},
}
SHAPES = sorted(path.stem for path in OURS.glob("*.gguf") if path.stem not in WHOLE)
TOKENIZERS = json.loads((OURS / "tokenizers.json").read_text())


def original(name, tmp_path):
    """The folder that a file was made from, without what the file cannot say."""
    folder = Path(shutil.copytree(FIXTURES / "families" / name, tmp_path / name))
    values = json.loads((folder / "config.json").read_text()) | {"scale_attn_by_inverse_layer_idx": False}
    if not name.startswith("gpt2"):
        del values["scale_attn_by_inverse_layer_idx"]
    (folder / "config.json").write_text(json.dumps(values))
    return huggingface.load(folder)


@pytest.mark.parametrize("name", SHAPES)
def test_weights_and_switches_are_those_of_the_folder_it_was_made_from(name, tmp_path):
    model, params = huggingface.load(OURS / f"{name}.gguf")
    expected, theirs = original(name, tmp_path)
    lost = dict(LOST.get(name, {}))
    rotary = dataclasses.replace(expected.rotary, **lost.pop("rotary", {}))
    free = {knob: getattr(model, knob) for knob in ("dropout_embedding", "dropout_attention", "dropout_residual")}
    expected = dataclasses.replace(expected, num_layers=model.num_layers, rotary=rotary, **free, **lost)
    assert _float32(model) == _float32(expected)
    assert jax.tree.structure(params) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[: len(a)]), params, theirs)


def _float32(model):
    """The file holds float32 numbers, of which the model has the shortest decimal ones."""
    return json.loads(json.dumps(dataclasses.asdict(model)), parse_float=lambda text: float(np.float32(text)))


@pytest.mark.parametrize("name", WHOLE)
def test_logits_equal_those_of_transformers_reading_of_the_file(name):
    expected = np.load(OURS / "expected.npz")
    model, params = huggingface.load(OURS / f"{name}.gguf", vocab_multiple=8)
    found = compute(tiny.in_float32(model), params, expected[f"{name}_ids"])[:, -2:]
    logits = expected[f"{name}_logits"]
    assert np.abs(found - logits).max() < 2e-5 * max(1, logits.std() / 2)


@pytest.mark.parametrize("pre", [name for name in TOKENIZERS["ids"] if name != "sentencepiece"])
def test_byte_level_ids_are_those_of_the_original(pre, tmp_path):
    metadata = gguf_file.GgufFile(OURS / "byte_level.gguf").metadata | {"tokenizer.ggml.pre": pre}
    words = made(metadata, tmp_path)
    assert [words.encode(text).tolist() for text in TOKENIZERS["texts"]] == TOKENIZERS["ids"][pre]
    assert words.eot == 384
    assert words.start == ((385,) if pre in ("llama-bpe", "tekken") else ())


def test_sentencepiece_ids_are_those_of_the_original(tmp_path):
    words = made(gguf_file.GgufFile(OURS / "sentencepiece.gguf").metadata, tmp_path)
    assert [words.encode(text).tolist() for text in TOKENIZERS["texts"]] == TOKENIZERS["ids"]["sentencepiece"]
    assert (words.eot, words.vocab_size) == (2, 352)


def made(metadata, folder, rows=392):
    files = gguf_tokenizer.files(metadata, "a.gguf", rows)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return tokenizer.load(str(folder / next(name for name in files if name in ("tokenizer.json", "tokenizer.model"))))


@pytest.mark.parametrize("name", WHOLE)
def test_a_run_of_a_file_is_a_run(name, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    assert cli.main(["import", str(OURS / f"{name}.gguf"), str(run)]) == 0
    assert json.loads((run / "config.json").read_text())["imported"] == str(OURS / f"{name}.gguf")
    assert cli.main(["generate", str(run), "--prompt=the License", "--tokens=4", "--temperature=0"]) == 0
    assert cli.main(["export", str(run), str(out)]) == 0
    (_, again), (_, theirs) = load_model(out), huggingface.load(OURS / f"{name}.gguf")
    jax.tree.map(np.testing.assert_array_equal, again, theirs)
    values = json.loads((out / "config.json").read_text())
    assert (values["bos_token_id"], values["eos_token_id"]) == ((1, 2) if name == "sentencepiece" else (385, 384))
    assert (out / ("tokenizer.model" if name == "sentencepiece" else "tokenizer.json")).exists()
    capsys.readouterr()


def rewritten(name, target, metadata=None, tensors=None):
    """A copy of a file with other metadata (None = left out), and with other tensors."""
    file = gguf.GGUFReader(OURS / f"{name}.gguf")
    writer = gguf.GGUFWriter(target, file.fields["general.architecture"].contents())
    metadata = dict(metadata or {})
    for key, field in file.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            value, right = metadata.pop(key, None if key in metadata else field.contents()), field.contents()
            if value is not None and type(value) is not type(right):
                metadata[key] = value
            elif value is not None:
                kind = gguf.GGUFValueType.ARRAY if isinstance(value, list) else field.types[0]
                writer.add_key_value(key, value, kind, sub_type=field.types[-1] if isinstance(value, list) else None)
    for key, value in metadata.items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    types = {tensor.name: tensor.tensor_type for tensor in file.tensors}
    for key, data in ({tensor.name: tensor.data for tensor in file.tensors} | (tensors or {})).items():
        if data is not None:
            writer.add_tensor(key, data, raw_dtype=None if key in (tensors or {}) else types[key])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


ONES = np.ones(16, np.float32)


@pytest.mark.parametrize(
    ("name", "metadata", "tensors", "words"),
    [
        ("llama3", {"llama.attention.scale": 0.5}, {}, "llama.attention.scale=0.5 is not known here"),
        ("llama3", {"llama.expert_count": 8}, {}, "llama.expert_count=8 is not supported; must be 0"),
        ("llama3", {"llama.rope.dimension_count": 2}, {}, "llama.rope.dimension_count=2 is not supported; must be 4"),
        ("llama3", {"llama.vocab_size": 60}, {}, "llama.vocab_size=60 is not supported; must be 61"),
        ("llama3", {"llama.block_count": None}, {}, "llama.block_count must be a number"),
        (
            "llama3",
            {"llama.attention.head_count_kv": [2, 4]},
            {},
            "llama.attention.head_count_kv must be a number, got [2, 4]",
        ),
        ("llama3", {"split.count": 2}, {}, "is one of 2 parts of a model"),
        ("llama3", {"split.count": "two"}, {}, "split.count must be a whole number, got 'two'"),
        ("llama3", {"llama.attention.head_count": [4, 2]}, {}, "head_count must be a number, got [4, 2]"),
        ("llama3", {"llama.embedding_length": [4, 2]}, {}, "llama.embedding_length must be a number, got [4, 2]"),
        ("llama3", {}, {"token_embd.weight": ONES}, "tensor token_embd.weight has the shape [16]; must be [tokens,"),
        ("llama3", {}, {"rope_freqs.weight": ONES}, "tensor rope_freqs.weight of shape [16] must hold 2 factors"),
        ("llama3", {}, {"rope_freqs.weight": ONES[:1]}, "tensor rope_freqs.weight of shape [1] must hold 2 factors"),
        ("llama3", {}, {"rope_freqs.weight": ONES[:4].reshape(2, 2)}, "rope_freqs.weight of shape [2, 2] must hold 2"),
        ("llama3", {}, {"rope_freqs.weight": 0 * ONES[:2]}, "each finite and more than 0"),
        ("llama3", {}, {"rope_freqs.weight": np.nan * ONES[:2]}, "each finite and more than 0"),
        ("byte_level", {"tokenizer.ggml.pre": ["gpt-2"]}, {}, "tokenizer.ggml.pre must be a text, got ['gpt-2']"),
        ("sentencepiece", {"tokenizer.ggml.precompiled_charsmap": "x"}, {}, "precompiled_charsmap must be a list"),
        ("sentencepiece", {"tokenizer.ggml.precompiled_charsmap": [300]}, {}, "precompiled_charsmap has 300; each"),
        ("sentencepiece", {"tokenizer.ggml.token_type": [99] * 352}, {}, "tokenizer.ggml.token_type has 99; each must"),
        ("byte_level", {"tokenizer.ggml.add_bos_token": "no"}, {}, "add_bos_token must be a truth value, got 'no'"),
        *[
            ("byte_level", {f"tokenizer.ggml.{kind}_token_id": value}, {}, f"{kind}_token_id must be a whole number")
            for kind in ("bos", "eos", "unknown", "padding")
            for value in ([1], "x", 1.5)
        ],
        ("llama3", {"general.type": "adapter"}, {}, "holds no whole model: general.type is 'adapter'"),
        ("llama3", {}, {"blk.0.attn_q_norm.weight": ONES[:4]}, "has unknown tensors"),
        ("llama3", {}, {"blk.0.ffn_up.weight": None}, "lacks tensors that its metadata asks for: blk.0.ffn_up.weight"),
        ("llama3", {}, {"token_embd.weight": None}, "lacks the tensor token_embd.weight"),
        ("llama3", {}, {"blk.0.attn_norm.weight": ONES[:8]}, "by its metadata it must be [16]"),
        ("llama3", {}, {"blk.0.attn_norm.weight": np.arange(16, dtype=np.int32)}, "blk.0.attn_norm.weight is I32"),
        ("llama3", {}, {"rope_freqs.weight": np.float32([1.7, 1.2])}, "no factors of LLaMA 3's scaling"),
        ("llama3", {}, {"blk.0.attn_norm.weight": ONES * np.nan}, "are NaN or infinite"),
        ("yarn", {"llama.rope.scaling.type": "longrope"}, {}, "rope_type='longrope' is not supported"),
        ("yarn", {"llama.rope.scaling.yarn_attn_factor": 0.5}, {}, "yarn_attn_factor=0.5 is not known here"),
        ("yarn", {}, {"rope_freqs.weight": np.float32([1, 4])}, "which contradict each other"),
        ("byte_level", {"tokenizer.ggml.pre": "falcon"}, {}, "tokenizer.ggml.pre is 'falcon'; must be one of gpt-2,"),
        ("byte_level", {"tokenizer.ggml.pre": None}, {}, "tokenizer.ggml.pre is None"),
        ("byte_level", {"tokenizer.ggml.model": "bert"}, {}, "tokenizer.ggml.model is 'bert'; must be gpt2 or llama"),
        ("byte_level", {"tokenizer.ggml.new_rule": 1}, {}, "tokenizer.ggml.new_rule is not known here"),
        ("byte_level", {"tokenizer.ggml.merges": ["a b", "ab"]}, {}, "tokenizer.ggml.merges must join two tokens"),
        ("byte_level", {"tokenizer.ggml.eos_token_id": 500}, {}, "eos_token_id=500 is none of the 392 tokens"),
        ("byte_level", {"tokenizer.ggml.tokens": ["a", "a"]}, {}, "must be 392 different tokens at most"),
        ("sentencepiece", {"tokenizer.ggml.scores": None}, {}, "scores must be one number for each token"),
    ],
)
def test_what_a_file_says_that_we_do_not_have_is_refused(name, metadata, tensors, words, tmp_path, capsys):
    path = rewritten(name, tmp_path / "a.gguf", metadata, tensors)
    with_tokenizer = [] if name in WHOLE else [f"--tokenizer={tiny_tokenizer(tmp_path)}"]
    assert cli.main(["import", str(path), str(tmp_path / "run"), *with_tokenizer]) != 0
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert "a.gguf" in message
    assert not (tmp_path / "run").exists()


def tiny_tokenizer(folder):
    """One that fits into 61 rows."""
    vocabulary = {chr(97 + i): i for i in range(26)} | {"<|endoftext|>": 26}
    path = folder / "tiny.json"
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None,
                                "model": {"type": "BPE", "vocab": vocabulary, "merges": []}}))  # fmt: skip
    return path


def test_the_same_file_without_a_mistake_is_read(tmp_path):
    path = rewritten("llama3", tmp_path / "a.gguf", {"mradermacher.by": "someone", "general.url": "x"})
    assert cli.main(["import", str(path), str(tmp_path / "run"), f"--tokenizer={tiny_tokenizer(tmp_path)}"]) == 0


@pytest.mark.parametrize("keep", [0, 3, 20, 200, 5_000, -10])
def test_a_file_that_was_cut_short_is_refused(keep, tmp_path, capsys):
    path = tmp_path / "a.gguf"
    path.write_bytes((OURS / "sentencepiece.gguf").read_bytes()[:keep])
    assert cli.main(["import", str(path), str(tmp_path / "run")]) != 0
    message = capsys.readouterr().err
    assert ("is no GGUF file" if 0 <= keep < 4 else "is not a whole GGUF file") in message
    assert 0 <= keep < 4 or message.endswith("it ends before what it says it holds\n")
    assert message.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_damaged_length_or_text_is_refused_at_once(tmp_path):
    whole, path = (OURS / "sentencepiece.gguf").read_bytes(), tmp_path / "a.gguf"
    at = whole.index(b"tokenizer.ggml.scores") + len(b"tokenizer.ggml.scores") + 8  # type and type of the elements
    path.write_bytes(whole[:at] + struct.pack("<Q", 1 << 60) + whole[at + 8 :])
    with pytest.raises(ValueError, match="it ends before what it says it holds"):
        huggingface.load(path)
    path.write_bytes(whole.replace(b"sentencepiece", b"sentence\xff\xffece", 1))
    with pytest.raises(ValueError, match=r"a.gguf is not a whole GGUF file.*utf-8"):
        huggingface.load(path)


def test_another_architecture_version_or_byte_order_is_refused(tmp_path):
    whole = (OURS / "llama3.gguf").read_bytes()
    path = tmp_path / "a.gguf"
    path.write_bytes(whole.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0bloop", 1))
    with pytest.raises(ValueError, match=r"general.architecture='bloop' is not supported; must be one of llama, qwen2"):
        huggingface.load(path)
    path.write_bytes(whole[:4] + struct.pack("<I", 99) + whole[8:])
    with pytest.raises(ValueError, match="of a version that is not known"):
        huggingface.load(path)


def test_a_head_that_repeats_the_embedding_is_tied(tmp_path):
    path = OURS / "byte_level.gguf"
    embedding = next(tensor.data for tensor in gguf.GGUFReader(path).tensors if tensor.name == "token_embd.weight")
    assert embedding.dtype == np.uint8
    file = gguf_file.GgufFile(path)
    assert file.values()["tie_word_embeddings"]
    file.tensors["output.weight"] = file.tensors["token_embd.weight"]
    assert file.values()["tie_word_embeddings"]
    file.tensors["output.weight"] = file.tensors["token_embd.weight"]._replace(data=embedding ^ 1)
    assert not file.values()["tie_word_embeddings"]


def test_factors_of_llama_3_are_told_from_the_tensor():
    """As llama.cpp's converter makes them for the published LLaMA 3.1 (theta 500000, 128 features)."""
    rates = 500_000.0 ** -(np.arange(0, 128, 2) / 128)
    wavelengths = 2 * np.pi / rates
    smooth = (8192 / wavelengths - 1) / 3
    factors = np.where(wavelengths < 2048, 1, np.where(wavelengths > 8192, 8, 1 / ((1 - smooth) / 8 + smooth)))
    found = gguf_rope.of_factors(factors.astype(np.float32), 500_000.0, "a.gguf")
    assert found == {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192}  # fmt: skip
