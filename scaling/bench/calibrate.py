"""Fits the prediction to measured step times that others have published: ``python -m scaling.bench.calibrate``.

``published.json`` has the measurements, with their sources, and what ``predict`` says of the same programs, compiled by
MaxText with the published knobs. One factor a kind of chip multiplies every prediction: least squares on the logarithm
of the step time. Its error is that of each measurement when the factor is fitted to the others; for kinds without
measurements, a factor by all, with the error of each kind when the factor is fitted to the others.

    python -m scaling.bench.calibrate                      # the fit, from the file
    python -m scaling.bench.calibrate --peer=PYTHON        # compile all of it again with that interpreter's MaxText
    python -m scaling.bench.calibrate --peer=PYTHON --kind=v6e   # those of one kind of chip only
"""

import argparse
import dataclasses
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from scaling.plan.predict import Calibration

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
    def kind(self) -> str:
        """Of chip."""
        return self.topology.partition(":")[0]

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


def left_out(groups: Sequence[Sequence[Point]]) -> list[float]:
    """Relative errors of the predictions of each group by the factor of the others; above 0: predicted too long."""
    errors = []
    for i, group in enumerate(groups):
        factor = fit([point for other in (*groups[:i], *groups[i + 1 :]) for point in other])
        errors += [factor * point.predicted / point.measured - 1 for point in group]
    return errors


def calibrations(points: Sequence[Point]) -> dict[str, Calibration]:
    """Kind of chip -> its factor, with the error for a point left out; "" -> that of all, for a kind left out."""
    kinds = {kind: [p for p in points if p.kind == kind] for kind in sorted({p.kind for p in points})}
    found = {kind: _calibration([[point] for point in group]) for kind, group in kinds.items()}
    return found | {"": _calibration(list(kinds.values()))}


def _calibration(groups: Sequence[Sequence[Point]]) -> Calibration:
    points, errors = [point for group in groups for point in group], left_out(groups)
    return Calibration(fit(points), math.sqrt(sum(e * e for e in errors) / len(errors)), len(points))


def report(points: Sequence[Point]) -> Iterator[str]:
    """The fit as Markdown."""
    found = calibrations(points)
    yield "| model | on | measured | predicted | calibrated | off by |"
    yield "|---|---|---|---|---|---|"
    for point in points:
        calibrated = found[point.kind].factor * point.predicted
        yield (
            f"| {point.name} | {point.topology} | {point.measured:.2f} s | {point.predicted:.2f} s "
            f"| {calibrated:.2f} s | {100 * (calibrated / point.measured - 1):+.1f} % |"
        )
    yield ""
    for kind, one in found.items():
        left = "a point" if kind else "a kind"
        yield (
            f"{kind or 'other kinds'}: factor {one.factor:.3f} by {one.measurements} measurements; "
            f"{left} left out is missed by {100 * one.error:.1f} % (root mean square)"
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
    parts = {kind: round(part.seconds, 4) for kind, part in found.parts.items()}
    return dataclasses.replace(point, parts=parts, exposed=round(found.exposed, 4))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the fit; with ``--peer`` compiles the programs and writes their predictions into the file first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter that has maxtext[tpu]")
    parser.add_argument("--kind", help="compile again for this kind of chip only, such as v6e")
    given = parser.parse_args(arguments)
    points = load()
    if given.kind and (not given.peer or given.kind not in {p.kind for p in points}):
        known = ", ".join(sorted({p.kind for p in points}))
        parser.error(f"--kind={given.kind} needs --peer and must be one of {known}")
    if given.peer:
        for i, point in enumerate(points):
            if given.kind not in (None, point.kind):
                continue
            print(f"compiling {point.name} for {point.topology} ...", file=sys.stderr)
            points[i] = compiled(point, given.peer)
            FILE.write_text(json.dumps([dataclasses.asdict(p) for p in points], indent=1) + "\n")
    print(*report(points), sep="\n")


if __name__ == "__main__":
    main()
