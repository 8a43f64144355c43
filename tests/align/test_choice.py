"""``config.checkpoint.choose``: which checkpoint the readers of a run take."""

import json

import jax
import numpy as np
import pytest

from scaling import exit_codes
from scaling.align import reward, score
from scaling.data.chat.template import Chat
from scaling.interop.served import load_served
from scaling.parallel.mesh import one_device
from scaling.runs.model import load_adapters, load_checkpoint, open_run
from scaling.train.validation import Validation

# All answers of the training are alike, so the loss on others falls while letters are learned, and then rises.
KNOBS = ["--config.align.epochs=108", "--config.optimizer.peak_lr=0.003", "--config.optimizer.schedule=constant"]
SAVES = [
    "--config.eval.tokens=1280",
    "--config.eval.every_steps=10",
    "--config.checkpoint.every_steps=15",
    "--config.checkpoint.keep_last=1",
]
CHOOSES = ["--config.checkpoint.choose=loss", "--config.eval.every_steps=2"]


@pytest.fixture(scope="module", autouse=True)
def dialogues(folder):
    random = np.random.default_rng(0)

    def records(count, letters):
        asked, said = (["".join(random.choice([*which], 3)) for _ in range(count)] for which in ("abcdefgh", letters))
        return [{"prompt": q, "response": a, "answer": "yes"} for q, a in zip(asked, said, strict=True)]

    folder.write("rated-few.jsonl", records(24, "a"))
    folder.write("rated-prompts.jsonl", records(40, "abcdefgh"))
    (folder / "rated-short.py").write_text(
        "def short(records, answers):\n"
        "    assert all(record['answer'] == 'yes' for record in records)\n"
        "    found = [-abs(len(answer) - 5) for answer in answers]\n"
        "    asked = [[r['prompt'], a, f] for r, a, f in zip(records, answers, found)]\n"
        f"    open({str(folder / 'rated-asked.jsonl')!r}, 'a').write(__import__('json').dumps(asked) + chr(10))\n"
        "    return found\n"
    )


def sft(folder, name, *arguments):
    data = [f"--config.data.train={folder}/rated-few.jsonl", f"--config.data.validation={folder}/rated-prompts.jsonl"]
    return folder.align("sft", name, *data, *KNOBS, *SAVES, *arguments)


def steps(run):
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def by_loss(folder):
    """The run ``by-loss``."""
    assert sft(folder, "by-loss", "--config.checkpoint.choose=loss") == 0
    return folder / "by-loss"


def best(folder, name, by, better):
    """The step of the best validation of a run, by its lines."""
    lines = folder.lines(name, "evals.jsonl")
    return better(lines, key=lambda line: line[by])["step"]


@pytest.mark.slow
def test_by_loss_the_best_is_kept_and_said_and_read(folder, by_loss, capsys):
    lines = folder.lines("by-loss", "evals.jsonl")
    losses, step = [line["loss"] for line in lines], best(folder, "by-loss", "loss", min)
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 54]
    assert losses[0] > min(losses) < losses[-1] and step < 50  # it falls, then rises
    # Every validation saved a checkpoint; but for the newest and the best, all are gone.
    assert steps(by_loss) == [step, 54]
    found = load_checkpoint(by_loss, one_device())
    assert found.step == load_served(by_loss).step == step
    _, params = open_run(by_loss)
    np.testing.assert_array_equal(params["tokens"][:], found.params["tokens"])
    assert sft(folder, "by-loss", "--config.checkpoint.choose=loss") == 0  # a finished run
    said = capsys.readouterr().out
    assert (
        f"checkpoint of step {step} is chosen by config.checkpoint.choose: its validation loss is {min(losses):.4f}"
        in said
    )
    assert folder.lines("by-loss", "evals.jsonl") == lines and steps(by_loss) == [step, 54]


@pytest.mark.slow
def test_the_newest_is_read_and_trained_on_without_a_choice(folder, by_loss):
    """Saving and choosing change no number."""
    assert sft(folder, "newest") == 0
    assert folder.losses("newest") == folder.losses("by-loss") and steps(folder / "newest") == [54]
    assert load_checkpoint(folder / "newest", one_device()).step == 54


@pytest.mark.slow
def test_a_run_begins_with_what_was_chosen(folder, by_loss):
    more = [f"--config.data.train={folder}/rated-few.jsonl", "--config.align.epochs=1", "--config.lora.rank=2"]
    assert folder.align("sft", "choice-child", *more, f"--config.start={by_loss}", *CHOOSES) == 0
    start = json.loads((folder / "choice-child" / "start.json").read_text())
    assert start["step"] == best(folder, "by-loss", "loss", min)
    config, _ = load_adapters(folder / "choice-child")
    assert config.checkpoint.choose == "loss"


@pytest.mark.slow
def test_a_run_that_is_killed_chooses_the_same(folder, by_loss, monkeypatch):
    evaluate = Validation.__call__

    def killed(self, step, state):
        if step == 40:
            raise RuntimeError("killed")
        evaluate(self, step, state)

    with monkeypatch.context() as patch:
        patch.setattr(Validation, "__call__", killed)
        with pytest.raises(RuntimeError, match="killed"):
            sft(folder, "killed", "--config.checkpoint.choose=loss")
    assert max(steps(folder / "killed")) == 30
    assert sft(folder, "killed", "--config.checkpoint.choose=loss") == 0
    assert folder.lines("killed", "evals.jsonl") == folder.lines("by-loss", "evals.jsonl")
    assert steps(folder / "killed") == steps(by_loss)
    mine, other = (load_checkpoint(run, one_device()) for run in (folder / "killed", by_loss))
    assert mine.step == other.step
    jax.tree.map(np.testing.assert_array_equal, mine.params, other.params)


