"""Decoding speed with GPT-2 small's shapes and random weights: what ``scaling bench generate`` measures."""

from collections.abc import Iterator

import jax
import numpy as np

from scaling.bench.compare import median, ratio, speed
from scaling.bench.peer import Peer
from scaling.bench.quiet import Timing
from scaling.config import schema as cfg
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling
from scaling.model import decoder

PROMPT, NEW = 32, 128


def bench(batch: int, repetitions: int, dtype: str, peer: Peer | None) -> Iterator[str]:
    """Times greedy decoding, 32 prompt tokens and 128 new ones a row, compilation left out; the peer's in turns.

    Args:
        batch: rows.
        repetitions: timed calls of each, after one for warm-up.
        dtype: of the matrix products.
        peer: Hugging Face's ``generate``, float32; or None.

    Yields:
        Lines of text.
    """
    model = cfg.Model(vocab_size=50257, context_length=1024, d_head=64, d_ff=3072)
    network = cfg.Network(model, cfg.Compute(dtype=dtype))
    generator = Generator(network, jax.jit(decoder.initialize, static_argnums=0)(model, jax.random.key(0)), None)
    prompts = list(np.random.default_rng(0).integers(0, model.vocab_size, (batch, PROMPT)))
    sampling = Sampling(tokens=NEW, temperature=0.0, end_ids=())
    on_gpu = jax.default_backend() == "gpu"
    where = {"device": "cuda", "dtype": dtype} if on_gpu else {"device": "cpu", "dtype": "float32"}
    ours, theirs = [], []
    for repetition in range(repetitions + 1):
        with Timing(shared=jax.default_backend() == "cpu") as timing:
            found = generator.generate(prompts, sampling, batch_size=batch)
        assert all(len(completion.ids) == NEW for (completion,) in found)
        if repetition:
            ours.append(timing)
            if peer:
                theirs.append(peer.measure("generate", batch=batch, prompt=PROMPT, new=NEW, **where))
    kind, tokens = jax.devices()[0].device_kind, batch * NEW
    yield (
        f"generate, GPT-2 small's shapes, {dtype}, {kind}, batch {batch}, {PROMPT} prompt and {NEW} new tokens: "
        f"{speed(ours, tokens)}, {1e3 * median(ours) / NEW:.1f} ms a step"
    )
    if peer:
        yield f"  {peer.version}, {peer.how}: {speed(theirs, tokens)}"
        yield ratio(ours, theirs)
