"""Floating-point operations of the model, by the papers' rule of thumb and exactly. Nothing here needs JAX.

A multiplication and an addition are two operations. Only matrix products are counted, as in the papers: no norms,
softmax, activations or biases. Recomputation (remat) and the padding of the vocabulary are not counted either, because
they are not the model's work.
"""

import functools

from scaling.catalog.sizes import GPT3_TOKENS, parameters
from scaling.config.schema import Config, Model

PF_DAY = 1e15 * 24 * 3600  # 8.64e19 operations (arXiv 2005.14165, appendix D)


def six_n(parameter_count: int) -> int:
    """Training FLOPs a token by 6N: two forward, four backward (arXiv 2001.08361, section 2.1)."""
    return 6 * parameter_count


def positions_seen(sequence_length: int, window: int = 0, strided: bool = False, causal: bool = True) -> float:
    """Mean number of positions that a query attends to, its own included.

    In dense causal attention (``window`` 0) the mean is (T + 1) / 2. In a band of ``window`` positions, position i sees
    min(i + 1, window), and if ``strided`` another floor(i / window). What is not causal sees as much to the right.
    """
    t = sequence_length
    w = min(window, t) if window else t
    blocks, rest = divmod(t, w)
    beyond = (w * blocks * (blocks - 1) / 2 + rest * blocks) if strided else 0
    seen = (w * (w + 1) / 2 + (t - w) * w + beyond) / t
    return seen if causal else 2 * seen - 1


def forward_per_token(model: Model, sequence_length: int | None = None, source_length: int = 0) -> float:
    """Forward FLOPs a token, mean over a sequence: blocks, attention (causal and banded parts only), logits.

    With an encoder beside the decoder, what the tokens of the source need is shared by those of the target.

    Args:
        model: resolved (``vocab_size``, ``d_head`` and ``d_ff`` known).
        sequence_length: tokens in a sequence; None = ``context_length``.
        source_length: tokens that an encoder reads for each sequence; 0 = as many.
    """
    length, counted = sequence_length or model.context_length, parameters(model)
    products: float = 2 * counted.chinchilla
    if model.encoder_layers:
        products += 2 * counted.source * ((source_length or length) / length - 1)
    if model.segment_length:  # keys and values are made of a memory, too, once a segment
        states = sum(recalled for _, recalled in _segments(model, length))
        products += 2 * _key_matrices(model) * states / length
    return products + attention_per_token(model, length, source_length)


@functools.lru_cache(maxsize=1024)  # a search asks for the same models again and again
def attention_per_token(model: Model, sequence_length: int, source_length: int = 0) -> float:
    """Forward FLOPs a token of the products of queries with keys, and of attention weights with values.

    In Transformer-XL also of queries with what is made of each distance; to make that is done once for all rows of a
    batch, and is not counted.
    """
    period = model.sights
    sights = [period[i % len(period)] for i in range(model.num_layers)]
    # Each of the two products takes 2 d_head operations for every head and every position seen.
    parts = _segments(model, sequence_length)
    seen = [
        sum(
            size * (positions_seen(size, *sight, causal=model.causal) + (0 if sight.window else recalled))
            for size, recalled in parts
        )
        / sequence_length
        for sight in sights
    ]
    own = sum((6 if model.is_relative else 4) * model.num_heads * model.d_head * positions for positions in seen)
    own += _positional_per_token(model, sequence_length)
    if model.generates:
        own += attention_per_token(model.generator, sequence_length)
    if not model.encoder_layers:
        return own
    source = source_length or sequence_length
    across = 4 * model.num_heads * model.d_head * source * model.num_layers
    return own + across + attention_per_token(model.encoder, source) * source / sequence_length


def _positional_per_token(model: Model, length: int) -> float:
    """Products of queries and keys with distances, and of the rows of distances with matrices, once for a sequence."""
    width = model.num_heads * model.d_head
    each = 2 * width * min(length, 2 * model.distances)
    projected = 2 * width * model.d_model * min(2 * length - 1, 2 * model.distances) / length
    return model.num_layers * model.positional_scores * (each + projected)


def _segments(model: Model, length: int) -> list[tuple[int, int]]:
    """Tokens of each segment of a text, and states of the memory that it has; the text as a whole without segments."""
    size = model.segment_length or length
    return [(min(size, length - start), min(model.memory_length, start)) for start in range(0, length, size)]


def _key_matrices(model: Model) -> int:
    """Elements of the matrices that make keys and values of the tokens, of all layers."""
    return model.num_layers * 2 * model.d_model * model.kv_heads * model.d_head


def training_per_token(
    model: Model, sequence_length: int | None = None, predicted: float = 1.0, source_length: int = 0
) -> float:
    """Forward and backward FLOPs a token; the backward pass takes twice as many (two products for each product).

    Args:
        model: as of ``forward_per_token``.
        sequence_length: as there.
        predicted: the share of the tokens whose logits are computed, as of ``Config.predicted``.
        source_length: as there.
    """
    predicts = model.generator if model.generates else model  # a discriminator judges all tokens
    unpredicted = 0.0 if predicted == 1 else 2 * (1 - predicted) * parameters(predicts).projection
    return 3 * (forward_per_token(model, sequence_length, source_length) - unpredicted)


def of_pretraining(config: Config) -> float:
    """Forward and backward FLOPs a token of a resolved config's training.

    With XLNet's objective, tokens that are predicted pass through the layers once more, without keys of their own.
    """
    model, length, source = config.model, config.train.sequence_length, config.data.source_length
    found = training_per_token(model, length, config.predicted, source)
    if config.data.objective == "translations":
        source = source or length  # the same encoder reads it, too
        found += training_per_token(model, source, config.predicted) * source / length
    if config.data.objective == "permutation":
        products = 2 * (parameters(model).matrices - _key_matrices(model))
        found += 3 * config.predicted * (products + attention_per_token(model, length))
    return found


def pf_days(parameter_count: int, tokens: float = GPT3_TOKENS) -> float:
    """Petaflop/s-days to train on ``tokens`` by 6N (arXiv 2005.14165, table D.1)."""
    return six_n(parameter_count) * tokens / PF_DAY
