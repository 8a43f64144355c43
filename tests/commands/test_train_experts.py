"""A run with experts through the command line."""

import json

import pytest

from tests.commands.test_train import train

EXPERTS = [
    "--config.model.experts.count=4",
    "--config.model.experts.every=2",
    "--config.model.experts.d_ff=32",
    "--config.optimizer.schedule=constant",
]


@pytest.mark.slow
def test_a_run_with_experts_records_its_routers_and_resumes_on_another_mesh(tmp_path):
    assert train(tmp_path, *EXPERTS, "--config.mesh.expert=2", "--config.train.tokens=4096") == 0
    assert train(tmp_path, *EXPERTS, "--config.mesh.fsdp=2") == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert lines[-1]["loss"] < lines[0]["loss"] - 1
    for line in [*lines, json.loads((tmp_path / "evals.jsonl").read_text().splitlines()[-1])]:
        assert sum(line["expert_load"]) == pytest.approx(1) and len(line["expert_load"]) == 4
        assert 0.5 < line["balance_loss"] < 2 and 0 <= line["dropped"] < 0.7 and line["router_z_loss"] > 0
