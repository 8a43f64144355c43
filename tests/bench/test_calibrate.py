"""The factor that published step times give, and the one that plans use."""

import dataclasses
import json
import math

import pytest

from scaling.bench import calibrate
from scaling.catalog import chips
from scaling.plan import predict


def point(measured, predicted, **more):
    values = {"name": "1B", "topology": "v5e:4x4", "how": "", "source": "", "knobs": {}, "exposed": 0.25 * predicted}
    return calibrate.Point(measured=measured, parts={"matrix products": 0.75 * predicted}, **values | more)


def test_the_factor_is_the_mean_ratio_and_its_error_that_of_what_is_left_out():
    points = [point(8.0, 10.0), point(16.0, 20.0), point(10.0, 10.0), point(6.0, 5.0, topology="v5p:2x2x1")]
    assert calibrate.fit(points[:3]) == pytest.approx((0.8 * 0.8 * 1.0) ** (1 / 3))
    apart = calibrate.left_out([[p] for p in points[:3]])
    assert apart == pytest.approx([math.sqrt(0.8) / 0.8 - 1, math.sqrt(0.8) / 0.8 - 1, -0.2])
    found = calibrate.calibrations([*points, point(6.0, 5.0, topology="v5p:4x4x4")])
    assert (found["v5e"].measurements, found["v5p"].measurements, found[""].measurements) == (3, 2, 5)
    assert found["v5e"].error == pytest.approx(math.sqrt(sum(e * e for e in apart) / 3))
    assert found["v5p"].factor == pytest.approx(1.2) and found["v5p"].error == pytest.approx(0.0)
    assert found[""].error > 0.2  # v5p by the factor of v5e, and the other way round


def test_plans_use_what_the_published_measurements_give(capsys):
    points = calibrate.load()
    assert all(p.measured > 0 and p.predicted > 0 and p.source and p.knobs for p in points)
    found = calibrate.calibrations(points)
    assert found.keys() == predict.CALIBRATIONS.keys()
    for kind, calibration in found.items():
        used = predict.CALIBRATIONS[kind]
        assert used.measurements == calibration.measurements >= 2
        assert tuple(used) == pytest.approx(tuple(calibration), abs=1e-3)
    calibrate.main([])
    assert "v5p: factor" in capsys.readouterr().out


def test_calibration_scales_all_seconds_and_nothing_else():
    before = predict.Prediction(2.0, {"matrix products": predict.Part(1.5, 0.5, 1.0, 7)}, {}, 0.5, 7, {"dot": 1.5})
    after = before.calibrated(0.5)
    part = after.parts["matrix products"]
    assert (part.seconds, part.again, part.layers, part.cycles) == (0.75, 0.25, 0.5, 7)
    assert (after.seconds, after.exposed, after.operations["dot"], after.cycles) == (1.0, 0.25, 0.75, 7)


def test_a_kind_without_measurements_has_the_factor_of_all():
    assert predict.calibration(chips.find("v7x")) == predict.CALIBRATIONS[""]
    assert predict.calibration(chips.find("v5p")) == predict.CALIBRATIONS["v5p"]
    assert "times 1.0" in predict.assumptions(chips.find("v5p"), 1, "train")[-1]
    assert "on other kinds" in predict.assumptions(chips.find("v7x"), 1, "train")[-1]


def test_all_of_it_can_be_compiled_again(monkeypatch, tmp_path, capsys):
    file, v5p = tmp_path / "published.json", [point(8.0, 9.0, topology="v5p:2x2x1")] * 2
    file.write_text(json.dumps([dataclasses.asdict(p) for p in (point(8.0, 10.0), point(9.0, 10.0), *v5p)]))
    monkeypatch.setattr(calibrate, "FILE", file)
    monkeypatch.setattr(calibrate, "compiled", lambda p, python: dataclasses.replace(p, exposed=0.0, parts={"x": 8.0}))
    calibrate.main(["--peer=python"])
    shown = capsys.readouterr()
    assert "compiling 1B for v5e:4x4" in shown.err and "| 8.00 s | 8.00 s |" in shown.out
    assert [p.predicted for p in calibrate.load()] == [8.0] * 4
    monkeypatch.setattr(calibrate, "compiled", lambda p, python: dataclasses.replace(p, exposed=0.0, parts={"x": 9.0}))
    calibrate.main(["--peer=python", "--kind=v5p"])
    assert [p.predicted for p in calibrate.load()] == [8.0, 8.0, 9.0, 9.0]
    for wrong in (["--kind=v5p"], ["--peer=python", "--kind=v6e"]):
        with pytest.raises(SystemExit, match="2"):
            calibrate.main(wrong)
