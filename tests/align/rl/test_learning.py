"""``scaling align ppo`` and ``grpo`` by their command line."""

import json
import logging
import re

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from scaling import cli, exit_codes
from scaling.align.rl.judges import Named, by_model
from scaling.align.rl.prompts import data
from scaling.align.rl.texts import left_aligned
from scaling.align.score import load as load_scorer
from scaling.config import schema as cfg
from scaling.data import tokenizer
from scaling.data.chat.template import Chat
from scaling.runs.bias import read_bias
from scaling.runs.model import load_run
from scaling.runs.start import Start

REWARD = "def count(records, answers):\n    return [answer.count('e') / 4 for answer in answers]\n"
BAD = "def count(records, answers):\n    return [float('nan') for answer in answers]\n"
# 16 answers of at most 8 tokens to 16 prompts, or to 4 of them
KNOBS = ["--config.rl.response_tokens=8", "--config.train.batch_tokens=512", "--config.align.epochs=8"]


@pytest.fixture(scope="module", autouse=True)
def prompts(folder):
    random = np.random.default_rng(0)
    folder.write("p.jsonl", [{"prompt": "".join(random.choice([*"abcd"], 5)), "answer": "a"} for _ in range(20)])
    (folder / "r.py").write_text(REWARD)
    (folder / "bad.py").write_text(BAD)


def learns(folder, kind, name, *arguments):
    reward, data = f"--config.rl.reward={folder}/r.py:count", f"--config.data.train={folder}/p.jsonl"
    more = ["--config.rl.samples=4"] if kind == "grpo" else ["--config.rl.minibatches=2"]
    return folder.align(kind, name, reward, data, "--config.optimizer.peak_lr=0.003", *KNOBS, *more, *arguments)


@pytest.fixture(scope="module")
def ppo(folder):
    """The run ``ppo``."""
    assert learns(folder, "ppo", "ppo", f"--config.rl.pretraining={folder}/text.txt") == 0
    return folder / "ppo"


@pytest.fixture(scope="module", autouse=True)
def text(folder):
    """Pre-training text."""
    (folder / "text.txt").write_text("the cat sat on the mat. " * 200)


def comparable(lines):
    """What of the lines must be the same in two runs."""
    timed = re.compile("time/|seconds|per_second|mfu|goodput")
    return [{name: value for name, value in line.items() if not timed.search(name)} for line in lines]


NAMES = """
    objective/kl objective/entropy objective/non_score_reward objective/rlhf_reward objective/scores
    policy/approxkl_avg policy/clipfrac_avg policy/entropy_avg loss/policy_avg loss/value_avg loss/pretraining_avg
    val/clipfrac_avg val/ratio val/ratio_var val/num_eos_tokens time/rollout time/scoring time/update
    rollout_tokens_per_second
"""


@pytest.mark.slow
def test_the_usual_metrics_and_what_holds_before_the_first_update(folder, ppo):
    (first, *_, last) = folder.lines("ppo")
    assert set(NAMES.split()) <= first.keys()
    assert first["objective/kl"] == 0 and first["objective/non_score_reward"] == 0 and last["objective/kl"] != 0
    assert sum(first[f"time/{part}"] for part in ("rollout", "scoring", "update")) == pytest.approx(1, abs=1e-5)
    (*_, validated) = folder.lines("ppo", "evals.jsonl")
    assert validated["pretraining_loss"] > 0 and validated["loss"] == -validated["objective/rlhf_reward"]
    assert {line["step"] for line in folder.lines("ppo", "answers.jsonl")} == {last["step"]}


@pytest.mark.slow
def test_grpo_learns_what_the_function_rewards(folder):
    """With one update an iteration, each is that of the policy that gave the answers, so all ratios are 1."""
    assert learns(folder, "grpo", "grpo", "--config.optimizer.peak_lr=0.01", "--config.rl.kl_in=loss") == 0
    lines = folder.lines("grpo")
    scores = [line["objective/scores"] for line in lines]
    assert np.mean(scores[-5:]) > 2 * np.mean(scores[:5])
    # The divergence is in the loss and not in the reward, in both files.
    assert all(line["objective/rlhf_reward"] == line["objective/scores"] for line in lines)
    (*_, last) = folder.lines("grpo", "evals.jsonl")
    assert last["objective/rlhf_reward"] == last["objective/scores"]
    assert last["loss"] == pytest.approx(0.02 * last["objective/kl"] - last["objective/scores"], rel=1e-6)
    for line in lines:
        assert line["val/ratio"] == pytest.approx(1, abs=1e-5) and line["policy/clipfrac_avg"] == 0


