"""From scores of answers to advantages of tokens: pure functions of arrays.

Arrays are float32 [B, T] unless said otherwise. What stands at position t belongs to the state before token t + 1. The
mask is 1 where that token is one of the answer, a stretch without holes, and else 0. Where the mask is 0, inputs may
hold anything that is finite, and results are 0.
"""

import jax
import jax.numpy as jnp


def scored(scores: jax.Array, ended: jax.Array, rule: str, value: float) -> jax.Array:
    """Scores [B] of answers, of which some have no end within their room.

    Args:
        scores: of the answers.
        ended: whether each has its end, bool [B].
        rule: for those without an end, "keep" the score, "replace" it by the value, or "add" the value to it.
        value: of the rule.
    """
    if rule == "keep":
        return scores
    return jnp.where(ended, scores, value if rule == "replace" else scores + value)


def token_rewards(
    scores: jax.Array, log_probs: jax.Array, reference: jax.Array, mask: jax.Array, kl: jax.Array
) -> jax.Array:
    """The reward of each token: -kl * (log_probs - reference), and the score [B] at the answer's last token.

    InstructGPT, arXiv 2203.02155, equation 2; with the estimator k1 the sum over an answer is without bias.
    """
    rewards = -kl * jnp.where(mask > 0, log_probs - reference, 0.0)
    return rewards + last(mask) * scores[:, None]


def last(mask: jax.Array) -> jax.Array:
    """1 at the last token of each answer, else 0."""
    after = jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
    return ((mask > 0) & (after == 0)).astype(jnp.float32)


def gae(rewards: jax.Array, values: jax.Array, mask: jax.Array, gamma: float, decay: float) -> jax.Array:
    """Generalized advantage estimates (arXiv 1506.02438, equation 16); after the last token the value is 0.

    Args:
        rewards: of ``token_rewards``.
        values: of the states.
        mask: see the module.
        gamma: discount of rewards.
        decay: lambda.
    """
    rewards, values = (jnp.where(mask > 0, x, 0.0) for x in (rewards, values))
    after = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))  # 0 where the mask ends
    errors = (rewards + gamma * after - values) * mask

    def step(later: jax.Array, here: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        error, inside = here
        advantage = (error + gamma * decay * later) * inside
        return advantage, advantage

    _, found = jax.lax.scan(step, jnp.zeros_like(errors[:, 0]), (errors.T, mask.T), reverse=True)
    return found.T


def whitened(x: jax.Array, mask: jax.Array, variance: str) -> jax.Array:
    """Numbers with the mean 0 and the variance 1 over the mask.

    Args:
        x: numbers.
        mask: see the module.
        variance: "population" divides by the count, "sample" by one less; "none" leaves the numbers as they are.
    """
    x = jnp.where(mask > 0, x, 0.0)
    if variance == "none":
        return x
    count = jnp.maximum(mask.sum(), 1)
    centred = jnp.where(mask > 0, x - x.sum() / count, 0.0)
    freedom = jnp.maximum(count - 1, 1) if variance == "sample" else count
    return centred * jax.lax.rsqrt(jnp.square(centred).sum() / freedom + 1e-8)


def group_advantages(scores: jax.Array, group: int, by_spread: bool) -> jax.Array:
    """Advantages [B] of answers within their groups, ``group`` answers of a prompt after one another.

    Args:
        scores: [B].
        group: at least 2.
        by_spread: divide by the group's standard deviation (GRPO, arXiv 2402.03300, section 4.1.2), or not (Dr. GRPO,
            arXiv 2503.20783), because that weighs prompts by how sure they are.

    Returns:
        Float32 [B]; 0 in groups whose scores are all the same.
    """
    grouped = scores.reshape(-1, group)
    centred = grouped - grouped.mean(1, keepdims=True)
    same = (grouped == grouped[:, :1]).all(1, keepdims=True)
    centred = jnp.where(same, 0.0, centred)
    if by_spread:
        centred = centred / (jnp.sqrt(jnp.square(centred).sum(1, keepdims=True) / (group - 1)) + 1e-4)
    return centred.reshape(-1)


def next_kl(kl: jax.Array, observed: jax.Array, target: float, answers: int, horizon: float) -> jax.Array:
    """The coefficient of the next iteration: larger if the divergence is above its target (arXiv 1909.08593, 2.2).

    Args:
        kl: present coefficient, scalar.
        observed: mean divergence of an answer, in nats.
        target: for it; 0 = the coefficient stays.
        answers: of an iteration.
        horizon: answers over which a persistent error of a fifth changes the coefficient by that fifth.
    """
    if not target:
        return kl
    error = jnp.clip(observed / target - 1, -0.2, 0.2)
    return kl * (1 + error * answers / horizon)
