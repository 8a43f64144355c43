"""The verb ``plan``: predicts memory and step time on devices that are not here."""

import argparse
import dataclasses
import json
import math
import sys
from typing import TYPE_CHECKING, Any

from scaling import exit_codes
from scaling.config.refusal import refused
from scaling.config.remat import AUTO

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaling.config import schema as cfg
    from scaling.plan.plan import Plan
    from scaling.plan.request import Request

_ASKED = ("batch_size", "prompt_tokens", "tokens")  # options of --step=generate
_NOT_OF_TABLES = ("topology", "slices", "device", "devices", "search", "price", "top", "json", *_ASKED)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``plan`` reads besides ``--config``."""
    add = parser.add_argument
    add("--topology", metavar="NAME", help="compile for TPU slices of this topology, such as v5e:4x4 or v5p:4x4x8")
    add("--slices", type=int, metavar="N", help="number of these slices (default: config.mesh.slices)")
    add("--device", metavar="KIND", help="estimate for this chip without compiling, such as v5p or H100")
    add("--devices", type=int, metavar="N", help="number of these chips")
    add(
        "--step",
        choices=("train", "eval", "generate", "ppo", "grpo"),
        help="which step (default: train; ppo for a config with rl.reward)",
    )
    add("--batch_size", type=int, metavar="N", help="generate: number of texts at a time (default: 8)")
    add("--prompt_tokens", type=int, metavar="N", help="generate: tokens of the longest prompt (default: 128)")
    add("--tokens", type=int, metavar="N", help="generate: new tokens for each text (default: 100)")
    add(
        "--search",
        type=int,
        nargs="?",
        const=4,
        metavar="N",
        help="try meshes, remat and microbatches, and print the best N that fit (default: 4); with --topology these "
        "are compiled",
    )
    add(
        "--table",
        nargs="*",
        metavar="SIZE",
        help="compile the layouts that ship, for all GPT-3 sizes or for these, and print tables; without --config",
    )
    add("--price", type=float, metavar="X", help="price of one chip for an hour")
    add("--fresh", action="store_true", help="compile again even if the result is cached")
    add("--top", type=int, default=0, metavar="N", help="print the N operations that take longest, too")
    add("--json", action="store_true", help="print JSON, for programs")


def run(options: argparse.Namespace) -> int:
    """Prints the plan of a config.

    Returns:
        0 if the step (with ``--search``: some layout) fits into memory and leaves 5 % free, else the code of a mistake.

    Raises:
        ValueError: options that cannot be used, an impossible config, no compiler.
    """
    from scaling.config.files import load, run_name
    from scaling.plan import plan

    if options.table is not None:
        return _table(options)
    _check(options)
    config, name = load(options.config, options.overrides), run_name(options.config)
    options.step = options.step or ("ppo" if config.rl.reward and not options.search else "train")
    _check_step(options)
    request = _request(options)
    if options.slices:
        config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, slices=options.slices))
    where = _where(options, config.mesh.slices)
    if options.search:
        return _search(options, config, name, where)
    resolved = plan.resolved(config, where.devices, name)
    chooses = resolved.compute.remat == AUTO and options.step in ("train", *plan.RL)
    if chooses and options.step in plan.RL:
        raise refused("compute.remat", AUTO, f"is built for --step=train, not for {options.step}; must name a policy")

    def compiles(config: "cfg.Config") -> "Plan":
        print(f"compiling {name} for {where.slices} x {where.topology}{_remat(config, chooses)} ...", file=sys.stderr)
        return plan.compiled(config, where.topology, where.slices, options.step, options.fresh, request)

    if not chooses:
        found = compiles(resolved) if where.topology else plan.estimated(resolved, where.chip, where.chips)
    else:
        found = _chosen(resolved, where, compiles)
    if options.json:
        print(json.dumps(to_json(found, options.price), indent=2))
    else:
        print(to_text(name, found, options.price, options.top))
    return exit_codes.OK if found.fits else exit_codes.USAGE


def _remat(config: "cfg.Config", chooses: bool) -> str:
    return f", remat={config.compute.remat}" if chooses else ""


def _chosen(config: "cfg.Config", where: "_Where", compiles: "Callable[[cfg.Config], Plan]") -> "Plan":
    """The plan of ``compute.remat=auto``, which is said on standard error."""
    from scaling.catalog import chips
    from scaling.plan import plan, recompute

    chip = chips.find(where.chip)
    assert chip is not None
    if where.topology:
        text, found = recompute.compiled(config, chip, compiles)
        by = "the compiler"
    else:
        text = recompute.choose(config, chip, (1 - plan.HEADROOM) * chip.hbm / chip.devices)
        found, by = plan.estimated(recompute.with_remat(config, text), where.chip, where.chips), "shapes"
    size = f"{found.bytes / 2**30:.1f} GiB a device by {by}" if not found.refusal else "which does not fit"
    print(f"compute.remat={AUTO} is {text} here, {size}", file=sys.stderr)
    return found


@dataclasses.dataclass(frozen=True)
class _Where:
    """The devices that the options name; ``topology`` is empty if nothing is compiled."""

    topology: str
    slices: int
    chip: str
    chips: int
    devices: int


def _where(options: argparse.Namespace, slices: int) -> _Where:
    from scaling.catalog import chips
    from scaling.plan import topology

    if options.topology:
        chip, _ = topology.parse(options.topology)
        devices = topology.count(options.topology, slices)
        return _Where(options.topology, slices, chip.name, devices // chip.devices, devices)
    found = chips.find(options.device)
    if found is None:
        known = ", ".join(dict.fromkeys(chip.name for chip in chips.CHIPS))
        raise ValueError(f"--device={options.device} is not a known chip; use one of {known}")
    return _Where("", slices, found.name, options.devices, options.devices * found.devices)


def _check(options: argparse.Namespace) -> None:
    if options.config is None:
        raise ValueError("needs --config=FILE, such as gpt3/1300m")
    if bool(options.topology) == bool(options.device):
        raise ValueError("needs --topology=NAME to compile, or --device=KIND with --devices=N to estimate")
    if options.price is not None and not 0 < options.price < math.inf:
        raise ValueError(f"--price={options.price} must be a number more than 0")
    if options.top < 0:
        raise ValueError(f"--top={options.top} must be 0 or more")
    if options.slices is not None and options.slices < 1:
        raise ValueError(f"--slices={options.slices} must be at least 1")
    if options.search is not None and options.search < 1:
        raise ValueError(f"--search={options.search} must be at least 1")
    if options.topology and options.devices is not None:
        raise ValueError("--devices belongs to --device; --topology gives the number of chips itself")
    if options.device and (not options.devices or options.devices < 1):
        raise ValueError(f"--device={options.device} needs --devices=N, at least 1")


def _check_step(options: argparse.Namespace) -> None:
    if options.step != "generate" and any(getattr(options, name) is not None for name in _ASKED):
        raise ValueError(f"{', '.join('--' + name for name in _ASKED)} belong to --step=generate")
    if options.step != "train" and (options.device or options.search):
        raise ValueError(
            f"--step={options.step} needs --topology, without --search; with other options only train steps are planned"
        )


def _table(options: argparse.Namespace) -> int:
    from scaling.plan.table import table

    others = (getattr(options, name) for name in ("config", "overrides", *_NOT_OF_TABLES))
    if any(others) or options.step not in (None, "train"):
        raise ValueError("--table has its own configs and topologies; it can be combined only with --fresh")
    for line in table(options.table, options.fresh, lambda text: print(text, file=sys.stderr)):
        print(line)
    return exit_codes.OK


def _request(options: argparse.Namespace) -> "Request | None":
    from scaling.plan.request import Request

    if options.step != "generate":
        return None
    return Request(**{name: value for name in _ASKED if (value := getattr(options, name)) is not None})


def _search(options: argparse.Namespace, config: "cfg.Config", name: str, where: _Where) -> int:
    """Ranks layouts and prints them with their knobs, the fastest first."""
    from scaling.plan import plan
    from scaling.plan.search import Candidate, search

    def compiles(config: "cfg.Config") -> "Plan":
        return plan.compiled(config, where.topology, where.slices, "train", options.fresh)

    def watch(number: int, candidate: Candidate) -> None:
        print(f"compiling {number} of {options.search}: {candidate.guess.layout} ...", file=sys.stderr)

    open_config = plan.for_search(config, where.devices, name)
    found = search(
        open_config, where.chip, where.chips, where.devices, compiles if where.topology else None, options.search, watch
    )
    if options.json:
        plans = [to_json(c.best, options.price) | {"knobs": c.knobs} for c in found]
        print(json.dumps(plans, indent=2))
        return exit_codes.OK
    print(f"{name} on {where.chips:,} x {where.chip}: {len(found)} layouts fit, the fastest first")
    for candidate in found[: options.search]:
        best = candidate.best
        print(
            f"  {best.seconds:.3g} s a step, MFU {100 * best.mfu:.1f} %, {best.days:,.1f} days, "
            f"{best.bytes / 2**30:.1f} GiB a chip: {candidate.knobs}"
        )
    print("", *found[0].best.assumptions, sep="\n")
    return exit_codes.OK


def to_json(plan: "Plan", price: float | None) -> dict[str, Any]:
    """The plan as a dict for JSON."""
    values = dataclasses.asdict(plan) | {
        "fits": plan.fits,
        "headroom": plan.headroom,
        "tokens_per_second": plan.tokens_per_second,
        "mfu": plan.mfu,
        "days": plan.days,
        "chip_hours": plan.chip_hours,
    }
    return values | ({"cost": plan.chip_hours * price} if price else {})


def to_text(name: str, plan: "Plan", price: float | None, top: int = 0) -> str:
    """The plan as text."""
    from scaling.plan.plan import HEADROOM, RL

    gib = 2**30
    lines = [f"{name} on {plan.where}, {plan.chips:,} chips: {plan.layout}"]
    parts = ", ".join(f"{part.replace('_', ' ')} {size / gib:.2f}" for part, size in plan.memory.items() if size)
    verdict = f"{100 * plan.headroom:.0f} % to spare" if plan.headroom >= 0 else "does NOT fit"
    if plan.headroom >= 0 and not plan.fits:
        verdict += f", less than the {100 * HEADROOM:.0f} % that should stay free"
    if plan.refusal:
        lines.append(f"memory       does NOT fit: {plan.refusal}")
        return "\n".join(lines)
    host = f"; {plan.host / gib:.2f} GiB in the host's memory" if plan.host else ""
    lines.append(
        f"memory       {plan.bytes / gib:.2f} of {plan.hbm / gib:.0f} GiB a chip, {verdict}: {parts} GiB{host}"
    )
    if plan.step == "generate":
        lines += _generation(plan)
    else:
        rate = f"{plan.tokens_per_second:,.0f} tokens/s, MFU {100 * plan.mfu:.1f} %"
        lines.append(f"{plan.step + ' step':<12} {plan.seconds:.3g} s, {plan.tokens:,} tokens: {rate}")
    if plan.step in RL:
        return "\n".join([*lines, "where it goes", *(_part(plan, part) for part in plan.parts), "", *plan.assumptions])
    if plan.step == "train":
        cost = f", {plan.chip_hours * price:,.0f} at {price:g} a chip-hour" if price else ""
        lines.append(
            f"run          {plan.run_tokens:,} tokens: {plan.days:,.1f} days, {plan.chip_hours:,.0f} chip-hours{cost}"
        )
    lines += ["where it goes", *(_part(plan, part) for part in _longest_first(plan))]
    for kind, (sent, hidden, calls) in sorted(plan.collectives.items()):
        share = 100 * hidden / sent if sent else 0
        lines.append(
            f"  {kind:<24} {sent / 1e9:>10,.2f} GB sent by a chip in {calls:,} calls, {share:.0f} % of it hidden"
        )
    if top and plan.operations:
        lines.append("operations")
    for operation, seconds in list(plan.operations.items())[:top]:
        lines.append(f"  {_milliseconds(plan, seconds)} ms  {operation}")
    return "\n".join([*lines, "", *plan.assumptions])


def _generation(plan: "Plan") -> list[str]:
    """The lines about generation: a token step, and the prompts."""
    from scaling.plan.plan import READ

    best = plan.ideal[READ]
    return [
        f"token step   {1e3 * plan.seconds:.3g} ms for {plan.tokens:,} texts: {plan.tokens_per_second:,.0f} tokens/s; "
        f"reading weights and cache once takes {1e3 * best:.3g} ms, {100 * best / plan.seconds:.0f} % of that",
        f"prompts      {1e3 * plan.prefill:.3g} ms, with the first token of each text",
    ]


def _part(plan: "Plan", part: str) -> str:
    """The line of one kind of work: time, share of the step, time a layer, share of the peak, share recomputed."""
    seconds, again = plan.parts[part], plan.again.get(part, 0.0)
    notes = []
    if part in plan.layer:
        notes.append(f"{1e3 * plan.layer[part]:.3g} ms a layer")
    if part in plan.ideal and seconds > again:
        notes.append(f"{100 * plan.ideal[part] / (seconds - again):.0f} % of the peak")
    if again > 0.005 * seconds:
        notes.append(f"{100 * again / seconds:.0f} % of it computed again")
    line = f"  {part:<24} {_milliseconds(plan, seconds)} ms  {100 * seconds / plan.seconds:>5.1f} %  {', '.join(notes)}"
    return line.rstrip()


def _longest_first(plan: "Plan") -> list[str]:
    return sorted((part for part, seconds in plan.parts.items() if seconds > 0), key=lambda part: -plan.parts[part])


def _milliseconds(plan: "Plan", seconds: float) -> str:
    return f"{1e3 * seconds:>10,.{1 if plan.seconds > 0.1 else 4}f}"
