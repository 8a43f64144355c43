"""``scaling import`` and ``scaling export``: folders that become runs, and runs that become folders."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import threading
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from scaling import cli
from scaling.config import schema as cfg
from scaling.data import tokenizer
from scaling.evaluate.harness.requests import Answers
from scaling.interop import config_keys, huggingface, new_folder, tokenizer_json
from scaling.interop.import_run import import_folder
from scaling.interop.logits import compute, load_model
from scaling.interop.served import load_served
from scaling.model import decoder
from scaling.runs import stores
from scaling.runs.checkpoint import Checkpoints

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
REAL = "SCALING_REAL_MODELS"  # folder that shared/peers/real_models.py made


@pytest.fixture
def folder(tmp_path):
    """A LLaMA with room for the 257 tokens of bytes, whose tokenizer comes as GPT-2's two files."""
    path = tmp_path / "folder"
    shutil.copytree(FIXTURES / "families" / "llama", path)
    random = np.random.default_rng(0)
    tensors = safetensors.numpy.load_file(path / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = random.standard_normal((260, 16), np.float32)
    safetensors.numpy.save_file(tensors, path / "model.safetensors")
    values = json.loads((path / "config.json").read_text()) | {"vocab_size": 260, "eos_token_id": 256}
    (path / "config.json").write_text(json.dumps(values))
    characters = {byte: character for character, byte in tokenizer.byte_of_character().items()}
    vocabulary = {characters[i]: i for i in range(256)} | {tokenizer.END_OF_TEXT: 256}
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    (path / "merges.txt").write_text("#version: 0.2\n")
    return path


def of_folder(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.slow
def test_a_run_of_a_folder_is_a_run(folder, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main(["import", str(folder), str(run)]) == 0
    (network, params), (other, expected) = load_model(run), load_model(folder)
    ids = np.arange(16)[None]
    # The run's table has padding rows, so products may sum in another order.
    np.testing.assert_allclose(compute(network, params, ids), compute(other, expected, ids), atol=1e-5)
    assert cli.main(["generate", str(run), "--prompt=ab", "--tokens=3", "--temperature=0"]) == 0
    text = tmp_path / "text.txt"
    text.write_text("some words to learn, again and again\n" * 200)
    arguments = [f"--config={run}/config.json", f"--config.data.train={text}", "--config.train.tokens=512",
                 "--config.train.batch_tokens=128", "--config.optimizer.warmup_tokens=0", "--config.seed=3",
                 "--config.eval.tokens=128", f"--config.data.cache_dir={tmp_path}/cache",
                 "--config.log.tensorboard=False", "--config.model.dropout_attention=0.1"]  # fmt: skip
    assert cli.main(["train", *arguments]) == 0
    assert Checkpoints(run).steps() == [0, 4]
    trained = load_model(run)[1]
    change = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(params), strict=True)]
    assert 0 < max(change) < 1e-3
    huggingface.export(run, tmp_path / "trained")  # written by training, so in other chunks than by the import
    exported = huggingface.load(tmp_path / "trained", vocab_multiple=128)[1]
    without_padding = trained | {name: np.asarray(trained[name])[:260] for name in ("tokens", "unembedding")}
    exported |= {name: exported[name][:260] for name in ("tokens", "unembedding")}
    jax.tree.map(np.testing.assert_array_equal, exported, without_padding)
    assert cli.main(["train", *arguments[:-1], "--config.model.dropout_attention=0.2"]) == 2
    assert "holds checkpoints of another run: config.model.dropout_attention" in capsys.readouterr().err


def test_import_export_import_is_bit_identical(folder, tmp_path):
    import_folder(folder, tmp_path / "run")
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--shard_gb=2e-5"]) == 0
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    (model, params), (again, same) = huggingface.load(folder), huggingface.load(tmp_path / "out")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, same, params)
    before, after = of_folder(folder), of_folder(tmp_path / "out")
    assert {name: after[name] for name in ("vocab.json", "merges.txt")} == {
        name: before[name] for name in ("vocab.json", "merges.txt")
    }
    assert json.loads(after["config.json"])["eos_token_id"] == 256
    import_folder(tmp_path / "out", tmp_path / "run2")
    one, two = (load_model(tmp_path / name)[1] for name in ("run", "run2"))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_experts_go_in_and_out(tmp_path):
    source = FIXTURES / "families" / "mixtral"
    values = json.loads((source / "config.json").read_text())
    model, params = huggingface.load(source)
    folder, random = tmp_path / "folder", np.random.default_rng(0)
    model = dataclasses.replace(model, vocab_size=260)
    params |= {name: random.standard_normal((260, 16), np.float32) for name in ("tokens", "unembedding")}
    huggingface.save(model, params, folder)
    import_folder(folder, tmp_path / "run", "bytes")
    network, found = load_model(tmp_path / "run")
    assert network.model.experts == cfg.Experts(count=4, balance_loss=0.001)
    for name, parameter in params["expert_blocks"]["experts"].items():
        np.testing.assert_array_equal(found["expert_blocks"]["experts"][name], parameter)
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--shard_gb=2e-5"]) == 0
    jax.tree.map(np.testing.assert_array_equal, huggingface.load(tmp_path / "out")[1], params)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: written[key] for key in ("model_type", "num_local_experts", "num_experts_per_tok")} == {
        key: values[key] for key in ("model_type", "num_local_experts", "num_experts_per_tok")
    }