def rated(folder, name, reward, *arguments):
    more = ["--config.checkpoint.choose=reward", f"--config.rl.reward={reward}", "--config.rl.response_tokens=12"]
    return sft(folder, name, *more, *arguments)


@pytest.mark.slow
def test_by_a_function_the_figure_is_the_mean_over_the_held_out_prompts(folder, by_loss):
    """40 prompts are answered in batches of 16; those that fill up the last batch are not counted twice."""
    assert rated(folder, "by-function", f"{folder}/rated-short.py:short") == 0
    lines = folder.lines("by-function", "evals.jsonl")
    assert [line["loss"] for line in lines] == [line["loss"] for line in folder.lines("by-loss", "evals.jsonl")]
    asked = [json.loads(line) for line in (folder / "rated-asked.jsonl").read_text().splitlines()]
    prompts = [json.loads(line)["prompt"] for line in (folder / "rated-prompts.jsonl").read_text().splitlines()]
    assert len(asked) == 3 * len(lines)
    for line, first in zip(lines, range(0, len(asked), 3), strict=True):
        each = [pair for batch in asked[first : first + 3] for pair in batch][:40]
        assert [prompt for prompt, _, _ in each] == prompts
        assert line["reward"] == pytest.approx(np.mean([score for _, _, score in each]), abs=1e-6)
        assert not any("<|end|>" in answer for _, answer, _ in each)
    assert load_checkpoint(folder / "by-function", one_device()).step == best(folder, "by-function", "reward", max)


@pytest.fixture(scope="module")
def likes(folder):
    """A run of a reward model that likes letters a; its own validation chooses, too."""
    random = np.random.default_rng(1)
    texts = ["".join(random.choice([*"abcdefgh"], 5)) for _ in range(60)]
    pairs = [{"prompt": t[:2], "chosen": "aaa", "rejected": t[2:]} for t in texts if t[2:] != "aaa"]
    train, held_out = folder.write("liked.jsonl", pairs[:40]), folder.write("held_out.jsonl", pairs[40:])
    more = [f"--config.data.train={train}", f"--config.data.validation={held_out}", *CHOOSES]
    spread = [f"--config.align.demonstrations={folder}/rated-few.jsonl", "--config.align.epochs=8"]
    assert folder.align("reward", "likes", *more, *spread, "--config.optimizer.peak_lr=0.3") == 0
    return folder / "likes"


@pytest.mark.slow
def test_the_bias_of_a_reward_model_is_that_of_the_chosen_checkpoint(folder, likes):
    step = best(folder, "likes", "loss", min)
    assert step != max(steps(likes))
    scorer, words = score.load(likes)
    records = [json.loads(line) for line in (folder / "rated-few.jsonl").read_text().splitlines()]
    said = [(("user", record["prompt"]), ("assistant", record["response"])) for record in records]
    texts = [reward.ending(Chat(words), tuple({"role": r, "content": c} for r, c in each)) for each in said]
    assert np.mean(scorer(texts)) == pytest.approx(0, abs=1e-4)


@pytest.mark.slow
def test_by_a_reward_model(folder, likes):
    assert rated(folder, "by-reward", likes) == 0
    lines = folder.lines("by-reward", "evals.jsonl")
    assert len({line["reward"] for line in lines}) == len(lines)
    assert load_checkpoint(folder / "by-reward", one_device()).step == best(folder, "by-reward", "reward", max)
    note = json.loads((folder / "by-reward" / "reward_start.json").read_text())
    assert note["step"] == load_checkpoint(likes, one_device()).step


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.checkpoint.choose=best"], "config.checkpoint.choose='best' must be one of '', loss, reward"),
        (["--config.checkpoint.choose=reward"], "config.rl.reward='' must name what scores answers"),
        (["--config.checkpoint.choose=loss", "--config.eval.every_steps=0"], "config.eval.every_steps=0 must be more"),
        (
            ["--config.checkpoint.choose=reward", "--config.rl.reward={folder}/base", "--config.rl.response_tokens=8"],
            "is no reward model; `scaling align reward` trains one",
        ),
        (
            ["--config.checkpoint.choose=reward", "--config.rl.reward=exact_match", "--config.rl.response_tokens=32"],
            "config.rl.response_tokens=32 must be less than config.train.sequence_length=32",
        ),
        (
            ["--config.checkpoint.choose=loss", "--config.data.validation=", "--config.data.train={folder}/one.jsonl"],
            "one must be held out",
        ),
        (
            ["--config.checkpoint.choose=reward", "--config.rl.reward=exact_match", "--config.rl.response_tokens=31"],
            "no held-out prompt leaves room for config.rl.response_tokens=31",
        ),
    ],
)
def test_what_cannot_be_chosen_by_is_one_sentence_and_writes_nothing(folder, capsys, arguments, message):
    folder.write("one.jsonl", [{"prompt": "q", "response": "a"}])
    assert sft(folder, "none", *(argument.format(folder=folder) for argument in arguments)) == exit_codes.USAGE
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and not (folder / "none").exists()


def test_only_what_talks_is_chosen_by_rewards(folder, capsys):
    more = [f"--config.data.train={folder}/rated-few.jsonl", "--config.checkpoint.choose=reward"]
    assert folder.align("reward", "none", *more, "--config.rl.reward=exact_match") == exit_codes.USAGE
    assert "is nothing that `scaling align reward` validates; must be '' or 'loss'" in capsys.readouterr().err
    assert not (folder / "none").exists()
