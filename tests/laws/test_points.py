"""Tables and the command line: what is read, and what is said of bad ones."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from scaling.cli import main
from scaling.laws.points import read_table

COLUMNS = {"params": "n", "tokens": "t", "loss": "l"}


def table(tmp_path, *rows, header="n,t,l"):
    path = tmp_path / "points.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_table(tmp_path):
    points = read_table(table(tmp_path, "1e6,2e7,4.5", "2e6,4e7,4.0"), COLUMNS)
    assert points["params"].tolist() == [1e6, 2e6]
    assert points["flops"].tolist() == [6 * 1e6 * 2e7, 6 * 2e6 * 4e7]
    assert points.names == ("points.csv:2", "points.csv:3")


def test_runs_of_a_table_stay_together(tmp_path):
    path = table(tmp_path, "1,1,2,x", "1,2,1,x", "2,1,2,y", header="params,tokens,loss,name")
    assert read_table(path, {}, "name").groups.tolist() == [0, 0, 1]


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-3", "", "much"])
def test_bad_value_names_its_row(tmp_path, value):
    with pytest.raises(ValueError, match=r"points\.csv:3: l is .* positive"):
        read_table(table(tmp_path, "1e6,2e7,4.5", f"2e6,4e7,{value}"), COLUMNS)


def test_missing_column_is_named(tmp_path):
    path = table(tmp_path, "1e6,2e7,4.5")
    with pytest.raises(ValueError, match=r"'size'.* n, t, l"):
        read_table(path, {"params": "size", "loss": "l"})
    with pytest.raises(ValueError, match=r"'loss'.* --loss=COL"):
        read_table(path, {})
    with pytest.raises(ValueError, match=r"params.* --params=COL"):
        read_table(path, {"loss": "l"})["params"]


def test_bad_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_table(tmp_path / "absent.csv", {})
    with pytest.raises(ValueError, match="no rows"):
        read_table(table(tmp_path), {})
    lines = tmp_path / "points.jsonl"
    lines.write_text('{"loss": 1}\n{"loss": ')
    with pytest.raises(ValueError, match=r"points\.jsonl:2 .*JSON object"):
        read_table(lines, {})


def test_csv_as_spreadsheets_write_it(tmp_path):
    path = tmp_path / "points.csv"
    path.write_bytes(b'\xef\xbb\xbfn,t,l,note\r\n1e6,2e7,4.5,"two\r\nlines"\r\n\r\n  \r\n,,,\r\n2e6,4e7,4.0,\r\n')
    points = read_table(path, COLUMNS)
    assert points["params"].tolist() == [1e6, 2e6]
    assert points.names == ("points.csv:2", "points.csv:7")


@pytest.mark.parametrize(
    "header",
    ["n, t, l, who", ' "n" ,"t", "l" ,who', "n\t,\xa0t, l ,who", "'n','t', 'l', 'who'", '"n ", "t", "l"," who"'],
)
def test_blanks_and_quotes_around_names_are_none_of_them(tmp_path, header):
    points = read_table(table(tmp_path, '1e6, "2e7", 4.5, "a, b"', "2e6,4e7 ,4.0,c ", header=header), COLUMNS, "who")
    assert points["tokens"].tolist() == [2e7, 4e7]
    assert points.runs == ("a, b", "c")
    with pytest.raises(ValueError, match=r"'size'.* n, t, l, who"):
        read_table(tmp_path / "points.csv", {"params": "size"})
    with pytest.raises(ValueError, match=r"points\.csv:1 .*2 columns 'n'"):
        read_table(table(tmp_path, "1,2,3", header='n, "n",l'), {})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["1e6,2e7,4.5", "", "2e6,4e7"], r"points\.csv:4 .*2 of 3 columns"),
        (["1e6,2e7,4.5", "2,000,000,4e7,4.0"], r"points\.csv:3 .*5 of 3 columns"),
        (["1e6,2e7,4.5", "", "2e6,4e7,x"], r"points\.csv:4: l is 'x'"),
    ],
)
def test_bad_rows_are_named_by_their_line(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_table(table(tmp_path, *rows), COLUMNS)


def test_columns_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"points\.csv:1 .*2 columns 'l'"):
        read_table(table(tmp_path, "1e6,2e7,4.5,5", header="n,t,l,l"), COLUMNS)


def test_other_encodings_are_refused_by_name(tmp_path):
    path = tmp_path / "points.csv"
    path.write_bytes("n,t,l,who\n1e6,2e7,4.5,Zoé\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"points\.csv .*UTF-8.* 24\b"):
        read_table(path, COLUMNS)


def test_jsonl(tmp_path):
    path = tmp_path / "points.jsonl"
    path.write_text('{"n": 1e6, "l": 4.5, "who": "a"}\n\n{"n": 2e6, "l": 4.0, "who": "b"}\n')
    assert read_table(path, {"params": "n", "loss": "l"}, "who").names == ("points.jsonl:1", "points.jsonl:3")
    for row, message in (
        ('{"n": true, "l": 4}', "n is True .*positive"),
        ('{"n": 1%s, "l": 4}' % ("0" * 400), "n is 1.*positive"),
        ('{"l": 4}', ".*'n'"),
        ('{"n": 1, "l": 4}', ".*'who'"),
        ('{"n": 1, "l": 4, "who": "b", "unused": ' + "1" * 5000 + "}", ".*4300 digits"),
        ('{"n": 1, "l": 4, "who": "b", "unused": ' + "[" * 100000, ".*nested"),
    ):
        path.write_text('{"n": 1e6, "l": 4.5, "who": "a"}\n' + row)
        with pytest.raises(ValueError, match=rf"points\.jsonl:2:? {message}"):
            read_table(path, {"params": "n", "loss": "l"}, "who")


def test_reading_runs_needs_no_jax():
    code = "import sys, scaling.laws.runs, scaling.laws.frontier; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_command_line(tmp_path, capsys):
    n = np.geomspace(1e6, 1e9, 8)
    rows = [f"{size},1e9,{2 + 50 / size**0.3}" for size in n]
    path = table(tmp_path, *rows)
    arguments = ["--params=n", "--tokens=t", "--loss=l", "--form=power", "--against=params", "--resamples=20"]
    assert main(["fit", str(path), *arguments]) == 0
    text = capsys.readouterr().out
    assert "L = E + A/N^alpha" in text
    assert "largest run left out" in text
    assert main(["fit", str(path), *arguments, "--json"]) == 0
    fit = tmp_path / "fit.json"
    fit.write_text(capsys.readouterr().out)
    assert json.loads(fit.read_text())["theta"]["alpha"] == pytest.approx(0.3, rel=1e-3)
    assert main(["predict", str(fit), "--params=1e10", "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)["loss"]["value"]
    assert predicted == pytest.approx(2 + 50 / 1e10**0.3, rel=1e-4)
    assert main(["predict", str(path), "--params=1e10"]) == 2
    assert main(["fit", str(path), *arguments[:3], "--form=kaplan", "--against=params"]) == 2
    assert main(["fit", str(path), *arguments[:3]]) == 2
    assert "only 1 value of tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("form", "option", "belongs"),
    [
        ("isoflop", "--equal_exponents", "chinchilla"),
        ("envelope", "--against=params", "power"),
        ("isoflop", "--no_irreducible", "power"),
        ("envelope", "--drop_outliers", "power, kaplan, chinchilla, data_constrained"),
        ("isoflop", "--delta=1e-3", "power, kaplan, chinchilla, data_constrained"),
        ("envelope", "--error=log", "power, kaplan, chinchilla, data_constrained"),
        ("envelope", "--noise=0.005", "isoflop"),
        ("envelope", "--curve=akima", "isoflop"),
        ("kaplan", "--same_size=0.01", "isoflop"),
        ("chinchilla", "--noise=0.01", "isoflop"),
        ("chinchilla", "--unique=n", "data_constrained"),
    ],
)
def test_options_of_another_form_are_refused(tmp_path, capsys, form, option, belongs):
    path = table(tmp_path, "1e6,2e7,4.5")
    assert main(["fit", str(path), f"--form={form}", option]) == 2
    name = option.partition("=")[0]
    assert re.search(f"{name} .*--form={belongs}, .*{form}", capsys.readouterr().err)


def test_no_resamples_no_intervals(tmp_path, capsys):
    rows = [f"{size},{2 + 50 / size**0.3}" for size in np.geomspace(1e6, 1e9, 8)]
    path = table(tmp_path, *rows, header="params,loss")
    arguments = ["fit", str(path), "--form=power", "--against=params", "--resamples=0"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "alpha" in out and "[" not in out and "interval" not in out and "resamples" not in out
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["intervals"] == {}


@pytest.mark.parametrize("curve", ["parabola", "akima"])
def test_isoflop_says_what_is_fitted(tmp_path, capsys, curve):
    """Two seeds of each size, digitised a little apart; without resamples there are minima but no intervals."""
    n = np.geomspace(0.2, 5, 7)
    rows = []
    for c in (1e18, 4e18, 16e18):
        for size in np.concatenate([n, 1.001 * n]) * np.sqrt(c / 6):
            rows.append(
                f"{size},{c},{1.7 + 400 / size**0.34 + 400 / (c / 6 / size) ** 0.34 + 0.004 * len(rows) % 0.02}"
            )
    path = table(tmp_path, *rows, header="params,flops,loss")
    arguments = ["fit", str(path), "--form=isoflop", f"--curve={curve}", "--resamples=0"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert f"--curve={curve}" in out and "21 of 21 sizes" in out
    assert "between runs of one size (21 degrees of freedom)" in out
    assert "7 of 7" in out or curve == "parabola"
    assert "[" not in out and "resamples" not in out
    assert main([*arguments, "--json"]) == 0
    fit = tmp_path / "fit.json"
    fit.write_text(capsys.readouterr().out)
    values = json.loads(fit.read_text())
    assert values["how"]["curve"] == curve and values["how"]["same_size"] == 0.02
    assert 0.001 < values["how"]["noise"] < 0.02
    assert [len(each["sizes"]) for each in values["curves"]] == [7, 7, 7]
    assert {size["runs"] for each in values["curves"] for size in each["sizes"]} == {2}
    assert main(["predict", str(fit), "--flops=6.4e19", "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)["params"]["value"]
    assert predicted == pytest.approx(np.sqrt(6.4e19 / 6), rel=0.2)
    assert main([*arguments, "--same_size=2"]) == 2
    assert "--same_size=2.0 must be" in capsys.readouterr().err