@contextlib.contextmanager
def at_most(megabytes):
    """That NumPy and Python allocate; what TensorStore has is not traced."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_a_model_is_never_whole_in_memory(tmp_path):
    values = {
        "model_type": "llama", "vocab_size": 300, "max_position_embeddings": 16, "hidden_size": 256,
        "num_hidden_layers": 32, "num_attention_heads": 4, "intermediate_size": 768,
    }  # fmt: skip
    model = config_keys.to_model(values, "", 1)[0]
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: random.standard_normal(x.shape, np.float32), decoder.abstract(model))
    size = sum(x.nbytes for x in jax.tree.leaves(params)) / 1e6
    largest = max(x.nbytes for x in jax.tree.leaves(params)) / 1e6
    assert size > 100 and largest > 20
    huggingface.save(model, params, tmp_path / "folder", shard_gb=0.03)
    del params
    with at_most(15):
        import_folder(tmp_path / "folder", tmp_path / "run", "bytes")
        huggingface.export(tmp_path / "run", tmp_path / "out", shard_gb=0.03)
    with pytest.raises(AssertionError), at_most(size - 1):  # what is whole is seen
        huggingface.load(tmp_path / "out")
    for file in (tmp_path / "folder").glob("*.safetensors"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_numbers_that_are_not_finite_leave_no_run(folder, tmp_path, capsys):
    weights = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(weights)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    safetensors.numpy.save_file(tensors, weights)
    assert cli.main(["import", str(folder), str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "1 of the 384 numbers of tensor model.layers.1.mlp.up_proj.weight are NaN" in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_full_disk_leaves_no_run(folder, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(stores.Store, "__setitem__", full)
    assert cli.main(["import", str(folder), str(tmp_path / "run")]) != 0
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_an_interrupt_leaves_no_run_and_no_thread(folder, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(stores.Store, "__setitem__", interrupted)
    before = threading.active_count()
    assert cli.main(["import", str(folder), str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "scaling import: interrupted\n"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert threading.active_count() <= before


def test_an_empty_folder_is_filled_and_leftovers_go(folder, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "empty")
    left = tmp_path / "run" / ".run.partial-12345678"
    left.mkdir()
    import_folder(folder, tmp_path / "run")
    assert (tmp_path / "run").is_symlink() and not left.exists()
    monkeypatch.chdir(tmp_path / "empty")
    load_model(".")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    huggingface.export(tmp_path / "run", ".")
    assert {"config.json", "model.safetensors"} <= {path.name for path in Path.cwd().iterdir()}
    assert not list(Path.cwd().glob(".*"))


def test_of_two_that_fill_one_folder_the_second_is_refused(tmp_path):
    with pytest.raises(FileExistsError, match="exists now"), new_folder.filling(tmp_path / "run") as first:
        (first / "a").write_text("")
        with new_folder.filling(tmp_path / "run") as second:
            (second / "b").write_text("")
        assert first.exists()
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["run", "run/b"]


def test_sigterm_leaves_nothing(tmp_path):
    with pytest.raises(SystemExit, match="143"), new_folder.filling(tmp_path / "run"):
        signal.raise_signal(signal.SIGTERM)
    assert not list(tmp_path.iterdir())


def test_a_file_above_and_a_size_are_named(folder, tmp_path, capsys):
    import_folder(folder, tmp_path / "run")
    (tmp_path / "file").write_text("")
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "file" / "out")]) == 2
    assert f"it is a file and not a folder: {tmp_path}/file" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--shard_gb=-1"]) == 2
    assert "error: shard_gb=-1.0 must be more than 0" in capsys.readouterr().err


def test_another_tokenizer_than_the_folders_own_is_the_one_exported(folder, tmp_path):
    import_folder(folder, tmp_path / "run", "bytes")
    huggingface.export(tmp_path / "run", tmp_path / "out")
    assert {"tokenizer.json", "tokenizer_config.json"} <= of_folder(tmp_path / "out").keys()
    assert "vocab.json" not in of_folder(tmp_path / "out")


def test_what_cannot_be_imported_leaves_nothing(folder, tmp_path, capsys):
    def refused(words, *more):
        assert cli.main(["import", str(folder), str(tmp_path / "run"), *more]) != 0
        assert words in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]

    refused("no such file or directory exists", f"--tokenizer={tmp_path}/none")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    refused("not a whole safetensors file")
    weights.write_bytes(whole)
    (folder / "vocab.json").unlink()
    refused("has no tokenizer")
    refused("has 4096 tokens, but the table of", "--tokenizer=books")
    weights.rename(folder / "pytorch_model.bin")
    refused("a pickle that could run code", "--tokenizer=bytes")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("")
    assert cli.main(["import", str(folder), str(tmp_path / "run"), "--tokenizer=bytes"]) != 0
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"]


def test_export_takes_one_folder(tmp_path, capsys):
    for folders in ([], [f"{tmp_path}/a", f"--output={tmp_path}/b"]):
        assert cli.main(["export", str(tmp_path), *folders]) == 2
        assert "needs one folder to write" in capsys.readouterr().err


TEXTS = ["Hello, world!", "  two spaces\n\nand lines\n", "Zürich 東京 \u0000\U0001f600", "it's 12 o'clock", ""]


@pytest.mark.parametrize("name", ["bytes", "books"])
def test_a_tokenizer_json_has_the_same_ids(name, tmp_path):
    pytest.importorskip("tokenizers", reason="the package tokenizers (the extra hf) is not installed")
    words = tokenizer.load(name)
    for file, content in tokenizer_json.files(words).items():
        (tmp_path / file).write_bytes(content)
    again = tokenizer.load(str(tmp_path / "tokenizer.json"))
    assert (again.vocab_size, again.eot) == (words.vocab_size, words.eot)
    for mine, theirs, text in zip(words.encode_batch(TEXTS), again.encode_batch(TEXTS), TEXTS, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=repr(text))
        assert again.decode(theirs) == text
    ranks = tmp_path / "tiny.tiktoken"
    _, content = tokenizer.BPETokenizer("tiny", {bytes([i]): i for i in range(256)} | {b"he": 256, b"hel": 257}).file()
    ranks.write_bytes(content)
    merged = tokenizer.load(str(ranks))
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json.files(merged)["tokenizer.json"])
    for text in ("hello then", "he hel"):
        np.testing.assert_array_equal(
            merged.encode(text), tokenizer.load(str(tmp_path / "tokenizer.json")).encode(text)
        )


def test_special_tokens_are_never_text(tmp_path):
    pytest.importorskip("tokenizers", reason="the package tokenizers (the extra hf) is not installed")
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_json.files(tokenizer.load("bytes"))["tokenizer.json"])
    words = tokenizer.load(str(path))
    assert words.eot not in words.encode(f"a{tokenizer.END_OF_TEXT}b")
    assert words.decode([97, words.eot, 98]) == f"a{tokenizer.END_OF_TEXT}b"
    assert words.start == ()
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<none>"}')
    with pytest.raises(ValueError, match="<none>"):
        tokenizer.load(str(path))
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        tokenizer.load(str(path))


def real_model():
    """The folder of SmolLM2-135M-Instruct; the test is skipped where there is none."""
    folder = Path(os.environ.get(REAL, "")) / "smollm2"
    if not os.environ.get(REAL) or not folder.is_dir():
        pytest.skip(f"{REAL} names no folder with smollm2, as shared/peers/real_models.py makes it")
    pytest.importorskip("tokenizers", reason="the package tokenizers (the extra hf) is not installed")
    return folder


@pytest.mark.slow
def test_a_real_model_has_the_logits_of_transformers(tmp_path):
    """SmolLM2-135M-Instruct: shared/peers/real_models.py makes its folder, with logits of transformers beside it."""
    folder = real_model()
    expected = np.load(folder / "reference.npz")
    import_folder(folder, tmp_path / "run")
    network, params = load_model(tmp_path / "run")
    found = compute(network, params, expected["input_ids"])
    assert np.abs(found - expected["logits"]).max() < 1e-4 * max(1, expected["logits"].std() / 2)
    np.testing.assert_array_equal(found.argmax(-1), expected["logits"].argmax(-1))
    words = tokenizer.load(str(tmp_path / "run" / "tokenizer.json"))
    assert words.encode("The capital of France is").tolist() == expected["input_ids"][0].tolist()
    huggingface.export(tmp_path / "run", tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, huggingface.load(tmp_path / "out")[1], huggingface.load(folder)[1])


@pytest.mark.slow
def test_a_real_model_has_the_likelihoods_of_lm_evaluation_harness():
    """``tests/fixtures/make_real_model.py`` noted what its Hugging Face backend answers to a few items."""
    folder = real_model()
    served = load_served(folder)
    expected = json.loads((FIXTURES / "real" / "expected.json").read_text())["tasks"]
    assert len(expected) == 4
    for name, task in expected.items():
        pairs = [tuple(pair) for item in task["items"] for pair in item["pairs"]]
        found = Answers(served).loglikelihoods(pairs)
        wanted = [value for item in task["items"] for value in item["log_likelihoods"]]
        assert [logprob for logprob, _ in found] == pytest.approx(wanted, abs=1e-3), name
        assert [greedy for _, greedy in found] == [value for item in task["items"] for value in item["greedy"]]
