"""How the next token is chosen: the knobs, and the choice itself."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_MOST = 1_000_000  # texts of one prompt: all are kept until the last is done


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How texts are continued.

    With ``beams`` > 1, beam search: nothing is drawn, ``num_samples`` best texts are returned, and temperature,
    top_k, top_p and repetition_penalty must be at their defaults.
    """

    tokens: int = 100  # new tokens at most
    temperature: float = 1.0  # of the softmax; 0 = always the most likely token
    top_k: int = 0  # only this many most likely tokens; 0 = all
    top_p: float = 1.0  # only the fewest most likely tokens that have this probability together
    repetition_penalty: float = 1.0  # divides positive, multiplies negative logits of tokens that occurred
    stop: tuple[str, ...] = ()  # a text ends before the first of these
    end_ids: tuple[int, ...] | None = None  # tokens that end a text; None = the tokenizer's end of text
    seed: int = 0  # a draw depends on it, on the number of the prompt, of the sample and of the token
    num_samples: int = 1  # texts a prompt
    beams: int = 1  # width of the beam search; 1 = none
    length_penalty: float = 1.0  # beam search: log-likelihoods are divided by length ** this
    early_stopping: bool = False  # beam search: ends once ``beams`` texts are complete, better ones possible or not

    def __post_init__(self) -> None:
        for name, right, fine in (
            ("tokens", "1 or more", self.tokens >= 1),
            # Smaller ones are flushed to 0 in float32, and logits divided by them are infinite.
            (
                "temperature",
                "0, or at least 1e-30 and at most 3e38",
                self.temperature == 0 or 1e-30 <= self.temperature <= 3e38,
            ),
            ("top_k", "0 or more", self.top_k >= 0),
            ("top_p", "in (0, 1]", 0 < self.top_p <= 1),
            ("repetition_penalty", "more than 0 and at most 3e38", 0 < self.repetition_penalty <= 3e38),
            ("stop", "texts that are not empty", all(self.stop)),
            ("seed", "in [0, 2^32)", 0 <= self.seed < 2**32),
            ("num_samples", f"1 to {_MOST:,}", 1 <= self.num_samples <= _MOST),
            ("beams", f"1 to {_MOST:,}", 1 <= self.beams <= _MOST),
            ("length_penalty", "a finite number", math.isfinite(self.length_penalty)),
        ):
            if not fine:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {right}")
        if self.beams == 1:
            return
        for name in ("temperature", "top_k", "top_p", "repetition_penalty"):
            value = getattr(self, name)
            if value != type(self).__dataclass_fields__[name].default:
                raise ValueError(f"beam search draws nothing: {name}={value} and beams={self.beams} exclude each other")
        if self.num_samples > self.beams:
            raise ValueError(f"num_samples={self.num_samples} must be at most beams={self.beams}")


class Rules(NamedTuple):
    """What is compiled into a program."""

    vocab: int  # ids from here on are never chosen: ``next_logits`` makes them -inf
    ends: int  # how many tokens end a text
    greedy: bool
    top_k: int
    nucleus: bool
    penalised: bool


class Dials(NamedTuple):
    """Numbers that a program takes as arguments, so that another value needs no compilation.

    Temperature and top-p may be arrays with a number for each row: [B, 1] and [B].
    """

    temperature: float | jax.Array
    top_p: float | jax.Array
    repetition_penalty: float
    end_ids: np.ndarray  # int32 [ends]


def rules(sampling: Sampling, vocab: int, eot: int | None) -> tuple[Rules, Dials]:
    """What of the knobs is static, and the rest."""
    end_ids = sampling.end_ids if sampling.end_ids is not None else () if eot is None else (eot,)
    greedy = sampling.temperature == 0
    static = Rules(
        vocab=vocab,
        ends=len(end_ids),
        greedy=greedy,
        top_k=0 if greedy or sampling.top_k >= vocab else sampling.top_k,
        nucleus=not greedy and sampling.top_p < 1,
        penalised=sampling.repetition_penalty != 1,
    )
    return static, Dials(
        sampling.temperature or 1.0, sampling.top_p, sampling.repetition_penalty, np.asarray(end_ids, np.int32)
    )


