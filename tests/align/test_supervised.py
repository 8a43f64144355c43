"""``scaling align sft`` by its command line: from a run to a run, packed without leaking, resumed without a trace."""

import json
import shutil

import jax
import numpy as np
import pytest

from scaling import cli, exit_codes
from scaling.align import supervised
from scaling.config import schema as cfg
from scaling.data import tokenizer
from scaling.data.batch import filled
from scaling.data.chat import rows
from scaling.data.chat.template import Chat
from scaling.objectives.next_token import next_token
from scaling.parallel.mesh import one_device
from scaling.runs.model import load_checkpoint
from scaling.runs.start import Start
from scaling.train.step import make_eval_step
from tests import tiny


@pytest.fixture(scope="module", autouse=True)
def dialogues(folder):
    """Dialogues whose answers are the question again."""
    folder.write("d.jsonl", [{"prompt": f"{i:02}", "response": f"{i:02}" * (1 + i % 3)} for i in range(160)])


def sft(folder, name, *arguments):
    return folder.align("sft", name, f"--config.data.train={folder}/d.jsonl", "--config.align.epochs=3", *arguments)


@pytest.fixture(scope="module")
def tuned(folder):
    """The run ``sft``."""
    assert sft(folder, "sft", "--config.optimizer.peak_lr=0.01", "--config.model.dropout_residual=0.1") == 0
    return folder / "sft"


def test_it_learns_and_is_a_run_like_any_other(folder, tuned, capsys):
    found = folder.losses("sft")
    assert found[-1] < 0.7 * found[0]
    config = json.loads((tuned / "config.json").read_text())["config"]
    assert config["data"]["tokenizer"] == "bytes+chat" and config["model"]["vocab_size"] == 261
    assert config["model"]["d_model"] == 32 and config["model"]["dropout_residual"] == 0.1
    assert cli.main(["generate", str(tuned), "--prompt=a", "--tokens=3", "--temperature=0"]) == 0


def test_the_length_is_that_of_the_epochs(folder, tuned):
    texts = folder / "d.jsonl"
    config = cfg.freeze(json.loads((tuned / "config.json").read_text())["config"])
    packed = supervised.data(config, tokenizer.load("bytes+chat")).training.sequences
    assert texts.exists() and config.train.tokens == round(3 * packed * 32 / 512) * 512


def test_new_tokens_begin_as_the_mean_of_the_known(folder):
    config = cfg.Config(start=str(folder / "base"), workdir=str(folder / "none"), data=cfg.Data(tokenizer=""))
    start = Start.of(config, folder / "none")
    words = tokenizer.load(start.tokenizer(config, suffix="+chat"))
    model = start.model_for(config, words)
    before, after = load_checkpoint(folder / "base", one_device()).params, start.params(model, one_device(), 0)
    np.testing.assert_array_equal(after["tokens"][:257], before["tokens"][:257])
    np.testing.assert_allclose(after["tokens"][257:261], np.tile(before["tokens"][:257].mean(0), (4, 1)), atol=1e-7)
    for name in ("blocks", "positions", "final_norm"):
        jax.tree.map(np.testing.assert_array_equal, before[name], after[name])


def test_packed_dialogues_do_not_see_each_other(folder, tuned):
    found = load_checkpoint(tuned, one_device())
    config = cfg.Config(model=found.network.model, compute=tiny.COMPUTE, train=cfg.Train(sequence_length=32))
    chat = Chat(tokenizer.load("bytes+chat"))
    texts = [
        rows.Text(*chat.example([{"role": "user", "content": q}, {"role": "assistant", "content": a}]))
        for q, a in (("1", "one"), ("22", "two"), ("3", "333"))
    ]
    evaluate = make_eval_step(config, one_device(), next_token(config))

    def total(batch):
        with jax.set_mesh(one_device()):
            sums = evaluate(found.params, batch)
        return float(sums.metrics["loss"]), float(sums.weight)

    together = rows.packed(texts, 32)
    alone = [rows.packed([text], 32)[0] for text in texts]
    assert len(together) == 1
    both = total(filled((1, 3), {(0, i): row for i, row in enumerate(together)}))
    each = total(filled((1, 3), {(0, i): row for i, row in enumerate(alone)}))
    assert both[1] == each[1]
    np.testing.assert_allclose(both[0], each[0], rtol=1e-5)


@pytest.mark.slow
def test_a_run_that_is_cut_short_goes_on_to_the_same_curve(folder, tuned):
    arguments = ["--config.optimizer.peak_lr=0.01", "--config.model.dropout_residual=0.1"]
    saves = ["--config.checkpoint.every_steps=3", "--config.checkpoint.keep_last=100"]
    assert sft(folder, "cut", *arguments, *saves) == 0
    steps = sorted((folder / "cut" / "checkpoints").iterdir())
    for step in steps[1:]:
        shutil.rmtree(step)
    assert sft(folder, "cut", *arguments, *saves) == 0
    assert folder.losses("cut") == folder.losses("sft")


@pytest.mark.slow
def test_microbatches_and_devices_change_nothing(folder, tuned):
    same = ["--config.optimizer.peak_lr=0.01"]
    assert sft(folder, "sft-one", *same) == 0
    for name, knob in (("sft-parts", "train.microbatch_sequences=8"), ("sft-devices", "mesh.fsdp=4")):
        assert sft(folder, name, *same, f"--config.{knob}") == 0
        np.testing.assert_allclose(folder.losses(name), folder.losses("sft-one"), rtol=2e-5)


def test_all_tokens_count_if_asked(folder):
    config = cfg.Config(data=cfg.Data(train=str(folder / "d.jsonl")), train=cfg.Train(sequence_length=32))
    words = tokenizer.load("bytes+chat")
    some = supervised.data(config, words)
    every = supervised.data(cfg.freeze(cfg.to_dict(config) | {"align": {"loss_on": "all"}}), words)
    weigh = [
        sum(float(data.training[i].weights.sum()) for i in range(data.training.sequences)) for data in (some, every)
    ]
    assert weigh[0] < weigh[1]
    assert some.training.fingerprint != every.training.fingerprint


MISTAKES = {
    "has no config.json": ["--config.start={0}/nothing"],
    "config.model.d_model": ["--config.model.d_model=48"],
    "config.data.tokenizer": ["--config.data.tokenizer=books"],
    "config.align.loss_on": ["--config.align.loss_on=user"],
    "no file matches": ["--config.data.train={0}/none.jsonl"],
    "sequence_length=4": ["--config.train.sequence_length=4", "--config.train.batch_tokens=64"],
    "no_template.jinja": ["--config.chat.template={0}/no_template.jinja"],
    "needs --config.start": ["--config.start="],
}


@pytest.mark.parametrize("wrong", MISTAKES)
def test_mistakes_are_refused_and_nothing_is_written(folder, wrong, capsys):
    assert sft(folder, "wrong", *[word.format(folder) for word in MISTAKES[wrong]]) == exit_codes.USAGE
    assert wrong in capsys.readouterr().err
    assert not (folder / "wrong").exists()


def test_a_run_stays_with_the_parent_that_it_began_with(folder, tuned, capsys):
    shutil.copytree(folder / "base", folder / "other")
    assert sft(folder, "sft", f"--config.start={folder}/other") == exit_codes.USAGE
    assert "began" in capsys.readouterr().err
    noted = json.loads((tuned / "start.json").read_text())
    assert noted["run"] == str(folder / "base") and noted["step"] == 20 and len(noted["digest"]) == 64
