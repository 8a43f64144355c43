import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.generate.sampling import Sampling, choose, row_keys, rules

SHARES = np.asarray([0.1, 0.2, 0.3, 0.4])
ROWS = 4000
LOGITS = jnp.log(jnp.asarray([SHARES.tolist()] * ROWS))
KEYS = row_keys(0, np.arange(ROWS), np.zeros(ROWS, np.int32))


def shares(logits=LOGITS, seen=None, **options):
    static, dials = rules(dataclasses.replace(Sampling(), **options), 4, None)
    return np.bincount(np.asarray(choose(logits, KEYS, static, dials, seen)), minlength=4) / ROWS


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, SHARES),
        ({"temperature": 0.5}, SHARES**2 / (SHARES**2).sum()),
        ({"temperature": 0.0}, [0, 0, 0, 1]),
        ({"top_k": 2}, [0, 0, 3 / 7, 4 / 7]),
        ({"top_k": 9}, SHARES),
        ({"top_p": 0.65}, [0, 0, 3 / 7, 4 / 7]),
        ({"top_p": 0.75}, [0, 2 / 9, 3 / 9, 4 / 9]),
        ({"top_p": 0.01}, [0, 0, 0, 1]),
        # top_p counts among what top_k has left: 4/9 + 3/9 are enough.
        ({"top_k": 3, "top_p": 0.7}, [0, 0, 3 / 7, 4 / 7]),
    ],
)
def test_draws_follow_the_distribution(options, want):
    np.testing.assert_allclose(shares(**options), want, atol=0.03)


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    logits = jnp.asarray([[1.0, 2.0, -1.0, 0.5]] * ROWS)
    seen = jnp.asarray([[False, True, True, False]] * ROWS)
    weights = np.exp([1.0, 2.0 / 1.5, -1.0 * 1.5, 0.5])
    np.testing.assert_allclose(shares(logits, seen, repetition_penalty=1.5), weights / weights.sum(), atol=0.03)


def test_keys_tell_prompts_and_samples_apart():
    keys = jax.random.key_data(row_keys(2**32 - 1, np.asarray([0, 0, 1]), np.asarray([0, 1, 0])))
    assert len(np.unique(keys, axis=0)) == 3
