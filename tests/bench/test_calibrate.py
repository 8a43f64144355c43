"""The factor that published step times give, and the one that plans use."""

import dataclasses
import json
import math

import pytest

from scaling.bench import calibrate
from scaling.plan import predict


def point(measured, predicted, **more):
    values = {"name": "1B", "topology": "v5e:4x4", "how": "", "source": "", "knobs": {}, "exposed": 0.25 * predicted}
    return calibrate.Point(measured=measured, parts={"matrix products": 0.75 * predicted}, **values | more)


def test_the_factor_is_the_mean_ratio_and_its_error_that_of_points_left_out():
    points = [point(8.0, 10.0), point(16.0, 20.0), point(10.0, 10.0)]
    assert calibrate.fit(points) == pytest.approx((0.8 * 0.8 * 1.0) ** (1 / 3))
    assert calibrate.left_out(points)[2] == pytest.approx(-0.2)  # by the other two: 8 s, measured 10
    assert calibrate.left_out(points)[0] == pytest.approx(math.sqrt(0.8) / 0.8 - 1)
    table = list(calibrate.report(points))
    assert "| 1B | v5e:4x4 | 10.00 s | 10.00 s | 8.62 s | -20.0 % |" in table
    assert table[-1].startswith("factor 0.862; error left out: 15 % typical")


def test_plans_use_what_the_published_measurements_give():
    points = calibrate.load()
    errors = calibrate.left_out(points)
    assert len(points) >= 3 and all(p.measured > 0 and p.predicted > 0 and p.source and p.knobs for p in points)
    assert len({p.topology.partition(":")[0] for p in points}) >= 2
    assert pytest.approx(calibrate.fit(points), abs=5e-3) == predict.CALIBRATION.factor
    typical = math.sqrt(sum(e * e for e in errors) / len(errors))
    assert pytest.approx(typical, abs=5e-3) == predict.CALIBRATION.error
    assert predict.CALIBRATION.measurements == len(points)


def test_calibration_scales_all_seconds_and_nothing_else():
    before = predict.Prediction(2.0, {"matrix products": predict.Part(1.5, 0.5, 1.0, 7)}, {}, 0.5, 7, {"dot": 1.5})
    after, factor = before.calibrated(), predict.CALIBRATION.factor
    part = after.parts["matrix products"]
    assert (part.seconds, part.again, part.layers, part.cycles) == (1.5 * factor, 0.5 * factor, factor, 7)
    assert (after.seconds, after.exposed, after.operations["dot"]) == (2 * factor, 0.5 * factor, 1.5 * factor)
    assert after.cycles == 7


def test_all_of_it_can_be_compiled_again(monkeypatch, tmp_path, capsys):
    file = tmp_path / "published.json"
    file.write_text(json.dumps([dataclasses.asdict(p) for p in (point(8.0, 10.0), point(9.0, 10.0))]))
    monkeypatch.setattr(calibrate, "FILE", file)
    monkeypatch.setattr(calibrate, "compiled", lambda p, python: dataclasses.replace(p, exposed=0.0, parts={"x": 8.0}))
    calibrate.main(["--peer=python"])
    shown = capsys.readouterr()
    assert "compiling 1B for v5e:4x4" in shown.err and "| 8.00 s | 8.00 s |" in shown.out
    assert [p.predicted for p in calibrate.load()] == [8.0, 8.0]
