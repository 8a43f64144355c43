"""``config.lora.rank`` by the command line: what is saved, resumed, read, exported and begun with."""

import json
import shutil

import jax
import numpy as np
import pytest

from scaling import cli, exit_codes
from scaling.align import score
from scaling.interop import huggingface
from scaling.parallel.mesh import one_device
from scaling.runs.model import load_adapters, load_checkpoint
from scaling.runs.start import Start

LORA = ["--config.lora.rank=4", "--config.optimizer.peak_lr=0.1"]
SAVES = ["--config.checkpoint.every_steps=3", "--config.checkpoint.keep_last=100"]
KNOWN, NEW = 257, 4  # tokens of bytes, and those of +chat


@pytest.fixture(scope="module", autouse=True)
def dialogues(folder):
    """Dialogues whose answers are the question again."""
    folder.write("lora-d.jsonl", [{"prompt": f"{i:02}", "response": f"{i:02}" * (1 + i % 3)} for i in range(160)])


def sft(folder, name, *arguments):
    return folder.align(
        "sft", name, f"--config.data.train={folder}/lora-d.jsonl", "--config.align.epochs=3", *arguments
    )


@pytest.fixture(scope="module")
def tuned(folder):
    """The run ``lora``."""
    shown = ["--config.sample.prompts=('0',)", "--config.sample.tokens=2", "--config.sample.temperature=0"]
    assert sft(folder, "lora", *LORA, *SAVES, *shown) == 0
    return folder / "lora"


def params_of(run):
    return load_checkpoint(run, one_device()).params


def base_params(run):
    """What the run began with: its start's parameters, grown to its tokens."""
    config, _ = load_adapters(run)
    return Start.noted(run).params(config.model, one_device(), config.seed)


def size(path):
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@pytest.mark.slow
def test_it_learns_and_only_adapters_and_new_rows_are_saved(folder, tuned):
    losses = folder.losses("lora")
    assert losses[-1] < losses[0] - 0.5  # the base has hardly learned anything, and its table stays
    config, found = load_adapters(tuned)
    assert config.lora.first_new_token == KNOWN
    assert {path.rpartition(".")[2] for path in found} == {"a", "b", "tokens"}
    assert found["rows.tokens"].shape == (NEW, 32) and found["blocks.attention.out.b"].shape == (2, 4, 32)
    newest = [max((run / "checkpoints").iterdir()) for run in (tuned, folder / "base")]
    for item in ("params", "optimizer"):
        saved = json.loads((newest[0] / item / "_METADATA").read_text())["tree_metadata"]
        leaves = {name.split("'")[-2] for name in saved}
        assert {leaf for leaf in leaves if not leaf.isdigit()} <= {"a", "b", "tokens", "count"}
    assert size(newest[0]) < size(newest[1]) / 2


@pytest.mark.slow
def test_the_first_loss_is_that_of_the_base(folder, tuned):
    assert sft(folder, "lora-whole", "--config.optimizer.peak_lr=0.1") == 0
    assert folder.losses("lora")[0] == folder.losses("lora-whole")[0]


@pytest.mark.slow
def test_what_is_read_is_what_the_last_step_had(folder, tuned, capsys):
    """The validation in the run merges in its step; a plain run of the merged weights has the same loss."""
    before, after = base_params(tuned), params_of(tuned)
    for name in ("positions", "final_norm"):
        jax.tree.map(np.testing.assert_array_equal, before[name], after[name])
    np.testing.assert_array_equal(before["tokens"][:KNOWN], after["tokens"][:KNOWN])
    rows = np.asarray(after["tokens"][KNOWN : KNOWN + NEW])
    assert len({row.tobytes() for row in rows}) == NEW  # they began alike
    assert np.abs(np.asarray(after["blocks"]["mlp"]["up"] - before["blocks"]["mlp"]["up"])).max() > 1e-3
    knobs = ["--config.optimizer.peak_lr=0", "--config.align.epochs=1"]
    same = [f"--config.data.train={folder}/lora-d.jsonl", f"--config.start={tuned}"]
    assert folder.align("sft", "lora-child", *same, *knobs) == 0
    jax.tree.map(np.testing.assert_array_equal, params_of(folder / "lora-child"), after)
    found = [folder.lines(run, "evals.jsonl")[-1]["loss"] for run in ("lora", "lora-child")]
    np.testing.assert_allclose(*found, rtol=1e-6)
    assert cli.main(["generate", str(tuned), "--prompt=a", "--tokens=3", "--temperature=0"]) == 0


@pytest.mark.slow
def test_adapters_on_adapters(folder, tuned):
    """A run that begins with a run with adapters trains adapters of the merged weights."""
    same = [f"--config.data.train={folder}/lora-d.jsonl", f"--config.start={tuned}", "--config.align.epochs=1"]
    assert folder.align("sft", "lora-second", *same, *LORA) == 0
    assert load_adapters(folder / "lora-second")[0].lora.first_new_token == KNOWN + NEW  # no new ones
    jax.tree.map(np.testing.assert_array_equal, base_params(folder / "lora-second"), params_of(tuned))
    change = params_of(folder / "lora-second")["blocks"]["mlp"]["down"] - params_of(tuned)["blocks"]["mlp"]["down"]
    assert np.linalg.matrix_rank(np.asarray(change[0]), tol=1e-4) == 4


