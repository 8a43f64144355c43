"""The plan of an iteration of PPO and GRPO, compiled for virtual devices of this machine."""

import dataclasses

import jax
import pytest

from scaling.catalog import chips
from scaling.config import schema as cfg
from scaling.config.resolve import resolve
from scaling.plan import plan
from scaling.plan.iteration import compile_iteration
from tests import tiny

ROWS, LENGTH = 16, 16


def config(**rl):
    learning = cfg.Reinforcement(**{"reward": "exact_match", "response_tokens": 8, "minibatches": 2} | rl)
    made = cfg.Config(
        workdir="x",
        model=tiny.model(),
        compute=cfg.Compute(dtype="float32"),
        train=cfg.Train(sequence_length=LENGTH, batch_tokens=ROWS * LENGTH, microbatch_sequences=8),
        mesh=cfg.Mesh(fsdp=4, tensor=2),
        rl=learning,
    )
    return resolve(made, tiny.VOCAB, 8)


@pytest.mark.slow
@pytest.mark.parametrize("critic", [True, False], ids=["ppo", "grpo"])
def test_an_iteration_has_memory_by_model_and_time_by_part(critic):
    made = config(**({"pretraining": "books", "pretraining_rows": 2} if critic else {"samples": 4}))
    reward = tiny.model(num_layers=4) if critic else None
    chip = chips.find("v5p")
    found = compile_iteration(made, reward, critic, chip, jax.devices())
    memory = found.memory
    assert memory["its optimizer"] == pytest.approx(2 * memory["policy"], rel=0.01)  # two moments
    assert memory["reference"] == memory["its mean"] == memory["policy"]
    parts = {"rollout, prompts", "rollout, answers", "log-probabilities, twice", "update of the policy"}
    if critic:
        assert memory["value"] == memory["reward"] > memory["policy"]
        parts |= {"reward", "values", "update of the value function"}
    assert found.seconds.keys() == parts and all(seconds > 0 for seconds in found.seconds.values())
    assert found.tokens == ROWS * LENGTH and memory["what a program needs beside"] > 0


def test_the_model_of_a_reward_is_that_of_an_experiment_or_there_is_none():
    assert plan.reward_model(config()) is None
    rl = dataclasses.replace(config().rl, reward="experiments/gpt3/125m.py")
    found = plan.reward_model(dataclasses.replace(config(), rl=rl))
    assert found.d_model == 768 and found.d_ff == 3072 and found.vocab_size == tiny.VOCAB


def test_an_iteration_that_cannot_be_is_refused_before_anything_is_compiled():
    for step, wrong, rl in (
        ("ppo", "config.rl.response_tokens=16", {"response_tokens": 16}),
        ("ppo", "config.rl.reward", {"reward": ""}),
        ("grpo", "config.rl.samples=1 must be at least 2", {"samples": 1}),
    ):
        with pytest.raises(ValueError, match=wrong):
            plan.compiled(config(**rl), "v5e:2x4", 1, step)
    with pytest.raises(FileNotFoundError, match="there is no reward nowhere"):
        plan.compiled(config(reward="nowhere"), "v5e:2x4", 1, "ppo")


def test_a_plan_is_kept_by_the_size_of_the_reward_and_not_by_its_name_alone():
    small, large = (plan._cache_path(config(), "v5e:2x4", 1, "ppo", tiny.model(num_layers=n)) for n in (2, 4))
    assert small != large
