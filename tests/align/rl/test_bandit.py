"""Learning from rewards finds the optimum that theory knows, on 512 answers of one token, all of them enumerable."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.align.rl.iteration import Frozen, Iteration, Setting, of_value
from scaling.align.rl.prompts import Row
from scaling.config import schema as cfg
from scaling.config.resolve import resolve
from scaling.data import tokenizer
from scaling.model import decoder
from scaling.parallel.mesh import one_device
from scaling.train import state as train_state
from scaling.train.run import Data, Run

ANSWERS, KL = 512, 0.5
# A bias for each answer expresses every distribution.
MODEL = dict(
    context_length=4, num_layers=1, d_model=8, num_heads=1, logit_bias=True, vocab_multiple=8, positions="none"
)
REWARDS = np.random.default_rng(1).normal(size=ANSWERS).astype(np.float32)


class Words(type(tokenizer.load("bytes+chat"))):
    """Bytes with control tokens, and ids that stand for nothing, so that there are 512."""

    def __init__(self):
        self.__dict__.update(tokenizer.load("bytes+chat").__dict__)
        self.vocab_size = ANSWERS


def setup(tmp_path, iterations, rl, rows=512):
    words = Words()
    config = cfg.Config(
        workdir=str(tmp_path),
        model=dataclasses.replace(cfg.Model(), **MODEL),
        compute=cfg.Compute(dtype="float32", loss_chunk=0),
        train=cfg.Train(sequence_length=2, batch_tokens=2 * rows, tokens=2 * rows * iterations),
        optimizer=cfg.Optimizer(peak_lr=0.05, warmup_tokens=0, weight_decay=0.0, beta2=0.99, clip_norm=0.0),
        rl=rl,
    )
    config = resolve(config, words.vocab_size, 1, "bandit")
    return Run(config, tmp_path, words, Data(None, [], None), one_device())


def judge(params, texts, chosen, numbers):
    """The reward of the only token of each answer."""
    return jnp.asarray(REWARDS)[chosen[:, 0]]


def policy_of(params, run):
    """Log-probabilities of the answers."""
    model = decoder.merge(run.config.network, params)
    with jax.set_mesh(run.mesh):
        return np.asarray(jax.nn.log_softmax(model.logits(model(jnp.asarray([[7]])))[0, 0]), np.float64)


def learned(run, iterations, critic):
    """Log-probabilities after so many iterations, and of the reference."""
    mesh, config = run.mesh, run.config
    value = dataclasses.replace(config.model, outputs=1) if critic else None
    with jax.set_mesh(mesh):
        state = train_state.create_state(config, mesh)
        reference = jax.tree.map(jnp.copy, state["params"])
        beside = {"kl": jnp.float32(config.rl.kl)}
        if value:
            beside["value"] = train_state.create_state(of_value(config, value), mesh)
        state["beside"] = beside
        step = Iteration(Setting.of(run), judge, value, Frozen(reference, None), run)
        rows = config.train.batch_tokens // 2
        batch = Row(
            *(jnp.asarray(x, jnp.int32) for x in (np.full((1, rows, 1), 7), np.zeros((1, rows)), np.zeros((1, rows))))
        )
        metrics = []
        for i in range(iterations):
            state, seen = step(state, batch, np.float32(0.05 * (1 - i / iterations) ** 2), 1)
            metrics.append(seen)
    return policy_of(state["params"], run), policy_of(reference, run), metrics


def worth(found, reference):
    """The mean reward less the cost of the divergence, exactly."""
    odds = np.exp(found)
    return (odds * REWARDS).sum() - KL * (odds * (found - reference)).sum()


CASES = {
    "ppo": (True, cfg.Reinforcement(kl=KL, whiten="none", response_tokens=1, ema=0.0)),
    "ppo, whitened": (True, cfg.Reinforcement(kl=KL, response_tokens=1, ema=0.0, minibatches=2)),
    "grpo, divergence in the reward": (
        False,
        cfg.Reinforcement(kl=KL, response_tokens=1, ema=0.0, samples=64, by_spread=False),
    ),
    "grpo, divergence in the loss": (
        False,
        cfg.Reinforcement(
            kl=KL, response_tokens=1, ema=0.0, samples=64, by_spread=False, kl_in="loss", kl_estimator="k2"
        ),
    ),
}


@pytest.mark.slow  # hundreds of iterations
@pytest.mark.parametrize("case", CASES)
def test_the_optimum_is_that_of_the_closed_form(case, tmp_path):
    critic, rl = CASES[case]
    run = setup(tmp_path, 200, rl)
    found, reference, metrics = learned(run, 200, critic)
    best = KL * np.log((np.exp(reference) * np.exp(REWARDS / KL)).sum())
    start = worth(reference, reference)
    assert start < 0.5 * best  # so that 2 % means something
    assert worth(found, reference) == pytest.approx(best, rel=0.02)
    first = {name: float(value) for name, value in metrics[0].items()}
    assert first["objective/kl"] == 0 and first["objective/kl_coefficient"] == pytest.approx(KL)
    if rl.minibatches == 1:
        assert first["val/ratio"] == pytest.approx(1, abs=1e-6) and first["policy/clipfrac_avg"] == 0