@pytest.mark.slow
def test_a_run_that_is_cut_short_goes_on_to_the_same_curve(folder, tuned):
    shutil.copytree(tuned, folder / "lora-cut")
    for step in sorted((folder / "lora-cut" / "checkpoints").iterdir())[1:]:
        shutil.rmtree(step)
    assert sft(folder, "lora-cut", *LORA, *SAVES) == 0
    assert folder.losses("lora-cut") == folder.losses("lora")
    jax.tree.map(np.testing.assert_array_equal, params_of(folder / "lora-cut"), params_of(tuned))
    assert sft(folder, "lora-cut", *LORA, *SAVES, "--config.lora.alpha=8") == exit_codes.USAGE


@pytest.mark.slow
def test_exported_whole(folder, tuned):
    """Of a model that Hugging Face has: the exported tensors are the merged ones."""
    assert cli.main(["export", str(tuned), str(folder / "lora-hf")]) == 0
    _, params = huggingface.load(folder / "lora-hf")
    expected = params_of(tuned)
    expected["tokens"] = expected["tokens"][: KNOWN + NEW]
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(expected))


@pytest.mark.slow
def test_trained_rows_are_no_adapters_of_peft(folder, tuned, capsys):
    assert cli.main(["export", str(tuned), str(folder / "lora-peft"), "--adapters"]) == exit_codes.USAGE
    assert "trained rows of 4 tokens" in capsys.readouterr().err and not (folder / "lora-peft").exists()


@pytest.mark.slow
def test_a_base_that_is_gone_or_changed_is_named(folder, tuned, capsys):
    shutil.copytree(folder / "base", folder / "lora-other")
    shutil.copytree(tuned, folder / "lora-of_other")
    noted = folder / "lora-of_other" / "start.json"
    noted.write_text(noted.read_text().replace(f"{folder}/base", f"{folder}/lora-other"))  # the base was moved
    jax.tree.map(np.testing.assert_array_equal, params_of(folder / "lora-of_other"), params_of(tuned))
    (newest,) = (folder / "lora-other" / "checkpoints").iterdir()
    damaged = next(path for path in sorted((newest / "params").rglob("*")) if path.stat().st_size > 10_000)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    words = ["generate", str(folder / "lora-of_other"), "--prompt=a", "--tokens=3"]
    for destroy in (lambda: None, lambda: shutil.rmtree(folder / "lora-other"), noted.unlink):
        destroy()
        assert cli.main(words) == exit_codes.USAGE
        assert (
            "start.json is missing" if destroy == noted.unlink else f"{folder}/lora-other"
        ) in capsys.readouterr().err


@pytest.mark.slow
def test_the_head_of_a_reward_model_is_trained_and_kept(folder, tuned):
    comparisons = [{"prompt": f"{i}", "chosen": "a" * 3, "rejected": f"{i % 7}"} for i in range(96)]
    arguments = [f"--config.data.train={folder.write('lora-c.jsonl', comparisons)}", "--config.align.epochs=3"]
    assert folder.align("reward", "lora-reward", *arguments, *LORA) == 0
    _, found = load_adapters(folder / "lora-reward")
    assert (
        found["head"].shape == (32, 1)
        and np.abs(found["head"] - base_params(folder / "lora-reward")["head"]).max() > 0.01
    )
    scorer, words = score.load(folder / "lora-reward")
    good, bad = scorer([words.encode("aaa"), words.encode("5")])
    assert np.isfinite([good, bad]).all() and folder.lines("lora-reward", "evals.jsonl")[-1]["accuracy"] > 0.9
    np.testing.assert_array_equal(scorer.params["head"], found["head"])
    bias = json.loads((folder / "lora-reward" / "reward.json").read_text())["bias"]
    assert bias == scorer.bias


@pytest.mark.slow
def test_microbatches_and_devices_change_nothing(folder):
    same = ["--config.lora.rank=4", "--config.optimizer.peak_lr=0.01"]
    assert sft(folder, "lora-one", *same) == 0
    for name, knob in (("lora-parts", "train.microbatch_sequences=8"), ("lora-devices", "mesh.fsdp=4")):
        assert sft(folder, name, *same, f"--config.{knob}") == 0
        np.testing.assert_allclose(folder.losses(name), folder.losses("lora-one"), rtol=2e-5)


MISTAKES = {
    "needs config.start": ("train", ["--config.data.tokenizer=bytes", "--config.train.sequence_length=32"]),
    "at most 32, the smaller side": ("align sft", ["--config.lora.rank=33"]),
    "must be a list of names among query": ("align sft", ["--config.lora.matrices=('query','q_proj')"]),
    "config.align.layers=1 must be -1": ("align sft", ["--config.align.layers=1"]),
    "config.optimizer.trained='head' must be 'all'": ("align reward", ["--config.optimizer.trained=head"]),
    "config.lora.alpha=0.0 must be more than 0": ("align sft", ["--config.lora.alpha=0"]),
}


@pytest.mark.parametrize("wrong", MISTAKES)
def test_mistakes_are_refused_and_nothing_is_written(folder, wrong, capsys):
    verb, arguments = MISTAKES[wrong]
    start = [f"--config.start={folder}/base", "--config.data.tokenizer=", f"--config.data.train={folder}/lora-d.jsonl"]
    words = ["--config.lora.rank=4", *([] if verb == "train" else start), *arguments]
    assert folder.run(verb, "lora-wrong", *words) == exit_codes.USAGE
    assert wrong in capsys.readouterr().err
    assert not (folder / "lora-wrong").exists()
