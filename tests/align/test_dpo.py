"""``scaling align dpo`` by its command line: from pairs of answers to a policy, beside a reference that stays."""

import json
import math
import shutil

import numpy as np
import pytest

from scaling import cli, exit_codes
from scaling.align import dpo
from scaling.config import schema as cfg
from scaling.data import tokenizer
from scaling.data.chat import comparisons
from scaling.data.chat.dialogues import Skipped
from scaling.data.chat.template import Chat

NAMES = [
    *("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"),
    *("logps/chosen", "logps/rejected", "nll_loss"),
]


@pytest.fixture(scope="module", autouse=True)
def prompts(folder):
    """Pairs of which people prefer the answer with more letters a."""
    random = np.random.default_rng(0)
    records = []
    for _ in range(96):
        better, worse = ("".join(random.choice(["a", "z"], p=[q, 1 - q], size=5)) for q in (0.8, 0.2))
        if better.count("a") <= worse.count("a"):
            better, worse = "aaaaa", "zzzzz"
        records.append({"prompt": "q", "chosen": better, "rejected": worse})
    folder.write("p.jsonl", records)


def preferred(folder, name, *arguments):
    more = [f"--config.data.train={folder}/p.jsonl", "--config.align.epochs=4", "--config.dpo.nll=0.2"]
    return folder.align("dpo", name, *more, "--config.optimizer.peak_lr=0.003", *arguments)


@pytest.fixture(scope="module")
def trained(folder):
    """The run ``dpo``."""
    assert preferred(folder, "dpo", "--config.eval.every_steps=5", "--config.data.validation_fraction=0.1") == 0
    return folder / "dpo"


@pytest.mark.slow
def test_it_learns_what_people_prefer_and_says_what_becomes_of_the_answers(folder, trained, capsys):
    lines, evals = folder.lines("dpo"), folder.lines("dpo", "evals.jsonl")
    for line in (*lines, *evals):
        assert set(NAMES) < line.keys()
        assert line["rewards/margins"] == pytest.approx(line["rewards/chosen"] - line["rewards/rejected"], abs=1e-5)
    assert evals[-1]["loss"] < 0.6 and evals[-1]["rewards/accuracies"] > 0.9 and len(evals) > 1
    assert evals[-1]["logps/rejected"] < evals[0]["logps/rejected"] < 0
    assert evals[-1]["eval_tokens"] == 4  # pairs, of 8 rows
    assert cli.main(["generate", str(trained), "--prompt=q", "--tokens=3", "--temperature=0"]) == 0


@pytest.mark.slow
def test_before_the_first_update_the_loss_is_log_2(folder, trained):
    first = folder.lines("dpo")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/chosen"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_the_run_says_what_its_reference_is(folder, trained):
    noted = json.loads((trained / "start.json").read_text())
    assert noted["run"] == str(folder / "base") and noted["step"] == 20 and len(noted["digest"]) == 64


@pytest.mark.slow
def test_a_run_that_is_cut_short_goes_on_to_the_same_curve_with_the_same_reference(folder, trained):
    saves = ["--config.checkpoint.every_steps=4", "--config.checkpoint.keep_last=100"]
    whole = ["--config.eval.every_steps=5", "--config.data.validation_fraction=0.1"]
    assert preferred(folder, "dpo_cut", *whole, *saves) == 0
    for step in sorted((folder / "dpo_cut" / "checkpoints").iterdir())[1:]:
        shutil.rmtree(step)
    assert preferred(folder, "dpo_cut", *whole, *saves) == 0
    for name in ("loss", "rewards/chosen", "logps/chosen"):
        assert [line[name] for line in folder.lines("dpo_cut")] == [line[name] for line in folder.lines("dpo")]


@pytest.mark.slow
def test_microbatches_and_devices_change_nothing(folder):
    knobs = {
        "plain": "train.microbatch_sequences=16",
        "parts": "train.microbatch_sequences=8",  # on 8 devices, so that the rows of a pair are on two
        "devices": "mesh.fsdp=4",
        "vocabulary": "mesh.tensor=2",
        "stages": "mesh.stage=2",
    }
    for name, knob in knobs.items():
        assert preferred(folder, f"dpo_{name}", f"--config.{knob}", "--config.align.epochs=2") == 0
        for metric in ("loss", *NAMES):
            found, wanted = ([line[metric] for line in folder.lines(f"dpo_{which}")] for which in (name, "plain"))
            # Rounding grows from step to step; rewards begin as differences of equal numbers.
            np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_a_reference_that_has_changed_is_refused(folder, capsys):
    shutil.copytree(folder / "base", folder / "dpo_parent")
    start = f"--config.start={folder}/dpo_parent"
    assert preferred(folder, "dpo_child", start, "--config.align.epochs=1") == 0
    for file in (folder / "dpo_parent" / "checkpoints").rglob("*"):
        if file.is_file() and "checksums" in file.name:
            file.write_text(file.read_text() + "\n")
    # The run has its own weights already, so that only its reference is read from the parent.
    assert preferred(folder, "dpo_child", start, "--config.align.epochs=1") == exit_codes.USAGE
    assert "or another one" in capsys.readouterr().err