@pytest.mark.slow
def test_answers_are_shown_without_their_ends(folder, talker):
    more = [f"--config.start={talker}", "--config.align.epochs=1", "--config.optimizer.peak_lr=1e-6"]
    assert learns(folder, "grpo", "talked", *more) == 0
    (*_, validated), answers = (folder.lines("talked", name) for name in ("evals.jsonl", "answers.jsonl"))
    assert validated["val/num_eos_tokens"] > 12 and len(answers) == 4  # of 16 answers
    assert all(len(line["answer"]) < 8 and "<|end" not in line["answer"] for line in answers)


@pytest.mark.slow
def test_the_run_is_the_policy_and_what_lies_beside_it_is_kept(folder, ppo, capsys):
    network, params = load_run(ppo)
    assert network.model.outputs == 0 and "head" not in params
    assert cli.main(["generate", str(ppo), "--prompt=ab", "--tokens=4"]) == 0
    capsys.readouterr()
    kept = json.loads((ppo / "start.json").read_text())
    assert kept["run"] == str(folder / "base")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rank", "epochs"), [("ppo", 2, 4), ("grpo", 0, 1)])  # four steps each
def test_a_run_that_is_cut_short_goes_on_to_the_same_numbers(folder, kind, rank, epochs):
    """With adapters (``rank`` > 0), too, whose reference is the base that they change."""
    more = [f"--config.rl.pretraining={folder}/text.txt", "--config.rl.kl_target=1", f"--config.align.epochs={epochs}"]
    every = [*more, "--config.checkpoint.every_steps=1", "--config.checkpoint.keep_last=99"]
    every += [f"--config.lora.rank={rank}"]
    assert learns(folder, kind, f"whole_{kind}{rank}", *every) == 0
    assert learns(folder, kind, f"cut_{kind}{rank}", *every) == 0
    first, *_, end = folder.lines(f"whole_{kind}{rank}")
    assert first["objective/kl"] == 0 != end["objective/kl"]
    last = end["step"]
    saved = folder / f"cut_{kind}{rank}" / "checkpoints"
    for step in range(3, last + 1):  # as after a kill in the third step
        (saved / f"{step:09d}" / "checksums-00000.json").unlink()
    assert learns(folder, kind, f"cut_{kind}{rank}", *every) == 0
    assert comparable(folder.lines(f"cut_{kind}{rank}")) == comparable(folder.lines(f"whole_{kind}{rank}"))
    whole, cut = (saved_state(folder / f"{name}_{kind}{rank}", last) for name in ("whole", "cut"))
    assert set(whole["beside"]) == {"kl", "ema"} | ({"value"} if kind == "ppo" else set())
    jax.tree.map(np.testing.assert_array_equal, whole, cut)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), whole["beside"]["ema"], whole["params"])
    assert max(jax.tree.leaves(moved)) > 0


