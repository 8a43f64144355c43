"""Continuing texts by sampling: the plain, uncached form, for a look at the end of training."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaling import config as cfg
from scaling.model import decoder


def choose(logits: jax.Array, key: jax.Array, temperature: float, top_k: int) -> jax.Array:
    """Samples one token a row.

    Args:
        logits: float32 [B, V].
        key: random key.
        temperature: of the softmax; 0 = the most likely token.
        top_k: only this many most likely tokens; 0 = all.

    Returns:
        int32 [B].
    """
    if temperature == 0:
        return jnp.argmax(logits, -1)
    if top_k:
        floor = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < floor, -jnp.inf, logits)
    return jax.random.categorical(key, logits / temperature)


def continue_texts(config: cfg.Config, params: Any, words: Any) -> list[str]:
    """Continues each of ``config.sample.prompts`` to an end of text or ``config.sample.tokens`` more tokens.

    All prompts run together over one buffer of fixed length, so there is one compilation. A prompt that would not
    leave room for a token keeps its end.

    Args:
        config: resolved.
        params: parameter tree.
        words: tokenizer.

    Returns:
        Prompt and continuation, one text a prompt.
    """
    room = config.model.context_length - 2  # an end-of-text token before, a new token behind
    prompts = []
    for text in config.sample.prompts:
        ids = words.encode(text)
        # Texts begin after an end-of-text token in training; so do prompts.
        prompts.append(np.concatenate([[words.eot], ids[max(0, len(ids) - max(0, room)) :]])[: max(1, room + 1)])
    sizes = np.asarray([len(ids) for ids in prompts], np.int32)
    length = min(config.model.context_length, int(sizes.max()) + config.sample.tokens)
    buffer = np.full((len(prompts), length), words.eot, np.int32)
    for row, ids in zip(buffer, prompts, strict=True):
        row[: len(ids)] = ids

    @jax.jit
    def extend(params: Any, tokens: jax.Array, sizes: jax.Array, t: jax.Array, key: jax.Array) -> jax.Array:
        model = decoder.merge(config.model, params)
        hidden = jax.lax.dynamic_slice_in_dim(model(tokens), t - 1, 1, axis=1)
        # A model may have rows beyond its tokenizer's ids (GPT-1's shape with another tokenizer).
        logits = model.logits(hidden)[:, 0, : words.vocab_size]
        ids = choose(logits, key, config.sample.temperature, config.sample.top_k)
        ids = jnp.where(t < sizes, tokens[:, t], ids)  # still inside the prompt
        return tokens.at[:, t].set(ids)

    tokens = jnp.asarray(buffer)
    for t in range(int(sizes.min()), length):
        key = jax.random.fold_in(jax.random.key(config.seed), t)
        tokens = extend(params, tokens, sizes, np.int32(t), key)
    texts = []
    for row, size in zip(np.asarray(tokens), sizes, strict=True):
        stop = min(length, size + config.sample.tokens)
        ends = np.flatnonzero(row[size:stop] == words.eot)
        texts.append(words.decode(row[1 : size + ends[0] if len(ends) else stop]))
    return texts