def made(folder, records, skipped=None, room=64, **knobs):
    """The pairs of records, as lists of (what the row counts, all its text)."""
    words = tokenizer.load("bytes+chat")
    config = cfg.Config(train=cfg.Train(sequence_length=room), dpo=cfg.Dpo(**knobs), align=cfg.Align(completions=9))
    skipped = skipped or Skipped(refuses=True)
    found = []
    for comparison in comparisons.read(folder.write("s.jsonl", records), skipped, 9):
        for pair in dpo.pairs(comparison, Chat(words), config, skipped):
            texts = []
            for row in pair:
                counted, last = row.weights > 0, int(np.flatnonzero(row.weights)[-1])
                whole = np.concatenate([row.tokens[: last + 1], row.targets[last : last + 1]])
                texts.append((words.decode(row.targets[counted]), words.decode(whole)))
            found.append(texts)
    return found


def test_the_last_answer_alone_counts_with_its_end_of_turn(folder):
    turns = [("user", "q"), ("assistant", "old"), ("user", "r")]
    messages = [{"role": role, "content": content} for role, content in turns]
    ((chosen, rejected),) = made(folder, [{"messages": messages, "completions": ["no", "yes"], "ranks": [2, 1]}])
    before = "<|endoftext|><|user|>q<|end|><|assistant|>old<|end|><|user|>r<|end|><|assistant|>"
    assert [chosen[0], rejected[0]] == ["yes<|end|>", "no<|end|>"]
    assert [chosen[1], rejected[1]] == [f"{before}yes<|end|>", f"{before}no<|end|>"]


RANKING = {"prompt": "q", "completions": ["c", "a", "b", "b2"], "ranks": [3, 1, 2, 2]}


def test_a_ranking_is_all_its_pairs_or_the_best_against_the_worst(folder, caplog):
    answers = [[row[0][:-7] for row in pair] for pair in made(folder, [RANKING])]
    assert answers == [["a", "b"], ["a", "b2"], ["a", "c"], ["b", "c"], ["b2", "c"]]
    assert "s.jsonl:1: completions that tie make no pair" in caplog.text
    ((best, worst),) = made(folder, [RANKING], pairs="best_worst")
    assert best[0] == "a<|end|>" and worst[0] == "c<|end|>"


def test_both_answers_of_a_long_dialogue_lose_the_same_turns(folder, caplog):
    turns = [("user", "first"), ("assistant", "one"), ("user", "r")]
    messages = [{"role": role, "content": content} for role, content in turns]
    record = {"messages": messages, "completions": ["y", "n" * 12], "ranks": [1, 2]}
    ((chosen, rejected),) = made(folder, [record], room=24)
    assert chosen[1] == "<|endoftext|><|user|>r<|end|><|assistant|>y<|end|>"
    assert rejected[1] == f"<|endoftext|><|user|>r<|end|><|assistant|>{'n' * 12}<|end|>"
    assert "the oldest turns of its prompt are left out" in caplog.text
    assert made(folder, [record], room=12) == []
    assert "left out: fewer than two completions of different ranks fit 12 tokens" in caplog.text


def other_prompts():
    turns = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}] for _ in range(2)]
    turns[1][0]["content"] = "another"
    return {"chosen": turns[0], "rejected": turns[1]}


FAULTY = {
    "answer different prompts": other_prompts(),
    "all completions are ties": {"prompt": "q", "completions": ["a", "b"], "ranks": [2, 2]},
    "a response is empty": {"prompt": "q", "chosen": "a", "rejected": " "},
    "only one completion": {"prompt": "q", "completions": ["a"], "ranks": [1]},
}


@pytest.mark.parametrize("fault", FAULTY)
def test_faulty_records_are_refused_or_skipped_and_counted(folder, fault):
    records = [{"prompt": "q", "chosen": "a", "rejected": "z"}, FAULTY[fault]]
    with pytest.raises(ValueError, match=rf"s\.jsonl:2: .*{fault}"):
        made(folder, records)
    skipped = Skipped(refuses=False)
    assert len(made(folder, records, skipped)) == 1 and sum(skipped.counts.values()) == 1


def test_equal_answers_are_left_out_aloud(folder, caplog):
    assert made(folder, [{"prompt": "q", "chosen": "a", "rejected": "a"}]) == []
    assert "s.jsonl:1: completions that are equal make no pair" in caplog.text


MISTAKES = {
    "config.train.microbatch_sequences=1": ["--config.train.microbatch_sequences=1"],
    "config.eval.tokens=32": ["--config.eval.tokens=32"],
    "config.dpo.beta=0.0": ["--config.dpo.beta=0"],
    "config.dpo.loss='hinge'": ["--config.dpo.loss=hinge"],
    "config.dpo.pairs='some'": ["--config.dpo.pairs=some"],
    "config.dpo.label_smoothing=0.5": ["--config.dpo.label_smoothing=0.5"],
    "no pair fits": ["--config.train.sequence_length=4", "--config.train.batch_tokens=64"],
    "no file matches": ["--config.data.train={0}/none.jsonl"],
    "needs --config.start": ["--config.start="],
}


@pytest.mark.parametrize("wrong", MISTAKES)
def test_mistakes_are_refused_and_nothing_is_written(folder, wrong, capsys):
    assert preferred(folder, "wrong", *[word.format(folder) for word in MISTAKES[wrong]]) == exit_codes.USAGE
    assert wrong in capsys.readouterr().err and not (folder / "wrong").exists()
