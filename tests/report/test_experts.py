"""The section about experts: what is drawn is what the runs logged, and runs without experts have none."""

import dataclasses
import json

import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.report.collect import collect
from scaling.report.expert_figures import expert_logs, routers
from scaling.report.sections import _experts
from tests.report.test_report import run

ROUTER = {"dropped": 0.05, "balance_loss": 1.1, "router_z_loss": 2.0}


def with_experts(folder, name, loads, experts=4, **run_options):
    """A run whose lines have the loads in turn; None = a line without."""
    run(folder, name, 32, 1e6, **run_options)
    config = folder / name / "config.json"
    values = json.loads(config.read_text())
    values["config"]["model"]["experts"] = dataclasses.asdict(cfg.Experts(count=experts, per_token=1))
    config.write_text(json.dumps(values))
    metrics = folder / name / "metrics.jsonl"
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    for i, record in enumerate(records):
        load = loads[i % len(loads)]
        record.update(ROUTER | {"expert_load": load} if load is not None else {})
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


def test_loads_are_multiples_of_equal_load_along_the_tokens(tmp_path):
    records = with_experts(tmp_path, "even", [[0.25] * 4])
    with_experts(tmp_path, "odd", [[0.5, 0.3, 0.2, 0.0], [0.4, 0.3, 0.2, 0.1]], ends_in=3.0)
    run(tmp_path, "dense", 32, 1e6)
    even, odd = expert_logs(collect([tmp_path]))
    assert (even.run, odd.run) == ("even", "odd")
    assert even.tokens.tolist() == [record["tokens"] for record in records]
    np.testing.assert_allclose(even.series, np.tile([1.0, 1.0, 0.05, 1.1, 2.0], (len(records), 1)))
    assert odd.series[0] == pytest.approx([2.0, 0.0, 0.05, 1.1, 2.0])  # the first line alone
    assert odd.series[-1][:2] == pytest.approx([1.8, 0.2], abs=0.11)  # a mean over the last lines
    (section,) = _experts(collect([tmp_path]))
    assert section.html.count("<tr>") == 3 and '<td class="n">5.00 %</td>' in section.html
    panels = routers([even, odd]).figure.axes
    most, least, *_ = panels[0].lines
    np.testing.assert_allclose(most.get_ydata(), 1.0)
    np.testing.assert_allclose(least.get_ydata(), 1.0)
    np.testing.assert_allclose(panels[1].lines[1].get_ydata(), 5.0)
    section.drawings[0].save(tmp_path)
    assert (tmp_path / "experts.png").exists()


def test_a_report_of_dense_runs_has_no_section(tmp_path):
    run(tmp_path, "dense", 32, 1e6)
    assert _experts(collect([tmp_path])) == []


@pytest.mark.parametrize("load", [[], "many", [0.5, None], [0.5, -1.0], {"0": 1.0}])
def test_damaged_loads_are_skipped(tmp_path, load):
    records = with_experts(tmp_path, "moe", [[0.25] * 4, load])
    (log,) = expert_logs(collect([tmp_path]))
    assert log.tokens.tolist() == [record["tokens"] for record in records[::2]]
