"""Ranks layouts of a run on given devices: all of them from shapes, and the best few with the compiler."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator

from scaling.catalog import chips as catalog
from scaling.config import schema as cfg
from scaling.config.resolve import resolve
from scaling.plan import plan, recompute

REMATS = ("none", "projections", "full")
MOST_SEQUENCES = 64  # of one shard in a microbatch


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A layout and what it would take, by shapes (``guess``) and, if it was compiled, by the compiler."""

    config: cfg.Config
    guess: plan.Plan
    compiled: plan.Plan | None = None

    @property
    def best(self) -> plan.Plan:
        """The compiled plan if there is one, otherwise the estimate."""
        return self.compiled or self.guess

    @property
    def knobs(self) -> str:
        """As they are given on the command line; a batch ramp, if there is one, then begins with whole microbatches."""
        mesh, train = self.config.mesh, self.config.train
        slices = f"--config.mesh.slices={mesh.slices} " if mesh.slices > 1 else ""
        tokens = train.microbatch_sequences * train.sequence_length
        ramp = f" --config.train.ramp_start_tokens={tokens}" if train.ramp_start_tokens % tokens else ""
        stages = f"--config.mesh.stage={mesh.stage} " if mesh.stage > 1 else ""
        context = f"--config.mesh.context={mesh.context} " if mesh.context > 1 else ""
        expert = f"--config.mesh.expert={mesh.expert} " if mesh.expert > 1 else ""
        return (
            f"{slices}{stages}--config.mesh.data={mesh.data} --config.mesh.fsdp={mesh.fsdp} {expert}{context}"
            f"--config.mesh.tensor={mesh.tensor} --config.compute.remat={self.config.compute.remat} "
            f"--config.train.microbatch_sequences={train.microbatch_sequences}{ramp}"
        )


def candidates(config: cfg.Config, device_count: int) -> Iterator[cfg.Config]:
    """Every layout of a config that its shapes allow: mesh, remat, microbatch; stages only over slices.

    Args:
        config: resolved for one layout; its slices and its expert and context axes stay.
        device_count: devices of all slices.
    """
    inside = device_count // (config.mesh.slices * config.mesh.expert * config.mesh.context)
    sizes = [n for n in range(1, inside + 1) if inside % n == 0]
    stages = [n for n in range(1, config.mesh.slices + 1) if config.mesh.slices % n == 0]
    for fsdp, tensor, stage in itertools.product(sizes, sizes, stages):
        if inside % (fsdp * tensor) or tensor > config.model.num_heads:
            continue
        mesh = dataclasses.replace(config.mesh, stage=stage, data=inside // (fsdp * tensor), fsdp=fsdp, tensor=tensor)
        shards = mesh.shards
        for remat, power in itertools.product(REMATS, range(MOST_SEQUENCES.bit_length())):
            train = dataclasses.replace(config.train, microbatch_sequences=shards * 2**power, pipeline_microbatches=0)
            compute = dataclasses.replace(config.compute, remat=remat)
            evaluation = dataclasses.replace(config.eval, batch_sequences=0)
            try:
                yield resolve(
                    dataclasses.replace(config, compute=compute, mesh=mesh, train=train, eval=evaluation),
                    device_count=device_count,
                )
            except ValueError:
                continue  # shapes that do not divide


def search(
    config: cfg.Config,
    kind: str,
    chips: int,
    device_count: int,
    compile_layout: Callable[[cfg.Config], plan.Plan] | None = None,
    most: int = 0,
    watch: Callable[[int, Candidate], None] = lambda number, candidate: None,
) -> list[Candidate]:
    """Ranks the layouts that fit, fastest first.

    Args:
        config: resolved for one layout.
        kind: chip.
        chips: how many.
        device_count: devices of them.
        compile_layout: compiles one; None = shapes alone.
        most: layouts that are compiled, the best by shapes.
        watch: told before each compilation.

    Returns:
        Candidates; where some were compiled, those alone, without those that do not fit or are refused.

    Raises:
        ValueError: nothing fits.
    """
    chip = catalog.find(kind)
    assert chip is not None
    layouts = list(candidates(config, device_count))
    # Of the policies between ``full`` and ``projections``, what ``auto`` would choose.
    lean = [c for c in layouts if c.compute.remat == "full"]
    limit = (1 - plan.HEADROOM) * chip.hbm / chip.devices
    chosen = [recompute.with_remat(c, recompute.choose(c, chip, limit)) for c in lean]
    layouts += [c for c in chosen if c.compute.remat not in REMATS]
    guesses = [Candidate(c, plan.estimated(c, kind, chips)) for c in layouts]
    fitting = sorted((c for c in guesses if c.guess.fits), key=lambda c: c.guess.seconds)
    if not fitting:
        least = min(guesses, key=lambda c: c.guess.bytes, default=None)
        need = f"the leanest layout needs {least.guess.bytes / 2**30:.1f} GiB a chip" if least else "no layout divides"
        raise ValueError(f"nothing fits {chips} x {kind}: {need}; use more chips")
    if compile_layout is None:
        return fitting
    found = []
    for number, candidate in enumerate(fitting[:most], 1):
        watch(number, candidate)
        with contextlib.suppress(plan.WholeArrays):
            found.append(dataclasses.replace(candidate, compiled=compile_layout(candidate.config)))
    found = sorted((c for c in found if c.best.fits), key=lambda c: c.best.seconds)
    if not found:
        raise ValueError(f"none of the {most} layouts that were compiled fits; compile more with --search=N")
    return found