def saved_state(run, step):
    """The trees of a checkpoint."""
    items = ocp.args.Composite(**{name: ocp.args.StandardRestore() for name in ("params", "optimizer", "beside")})
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as saver:
        return dict(saver.restore(run / "checkpoints" / f"{step:09d}", args=items).items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_microbatches_and_devices_change_nothing(folder, kind):
    names = {"plain": ("mesh.data=8",), "parts": ("train.microbatch_sequences=8",), "devices": ("mesh.fsdp=4",)}
    for name, knobs in names.items():
        more = [f"--config.{knob}" for knob in (*knobs, "align.epochs=4", "train.batch_tokens=1024")]
        assert learns(folder, kind, f"{kind}_{name}", *more) == 0
    plain = folder.lines(f"{kind}_plain")
    for name in ("parts", "devices"):
        for ours, theirs in zip(plain, folder.lines(f"{kind}_{name}"), strict=True):
            for metric in ("loss", "grad_norm", "objective/kl", "objective/scores", "objective/entropy"):
                assert ours[metric] == pytest.approx(theirs[metric], rel=1e-3, abs=1e-5), (name, metric)


@pytest.mark.slow
def test_a_second_reward_is_logged_at_each_validation_and_trains_nothing(folder, ppo):
    less = "def less(records, answers):\n    return [-answer.count('e') for answer in answers]\n"
    (folder / "gold.py").write_text(less)
    text = f"--config.rl.pretraining={folder}/text.txt"
    assert learns(folder, "ppo", "gold", text, f"--config.rl.gold={folder}/gold.py:less") == 0
    assert comparable(folder.lines("gold")) == comparable(folder.lines("ppo"))
    for line in folder.lines("gold", "evals.jsonl"):
        assert line["objective/gold"] == pytest.approx(-4 * line["objective/scores"], rel=1e-5, abs=1e-6)
    assert "objective/gold" not in folder.lines("ppo", "evals.jsonl")[-1]


@pytest.fixture(scope="module")
def judge(folder):
    """The run ``judge``, a reward model."""
    records = [{"prompt": "q", "chosen": "ee" * (1 + i % 2), "rejected": "zz"} for i in range(20)]
    path = folder.write("rl-pairs.jsonl", records)
    reward = ["--config.align.epochs=4", "--config.optimizer.peak_lr=0.003", f"--config.data.train={path}"]
    assert folder.align("reward", "judge", *reward) == 0
    return folder / "judge"


@pytest.mark.slow
def test_a_reward_model_reads_every_answer_at_an_end_of_turn(judge):
    scorer, words = load_scorer(judge)
    end = Chat(words).end
    prompts, starts = np.array([[0, 5], [6, 7]], np.int32), np.array([1, 0], np.int32)
    chosen = np.array([[8, end, -1], [9, 10, 11]], np.int32)  # the second was cut
    config = cfg.Config(compute=scorer.network.compute, train=cfg.Train(microbatch_sequences=2))
    with jax.set_mesh(scorer.mesh):
        texts = left_aligned(*map(jax.numpy.asarray, (prompts, starts, chosen)), (end,))
        found = by_model(str(judge), scorer.network.model, config, end, scorer.mesh)(scorer.params, texts, None, None)
    expected = scorer([np.array(ids, np.int32) for ids in ([5, 8, end], [6, 7, 9, 10, end])])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_a_reward_model_scores_and_is_what_the_value_function_begins_with(folder, judge):
    assert learns(folder, "ppo", "judged", f"--config.rl.reward={folder}/judge", "--config.align.epochs=2") == 0
    kept = json.loads((folder / "judged" / "reward_start.json").read_text())
    assert kept["run"] == str(folder / "judge") and len(kept["digest"]) == 64 and kept["bias"] == read_bias(judge)
    (first, *_) = folder.lines("judged")
    assert np.isfinite(first["objective/scores"]) and first["objective/kl"] == 0
    assert learns(folder, "ppo", "second", f"--config.rl.gold={folder}/judge", "--config.align.epochs=2") == 0
    kept = json.loads((folder / "second" / "gold_start.json").read_text())
    (*_, judged), (*_, second) = (folder.lines(name, "evals.jsonl") for name in ("judged", "second"))
    assert kept["run"] == str(folder / "judge") and np.isfinite(second["objective/gold"])
    assert set(second) - set(judged) == {"objective/gold"}


@pytest.mark.slow
def test_another_bias_than_at_the_start_and_another_system_message_are_said(folder, judge, caplog):
    """A run that is resumed must be rewarded as before; ``reward.json`` is no part of the checkpoint's digest."""
    run, bias = folder / "biased", judge / "reward.json"
    config = cfg.Config(
        start=str(folder / "base"),
        workdir=str(run),
        rl=cfg.Reinforcement(reward=str(judge)),
        train=cfg.Train(sequence_length=32),
        chat=cfg.Chat(system="Be kind."),
    )
    logging.getLogger("scaling").propagate = True
    named = Named("rl.reward", config, tokenizer.load("bytes+chat"))
    assert "was trained with config.chat.system='', and reads the answers of this run with 'Be kind.'" in caplog.text
    run.mkdir()
    named.start.note(run)
    before = bias.read_text()
    Named("rl.reward", config, tokenizer.load("bytes+chat"))
    try:
        bias.write_text(json.dumps(json.loads(before) | {"bias": 7.5}))
        with pytest.raises(ValueError, match=r"config\.rl\.reward=.* adds 7\.5 to its numbers now, and must add"):
            Start.of(config, run, "rl.reward")
        old = json.loads((run / "reward_start.json").read_text())
        del old["bias"]  # as runs of before have it
        (run / "reward_start.json").write_text(json.dumps(old))
        assert Start.of(config, run, "rl.reward").bias is None
    finally:
        bias.write_text(before)


def test_a_prompt_without_room_for_an_answer_is_left_out_aloud(folder, caplog):
    path = folder.write("long.jsonl", [{"prompt": "a"}, {"prompt": "a" * 30}, {"prompt": "b"}])
    config = cfg.Config(
        data=cfg.Data(train=path, validation_fraction=0.5),
        train=cfg.Train(sequence_length=32, batch_tokens=32, microbatch_sequences=1),
        rl=cfg.Reinforcement(reward="exact_match", response_tokens=8),
    )
    found = data(config, tokenizer.load("bytes+chat"))
    assert [prompt.where.rpartition(":")[2] for prompt in found.training.prompts] == ["1", "3"]


def test_the_same_prompts_follow_one_another_for_a_group(folder):
    config = cfg.Config(
        data=cfg.Data(train=str(folder / "p.jsonl"), validation_fraction=0.5),
        train=cfg.Train(sequence_length=32, batch_tokens=32 * 8, microbatch_sequences=8),
        rl=cfg.Reinforcement(reward="exact_match", response_tokens=8, samples=4),
    )
    stream = data(config, tokenizer.load("bytes+chat")).training
    numbers = [int(stream[i].number) for i in range(12)]
    assert all(len(set(numbers[i : i + 4])) == 1 for i in (0, 4, 8)) and len(set(numbers)) == 3
    assert stream.tokens == 10 * 4 * 32


@pytest.mark.parametrize(
    ("wrong", "knob"),
    [
        ("config.rl.reward", "rl.reward="),
        ("there is no reward", "rl.reward=nowhere"),
        ("there is no reward", "rl.gold=nowhere"),
        ("config.rl.response_tokens", "rl.response_tokens=32"),
        ("config.rl.minibatches", "rl.minibatches=3"),
        ("config.rl.samples", "rl.samples=3"),
        ("config.model.dropout_residual", "model.dropout_residual=0.1"),
        ("config.guard.recompute_every_steps", "guard.recompute_every_steps=2"),
        ("config.rl.temperature", "rl.temperature=0"),
        ("config.rl.kl_estimator", "rl.kl_estimator=k4"),
        ("config.mesh.context", "mesh.context=2"),
        ("config.optimizer.peak_lr", "optimizer.peak_lr=0"),
    ],
)
def test_mistakes_are_refused_and_nothing_is_written(folder, wrong, knob, capsys):
    assert learns(folder, "ppo", "wrong", f"--config.{knob}") == exit_codes.USAGE
    assert wrong in capsys.readouterr().err and not (folder / "wrong").exists()


def test_an_iteration_that_could_turn_the_coefficient_negative_is_refused(folder, capsys):
    assert learns(folder, "ppo", "wrong", "--config.rl.kl_target=1", "--config.rl.kl_horizon=3") == exit_codes.USAGE
    assert "config.rl.kl_horizon=3" in capsys.readouterr().err and not (folder / "wrong").exists()


def test_minibatches_that_the_devices_cannot_share_are_refused(folder, capsys):
    knobs = ["--config.mesh.data=8", "--config.rl.minibatches=4"]  # 4 answers for 8 devices
    assert learns(folder, "ppo", "wrong", *knobs) == exit_codes.USAGE
    assert "the 8 shards of the batch" in capsys.readouterr().err and not (folder / "wrong").exists()


def test_the_held_out_text_is_not_trained_on_where_validation_prompts_are_given(folder):
    def sequences(validation):
        config = cfg.Config(
            data=cfg.Data(train=str(folder / "p.jsonl"), validation=validation, validation_fraction=0.5),
            train=cfg.Train(sequence_length=32, batch_tokens=32, microbatch_sequences=1),
            rl=cfg.Reinforcement(reward="exact_match", response_tokens=8, pretraining=str(folder / "text.txt")),
        )
        return data(config, tokenizer.load("bytes+chat")).training.text.sequences

    assert 0 < sequences(str(folder / "p.jsonl")) == sequences("")


def test_grpo_needs_a_group(folder, capsys):
    assert learns(folder, "grpo", "wrong", "--config.rl.samples=1") == exit_codes.USAGE
    assert "config.rl.samples=1 must be at least 2" in capsys.readouterr().err


def test_a_reward_that_is_not_finite_ends_the_run_and_names_the_prompt(folder, capsys):
    assert learns(folder, "ppo", "nan", f"--config.rl.reward={folder}/bad.py:count") == exit_codes.USAGE
    assert re.search(r"p\.jsonl:\d+: the reward .* must be finite", capsys.readouterr().err)
