"""Speculative decoding: a small model, the draft, proposes tokens, and the model checks several in one pass.

The rule is that of Leviathan et al. (arXiv 2211.17192, algorithm 1) and Chen et al. (arXiv 2302.01318, algorithm 2): a
proposed token x is accepted with the probability min(1, p(x) / q(x)), p by the model and q by the draft, both after
penalty, temperature, top-k and top-p. The first one that is not is replaced by a draw from max(0, p - q), normalized.
If all are accepted, one more token is drawn from p, which the pass has computed, too. So a text has the distribution
that it has without a draft. Greedy tokens are accepted where they are the model's, so the text is the same.

A draft may have a part of the model's vocabulary (``Vocabulary``). All other tokens have the probability 0 in it, and
the rule holds as before: they come from the rest of p.

As in ``decode`` the whole loop runs on the device. Rows accept different numbers of tokens, so each row has its own
slot in the caches. What a cache holds beyond the accepted tokens is not seen, and is overwritten by the next round.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaling.config import schema as cfg
from scaling.generate import decode
from scaling.generate.sampling import Dials, Rules, drawn_from, weighed
from scaling.model import decoder, kv_cache
from scaling.parallel.sharding import constrain


class Program(NamedTuple):
    """What is static in the compiled programs."""

    network: cfg.Network
    draft: cfg.Network
    rules: Rules  # of both models
    room: int  # tokens of a text, N
    proposed: int  # tokens that the draft proposes in a round, K


class Vocabulary(NamedTuple):
    """What a draft with a part of the model's vocabulary has of it; the last id of the draft stands for the rest."""

    ids: jax.Array | np.ndarray  # of the model, that the draft's first n ids stand for, int32 [n]
    places: jax.Array | np.ndarray  # of the draft, by which it reads the model's ids, int32 [V]

    @classmethod
    def of(cls, ids: np.ndarray, size: int) -> "Vocabulary":
        """That of ids of a model, int32 [n], whose vocabulary has so many; numpy arrays."""
        places = np.full(size, len(ids), np.int32)
        places[ids] = np.arange(len(ids))
        return cls(ids, places)


class Params(NamedTuple):
    """Parameters of both models, from ``kv_cache.split_layers``."""

    model: decoder.Params
    draft: decoder.Params
    vocabulary: Vocabulary | None = None  # of the draft; None = the model's

    def read_by_draft(self, ids: jax.Array) -> jax.Array:
        """The draft's ids of the model's."""
        return ids if self.vocabulary is None else self.vocabulary.places[ids]


class State(NamedTuple):
    """What the loop carries; a round may end up to K tokens after the text."""

    length: jax.Array  # tokens chosen so far, int32 [B]
    chosen: jax.Array  # int32 [B, N + K]; -1 where nothing was chosen
    recent: jax.Array  # the last two tokens of prompt and text, int32 [B, 2]
    done: jax.Array  # bool [B]
    passes: jax.Array  # of the model over the row, that over the prompt included, int32 [B]
    seen: jax.Array | None  # tokens of prompt and continuation, bool [B, W], if repetition is penalised
    cache: kv_cache.Cache
    draft_cache: kv_cache.Cache


# Of the draft: its state after the last token, its cache, and the tokens that it has seen.
_Reading = tuple[jax.Array, kv_cache.Cache, jax.Array | None]


class _Proposals(NamedTuple):
    """What the draft proposes, in the order of the text."""

    ids: jax.Array  # int32 [B, K]
    shares: jax.Array | None  # probabilities of all tokens, float32 [B, K, V]; None = greedy
    seen: jax.Array | None  # before each of them and after the last, bool [B, K + 1, W], W of the padded table


def start(program: Program, params: Params, dials: Dials, rows: decode.Rows) -> State:
    """Reads the prompts with both models and chooses the first token of each as ``decode.start`` does.

    Args:
        program: what is static.
        params: of both models.
        dials: the rest of the sampling.
        rows: prompts and keys.
    """
    room = program.room + program.proposed
    first = decode.start(decode.Program(program.network, program.rules, room), params.model, dials, rows)
    return _with_draft(program, params, rows, first)