def choose(logits: jax.Array, keys: jax.Array, rules: Rules, dials: Dials, seen: jax.Array | None = None) -> jax.Array:
    """One token a row; the order of the steps is Hugging Face's: penalty, temperature, top-k, top-p.

    Args:
        logits: float32 [B, V]; -inf = never.
        keys: a random key for each row [B].
        rules: what is static.
        dials: the rest.
        seen: which tokens occurred, bool [B, V], where repetition is penalised (arXiv 1909.05858, section 4.1).

    Returns:
        int32 [B].
    """
    logits = _penalised(logits, rules, dials, seen)
    if rules.greedy:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    logits, candidates = _candidates(logits, rules, dials)
    drawn = jax.vmap(jax.random.categorical)(keys, logits)  # its parts of a sharded vocabulary stay where they are
    if candidates is not None:
        drawn = jnp.take_along_axis(candidates, drawn[:, None], axis=-1)[:, 0]
    return drawn.astype(jnp.int32)


def drawn_from(keys: jax.Array, shares: jax.Array) -> jax.Array:
    """Draws an index of each row with the probability of its share: the first at which their sum exceeds a number.

    ``jax.random.categorical`` makes a random number for each index instead of one for each row, which takes 4 times as
    long on a CPU (docs/notes/cpu_decoding.md). But sums over a sharded vocabulary need all of it on each device.

    Args:
        keys: a random key for each row [B].
        shares: float32 [B, V], none below 0 and some above; they need not add up to 1.

    Returns:
        int32 [B].
    """
    sums = jnp.cumsum(shares, axis=-1)
    number = jax.vmap(jax.random.uniform)(keys)[:, None] * sums[:, -1:]
    right = (sums > number) & (shares > 0)  # sums are rounded, and may exceed the number before something is added
    first = jnp.argmax(right, axis=-1)
    return jnp.where(right.any(-1), first, jnp.argmax(shares, axis=-1)).astype(jnp.int32)


def weighed(logits: jax.Array, rules: Rules, dials: Dials, seen: jax.Array | None = None) -> jax.Array:
    """Logits [B, V] whose softmax is the distribution that ``choose`` draws from; greedy, whose largest it takes.

    Arguments are those of ``choose``. Tokens that are never drawn have -inf.
    """
    logits = _penalised(logits, rules, dials, seen)
    if rules.greedy:
        return logits
    kept, candidates = _candidates(logits, rules, dials)
    if candidates is None:
        return kept
    return jnp.full_like(logits, -jnp.inf).at[jnp.arange(len(logits))[:, None], candidates].set(kept)


def _penalised(logits: jax.Array, rules: Rules, dials: Dials, seen: jax.Array | None) -> jax.Array:
    if not rules.penalised:
        return logits
    assert seen is not None
    lowered = jnp.where(logits > 0, logits / dials.repetition_penalty, logits * dials.repetition_penalty)
    return jnp.where(seen, lowered, logits)


def _candidates(logits: jax.Array, rules: Rules, dials: Dials) -> tuple[jax.Array, jax.Array | None]:
    """Logits of the tokens that may be drawn [B, C], and their ids [B, C]; None = all tokens, in order."""
    logits = logits / dials.temperature
    candidates = None
    if rules.top_k:
        logits, candidates = jax.lax.top_k(logits, rules.top_k)
    if rules.nucleus:
        logits = jnp.where(_in_nucleus(jax.nn.softmax(logits, axis=-1), dials.top_p), logits, -jnp.inf)
    return logits, candidates


def _in_nucleus(probabilities: jax.Array, top_p: float | jax.Array) -> jax.Array:
    """Whether each token is among the fewest most likely ones that have ``top_p`` together; bool [B, V].

    Finds the least probability by bisection over its bits, which are ordered as the numbers are: on a CPU a sort of
    64 rows of 4,096 took 41 ms, this 2.5 ms.
    """
    bits = jax.lax.bitcast_convert_type(probabilities, jnp.int32)

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends  # the tokens from ``low`` up have enough together, those from ``high`` up have not
        middle = low + (high - low) // 2
        enough = jnp.where(bits >= middle[:, None], probabilities, 0).sum(-1) >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    top = bits.max(-1)
    low, _ = jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(top), top + 1))
    return bits >= low[:, None]


def row_keys(seed: int, prompts: jax.Array, samples: jax.Array) -> jax.Array:
    """A random key for each row [B], from the numbers of its prompt and of its sample: never of its batch."""

    def key(prompt: jax.Array, sample: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(np.uint32(seed)), prompt), sample)

    return jax.vmap(key)(prompts, samples)
