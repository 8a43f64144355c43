"""What 8 bits cost and give while texts are continued: what ``scaling bench int8`` measures."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaling.bench.compare import ratio, speed
from scaling.bench.quiet import Timing
from scaling.config import schema as cfg
from scaling.config.resolve import check_int8
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling
from scaling.interop.served import Served, load_decoder
from scaling.model import decoder, kv_cache
from scaling.parallel.mesh import one_device

_KINDS = ("none", "weights", "cache", "both")
_AT_A_TIME = 2  # windows whose logits are computed together


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        model: run directory or folder.
        file: text, UTF-8, of which windows are cut.
        windows: their number.
        length: tokens of a window.
        prompt: tokens of a window that are continued greedily.
        new: tokens that continue it.
    """

    model: str
    file: str
    windows: int
    length: int
    prompt: int
    new: int


class Scores(NamedTuple):
    """Of the tokens of windows: negative log-likelihood in nats, and the likeliest instead, [N, T - 1] each."""

    losses: np.ndarray
    likeliest: np.ndarray


def bench(case: Case, batch: int, repetitions: int, dtype: str) -> Iterator[str]:
    """Compares all kinds with the model as it is; calls that are timed take turns, compilation left out.

    Args:
        case: model, text and lengths.
        batch: rows of what is timed.
        repetitions: timed calls of each kind, after one for warm-up.
        dtype: of the matrix products.

    Yields:
        Lines of text.

    Raises:
        FileNotFoundError: no model or file there.
        ValueError: a model that cannot be used, or too short a text.
    """
    served = load_decoder(case.model, dtype=dtype)
    if served.network.model.prefix_lm:
        raise ValueError(f"{case.model} sees a whole prompt on both sides (prefix_lm), and windows of text are none")
    networks = {kind: _with(served.network, kind) for kind in _KINDS}
    for kind, network in networks.items():
        check_int8(network.compute, f"{kind} in 8 bits: in {case.model}, ")
    windows = _windows(case, served)
    yield (
        f"{case.model}, {dtype}, {jax.devices()[0].device_kind}: {len(windows)} windows of {case.length} tokens of "
        f"{case.file}"
    )
    generators = {kind: Generator(network, served.params, served.words) for kind, network in networks.items()}
    plain = _scores(served.network, generators["none"].params, windows)
    yield _compared("none", plain, plain)
    for kind in _KINDS[1:]:
        yield _compared(kind, _scores(networks[kind], generators[kind].params, windows), plain)
    prompts = list(windows[:, : case.prompt])
    sampling = Sampling(tokens=case.new, temperature=0.0, end_ids=())
    texts = {}
    for kind, generator in generators.items():
        texts[kind] = np.asarray([each[0].ids for each in generator.generate(prompts, sampling, batch)])
        if kind != "none":
            yield _agreed(kind, texts[kind], texts["none"])
    yield from _speeds(generators, prompts[:batch], sampling, repetitions)


def _with(network: cfg.Network, kind: str) -> cfg.Network:
    return cfg.Network(network.model, dataclasses.replace(network.compute, decode_int8=kind))


def _windows(case: Case, served: Served) -> np.ndarray:
    """Int32 [N, T]: one after the other, each after what begins a text."""
    start = np.asarray(served.words.start, np.int32)
    each = case.length - len(start)
    try:
        text = Path(case.file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--text={case.file} is not UTF-8 ({error.reason} at byte {error.start})") from None
    ids = served.words.encode(text)[: case.windows * each]
    if len(ids) < case.windows * each or case.length > served.network.model.context_length:
        raise ValueError(
            f"{case.windows} windows of {case.length} tokens need {case.windows * each} of text and a context of "
            f"{case.length}; {case.file} has {len(ids)}, the model {served.network.model.context_length}"
        )
    rows = np.asarray(ids, np.int32).reshape(case.windows, each)
    return np.concatenate([np.tile(start, (case.windows, 1)), rows], axis=1)


def _scores(network: cfg.Network, params: decoder.Params, windows: np.ndarray) -> Scores:
    """By the program that reads prompts, with the parameters of decoding."""
    vocab = network.model.vocab_size

    @jax.jit
    @jax.default_matmul_precision("highest")
    def score(params: decoder.Params, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows, length = tokens.shape
        hidden, _ = kv_cache.prefill(network, params, tokens, jnp.zeros(rows, jnp.int32), length)
        flat = kv_cache.next_logits(network, params, hidden[:, :-1].reshape(rows * (length - 1), -1), vocab)
        logits = flat[:, :vocab].reshape(rows, length - 1, vocab)
        of_next = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)[..., 0]
        return -of_next, jnp.argmax(logits, -1)

    firsts = range(0, len(windows), _AT_A_TIME)
    with jax.set_mesh(one_device()):
        parts = [jax.device_get(score(params, windows[i : i + _AT_A_TIME])) for i in firsts]
    return Scores(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _compared(kind: str, found: Scores, plain: Scores) -> str:
    """The loss; and of what is in 8 bits the difference, with the standard error over windows, and equal choices."""
    loss = f"  {kind}: {found.losses.mean():.4f} nats a token"
    if found is plain:
        return loss
    off = (found.losses - plain.losses).mean(1)
    error = off.std(ddof=1) / np.sqrt(len(off)) if len(off) > 1 else float("nan")
    same = (found.likeliest == plain.likeliest).mean()
    return (
        f"{loss}, {off.mean():+.4f} (standard error {error:.4f}); {100 * same:.1f} % of the likeliest tokens the same"
    )


def _agreed(kind: str, found: np.ndarray, plain: np.ndarray) -> str:
    """How long greedy texts [N, new] are alike."""
    count, new = plain.shape
    alike = np.cumprod(found == plain, axis=1).sum(1)
    return (
        f"  {kind}: {(alike == new).sum()} of {count} greedy texts of {new} tokens are the same, "
        f"{alike.mean():.1f} tokens until the first that differs"
    )


def _speeds(
    generators: Mapping[str, Generator], prompts: list[np.ndarray], sampling: Sampling, repetitions: int
) -> Iterator[str]:
    timings: dict[str, list[Timing]] = {kind: [] for kind in generators}
    for repetition in range(repetitions + 1):
        for kind, generator in generators.items():
            with Timing(shared=jax.default_backend() == "cpu") as timing:
                generator.generate(prompts, sampling, len(prompts))
            if repetition:
                timings[kind].append(timing)
    yield f"{len(prompts)} rows, {len(prompts[0])} prompt and {sampling.tokens} new tokens:"
    for kind, found in timings.items():
        yield f"  {kind}: {speed(found, len(prompts) * sampling.tokens)}"
        if kind != "none":
            yield ratio(found, timings["none"])