@functools.partial(jax.jit, static_argnames="program", donate_argnames="first")
@jax.default_matmul_precision("highest")
def _with_draft(program: Program, params: Params, rows: decode.Rows, first: decode.State) -> State:
    slots = first.cache[0][0].shape[2]
    read = params.read_by_draft(rows.tokens)
    _, memory = kv_cache.prefill(program.draft, params.draft, read, rows.starts, slots)
    ones = constrain(jnp.ones(len(rows.tokens), jnp.int32), None)
    return State(
        length=ones,
        chosen=first.chosen,
        recent=constrain(jnp.stack([rows.tokens[:, -1], first.last], axis=1), None, None),
        done=first.done,
        passes=ones,
        seen=first.seen,
        cache=first.cache,
        draft_cache=memory,
    )


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
@jax.default_matmul_precision("highest")
def proceed(program: Program, params: Params, dials: Dials, rows: decode.Rows, state: State, until: jax.Array) -> State:
    """Goes on, round after round, until every row is done or has at least ``until`` tokens (at most N).

    A row's rounds depend on nothing but its own tokens and key: neither on other rows nor on ``until``.
    """

    def running(state: State) -> jax.Array:
        return ~state.done & (state.length < until)

    def body(state: State) -> State:
        return _round(program, params, dials, rows, state, running(state))

    return jax.lax.while_loop(lambda state: running(state).any(), body, state)


def _round(
    program: Program, params: Params, dials: Dials, rows: decode.Rows, state: State, running: jax.Array
) -> State:
    """Proposes K tokens, checks them and takes at most K + 1; only rows ``running`` [B] grow."""
    batch, count = len(state.length), program.proposed
    prompt = state.cache[0][0].shape[2] - state.chosen.shape[1]
    last = prompt + state.length - 1
    slot = last[0] if batch == 1 else last
    keys = None if program.rules.greedy else _round_keys(rows.keys, state.length, count + 1)
    proposals, draft_cache = _propose(program, params, dials, rows.starts, state, slot, keys)

    read = jnp.concatenate([state.recent[:, 1:], proposals.ids], axis=1)
    hidden, cache = kv_cache.extend(program.network, params.model, read, state.cache, slot, rows.starts)
    logits = _logits(program.network, params.model, hidden, program.rules.vocab)
    weights = _weights(logits, program.rules, dials, proposals.seen)
    accepted, corrected = _judge(proposals, weights, keys)

    place = jnp.arange(count + 1)
    ids = jnp.concatenate([proposals.ids, corrected[:, None]], axis=1)
    ids = jnp.where(place < accepted[:, None], ids, corrected[:, None])
    taken = (place <= accepted[:, None]) & running[:, None]
    ends = jnp.isin(ids, dials.end_ids) & taken
    taken &= jnp.cumsum(ends, axis=1) - ends == 0  # nothing after an end
    ids, taken = constrain(ids, None, None), constrain(taken, None, None)

    at = jnp.arange(batch)[:, None]
    added = taken.sum(1)
    written = jnp.where(taken, state.length[:, None] + place, state.chosen.shape[1])
    seen = state.seen
    if seen is not None:
        seen = seen.at[at, jnp.where(taken, ids, seen.shape[1])].set(True, mode="drop")
    text = jnp.concatenate([state.recent, ids], axis=1)
    return State(
        length=state.length + added,
        chosen=state.chosen.at[at, written].set(ids, mode="drop"),
        recent=jnp.take_along_axis(text, added[:, None] + jnp.arange(2), axis=1),
        done=state.done | (ends & taken).any(1),
        passes=state.passes + running,
        seen=seen,
        cache=cache,
        draft_cache=draft_cache,
    )


def _round_keys(keys: jax.Array | None, count: jax.Array, length: int) -> jax.Array:
    """Three keys for each place in a text, [B, length, 3]: to propose, to accept and to correct a token.

    Those of a place are the same in whichever round it is reached. The draws of a place that a round reached in vain
    decided nothing, so they may be used again.
    """
    assert keys is not None
    places = count[:, None] + jnp.arange(length)
    own = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys, places)
    return jax.vmap(jax.vmap(lambda key: jax.random.split(key, 3)))(own)


