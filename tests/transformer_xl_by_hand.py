"""Transformer-XL and XLNet in NumPy by loops over i and j, written from the papers' formulas and not from our code.

arXiv 1901.02860, sections 3.2 and 3.3; arXiv 1906.08237, sections 2.3 and 2.5.
"""

import math

import numpy as np


def encoding(distance, width):
    """R of section 3.3: sines, then cosines."""
    rates = [1 / 10_000 ** (2 * k / width) for k in range(width // 2)]
    return np.array([math.sin(distance * rate) for rate in rates] + [math.cos(distance * rate) for rate in rates])


def attention(layer, states, keys, seen, distance, same=None):
    """Of states [T, D] over those of keys [S, D]; seen, distance and same are functions of i and j."""
    query, key, value, out = (layer["attention"][name] for name in ("query", "key", "value", "out"))
    relative, (width, heads, features) = layer["attention"]["relative"], query.shape
    mixed = np.zeros((len(states), width))
    for h in range(heads):
        n = h * key.shape[1] // heads
        u, v = relative["content_bias"][h], relative["position_bias"][h]
        for i, state in enumerate(states):
            q, scores = state @ query[:, h], {}
            for j, other in enumerate(keys):
                if not seen(i, j):
                    continue
                k = other @ key[:, n]
                r = encoding(distance(i, j), width) @ relative["position"][:, h]
                scores[j] = q @ k + q @ r + u @ k + v @ r
                if same is not None:
                    scores[j] += (q + relative["type_bias"][h]) @ relative["types"][0 if same(i, j) else 1, h]
            weights = {j: math.exp(score / math.sqrt(features)) for j, score in scores.items()}
            total = sum(weights.values())
            mean = sum(weight / total * (keys[j] @ value[:, n]) for j, weight in weights.items())
            mixed[i] += mean @ out[h]
    return mixed


def normed(x, norm, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * norm["gain"] + norm["bias"]


def layer_of(layer, states, keys, epsilon, *who):
    """A block with norms after sums, ReLU and biases in the MLP alone."""
    x = normed(states + attention(layer, states, keys, *who), layer["attention_norm"], epsilon)
    mlp = layer["mlp"]
    made = np.maximum(x @ mlp["up"] + mlp["up_bias"], 0) @ mlp["down"] + mlp["down_bias"]
    return normed(x + made, layer["mlp_norm"], epsilon)


def transformer_xl(layers, x, segment, memory, epsilon):
    """Final states [T, D] of embeddings [T, D], in segments; of each layer so many states before them are seen."""
    before, done = [np.zeros((0, x.shape[1]))] * len(layers), []
    for start in range(0, len(x), segment):
        states = x[start : start + segment]
        for n, layer in enumerate(layers):
            keys = np.concatenate([before[n], states])
            old = len(before[n])
            before[n] = keys[max(0, len(keys) - memory) :]
            states = layer_of(
                layer, states, keys, epsilon, lambda i, j, o=old: j <= o + i, lambda i, j, o=old: o + i - j
            )
        done.append(states)
    return np.concatenate(done)


def query_stream(layers, x, w, order, types, epsilon):
    """Final states [T, D] of the query stream of all tokens but the first of the order; w is its first state."""
    h, g = x, np.stack([w] * len(x))
    later = [i for i in range(len(x)) if (order < order[i]).any()]
    for layer in layers:

        def who(i, j, types=types):
            return types[i] == types[j]

        made = layer_of(
            layer, g[later], h, epsilon, lambda i, j: order[j] < order[later[i]], lambda i, j: later[i] - j,
            lambda i, j: types[later[i]] == types[j],
        )  # fmt: skip
        h = layer_of(layer, h, h, epsilon, lambda i, j: order[j] <= order[i], lambda i, j: i - j, who)
        g = g.copy()
        g[later] = made
    return g
