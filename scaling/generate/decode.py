"""Compiled programs that continue a batch of prompts by choosing token after token.

Two programs for each bucket of lengths: ``start`` reads the prompts and chooses the first token, ``proceed`` runs the
whole loop on the device, with the cache donated. How far it runs is an argument, so the same program serves a batch
in one go and a terminal a few tokens at a time.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scaling.config import schema as cfg
from scaling.generate.sampling import Dials, Rules, choose
from scaling.model import decoder, kv_cache
from scaling.parallel.sharding import constrain


class State(NamedTuple):
    """What the loop carries."""

    step: jax.Array  # tokens chosen so far, int32 scalar
    chosen: jax.Array  # int32 [B, N]; -1 where nothing was chosen
    last: jax.Array  # int32 [B]
    done: jax.Array  # bool [B]
    seen: jax.Array | None  # tokens of prompt and continuation, bool [B, V], if repetition is penalised
    cache: kv_cache.Cache


class Program(NamedTuple):
    """What is static in the compiled programs."""

    network: cfg.Network
    rules: Rules
    room: int  # tokens that can be chosen, N


class Rows(NamedTuple):
    """The rows of a batch."""

    tokens: jax.Array  # prompts, int32 [B, P], padded at the front
    starts: jax.Array  # first slot of each row that is not padding, int32 [B]; P = the row is padding
    keys: jax.Array | None = None  # a random key for each row [B]; None = nothing is drawn
    source: jax.Array | None = None  # what an encoder reads, int32 [B, S], padded at the end; None = no encoder
    source_segments: jax.Array | None = None  # of the source, int32 [B, S]: 0 at tokens, 1 at padding


@functools.partial(jax.jit, static_argnames="program")
# Accelerators otherwise round the inputs of float32 products to fewer bits.
@jax.default_matmul_precision("highest")
def start(program: Program, params: decoder.Params, dials: Dials, rows: Rows) -> State:
    """Reads the prompts and chooses the first token of each.

    Args:
        program: what is static.
        params: from ``kv_cache.split_layers``.
        dials: the rest of the sampling.
        rows: prompts and keys.
    """
    (network, rules, room), (tokens, starts, keys, *of_source) = program, rows
    batch, length = tokens.shape
    source = kv_cache.encoded(network, params, *of_source)
    hidden, memory = kv_cache.prefill(network, params, tokens, starts, length + room, source)
    logits = kv_cache.next_logits(network, params, hidden[:, -1], rules.vocab)
    seen = None
    if rules.penalised:
        real = jnp.where(jnp.arange(length) >= starts[:, None], tokens, network.model.padded_vocab)
        seen = jnp.zeros((batch, network.model.padded_vocab), bool)
        seen = seen.at[jnp.arange(batch)[:, None], real].set(True, mode="drop")
    empty = State(
        step=jnp.zeros((), jnp.int32),
        chosen=jnp.full((batch, room), -1, jnp.int32),
        last=jnp.zeros(batch, jnp.int32),
        done=starts >= length,
        seen=seen,
        cache=memory,
    )
    return _with_choice(empty, logits, rules, dials, keys)


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
@jax.default_matmul_precision("highest")
def proceed(
    program: Program, params: decoder.Params, dials: Dials, rows: Rows, state: State, until: jax.Array
) -> State:
    """Chooses on until every row is done or has ``until`` tokens (at most N)."""
    network, rules, _ = program
    prompt = state.cache[0][0].shape[2] - state.chosen.shape[1]

    def unfinished(state: State) -> jax.Array:
        return (state.step < until) & ~state.done.all()

    def body(state: State) -> State:
        hidden, memory = kv_cache.extend(
            network,
            params,
            state.last[:, None],
            state.cache,
            prompt + state.step - 1,
            rows.starts,
            rows.source_segments,
        )
        logits = kv_cache.next_logits(network, params, hidden[:, 0], rules.vocab)
        return _with_choice(state._replace(cache=memory), logits, rules, dials, rows.keys)

    return jax.lax.while_loop(unfinished, body, state)


def _with_choice(state: State, logits: jax.Array, rules: Rules, dials: Dials, keys: jax.Array | None) -> State:
    assert keys is not None
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, state.step)
    ids = choose(logits, step_keys, rules, dials, state.seen)
    # Small and needed by every process: whole on each device.
    shown = constrain(jnp.where(state.done, -1, ids), None)
    chosen = jax.lax.dynamic_update_slice_in_dim(state.chosen, shown[:, None], state.step, axis=1)
    seen = state.seen
    if seen is not None:
        seen = seen.at[jnp.arange(len(ids)), ids].set(True)
    return State(
        step=state.step + 1,
        chosen=constrain(chosen, None, None),
        last=ids,
        done=constrain(state.done | jnp.isin(ids, dials.end_ids), None),
        seen=seen,
        cache=state.cache,
    )
