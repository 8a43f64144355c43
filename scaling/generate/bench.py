"""Decoding speed with GPT-2 small's shapes and random weights: what ``scaling bench generate`` measures."""

import statistics
import time

import jax
import numpy as np

from scaling import config as cfg
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling
from scaling.model import decoder

PROMPT, NEW = 32, 128


def bench(batch: int = 1, repetitions: int = 3, dtype: str = "float32") -> str:
    """Time of greedy decoding, 32 prompt tokens and 128 new ones a row, compilation left out.

    Args:
        batch: rows.
        repetitions: timed calls, after one for warm-up.
        dtype: of the matrix products.

    Returns:
        One line: tokens a second and milliseconds a token, medians and best.
    """
    model = cfg.Model(vocab_size=50257, context_length=1024, d_head=64, d_ff=3072, compute_dtype=dtype)
    generator = Generator(model, jax.jit(decoder.initialize, static_argnums=0)(model, jax.random.key(0)), None)
    prompts = list(np.random.default_rng(0).integers(0, model.vocab_size, (batch, PROMPT)))
    sampling = Sampling(tokens=NEW, temperature=0.0, end_ids=())
    times = []
    for repetition in range(repetitions + 1):
        start = time.perf_counter()
        found = generator.generate(prompts, sampling, batch_size=batch)
        assert all(len(completion.ids) == NEW for (completion,) in found)
        if repetition:
            times.append(time.perf_counter() - start)
    median, best = statistics.median(times), min(times)
    return (
        f"generate, GPT-2 small's shapes, {dtype}, {jax.devices()[0].device_kind}, batch {batch}, {PROMPT} prompt and "
        f"{NEW} new tokens: {batch * NEW / median:.1f} tokens/s, {1e3 * median / NEW:.1f} ms a step (median of "
        f"{repetitions}; best {1e3 * best / NEW:.1f} ms)"
    )
