"""The plan that is shown before anything is billed (chips, hours, cost if prices are known), and the consent."""

import dataclasses
import math
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from launch.jobs import Launch
from scaling.catalog import chips
from scaling.config import schema as cfg
from scaling.config.refusal import shown
from scaling.plan import plan
from scaling.sweep.plan import Run


@dataclasses.dataclass(frozen=True)
class Line:
    """One run: its tokens, its estimated hours on all its chips, and whether it should fit into memory."""

    name: str
    tokens: int
    hours: float
    fits: bool


@dataclasses.dataclass(frozen=True)
class Bill:
    """What a launch is expected to take.

    Attributes:
        lines: one for each run.
        where: the machines of one run, in words.
        chip: kind of the chips.
        count: number of chips of one run.
        spot: whether they are preemptible.
        price: of a chip-hour; None = unknown.
        prices: the file of prices that was given; None = no file was given.
    """

    lines: tuple[Line, ...]
    where: str
    chip: str
    count: int
    spot: bool
    price: float | None
    prices: Path | None = None

    @property
    def chip_hours(self) -> float:
        return self.count * sum(line.hours for line in self.lines)

    def to_text(self, parallel: int) -> str:
        """The table, the total, and how the hours were estimated."""
        width = max(3, *(len(line.name) for line in self.lines))
        rows = [f"{'run':<{width}}       tokens     hours  chip-hours" + "      cost" * (self.price is not None)]
        for line in self.lines:
            used = line.hours * self.count
            cost = f"  {used * self.price:>8,.2f}" if self.price is not None else ""
            doubt = "" if line.fits else "  memory may NOT suffice: see scaling plan"
            rows.append(f"{line.name:<{width}} {line.tokens:>12.4g} {line.hours:>9.3g} {used:>11,.1f}{cost}{doubt}")
        total = f"{len(self.lines)} runs, {min(parallel, len(self.lines))} at a time, each on {self.where}"
        total += " (spot)" * self.spot + f": {self.chip_hours:,.1f} chip-hours"
        if self.price is not None:
            total += f", {self.chip_hours * self.price:,.2f} at {self.price:g} a chip-hour"
        else:
            lacking = f"{self.prices} has no {self.chip}" + " in [spot]" * self.spot
            total += f"; cost unknown ({lacking if self.prices else '--prices=FILE'})"
        return "\n".join([*rows, "", total, "hours are estimated from shapes, without start-up, queues and lost work"])


def of_launch(launch: Launch, where: str, chip: str, count: int, spot: bool, prices: Path | None) -> Bill:
    """The bill of all runs of a launch on ``count`` chips each.

    Raises:
        ValueError: a config that cannot run on them, or prices that cannot be read.
    """
    found = chips.find(chip)
    assert found is not None, chip
    lines = tuple(_line(run, found, count) for run in launch.runs)
    return Bill(lines, where, found.name, count, spot, price(prices, found.name, spot) if prices else None, prices)


def resolved(run: Run, devices: int, where: str) -> cfg.Config:
    """The config of a run on so many devices, which are called ``where`` in a message.

    Raises:
        ValueError: a config that cannot run on them.
    """
    try:
        return plan.resolved(run.config, devices, run.name)
    except ValueError as error:
        raise ValueError(f"{run.name} on {where}: {error}") from None


def _line(run: Run, chip: chips.Chip, count: int) -> Line:
    config = resolved(run, count * chip.devices, f"{count} x {chip.name}")
    guess = plan.estimated(config, chip.name, count)
    return Line(run.name, run.config.train.tokens, 24 * guess.days, guess.fits)


def price(path: Path, chip: str, spot: bool) -> float | None:
    """The price of a chip-hour in a TOML file with lines ``v5e = 1.2``; a table ``[spot]`` has preemptible prices.

    Returns:
        None if the file does not name the chip.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not TOML, or a price is not a number of at least 0.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--prices={path} is not TOML: {error}") from None
    table = values.get("spot", {}) if spot else values
    if not isinstance(table, dict):
        raise ValueError(f"--prices={path}: spot = {shown(table)} must be a table, [spot]")
    found = table.get(chip)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not (math.isfinite(found) and found >= 0):
        raise ValueError(f"--prices={path}: {chip} = {shown(found)} must be a price of at least 0")
    return float(found)


def consent(yes: bool, what: Sequence[str]) -> None:
    """Asks for consent on a terminal, unless ``yes`` is given; ``what`` is what will be created.

    Raises:
        ValueError: no consent.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise ValueError("nothing was started: this will be billed, so it needs --yes, or a terminal to ask on")
    made = ", ".join(what)
    print(f"This creates {made}, billed until deleted. Type yes to continue: ", end="", flush=True)
    if sys.stdin.readline().strip() != "yes":
        raise ValueError("nothing was started")
