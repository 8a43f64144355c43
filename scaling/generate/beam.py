"""Beam search with a length penalty, step for step that of Hugging Face's ``generate`` (transformers 5).

As there: twice as many candidates as beams are kept, so that beams go on although others end; a complete text scores
its log-likelihood divided by (new tokens, the end included) ** length_penalty, and is only taken if it was among the
``beams`` best candidates; a prompt is finished when its best running beam, at its present length, cannot beat its
worst complete text (``early_stopping`` False), or as soon as ``beams`` texts are complete (True). Hugging Face's
third way, "never", is not here.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaling.generate.decode import Program, Rows
from scaling.generate.sampling import Rules
from scaling.model import decoder, kv_cache
from scaling.model.attention import laid_out
from scaling.parallel.sharding import constrain

_NEVER = -1e9  # Hugging Face's: scores are compared after such numbers were added to them


class State(NamedTuple):
    """What the loop carries; W beams, K candidates."""

    step: jax.Array  # tokens chosen so far, int32 scalar
    running: jax.Array  # int32 [B, W, N]; -1 where nothing was chosen
    running_scores: jax.Array  # log-likelihoods, float32 [B, W]
    complete: jax.Array  # int32 [B, W, N]
    complete_scores: jax.Array  # penalised, float32 [B, W]
    is_complete: jax.Array  # bool [B, W]
    improvable: jax.Array  # bool [B]: a running beam may still beat a complete text
    cache: kv_cache.Cache  # rows [B * W]


class Ends(NamedTuple):
    """When a text, and when the search, is at its end.

    Attributes:
        limit: new tokens at most, int32 scalar.
        penalties: float32 [N + 1], what the score of a text of each length is divided by.
        end_ids: tokens that end a text, int32 [rules.ends].
        early_stopping: see the module, bool scalar.
    """

    limit: jax.Array | np.int32
    penalties: jax.Array | np.ndarray
    end_ids: jax.Array | np.ndarray
    early_stopping: jax.Array | np.ndarray


@functools.partial(jax.jit, static_argnames=("program", "beams"))
@jax.default_matmul_precision("highest")
def search(program: Program, beams: int, params: decoder.Params, rows: Rows, ends: Ends) -> tuple[jax.Array, jax.Array]:
    """Searches on the device from the prompts to the end.

    Args:
        program: its N is at least ``ends.limit``.
        beams: W, width of the search.
        params: from ``kv_cache.split_layers``.
        rows: prompts, and sources where there is an encoder.
        ends: when it is over.

    Returns:
        Complete texts, int32 [B, W, N] filled up with -1, best first, and their scores float32 [B, W].
    """
    network, rules, _ = program
    batch, length = rows.tokens.shape
    state, logits = _started(program, beams, params, rows)
    state = _with_choice(state, jnp.repeat(logits[:, None], beams, axis=1), rules, ends, length)
    starts, segments = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), (rows.starts, rows.source_segments))

    def unfinished(state: State) -> jax.Array:
        closed = ends.early_stopping & state.is_complete.all()
        return (state.step < ends.limit) & state.improvable.any() & ~closed

    def body(state: State) -> State:
        last = jax.lax.dynamic_index_in_dim(state.running, state.step - 1, axis=2, keepdims=False)
        hidden, memory = kv_cache.extend(
            network, params, last.reshape(-1, 1), state.cache, length + state.step - 1, starts, segments
        )
        logits = kv_cache.next_logits(network, params, hidden[:, 0], rules.vocab).reshape(batch, beams, -1)
        return _with_choice(state._replace(cache=memory), logits, rules, ends, length)

    state = jax.lax.while_loop(unfinished, body, state)
    return constrain(state.complete, None, None, None), constrain(state.complete_scores, None, None)


def _started(program: Program, beams: int, params: decoder.Params, rows: Rows) -> tuple[State, jax.Array]:
    """The state before anything is chosen, and the logits [B, V] of the first token."""
    network, rules, room = program
    tokens, starts, _, *of_source = rows
    batch, length = tokens.shape
    source = kv_cache.encoded(network, params, *of_source)
    hidden, memory = kv_cache.prefill(network, params, tokens, starts, length + room, source)
    logits = kv_cache.next_logits(network, params, hidden[:, -1], rules.vocab)
    memory = jax.tree.map(lambda x: laid_out(jnp.repeat(x, beams, axis=0)), memory)
    nothing = jnp.full((batch, beams, room), -1, jnp.int32)
    state = State(
        step=jnp.zeros((), jnp.int32),
        running=nothing,
        # Beams are still alike: only the first counts.
        running_scores=jnp.tile(jnp.where(jnp.arange(beams) == 0, 0.0, _NEVER), (batch, 1)),
        complete=nothing,
        complete_scores=jnp.full((batch, beams), _NEVER),
        is_complete=jnp.tile(starts[:, None] >= length, (1, beams)),  # padding holds nobody up
        improvable=starts < length,
        cache=memory,
    )
    return state, logits


def _with_choice(state: State, logits: jax.Array, rules: Rules, ends: Ends, prompt: int) -> State:
    """One step, from logits [B, W, V] of the running beams."""
    batch, beams, vocab = logits.shape
    scores = jax.nn.log_softmax(logits, axis=-1) + state.running_scores[:, :, None]
    count = max(2, 1 + rules.ends) * beams
    scores, flat = jax.lax.top_k(scores.reshape(batch, -1), count)  # [B, K]
    parents, ids = flat // vocab, (flat % vocab).astype(jnp.int32)
    texts = _pick(state.running, parents)
    texts = jax.lax.dynamic_update_slice_in_dim(texts, ids[:, :, None], state.step, axis=2)
    step = state.step + 1
    ending = jnp.isin(ids, ends.end_ids) | (step >= ends.limit)

    running_scores, best = jax.lax.top_k(scores + ending * _NEVER, beams)
    parents = _pick(parents, best)

    ended = ending & (jnp.arange(count) < beams)
    penalised = scores / ends.penalties[step]
    penalised += (ends.early_stopping & state.is_complete.all(1, keepdims=True)) * _NEVER
    penalised += ~state.improvable[:, None] * _NEVER
    penalised += ~ended * _NEVER
    complete_scores, kept = jax.lax.top_k(jnp.concatenate([state.complete_scores, penalised], 1), beams)
    is_complete = _pick(jnp.concatenate([state.is_complete, ended], 1), kept)

    worst = jnp.where(is_complete, complete_scores.min(1, keepdims=True), _NEVER)
    reachable = running_scores[:, :1] / ends.penalties[step]
    return State(
        step=step,
        running=_pick(texts, best),
        running_scores=running_scores,
        complete=_pick(jnp.concatenate([state.complete, texts], 1), kept),
        complete_scores=complete_scores,
        is_complete=is_complete,
        improvable=state.improvable & (reachable > worst).any(1),
        # Of an encoder's keys and values, which are the last, all beams of a prompt have the same.
        cache=tuple(
            (*jax.tree.map(lambda x: _inherit(x, parents, prompt), layer[:2]), *layer[2:]) for layer in state.cache
        ),
    )


def _pick(x: jax.Array, index: jax.Array) -> jax.Array:
    """x[b, index[b, j]] for all b and j."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)


def _inherit(x: jax.Array, parents: jax.Array, prompt: int) -> jax.Array:
    """Each beam's cache [B * W, H, S, K], or its scales, from its parent; the slots of the prompt are the same."""
    batch, beams = parents.shape
    new: Any = x[:, :, prompt:]
    new = _pick(new.reshape(batch, beams, *new.shape[1:]), parents).reshape(new.shape)
    return laid_out(jax.lax.dynamic_update_slice_in_dim(x, new, prompt, axis=2))
