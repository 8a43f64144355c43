"""``experiments/instructgpt/overoptimisation.py``: its pure parts, and what it makes of rewards that are known."""

import importlib.util
import json
import sys

import numpy as np
import pytest

from scaling.laws.overoptimisation import best_of_n_kl
from tests.test_experiments import PROGRAMS

SETUP = ["--sft=SFT", "--prompts=p.jsonl", "--comparisons", "64", "16", "--answers=16", "--held_out=32"]


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("overoptimisation", PROGRAMS[0])
    module = importlib.util.module_from_spec(spec)
    sys.modules["overoptimisation"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["overoptimisation"]


def test_a_comparison_is_the_first_pair_that_differs_and_has_text(program):
    scores = np.array([1.0, 1.0, 0.0, 2.0])
    assert program.first_pair(["a", "b", " ", "d"], scores) == {"chosen": "d", "rejected": "a"}
    assert program.first_pair(["a", "b"], scores[:2]) is None


def test_figure_and_table_of_rewards_that_are_known(program, tmp_path):
    folder, setup = program.parsed([str(tmp_path), *SETUP])
    random, gold = np.random.default_rng(0), np.random.default_rng(1).normal(0.5, 2.0, (32, 16))
    np.save(folder / "scores_gold.npy", gold)
    d = np.linspace(0.5, 5, 10)
    for count, noise, beta in ((16, 3.0, 0.5), (64, 0.0, 0.25)):
        proxy = gold + random.normal(0, noise, gold.shape)
        np.save(folder / f"scores_{count}.npy", proxy)
        true = gold.mean() + gold.std() * d * (0.6 - beta * np.log(d))
        learned = proxy.mean() + proxy.std() * d * 0.6
        values = zip(d**2, true, learned, strict=True)
        lines = [
            {"step": i, "objective/kl": k, "objective/gold": g, "objective/scores": p}
            for i, (k, g, p) in enumerate(values)
        ]
        for name, records in ((f"ppo_{count}", lines), (f"proxy_{count}", [{"accuracy": 0.75}])):
            (folder / name).mkdir()
            (folder / name / "evals.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    program.summarise(folder, setup)
    found = json.loads((folder / "overoptimisation.json").read_text())
    curves = {(curve["method"], curve["comparisons"]): curve for curve in found["curves"]}
    for count, beta in ((16, 0.5), (64, 0.25)):
        curve = curves["rl", count]
        assert (curve["fit"]["alpha"], curve["fit"]["beta"]) == pytest.approx((0.6, beta))
        assert curve["gold"][0] == curve["distance"][0] == 0 and curve["proxy"][-1] == pytest.approx(5 * 0.6)
    exact = curves["best_of_n", 64]
    assert exact["distance"][:2] == pytest.approx([0, best_of_n_kl(2) ** 0.5]) and exact["gold"][0] == pytest.approx(0)
    expected = (np.sort(gold, 1)[:, -1].mean() - gold.mean()) / gold.std()
    assert exact["gold"][-1] == exact["proxy"][-1] == pytest.approx(expected)
    assert curves["best_of_n", 16]["gold"][-1] < expected
    rows = (folder / "table.md").read_text().splitlines()
    assert len(rows) == 6 and rows[3].startswith("| 16 | 0.750 |") and "| PPO | 0.600 [0.600, 0.600] |" in rows[3]
    assert (folder / "overoptimisation.png").stat().st_size > 10_000 and (folder / "overoptimisation.svg").exists()


def test_a_folder_of_another_setup_is_refused(program, tmp_path):
    folder, setup = program.parsed([str(tmp_path), *SETUP])
    program.check_same(folder, setup)
    program.check_same(folder, setup)
    _, other = program.parsed([str(tmp_path), *SETUP, "--tokens=8"])
    with pytest.raises(SystemExit, match="was made with --tokens=24, and now it is 8"):
        program.check_same(folder, other)
    with pytest.raises(SystemExit):
        program.parsed([str(tmp_path), *SETUP, "--held_out=40"])


def test_a_gold_reward_that_tells_no_answers_apart_ends_the_program(program, tmp_path, monkeypatch):
    (tmp_path / "train.jsonl").write_text('{"prompt": "q"}\n' * 3)
    monkeypatch.setattr(program, "model", lambda setup, samples: None)
    monkeypatch.setattr(program, "drawn", lambda answers, asked, numbers: [["a", "b"] for _ in asked])
    monkeypatch.setattr(program.rewards, "load", lambda spec: lambda prompts, texts: np.zeros(len(texts)))
    _, setup = program.parsed([str(tmp_path), "--sft=x", "--prompts=y"])
    with pytest.raises(SystemExit, match="no two answers to any of 3 prompts differ"):
        program.compare(tmp_path, setup)
