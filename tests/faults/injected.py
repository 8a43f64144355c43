"""``scaling`` with a fault in its computation, at some steps of this process.

    python -m tests.faults.injected loss:30,31,32 train --config=...

Kinds: loss and gradient (not a number in the step), weight (one becomes infinite before it), spike (20 times the loss),
flip (one bit of the result), hang (the step never returns). The product knows nothing of it.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_MARK = 300  # a token beyond the vocabulary of bytes, yet inside of the padded table
_MARKED = ("gradient", "spike")  # done inside the compiled step, to batches that begin with the mark
_SPIKE = 20.0


def inject(kind: str, steps: set[int]) -> None:
    """Makes the train steps that end with these numbers go wrong, each once."""
    from scaling.commands import training as train

    make, objective_of = train.make_train_step, train.next_token
    left = set(steps)

    def next_token(config: Any) -> Any:
        whole = objective_of(config)

        def objective(model: Any, frozen: Any, batch: Any, key: Any) -> Any:
            sums = whole(model, frozen, batch, key)
            marked = jnp.any(batch.tokens == _MARK)
            if kind == "gradient":
                return sums._replace(objective=sums.objective * jnp.where(marked, jnp.inf, 1.0))
            factor = jnp.where(marked, _SPIKE, 1.0)
            return sums._replace(
                objective=sums.objective * factor, metrics={name: x * factor for name, x in sums.metrics.items()}
            )

        return objective

    def made(*arguments: Any) -> Callable[..., Any]:
        compiled = make(*arguments)

        def spoilt(state: Any, batch: Any, *rest: Any) -> Any:
            done = int(state["step"]) + 1
            if done not in left:
                return compiled(state, batch, *rest)
            if kind != "flip":
                left.discard(done)
            if kind == "hang":
                time.sleep(1e6)
            if kind == "loss":  # without targets it is 0 / 0
                batch = batch._replace(weights=jnp.zeros_like(batch.weights))
            if kind in _MARKED:
                batch = batch._replace(tokens=jnp.full_like(batch.tokens, _MARK))
            if kind == "weight":
                state = dict(state, params=_changed(state["params"], lambda values: values.__setitem__(0, np.inf)))
            new, metrics = compiled(state, batch, *rest)
            if kind == "flip" and next(calls) == 1:  # of the two times that it is computed, the second
                left.discard(done)
                new = dict(new, params=_changed(new["params"], _flip))
            return new, metrics

        return spoilt

    calls = iter(range(10**6))
    if kind in _MARKED:
        train.next_token = next_token
    train.make_train_step = made


def _flip(values: np.ndarray) -> None:
    values.view(np.uint32)[0] ^= 1 << 12


def _changed(params: Any, change: Callable[[np.ndarray], None]) -> Any:
    """The parameters with the largest of them changed on the host."""
    leaves, structure = jax.tree.flatten(params)
    number = max(range(len(leaves)), key=lambda i: leaves[i].size)
    values = np.array(leaves[number])
    change(values.reshape(-1))
    leaves[number] = jax.device_put(values, leaves[number].sharding)
    return jax.tree.unflatten(structure, leaves)


if __name__ == "__main__":
    kind, _, steps = sys.argv[1].partition(":")
    inject(kind, {int(step) for step in steps.split(",")})
    from scaling import cli

    sys.exit(cli.main(sys.argv[2:]))
