"""Rewards of texts by a reward model."""

import json
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath

from scaling.config import schema as cfg
from scaling.data.batch import Scored, filled, scored
from scaling.data.tokenizer import Tokenizer
from scaling.generate.generator import bucket
from scaling.interop.served import load_served
from scaling.model import decoder
from scaling.objectives.objective import forward, read
from scaling.parallel.sharding import batch_sharding
from scaling.runs.bias import FILE, read_bias


class Scorer:
    """A reward model with its weights.

    Args:
        network: resolved, with one output.
        params: parameter tree, on the mesh.
        mesh: devices to lay rows over.
        bias: added to each reward.
    """

    def __init__(
        self, network: cfg.Network, params: decoder.Params, mesh: jax.sharding.Mesh, bias: float = 0.0
    ) -> None:
        assert network.model.outputs == 1
        self.network, self.params, self.mesh, self.bias = network, params, mesh, bias

        def score(params: decoder.Params, batch: Scored) -> jax.Array:
            model = decoder.merge(network, params)
            hidden, batch, _ = forward(model, jax.tree.map(lambda x: x[0], batch), None)
            return read(model, hidden, batch)[:, 0]

        self._score = jax.jit(score, out_shardings=jax.NamedSharding(mesh, jax.P()))

    def __call__(self, texts: Sequence[np.ndarray], batch_size: int = 8) -> np.ndarray:
        """The reward of each text, read at its last token, float32 [n]; like lengths are computed together.

        Args:
            texts: ids, int32, each at least one and at most the context of the model.
            batch_size: texts at a time; a multiple of the shards of a batch.
        """
        found = np.zeros(len(texts), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            room = bucket(max(len(texts[i]) for i in chosen), largest=self.network.model.context_length)
            places = {(0, row): scored(texts[i], room, 0) for row, i in enumerate(chosen)}
            batch = filled((1, batch_size), places)
            with jax.set_mesh(self.mesh):
                placed = jax.device_put(batch, batch_sharding(self.mesh))
                found[chosen] = np.asarray(self._score(self.params, placed))[: len(chosen)]
        return found + np.float32(self.bias)


def load(run_dir: epath.PathLike, axes: str = "", dtype: str = "float32") -> tuple[Scorer, Tokenizer]:
    """The reward model of a run of ``align reward``, and its tokenizer.

    Raises:
        FileNotFoundError: no run there.
        ValueError: it is no reward model.
    """
    served = load_served(run_dir, None, axes, dtype)
    if served.network.model.outputs != 1:
        raise ValueError(f"{run_dir} is no reward model; `scaling align reward` trains one")
    return Scorer(served.network, served.params, served.mesh, read_bias(run_dir)), served.words


def write_bias(run_dir: epath.Path, rewards: np.ndarray, source: str) -> float:
    """Writes the bias that makes the mean of these rewards 0, and returns it."""
    bias = -float(np.mean(rewards, dtype=np.float64))
    record = {"bias": bias, "demonstrations": len(rewards), "source": source}
    (run_dir / FILE).write_text(json.dumps(record, indent=2))
    return bias
