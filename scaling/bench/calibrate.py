"""Fits the prediction to measured step times that others have published: ``python -m scaling.bench.calibrate``.

``published.json`` has the measurements, with their sources, and what ``predict`` says of the same programs, compiled by
MaxText with the published knobs. One factor, the same for all chips, multiplies every prediction: least squares on the
logarithm of the step time. Its error is that of each measurement when the factor is fitted to the others.

    python -m scaling.bench.calibrate                      # the fit, from the file
    python -m scaling.bench.calibrate --peer=PYTHON        # compile all of it again with that interpreter's MaxText
"""

import argparse
import dataclasses
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

FILE = Path(__file__).with_name("published.json")


@dataclasses.dataclass(frozen=True)
class Point:
    """One published measurement and its prediction.

    Attributes:
        name: model.
        topology: one slice.
        measured: seconds of a step.
        how: what was printed, if not seconds.
        source: where.
        knobs: MaxText's, that give the program.
        parts: kind of work -> predicted seconds, before the factor.
        exposed: predicted seconds of collectives that nothing hides.
    """

    name: str
    topology: str
    measured: float
    how: str
    source: str
    knobs: dict[str, str]
    parts: dict[str, float]
    exposed: float

    @property
    def predicted(self) -> float:
        """Seconds of a step, before the factor."""
        return sum(self.parts.values()) + self.exposed


def load() -> list[Point]:
    """The published measurements."""
    return [Point(**values) for values in json.loads(FILE.read_text())]


def fit(points: Sequence[Point]) -> float:
    """The factor on predicted seconds that leaves the least squares of the logarithms: their mean ratio."""
    return math.exp(sum(math.log(p.measured / p.predicted) for p in points) / len(points))


def left_out(points: Sequence[Point]) -> list[float]:
    """Relative error of the prediction of each point by the factor of the others; above 0: predicted too long."""
    return [fit([*points[:i], *points[i + 1 :]]) * p.predicted / p.measured - 1 for i, p in enumerate(points)]


def report(points: Sequence[Point]) -> Iterator[str]:
    """A table of the fit, as Markdown."""
    factor, errors = fit(points), left_out(points)
    yield "| model | on | measured | predicted | calibrated | error, left out |"
    yield "|---|---|---|---|---|---|"
    for point, error in zip(points, errors, strict=True):
        yield (
            f"| {point.name} | {point.topology} | {point.measured:.2f} s | {point.predicted:.2f} s "
            f"| {factor * point.predicted:.2f} s | {100 * error:+.1f} % |"
        )
    typical = math.sqrt(sum(e * e for e in errors) / len(errors))
    yield ""
    yield (
        f"factor {factor:.3f}; error left out: {100 * typical:.0f} % typical (root mean square), "
        f"{100 * max(map(abs, errors)):.0f} % at most, {len(points)} measurements"
    )


def compiled(point: Point, python: str) -> Point:
    """The point with the prediction of its program, compiled anew by MaxText.

    Raises:
        ValueError: the interpreter cannot compile it.
    """
    from scaling.bench import maxtext_client as maxtext
    from scaling.plan import hlo, predict, topology

    fixed = maxtext.topology_knobs(point.topology)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "step.hlo"
        values = fixed | point.knobs | {"base_output_directory": folder}
        answer = maxtext.compile_step(python, maxtext.library(), [f"{k}={v}" for k, v in values.items()], text)
        if "error" in answer:
            raise ValueError(f"the peer {python} cannot compile {point.name}: {answer['error'][:500]}")
        found = predict.predict(hlo.parse(text.read_text()), topology.parse(point.topology)[0])
    parts = {kind: part.seconds for kind, part in found.parts.items()}
    return dataclasses.replace(point, parts=parts, exposed=found.exposed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the fit; with ``--peer`` compiles the programs and writes their predictions into the file first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter that has maxtext[tpu]")
    python = parser.parse_args(arguments).peer
    points = load()
    if python:
        for i, point in enumerate(points):
            print(f"compiling {point.name} for {point.topology} ...", file=sys.stderr)
            points[i] = compiled(point, python)
            FILE.write_text(json.dumps([dataclasses.asdict(p) for p in points], indent=1) + "\n")
    print(*report(points), sep="\n")


if __name__ == "__main__":
    main()
