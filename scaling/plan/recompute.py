"""Chooses what the backward pass recomputes: ``compute.remat=auto``, by the memory of the chip."""

import dataclasses
import itertools
import math
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
# Tensors go to the host only if that saves more than this share of the step: no link was measured here.
WORTH_OF_HOST = 0.03
# The way to the host may take this share of the forward pass, both by shapes. In 6.7B on v5e:8x8 the compiler hid all
# of it at 0.54 of the pass, three quarters at 0.72 and 60 % at 0.89 (docs/notes/compiling.md).
BESIDE_HOST = 0.6
# Of the host's memory, which the loader, checkpoints and the system share.
HOST_SHARE = 0.5


def choose(config: cfg.Config, chip: chips.Chip, limit: float, host: bool = False) -> str:
    """The value of ``compute.remat`` whose step is the fastest, by shapes, among those that fit into so many bytes.

    Every set of kinds of tensor is tried, in all layers and in as many of the first layers as fit. Values that are
    within ``WORTH`` of the fastest count as equal; of these, one for all layers comes first, then the leanest.
    Kinds may lie in the memory of the host if ``_carried`` says so, and if the step is faster by ``WORTH_OF_HOST``.

    Args:
        config: resolved for its devices.
        chip: what it runs on.
        limit: bytes of a device that the step may take.
        host: whether kinds may lie there. Only for a choice that the compiler judges: it may begin copies too late for
            the work to hide them (docs/notes/compiling.md).

    Returns:
        "full" if nothing else fits.
    """
    here = [(text, guess) for text, guess in _tried(config, chip, limit) if _bytes(guess) <= limit]
    if not here:
        return "full"
    best, seconds = _fastest(here)
    if not host or not chip.host or config.mesh.stage > 1:
        return best
    least = estimate.train_step(with_remat(config, remat.ALL), chip).seconds  # if all were kept and nothing sent
    if least >= (1 - WORTH_OF_HOST) * seconds:
        return best
    tried = _tried(config, chip, limit, host=True)
    away = [(text, guess) for text, guess in tried if _bytes(guess) <= limit and _carried(guess, chip)]
    other, less = _fastest(away) if away else (best, math.inf)
    return other if less < (1 - WORTH_OF_HOST) * seconds else best


def _fastest(found: list[tuple[str, estimate.Estimate]]) -> tuple[str, float]:
    """The policy that ``choose`` takes of some that fit, and its seconds."""
    most = (1 + WORTH) * min(guess.seconds for _, guess in found)
    equal = [(":" in text, guess.host, _bytes(guess), text, guess) for text, guess in found if guess.seconds <= most]
    *_, text, guess = min(equal, key=lambda one: one[:-1])
    return text, guess.seconds


def _carried(guess: estimate.Estimate, chip: chips.Chip) -> bool:
    """Whether the host has room for its tensors, and the work of the forward pass hides the way to it."""
    room = HOST_SHARE * (chip.host.memory if chip.host else 0.0) / chip.devices
    return guess.host <= room and guess.way <= BESIDE_HOST * guess.forward


def compiled(
    config: cfg.Config, chip: chips.Chip, compile_step: Callable[[cfg.Config], plan.Plan]
) -> tuple[str, plan.Plan]:
    """The choice corrected by the compiler: what the estimate misses of its memory is added to the next estimate.

    After a choice that fits, kinds in the memory of the host are no longer tried, so that the times that the compiler
    gives decide about them.

    Args:
        config: resolved for its devices.
        chip: what it runs on.
        compile_step: compiles the step of a config.

    Returns:
        The choice and its plan: of at most ``TRIES`` the fastest that fits, or if none fits the leanest.
    """
    limit = (1 - plan.HEADROOM) * chip.hbm / chip.devices
    tried: dict[str, plan.Plan] = {}
    by_shapes, host = limit, True
    while len(tried) < TRIES and (text := choose(config, chip, by_shapes, host)) not in tried:
        found = tried[text] = compile_step(with_remat(config, text))
        guessed = _bytes(estimate.train_step(with_remat(config, text), chip))
        host = host and not found.fits
        # By how much a step that is refused is too large, the compiler says in words only.
        less = (1 - MARGIN) * min(by_shapes, guessed)
        by_shapes = less if found.refusal else limit - (found.bytes - guessed)
    fitting = {text: found for text, found in tried.items() if found.fits}
    text = min(fitting, key=lambda text: fitting[text].seconds) if fitting else list(tried)[-1]
    return text, tried[text]


def with_remat(config: cfg.Config, text: str) -> cfg.Config:
    """The config with another ``compute.remat``."""
    return dataclasses.replace(config, compute=dataclasses.replace(config.compute, remat=text))


def _tried(
    config: cfg.Config, chip: chips.Chip, limit: float, host: bool = False
) -> Iterator[tuple[str, estimate.Estimate]]:
    """Policies with their estimates; with ``host`` those that have kinds in its memory."""

    def guessed(text: str) -> estimate.Estimate:
        return estimate.train_step(with_remat(config, text), chip)

    lean = guessed("full")
    if not host:
        yield "full", lean
    if not host and not chip.clock:
        # To keep everything spares the work of a GPU's attention, too. On a TPU it would only move more bytes.
        yield "none", guessed("none")
    layers, each = config.model.num_layers, remat.period(config.model)
    for kept in _sets(host):
        yield (text := str(kept)), (whole := guessed(text))
        if remat.divisible(config) or _bytes(whole) <= max(limit, _bytes(lean)):
            continue
        # Memory grows by the same bytes with each layer that keeps them.
        share = (limit - _bytes(lean)) / (_bytes(whole) - _bytes(lean))
        first = int(share * layers) // each * each
        if 0 < first < layers:
            yield (text := str(dataclasses.replace(kept, layers=first))), guessed(text)


def _sets(host: bool) -> Iterator[remat.Kept]:
    """Every set of kinds in all layers; with ``host`` every set of which some are in its memory."""
    places = itertools.product(("", "here", "away") if host else ("", "here"), repeat=len(remat.KINDS))
    for where in places:
        kinds = tuple(kind for kind, place in zip(remat.KINDS, where, strict=True) if place)
        away = tuple(kind for kind, place in zip(remat.KINDS, where, strict=True) if place == "away")
        if kinds and bool(away) == host:
            yield remat.Kept(kinds, host=away)


def _bytes(guess: estimate.Estimate) -> int:
    return sum(guess.memory.values())
