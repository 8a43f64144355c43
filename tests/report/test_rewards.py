"""Runs that learn from rewards: their curves, their section of a page, and a page of nothing else."""

import json

import numpy as np
import pytest

from scaling import cli
from scaling.commands.report import write_report
from scaling.laws.runs import BY_REWARDS
from scaling.report.collect import collect
from scaling.report.reward_figures import curves, reward_against_divergence, reward_log
from scaling.runs.run_directory import load
from tests.report.test_report import Page, run


def rewarded(folder, name, gold=True, scores=(-0.5, 0.5, 1.5)):
    """A run whose lines have these scores; a third held-out answer is the best by gold."""
    run(folder, name, 32, 1e5)
    lines = [
        {
            "step": step,
            "tokens": 1024 * step,
            "loss": -score,
            "objective/kl": (step - 1) ** 2,
            "objective/scores": score,
        }
        for step, score in enumerate(scores, 1)
    ]
    (folder / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if gold:
        lines = [line | {"objective/gold": value} for line, value in zip(lines, (0.0, 3.0, 2.0), strict=False)]
    (folder / name / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / name


def points(axes):
    return {line.get_label(): np.array(line.get_xydata()).tolist() for line in axes.lines}


def test_plot_draws_rewards_and_divergence_in_the_place_of_the_loss(tmp_path, capsys):
    path = rewarded(tmp_path, "ppo")
    assert cli.main(["plot", str(path)]) == 0
    assert capsys.readouterr().out.strip() == str(path / "reward.png")
    assert (path / "reward.png").read_bytes().startswith(b"\x89PNG") and not (path / "loss.png").exists()
    score, divergence, both = curves(reward_log("ppo", load(path))).figure.axes
    assert points(score)["score, training"] == [[1, -0.5], [2, 0.5], [3, 1.5]]
    assert points(divergence)["held-out prompts"] == [[1, 0], [2, 1], [3, 4]]
    assert points(both)["score, held-out prompts"] == [[0, -0.5], [1, 0.5], [2, 1.5]]
    assert points(both)["gold, held-out prompts"] == [[0, 0], [1, 3], [2, 2]]


def test_lines_without_finite_numbers_are_left_out(tmp_path):
    path = rewarded(tmp_path, "ppo", scores=(0.5, float("nan"), 1.0))
    log = reward_log("ppo", load(path))
    assert log.training[:, 0].tolist() == log.held_out[:, 0].tolist() == [1, 3]
    assert log.gold.tolist() == [0.0, 2.0]


def test_a_run_before_its_first_validation_shows_what_it_learned_from(tmp_path):
    path = rewarded(tmp_path, "ppo")
    (path / "evals.jsonl").unlink()
    (axes,) = reward_against_divergence([reward_log("ppo", load(path))]).figure.axes
    assert points(axes) == {"ppo": [[0, -0.5], [1, 0.5], [2, 1.5]]}
    assert cli.main(["plot", str(path)]) == 0


def test_a_folder_of_such_runs_alone_has_a_page_without_laws(tmp_path):
    rewarded(tmp_path, "ppo")
    rewarded(tmp_path, "without<gold>", gold=False)
    report = write_report([tmp_path])
    text = report.page.read_text()
    assert Page(text).sections == ["rewards"] and len(Page(text).images) == 1
    assert [path.name for path in report.figures] == ["rewards.png", "rewards.svg"] and report.points is None
    assert "<td>ppo</td>" in text and '<td class="n">3</td><td class="n">1</td>' in text  # highest gold, at KL
    assert "without&lt;gold&gt;" in text
    write_report([tmp_path])  # the page that lies there now is no run


def test_beside_other_runs_they_are_listed_drawn_and_not_fitted(tmp_path):
    for tokens in (1e5, 2e5, 4e5):
        run(tmp_path, f"t{tokens:.0f}", 32, tokens)
    rewarded(tmp_path, "ppo")
    ladder = collect([tmp_path])
    (entry,) = [entry for entry in ladder.entries if entry.name == "ppo"]
    assert (entry.state, entry.reason) == ("rewards", BY_REWARDS)
    assert "ppo" not in ladder.points.names and "ppo" not in [curve.run for curve in ladder.curves]
    text = write_report([tmp_path], resamples=10).page.read_text()
    assert "rewards" in Page(text).sections and f"ppo: {BY_REWARDS}" in text


def test_scores_that_are_all_broken_are_one_sentence(tmp_path):
    rewarded(tmp_path, "ppo", scores=(float("nan"),))
    with pytest.raises(ValueError, match="no run can be used: none has logged finite scores"):
        write_report([tmp_path])
    assert not (tmp_path / "report").exists()
