"""Speculative beside plain decoding of real texts: what ``scaling bench generate --draft`` measures."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaling.bench.compare import ratio, speed
from scaling.bench.quiet import Timing
from scaling.config import schema as cfg
from scaling.generate.draft import Draft, load_draft
from scaling.generate.generator import Completion, Generator, bucket
from scaling.generate.sampling import Sampling
from scaling.interop.served import Served, load_decoder
from scaling.model import decoder, kv_cache

_TEMPERATURES = (0.0, 0.8)
_LONGEST = 32  # tokens of a prompt
_PASSES = 25  # of each kind that are timed


class Case(NamedTuple):
    """What is measured.

    Attributes:
        model: run directory or Hugging Face folder.
        draft: the same, of the small model.
        prompts: file with a text on each line; of each its first 32 tokens are read.
        tokens: that the draft proposes at a time, K.
        new: tokens of a text.
    """

    model: str
    draft: str
    prompts: str
    tokens: int
    new: int


def bench(case: Case, batches: Sequence[int], repetitions: int, dtype: str) -> Iterator[str]:
    """Times both in turns, batch by batch of the prompts, compilation left out.

    Args:
        case: models and prompts.
        batches: numbers of rows.
        repetitions: timed passes over the prompts.
        dtype: of the matrix products.

    Yields:
        Lines of text.

    Raises:
        FileNotFoundError: no model or file there.
        ValueError: models that cannot be used, or too few prompts.
    """
    served = load_decoder(case.model, dtype=dtype)
    draft = load_draft(case.draft, served, case.tokens, dtype=dtype)
    prompts = _prompts(case.prompts, served)
    plain = Generator(served.network, served.params, served.words)
    speculative = Generator(served.network, served.params, served.words, draft=draft)
    sizes = [sum(x.size for x in jax.tree.leaves(params)) for params in (served.params, draft.params)]
    yield f"model of {sizes[0]:,} parameters, draft of {sizes[1]:,}, {dtype}, {jax.devices()[0].device_kind}"
    yield from _pass_times(served, draft)
    for size in batches:
        rows = prompts[: len(prompts) // size * size]
        if not rows:
            raise ValueError(f"--prompts={case.prompts} has {len(prompts)} texts, fewer than --batch={size}")
        for temperature in _TEMPERATURES:
            sampling = Sampling(tokens=case.new, temperature=temperature, end_ids=())
            yield (
                f"batch {size}, temperature {temperature:g}, {len(rows)} prompts, {case.new} new tokens each, "
                f"{case.tokens} proposed at a time"
            )
            yield from _in_turns(plain, speculative, rows, sampling, size, repetitions)


def _prompts(file: str, served: Served) -> list[np.ndarray]:
    lines = [line for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    start = np.asarray(served.words.start, np.int32)
    return [np.concatenate([start, served.words.encode(line)[: _LONGEST - len(start)]]) for line in lines]


def _in_turns(
    plain: Generator,
    speculative: Generator,
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    size: int,
    repetitions: int,
) -> Iterator[str]:
    ones: list[Timing] = []
    others: list[Timing] = []
    same, found = 0, []
    compiled = set()
    for repetition in range(repetitions):
        for first in range(0, len(prompts), size):
            batch, numbers = prompts[first : first + size], range(first, first + size)
            if (shape := bucket(max(map(len, batch)))) not in compiled:
                for generator in (plain, speculative):
                    generator.generate(batch, sampling, size, numbers)
                compiled.add(shape)
            both = []
            for generator, timings in ((plain, ones), (speculative, others)):
                with Timing(shared=jax.default_backend() == "cpu") as timing:
                    both.append(generator.generate(batch, sampling, size, numbers))
                timings.append(timing)
            if not repetition:
                same += sum(a[0].ids == b[0].ids for a, b in zip(*both, strict=True))
                found += [completions[0] for completions in both[1]]
    yield f"  plain: {speed(ones, size * sampling.tokens)}"
    yield f"  speculative: {speed(others, size * sampling.tokens)}"
    yield ratio(others, ones)
    yield f"  {_accepted(found)}" + (
        f"; {same} of {len(prompts)} texts are the same" if not sampling.temperature else ""
    )


def _accepted(found: Sequence[Completion]) -> str:
    """What a pass of the model brought, that over the prompt and the token from it left out."""
    passes = sum((completion.passes or 1) - 1 for completion in found)
    tokens = sum(len(completion.ids) - 1 for completion in found)
    return (
        f"{tokens / max(1, passes):.2f} tokens a pass of the model, of which {tokens / max(1, passes) - 1:.2f} proposed"
    )


def _pass_times(served: Served, draft: Draft) -> Iterator[str]:
    """Median times of passes over one and several tokens of one row, with the logits of all."""
    lengths = (1, 2, draft.tokens + 1)
    for name, network, params in (
        ("model", served.network, served.params),
        ("draft", draft.network, draft.params),
    ):
        with jax.set_mesh(served.mesh):
            split = kv_cache.split_layers(network, params, served.mesh)
            calls = {length: _call(network, split, length) for length in lengths}
            times: dict[int, list[float]] = {length: [] for length in lengths}
            for _ in range(_PASSES):
                for length, call in calls.items():
                    begin = time.perf_counter()
                    call()
                    times[length].append(time.perf_counter() - begin)
        shown = ", ".join(
            f"{length}: {1e3 * statistics.median(found):.1f} ms (best {1e3 * min(found):.1f})"
            for length, found in times.items()
        )
        yield f"  a pass of the {name} over so many tokens, medians of {_PASSES} in turns: {shown}"


def _call(network: cfg.Network, params: decoder.Params, length: int) -> Callable[[], Any]:
    """A pass over ``length`` tokens after 64 others, compiled, which waits for its end."""

    @jax.jit
    @jax.default_matmul_precision("highest")
    def step(params: decoder.Params, tokens: jax.Array, cache: kv_cache.Cache) -> tuple[jax.Array, kv_cache.Cache]:
        starts = jnp.zeros(1, jnp.int32)
        hidden, after = kv_cache.extend(network, params, tokens, cache, jnp.int32(64), starts)
        logits = kv_cache.next_logits(network, params, hidden[0], network.model.vocab_size)
        return jnp.argmax(logits, axis=-1), after

    _, cache = kv_cache.prefill(network, params, jnp.zeros((1, 64), jnp.int32), jnp.zeros(1, jnp.int32), 128)
    tokens = jnp.ones((1, length), jnp.int32)
    compiled = step.lower(params, tokens, cache).compile()
    compiled(params, tokens, cache)
    return lambda: jax.block_until_ready(compiled(params, tokens, cache)[0])