def _propose(
    program: Program,
    params: Params,
    dials: Dials,
    starts: jax.Array,
    state: State,
    slot: jax.Array,
    keys: jax.Array | None,
) -> tuple[_Proposals, kv_cache.Cache]:
    """K tokens by the draft, one after the other, and its cache with all but the last of them."""
    network, rules = program.draft, program.rules

    def draw(hidden: jax.Array, seen: jax.Array | None, i: jax.Array | int) -> tuple[jax.Array, jax.Array | None]:
        logits = _draft_logits(network, params, hidden, rules.vocab)
        weights = _weights(logits, rules, dials, None if seen is None else seen[:, None])[:, 0]
        if keys is None:
            return jnp.argmax(weights, axis=-1).astype(jnp.int32), None
        shares = jax.nn.softmax(weights, axis=-1)
        return drawn_from(keys[:, i, 0], shares), shares

    def step(carry: _Reading, i: jax.Array) -> tuple[_Reading, tuple[jax.Array, Any, Any]]:
        hidden, memory, seen = carry
        ids, shares = draw(hidden, seen, i)
        read = params.read_by_draft(ids[:, None])
        hidden, memory = kv_cache.extend(network, params.draft, read, memory, slot + 1 + i, starts)
        return (hidden, memory, _with(seen, ids)), (ids, shares, seen)

    # The last token but one may be a proposal that was accepted, which the draft has not read yet.
    read = params.read_by_draft(state.recent)
    hidden, memory = kv_cache.extend(network, params.draft, read, state.draft_cache, slot - 1, starts)
    carry = hidden[:, 1:], memory, state.seen
    (hidden, memory, seen), before = jax.lax.scan(step, carry, jnp.arange(program.proposed - 1))
    ids, shares = draw(hidden, seen, program.proposed - 1)
    all_ids, all_shares, all_seen = jax.tree.map(
        lambda many, one: jnp.concatenate([many.swapaxes(0, 1), one[:, None]], axis=1), before, (ids, shares, seen)
    )
    after = _with(seen, ids)
    if after is not None:
        all_seen = jnp.concatenate([all_seen, after[:, None]], axis=1)
    return _Proposals(all_ids, all_shares, all_seen), memory


def _with(seen: jax.Array | None, ids: jax.Array) -> jax.Array | None:
    return None if seen is None else seen.at[jnp.arange(len(ids)), ids].set(True)


def _logits(network: cfg.Network, params: decoder.Params, hidden: jax.Array, vocab: int) -> jax.Array:
    """Logits after hidden states [B, T, D], float32 [B, T, vocab]."""
    batch, length, features = hidden.shape
    logits = kv_cache.next_logits(network, params, hidden.reshape(-1, features), vocab)[:, :vocab]
    return logits.reshape(batch, length, vocab)


def _draft_logits(network: cfg.Network, params: Params, hidden: jax.Array, vocab: int) -> jax.Array:
    """As ``_logits``, by the draft for the model's ids; -inf for those that the draft does not have."""
    if params.vocabulary is None:
        return _logits(network, params.draft, hidden, vocab)
    own = _logits(network, params.draft, hidden, len(params.vocabulary.ids))
    return jnp.full((*own.shape[:2], vocab), -jnp.inf).at[:, :, params.vocabulary.ids].set(own, unique_indices=True)


def _weights(logits: jax.Array, rules: Rules, dials: Dials, seen: jax.Array | None) -> jax.Array:
    """``weighed`` of logits [B, T, V], with the tokens that were there before each, bool [B, T, W]."""
    rows = logits.reshape(-1, rules.vocab)
    seen = None if seen is None else seen.reshape(len(rows), -1)[:, : rules.vocab]
    return weighed(rows, rules, dials, seen).reshape(logits.shape)


def _judge(proposals: _Proposals, weights: jax.Array, keys: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """How many proposals are accepted, int32 [B], and the token that follows them, int32 [B].

    Args:
        proposals: of the draft.
        weights: by the model, in each place and after the last proposal, float32 [B, K + 1, V].
        keys: from ``_round_keys``; None = greedy.
    """
    ids = proposals.ids[:, :, None]
    if keys is None:
        best = jnp.argmax(weights, axis=-1).astype(jnp.int32)
        accepted = _leading(best[:, :-1] == proposals.ids)
        return accepted, jnp.take_along_axis(best, accepted[:, None], axis=1)[:, 0]
    p, q = jax.nn.softmax(weights, axis=-1), proposals.shares
    assert q is not None
    drawn = jax.vmap(jax.vmap(jax.random.uniform))(keys[:, :-1, 1])
    of_p, of_q = (jnp.take_along_axis(x, ids, axis=2)[:, :, 0] for x in (p[:, :-1], q))
    accepted = _leading(drawn * of_q < of_p)
    # After the last proposal the draft has no distribution, and the rest of p is all of it.
    q = jnp.pad(q, [(0, 0), (0, 1), (0, 0)])
    p, q = (jnp.take_along_axis(x, accepted[:, None, None], axis=1)[:, 0] for x in (p, q))
    rest = jnp.maximum(p - q, 0)
    rest = jnp.where(rest.sum(-1, keepdims=True) > 0, rest, p)  # rounding may leave nothing where both are equal
    places = jnp.arange(len(accepted))
    return accepted, drawn_from(keys[places, accepted, 2], rest)


def _leading(right: jax.Array) -> jax.Array:
    """How many of the first are true, of bool [B, K]: int32 [B]."""
    return jnp.cumprod(right.astype(jnp.int32), axis=1).sum(1)
