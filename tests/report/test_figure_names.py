"""Names with dollars, which matplotlib takes for formulas, are drawn as they are in every figure."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.text import Text

from scaling.evaluate.bias.report import Group, Report
from scaling.evaluate.bias.words import Favoured, OccupationBias
from scaling.laws.points import Points
from scaling.report import bias_figure, compute_figures, contamination_figure, task_figures
from scaling.report.collect import collect
from scaling.report.curves import plot
from scaling.report.task_scores import task_scores
from tests.laws.test_tasks import along, run

NAME = "a$\\x$b"  # no formula of matplotlib's


def training(folder):
    run(folder, NAME, along("group", ["one"], [0], [2, 4, 10]))
    return task_figures.over_training(task_scores(collect([folder])))[0]


def residuals(folder):
    n = np.geomspace(1e6, 1e8, 4)
    columns = {"params": n, "tokens": 20 * n, "loss": 3 + 50 / n**0.3, "flops": 120 * n**2}
    points = Points((NAME, "b", "c", "d"), (NAME, "b", "c", "d"), columns)
    fit = SimpleNamespace(theta=dict.fromkeys("abe", 1.0) | {"alpha": 0.3, "beta": 0.3}, outliers=[f"{NAME} (+9 %)"])
    return compute_figures.residuals(SimpleNamespace(points=points), fit, "none")


def bias(folder):
    probes = {NAME: {NAME: Group(5, (Favoured(NAME, 3, 2.0),), 1.0)}}
    occupations = {NAME: OccupationBias(0.1, 0.1, 0.5, {NAME: 0.1, "b": 0.2})}
    settings = {"lexicon": "file", "samples": 5, "sample_tokens": 5}
    return bias_figure.draw(Report("model", None, None, settings, probes, occupations, ()))


def contamination(folder):
    effect = SimpleNamespace(shots=0, metric="accuracy", difference=0.1, error=0.01)
    return contamination_figure.draw([SimpleNamespace(task=NAME, clean=5, total=10)], [[effect]])


@pytest.mark.parametrize("draw", [training, residuals, bias, contamination])
def test_dollars_in_names_are_no_formulas(tmp_path, draw):
    drawing = draw(tmp_path)
    drawing.save(tmp_path)  # a formula that is none would be an error here
    assert (tmp_path / f"{drawing.name}.png").exists()
    texts = [text.get_text() for text in drawing.figure.findobj(Text)]
    assert any(NAME.replace("$", r"\$") in text for text in texts)
    assert not any(NAME in text for text in texts)


def test_a_run_named_by_dollars_has_a_loss_curve(tmp_path):
    run(tmp_path, NAME, [])
    assert plot(tmp_path / NAME).exists()
