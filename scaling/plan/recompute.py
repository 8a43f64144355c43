"""Chooses what the backward pass recomputes: ``compute.remat=auto``, by the memory of the chip."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

from scaling.catalog import chips
from scaling.config import remat
from scaling.config import schema as cfg
from scaling.plan import estimate, plan

# Of the memory, at the start of a training, where only the estimate from shapes is at hand: its error, and a little.
MARGIN = 0.1
TRIES = 3  # compilations for one choice
# A choice with fewer programs and fewer bytes is taken unless another one saves more than this share of the step.
WORTH = 0.01


def choose(config: cfg.Config, chip: chips.Chip, limit: float) -> str:
    """The value of ``compute.remat`` whose step is the fastest, by shapes, among those that fit into so many bytes.

    Every set of kinds of tensor is tried, in all layers and in as many of the first layers as fit. Values that are
    within ``WORTH`` of the fastest count as equal; of these, one for all layers comes first, then the leanest.

    Args:
        config: resolved for its devices.
        chip: what it runs on.
        limit: bytes of a device that the step may take.

    Returns:
        "full" if nothing else fits.
    """
    found = [(text, guess) for text, guess in _tried(config, chip, limit) if _bytes(guess) <= limit]
    if not found:
        return "full"
    most = (1 + WORTH) * min(guess.seconds for _, guess in found)
    equal = [(":" in text, _bytes(guess), text) for text, guess in found if guess.seconds <= most]
    return min(equal)[2]


def compiled(
    config: cfg.Config, chip: chips.Chip, compile_step: Callable[[cfg.Config], plan.Plan]
) -> tuple[str, plan.Plan]:
    """The choice corrected by the compiler: what the estimate misses of its memory is added to the next estimate.

    Args:
        config: resolved for its devices.
        chip: what it runs on.
        compile_step: compiles the step of a config.

    Returns:
        The choice and its plan: of at most ``TRIES`` the fastest that fits, or if none fits the leanest.
    """
    limit = (1 - plan.HEADROOM) * chip.hbm / chip.devices
    tried: dict[str, plan.Plan] = {}
    by_shapes = limit
    while len(tried) < TRIES and (text := choose(config, chip, by_shapes)) not in tried:
        found = tried[text] = compile_step(with_remat(config, text))
        guessed = _bytes(estimate.train_step(with_remat(config, text), chip))
        # By how much a step that is refused is too large, the compiler says in words only.
        less = (1 - MARGIN) * min(by_shapes, guessed)
        by_shapes = less if found.refusal else limit - (found.bytes - guessed)
    fitting = {text: found for text, found in tried.items() if found.fits}
    text = min(fitting, key=lambda text: fitting[text].seconds) if fitting else list(tried)[-1]
    return text, tried[text]


def with_remat(config: cfg.Config, text: str) -> cfg.Config:
    """The config with another ``compute.remat``."""
    return dataclasses.replace(config, compute=dataclasses.replace(config.compute, remat=text))


def _tried(config: cfg.Config, chip: chips.Chip, limit: float) -> Iterator[tuple[str, estimate.Estimate]]:
    """Policies with their estimates."""

    def guessed(text: str) -> estimate.Estimate:
        return estimate.train_step(with_remat(config, text), chip)

    yield "full", (lean := guessed("full"))
    if not chip.clock:
        # To keep everything spares the work of a GPU's attention, too. On a TPU it would only move more bytes.
        yield "none", guessed("none")
    layers, each = config.model.num_layers, remat.period(config.model)
    for count in range(1, len(remat.KINDS) + 1):
        for kinds in itertools.combinations(remat.KINDS, count):
            yield (text := str(remat.Kept(kinds))), (whole := guessed(text))
            if remat.divisible(config) or _bytes(whole) <= limit:
                continue
            # Memory grows by the same bytes with each layer that keeps them.
            share = (limit - _bytes(lean)) / (_bytes(whole) - _bytes(lean))
            first = int(share * layers) // each * each
            if 0 < first < layers:
                yield (text := str(remat.Kept(kinds, first))), guessed(text)


def _bytes(guess: estimate.Estimate) -> int:
    return sum(guess.memory.values())
