"""Memory and time of the layouts that ship, as tables for docs/benchmarks.md: ``scaling plan --table``."""

from collections.abc import Callable, Iterator

from scaling.catalog import layouts, recipes
from scaling.config import schema as cfg
from scaling.plan import plan, topology

# Parts of a step that have a column of their own, and what the column is called.
_PARTS = {
    "matrix products": "products",
    "attention kernels": "attention",
    "norms and elementwise": "norms, elementwise",
    "copies and layouts": "copies",
    "unembedding": "unembedding",
    "optimizer": "optimizer",
    "exposed collectives": "collectives",
}


def table(sizes: list[str], fresh: bool, watch: Callable[[str], None]) -> Iterator[str]:
    """Lines of Markdown: for each layout memory, step time, MFU; then where the time goes.

    Args:
        sizes: of ``scaling.catalog.layouts.LAYOUTS``; empty: all.
        fresh: compile again, also where the result is cached.
        watch: told before each compilation.

    Raises:
        ValueError: an unknown size, or no compiler.
    """
    if unknown := [size for size in sizes if size not in layouts.LAYOUTS]:
        raise ValueError(f"--table: {unknown[0]!r} has no layouts; one of {', '.join(layouts.LAYOUTS)}")
    wanted = [(size, where) for size in sizes or layouts.LAYOUTS for where in layouts.LAYOUTS[size]]
    found = []
    for number, (size, where) in enumerate(wanted, 1):
        watch(f"compiling {number} of {len(wanted)}: {size} for {where} ...")
        config = cfg.freeze(recipes.gpt3(size, where))
        resolved = plan.resolved(config, topology.count(where, 1), size)
        found.append((size, resolved, plan.compiled(resolved, where, 1, fresh=fresh)))
    yield from _summary(found)
    yield ""
    yield from _parts(found)


def _summary(found: list[tuple[str, cfg.Config, plan.Plan]]) -> Iterator[str]:
    yield "| size | slice | chips | mesh | remat | sequences x microbatches | GiB a chip | free | step | MFU | days |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for size, config, step in found:
        mesh = ", ".join(f"{n}={v}" for n in ("data", "fsdp", "tensor") if (v := getattr(config.mesh, n)) > 1)
        microbatch = config.train.microbatch_sequences
        each = microbatch // (config.mesh.data * config.mesh.fsdp)
        count = config.train.batch_tokens // config.train.sequence_length // microbatch
        head = f"| {size} | {step.where} | {step.chips:,} | {mesh} | {config.compute.remat} | {each} x {count} "
        if step.refusal:
            yield f"{head}| does not fit: {step.refusal} | | | | |"
            continue
        yield (
            f"{head}| {step.bytes / 2**30:.2f} of {step.hbm / 2**30:.0f} | {100 * step.headroom:.0f} % "
            f"| {step.seconds:.2f} s | {100 * step.mfu:.1f} % | {step.days:,.1f} |"
        )


def _parts(found: list[tuple[str, cfg.Config, plan.Plan]]) -> Iterator[str]:
    yield "| size | slice | step | " + " | ".join(_PARTS.values()) + " | other | M cycles | compiled in |"
    yield "|---|---|---|" + "---|" * (len(_PARTS) + 3)
    for size, _, step in found:
        if step.refusal:
            continue
        shares = [step.parts.get(part, 0.0) / step.seconds for part in _PARTS]
        cells = [f"{100 * share:.1f} %" for share in [*shares, 1 - sum(shares)]]
        yield (
            f"| {size} | {step.where} | {1e3 * step.seconds:,.0f} ms | {' | '.join(cells)} | {step.cycles / 1e6:,.0f} "
            f"| {step.compile_seconds:.0f} s |"
        )
