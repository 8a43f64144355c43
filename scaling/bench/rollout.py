"""Speed of answers in learning from rewards beside ``Generator.generate``: what ``scaling bench rollout`` measures."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from scaling.bench.compare import ratio, speed
from scaling.bench.quiet import Timing
from scaling.generate.generator import Generator
from scaling.generate.rollout import Rollouts
from scaling.generate.sampling import Sampling
from scaling.parallel.mesh import one_device
from scaling.runs.model import load_run


def bench(run_dir: str, batch: int, prompt: int, new: int, repetitions: int) -> Iterator[str]:
    """Times answers that have no end, drawn at temperature 1, by turns; compilation left out.

    A rollout lays the weights out for decoding anew each time, because training changes them; a ``Generator`` has done
    it once. So the same programs are also timed with the weights laid out before.

    Args:
        run_dir: of the run whose model answers.
        batch: rows, a power of two.
        prompt: tokens of each prompt; ``Generator`` rounds them up to a power of two, of at least 16.
        new: tokens of each answer; likewise.
        repetitions: timed calls of each, after one for warm-up.

    Yields:
        Lines of text.

    Raises:
        ValueError: what is asked for is longer than the model's context.
    """
    network, params = load_run(run_dir)
    model, mesh = network.model, one_device()
    generator = Generator(network, params, None)
    sampling = Sampling(tokens=new, end_ids=())
    prompts = np.random.default_rng(0).integers(0, model.vocab_size, (batch, prompt), np.int32)
    rollouts = Rollouts(network, model.vocab_size, mesh, sampling)
    tokens, starts = jax.device_put(prompts), jax.device_put(np.zeros(batch, np.int32))
    key = jax.random.key(0)

    def drawn(found: jax.Array) -> None:
        assert (np.asarray(found) >= 0).all()

    with jax.set_mesh(mesh):
        layers = rollouts.split(params)
        ways: dict[str, Callable[[], Any]] = {
            "generate": lambda: generator.generate(list(prompts), sampling, batch_size=batch),
            "rollout": lambda: drawn(rollouts(params, tokens, starts, key)),
            "rollout, weights laid out before": lambda: drawn(rollouts.answers(layers, tokens, starts, key)),
        }
    timings: dict[str, list[Timing]] = {name: [] for name in ways}
    for repetition in range(repetitions + 1):
        for name, way in ways.items():
            with jax.set_mesh(mesh), Timing(shared=jax.default_backend() == "cpu") as timing:
                way()
            if repetition:
                timings[name].append(timing)
    kind = jax.devices()[0].device_kind
    yield f"{run_dir}, {network.compute.dtype}, {kind}, batch {batch}, {prompt} prompt and {new} new tokens:"
    for name, found in timings.items():
        yield f"  {name}: {speed(found, batch * new)}"
        if name != "generate":
            yield ratio(found, timings["generate"])
