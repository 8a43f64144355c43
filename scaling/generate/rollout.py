"""Answers of a model whose weights change: the programs of ``decode``, compiled once for one shape of batch."""

from typing import Any

import jax
import jax.numpy as jnp

from scaling.config import schema as cfg
from scaling.generate import decode
from scaling.generate.sampling import Sampling, rules
from scaling.model import decoder, kv_cache


class Rollouts:
    """Draws answers; used under the mesh that is set.

    Args:
        network: resolved.
        vocab_size: ids from here on are never drawn.
        mesh: devices of the parameters.
        sampling: number of tokens, temperature and ends; nothing else may differ from its default.

    Attributes:
        split: lays parameters out for decoding.
    """

    def __init__(self, network: cfg.Network, vocab_size: int, mesh: jax.sharding.Mesh, sampling: Sampling) -> None:
        self.split = kv_cache.splitter(network, mesh)
        static, self._dials = rules(sampling, vocab_size, None)
        assert not (static.greedy or static.top_k or static.nucleus or static.penalised)
        self._room = sampling.tokens
        self._program = decode.Program(network, static, sampling.tokens)

    def __call__(self, params: decoder.Params, tokens: jax.Array, starts: jax.Array, key: jax.Array) -> jax.Array:
        """The drawn tokens, int32 [B, N]; -1 after the end of an answer.

        Args:
            params: as training has them.
            tokens: prompts, int32 [B, P], padded at the front.
            starts: first slot of each prompt, int32 [B].
            key: of all draws; row i has ``fold_in(key, i)``, on any mesh.
        """
        return self.answers(self.split(params), tokens, starts, key)

    def answers(self, layers: decoder.Params, tokens: jax.Array, starts: jax.Array, key: jax.Array) -> jax.Array:
        """As a call, of parameters that ``split`` has laid out."""
        rows = decode.Rows(tokens, starts, _keys(key, len(tokens)))
        state = decode.start(self._program, layers, self._dials, rows)
        chosen: Any = decode.proceed(self._program, layers, self._dials, rows, state, jnp.int32(self._room)).chosen
        return chosen


def _keys(key: jax.Array, rows: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
