"""The page about several ladders: laws, ratios, what differs, and what cannot be compared."""

import json
import shutil

import numpy as np
import pytest

from scaling import cli
from scaling.catalog.flops import training_per_token
from scaling.catalog.sizes import parameters
from scaling.commands.report import write_comparison
from scaling.laws.points import read_table
from scaling.report.comparison import compare_ladders, ladder_names, ratio_text
from scaling.report.ratio_figures import ratio
from tests.report.test_report import WIDTHS, Page, law, model, run

SECTIONS = ["summary", "laws", "ratio", "differences", "runs", "left_out"]
OPTIONS = {"count": "active", "loss": "validation", "resamples": 20}


def ladder(folder, worth=1.0, budgets=5, *, shift=0.0, **data):
    """Runs whose N and D are each worth the root of ``worth`` more than those of the baseline."""
    for budget in np.geomspace(1e12, 3e14, 5)[:budgets]:
        for width in WIDTHS:
            tokens = budget / training_per_token(model(width))
            loss = law(parameters(model(width)).total * worth**0.5, tokens * worth**0.5) + shift
            run(folder, f"c{budget:.0e}-{width}".replace("+", ""), width, tokens, ends_in=loss, **data)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ladders")
    second = ladder(folder / "b$x$" / "runs", 1.6)
    run(second, "half<&>", 64, 1e6, stop=0.5)
    for path in second.glob("*/config.json"):
        values = json.loads(path.read_text())
        values["config"]["model"]["activation"] = "relu"
        path.write_text(json.dumps(values))
    return [ladder(folder / "a" / "runs"), second]


def test_page(folders, tmp_path):
    report = write_comparison(folders, tmp_path / "out", resamples=20)
    text = report.page.read_text()
    page = Page(text)
    assert page.sections == SECTIONS and len(page.images) == 2
    assert {path.name for path in report.figures} == {
        f"{name}.{kind}" for name in ("laws_compute", "compute_ratio") for kind in ("png", "svg")
    }
    assert all(len(path.read_bytes()) > 10_000 for path in report.figures)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert report.summary[0].startswith("a: L(C) = ") and report.summary[1].startswith("b$x$: L(C) = ")
    assert report.summary[2].startswith("a needs 1.") and "times the compute of b$x$" in report.summary[2]
    assert report.summary[3].startswith("left out: b$x$/half<&>: is not finished")
    assert "half&lt;&amp;&gt;" in text and "half<&>" not in text
    assert (
        f"<td>model.activation</td><td>{model(16).activation}</td><td>relu</td>" in text
        and "<td>workdir</td>" not in text
    )
    table = read_table(report.points, {}, run="run")
    assert len(table) == 60 and {name.split("/")[0] for name in table.runs} == {"a", "b$x$"}


def test_the_ratio_is_that_of_the_ladders(folders):
    found = compare_ladders(folders, **OPTIONS)
    value, low, high = found.found.shared[1].ratio
    assert value == pytest.approx(1.6, rel=0.04) and low < value < high
    _, lows, highs = found.found.ratio(1, found.found.named_losses(1))
    assert np.all((lows < 1.6) & (highs > 1.6))
    (drawn,) = [line for line in ratio(found).figure.axes[0].lines if len(line.get_xdata()) == 160]
    np.testing.assert_allclose(drawn.get_ydata(), found.found.ratio(1, drawn.get_xdata())[0])


def test_laws_of_different_shape_get_no_single_number(tmp_path):
    paths = [ladder(tmp_path / "a"), ladder(tmp_path / "b", 6.0, shift=0.15)]
    found = compare_ladders(paths, **OPTIONS)
    assert found.found.shared[1].contradicted
    text = ratio_text(found, 1, "b")
    assert "no one ratio describes them" in text and text.count("times [") == 2


def test_a_size_that_is_alone_in_its_budget_is_not_on_the_frontier(folders, tmp_path):
    more = ladder(tmp_path / "more", 1.6)
    run(more, "alone", 128, 1e15 / training_per_token(model(128)))
    with_it, without = (compare_ladders([folders[0], path], **OPTIONS) for path in (more, folders[1]))
    assert with_it.alone == ((), ("alone",)) and len(with_it.each[1].points) == 31
    np.testing.assert_allclose(with_it.found.shared[1].ratio, without.found.shared[1].ratio, rtol=1e-9)
    for path in (tmp_path / "x", tmp_path / "y"):  # ladders of one size a budget
        for width in WIDTHS:
            run(path, f"w{width}", width, 20 * parameters(model(width)).total)
    assert compare_ladders([tmp_path / "x", tmp_path / "y"], **OPTIONS).alone == ((), ())


def test_names_are_where_the_paths_differ(tmp_path):
    assert ladder_names(["x/a/runs", "x/b/runs"]) == ("a", "b")
    assert ladder_names(["x/a", "x/b", "y/a"]) == ("x/a", "x/b", "y/a")
    assert ladder_names(["a", "a/b"]) == ("a", "b")
    with pytest.raises(ValueError, match=r"x/\.\./x is given twice"):
        ladder_names(["x", "x/../x"])


def test_what_cannot_be_compared_is_one_sentence_and_writes_nothing(folders, tmp_path, capsys):
    few = ladder(tmp_path / "few", budgets=3)
    other = ladder(tmp_path / "other", 1.5, train="elsewhere")
    far = ladder(tmp_path / "far", shift=5.0)
    first = str(folders[0])
    (tmp_path / "link").symlink_to(first)
    ladder(tmp_path / "shares")
    one = next(path for path in sorted(folders[0].iterdir()) if path.is_dir())
    shutil.rmtree(tmp_path / "shares" / one.name, ignore_errors=True)
    (tmp_path / "shares" / one.name).symlink_to(one)
    for paths, said in (
        ([first], "--compare needs at least two folders"),
        ([first, first], "is given twice"),
        ([first, str(tmp_path / "link")], "is given twice"),
        ([first, str(tmp_path / "shares")], "ladders must share none"),
        ([first, str(few)], "has 3 runs; a law needs at least 4 budgets"),
        ([first, str(other)], "config.data.train='elsewhere'"),
        ([first, str(far)], "no common range of loss"),
        ([first, str(tmp_path / "absent")], "absent does not exist"),
        ([first, str(folders[1]), "--resamples=0"], "--resamples=0"),
    ):
        assert cli.main(["report", *paths, "--compare", f"--output={tmp_path / 'out'}"]) == 2
        sentence = capsys.readouterr().err
        assert said in sentence and sentence.count("\n") == 1
    assert cli.main(["report", *map(str, folders), "--compare"]) == 2
    assert "--output=DIR" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
