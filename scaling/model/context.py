"""What the tokens of a call see of each other and where each stands: one value, which every attention takes.

Shape legend: B rows, T tokens of this call, S slots of a cache, H heads, K head width.
"""

import dataclasses

import jax
import jax.numpy as jnp

from scaling.config import schema as cfg
from scaling.model.rounded import Kept

Memory = tuple[Kept, ...]  # cached keys and values of one layer, [B, H, S, K] each; rounded with scales [B, H, S]

_STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cached:
    """Rows that grow, padded at the front: the tokens of this call follow on those in a cache.

    Attributes:
        starts: first slot of each row that is not padding, int32 [B].
        slot: of the first token of this call, int32 scalar; or int32 [B], where rows have grown by different numbers.
        slots: S, of the cache.
        memory: keys and values of one layer in the slots before ``slot``; None = this call is the first.
    """

    starts: jax.Array
    slot: jax.Array | int
    slots: int = dataclasses.field(metadata=_STATIC)
    memory: Memory | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Source:
    """What an encoder has made of the text that the tokens of a call attend to.

    Attributes:
        states: its final states [B, S, D]; None where ``memory`` is known.
        segments: number of each one's text, int32 [B, S]: tokens see those of their own segment. None = all are 0.
        memory: keys and values of one layer, made of the states.
    """

    states: jax.Array | None
    segments: jax.Array | None = None
    memory: Memory | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Content:
    """States of other tokens, of which a layer makes keys and values for those of a call.

    Attributes:
        states: what the layer's attention has read there, [B, S, D].
        segments, types, order: of all tokens that are seen, as of ``AttentionContext``.
        places: the tokens of the call stand at these places among the states, and do not see their own, int32 [B, T]
            (XLNet's query stream). None = they come right after them, and see their own, too (Transformer-XL's memory).
    """

    states: jax.Array
    segments: jax.Array | None = None
    types: jax.Array | None = None
    order: jax.Array | None = None
    places: jax.Array | None = None

    def seen(self, x: jax.Array) -> jax.Array:
        """What tokens whose own states are x [B, T, D] see: [B, S or S + T, D]."""
        return jnp.concatenate([self.states, x], 1) if self.places is None else self.states


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionContext:
    """Who sees whom. Attributes that are None or at their default restrict nothing.

    Attributes:
        positions: of each token in its text, int32 [B or 1, T]; None = 0, 1, 2, ...
        segments: non-decreasing number of each token's document, int32 [B, T]: tokens see only their own.
        branches: the row is a context (0) with several continuations side by side (1, 2, ...), int32 [B, T]: a token
            sees the context and its own branch, by ``positions``. -1 is padding. For scoring, without segments.
        types: kind of each token, which is added to its embedding, int32 [B or 1, T]; None = all 0.
        relative: what each head adds to scores by bucket of distance, float32 [buckets, H] (T5); one for all layers.
            Of disentangled positions the table of distances [2 R, D], in the compute dtype.
        order: a token sees none with a higher number, int32 [B, T] (XLNet's factorisation order; the tokens of a prefix
            have one number). Not causal.
        cached: the row grows, and its first tokens are in a cache.
        content: states of other tokens that these see.
        source: what the encoder has read; None = there is none.
        window: a token sees this many positions, its own included; 0 = all.
        strided: and of those before them each ``window``-th (Sparse Transformer, arXiv 1904.10509, section 4.2).
        causal: a token sees nothing that comes after it; of branches only the context does where this is False.
        zigzag: the sequence lies over the mesh axis ``context`` in the order of ``ring.zigzag``; positions and segments
            do, too.
    """

    positions: jax.Array | None = None
    segments: jax.Array | None = None
    types: jax.Array | None = None
    branches: jax.Array | None = None
    order: jax.Array | None = None
    cached: Cached | None = None
    content: Content | None = None
    source: Source | None = None
    window: int = dataclasses.field(default=0, metadata=_STATIC)
    strided: bool = dataclasses.field(default=False, metadata=_STATIC)
    relative: jax.Array | None = None
    causal: bool = dataclasses.field(default=True, metadata=_STATIC)
    zigzag: bool = dataclasses.field(default=False, metadata=_STATIC)

    def __post_init__(self) -> None:
        assert self.branches is None or (self.positions is not None and self.segments is None)
        assert not (self.zigzag and (self.cached or self.branches is not None)) and (self.causal or not self.zigzag)
        assert not self.strided or (self.window and self.causal and not self.zigzag)

    def within(self, sight: cfg.Sight) -> "AttentionContext":
        """The same as a layer sees it: layers differ in how far back they look."""
        if sight == (self.window, self.strided):
            return self
        return dataclasses.replace(self, window=sight.window, strided=sight.strided)

    def reading(self, memory: Memory) -> "AttentionContext":
        """The same in a layer that has made these keys and values of the source."""
        assert self.source is not None
        return dataclasses.replace(self, source=dataclasses.replace(self.source, states=None, memory=memory))

    def after(self, memory: Memory) -> "AttentionContext":
        """The same in a layer whose cache holds these keys and values."""
        assert self.cached is not None
        return dataclasses.replace(self, cached=dataclasses.replace(self.cached, memory=memory))
