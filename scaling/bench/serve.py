"""Speed of a server's answers with several clients: what ``scaling bench serve`` measures.

Clients are coroutines that ask one request after the other, as the server's handlers do. HTTP itself is left out.
"""

import asyncio
import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from scaling.bench.quiet import Timing
from scaling.config import schema as cfg
from scaling.data import tokenizer
from scaling.generate.continuous import ROWS, Engine
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling
from scaling.model import decoder
from scaling.serve.answers import Answering
from scaling.serve.models import Model
from scaling.serve.requests import Ask
from scaling.serve.turns import TOGETHER, Turns

PROMPTS, NEW = (8, 64), (24, 72)  # least and most tokens of a request


@dataclasses.dataclass
class _Served:
    """What some clients were served: seconds of it all, new tokens, and of each request the first piece and the end."""

    timing: Timing
    tokens: int = 0
    firsts: list[float] = dataclasses.field(default_factory=list)
    ends: list[float] = dataclasses.field(default_factory=list)


def bench(clients: Sequence[int], requests: int, repetitions: int, layers: int, width: int) -> Iterator[str]:
    """Times requests of both ways, which take turns: each computed by itself, and by continuous batching.

    Args:
        clients: numbers of clients.
        requests: of each client, one after the other.
        repetitions: of each way and number, after one for warm-up.
        layers: of the model, whose weights are random.
        width: of its residual stream.

    Yields:
        Lines of text.
    """
    words = tokenizer.load("books")
    model = cfg.Model(
        vocab_size=words.vocab_size, context_length=256, num_layers=layers, d_model=width, num_heads=width // 64,
        d_head=64, d_ff=4 * width, attention_pattern=("dense",),
    )  # fmt: skip
    params = jax.jit(decoder.initialize, static_argnums=0)(model, jax.random.key(0))
    generator = Generator(cfg.Network(model, cfg.Compute(dtype="float32")), params, words)
    ways = {
        f"by themselves, {TOGETHER} in turns": Model("model", generator, None),
        f"continuous batching, {ROWS} rows": Model("model", generator, None, engine=Engine(generator)),
    }
    yield (
        f"serve, {layers} layers, width {width}, float32, {jax.devices()[0].device_kind}; prompts of {PROMPTS[0]} to "
        f"{PROMPTS[1]} tokens, {NEW[0]} to {NEW[1]} new ones, temperature 0.8; medians of {repetitions}"
    )
    for count in clients:
        found: dict[str, list[_Served]] = {way: [] for way in ways}
        for repetition in range(repetitions + 1):
            for way, served in ways.items():
                result = asyncio.run(_serve(served, count, requests))
                if repetition:
                    found[way].append(result)
        for way, results in found.items():
            yield f"  {count} client{'s' * (count > 1)}, {way}: {_figures(results)}"


async def _serve(model: Model, clients: int, requests: int) -> _Served:
    turns, served = Turns(), _Served(Timing())
    try:
        with served.timing:
            await asyncio.gather(*(_client(model, turns, number, requests, served) for number in range(clients)))
    finally:
        await asyncio.to_thread(turns.close)
    return served


async def _client(model: Model, turns: Turns, number: int, requests: int, served: _Served) -> None:
    rng = np.random.default_rng(number)
    for request in range(requests):
        length, new = (int(rng.integers(low, high, endpoint=True)) for low, high in (PROMPTS, NEW))
        prompt = rng.integers(0, model.generator.config.vocab_size, length).astype(np.int32)
        sampling = Sampling(tokens=new, temperature=0.8, end_ids=(), seed=requests * number + request)
        start, first = time.perf_counter(), 0.0
        async for _ in Answering(Ask(model, (prompt,), sampling, streams=True, counts=False), turns).pieces():
            first = first or time.perf_counter() - start
        served.tokens += new
        served.firsts.append(first)
        served.ends.append(time.perf_counter() - start)


def _figures(results: Sequence[_Served]) -> str:
    rate = statistics.median(result.tokens / result.timing.seconds for result in results)
    by_cpu = statistics.median(1e3 * result.timing.cpu / result.tokens for result in results)
    first, end = (
        statistics.median(time for result in results for time in getattr(result, name)) for name in ("firsts", "ends")
    )
    return (
        f"{rate:,.1f} tokens/s, first piece after {1e3 * first:,.0f} ms, whole answer after {1e3 * end:,.0f} ms, "
        f"{by_cpu:.2f} ms of CPU time a token"
    )
