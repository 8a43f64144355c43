"""The committed records of the two ladders give the figures that the page of LLaMA's block states."""

from pathlib import Path

import pytest

from scaling.report.comparison import compare_ladders

RESULTS = Path(__file__).resolve().parents[2] / "docs/results"


@pytest.fixture(scope="module")
def ladders():
    paths = [RESULTS / name / "runs" for name in ("cpu_ladder", "llama_ladder")]
    return compare_ladders(paths, count="active", loss="validation", resamples=1000)


def test_the_ladders_are_those_of_the_page(ladders):
    assert ladders.names == ("cpu_ladder", "llama_ladder")
    assert [len(ladder.points) for ladder in ladders.each] == [29, 28]
    assert [len(frontier) for frontier in ladders.frontiers] == [7, 7]


def test_the_page_states_the_laws_and_the_ratios(ladders):
    page = (RESULTS / "llama_ladder/README.md").read_text()
    found = ladders.found
    for i in range(2):
        e, _, (alpha, low, high) = found.law(i)
        assert f"{e:.3f} + " in page and f"C^-{alpha:.3f} | [{low:.3f}, {high:.3f}]" in page
    losses = found.named_losses(1)
    for loss, value, low, high in zip(losses, *found.ratio(1, losses), strict=True):
        assert f"| {loss:.4g} | " in page and f" | {value:.2f} [{low:.2f}, {high:.2f}] |" in page
        assert value > 1
    value, low, high = found.shared[1].ratio
    assert f"**r = {value:.2f} [{low:.2f}, {high:.2f}]**" in page
    assert ("do not contradict" in page) != found.shared[1].contradicted
