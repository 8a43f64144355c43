"""Tables and run directories: what is read, and what is said of bad ones."""

import json
import subprocess
import sys

import numpy as np
import pytest

from scaling import config as cfg
from scaling.cli import main
from scaling.laws.points import read_table
from scaling.laws.runs import read_runs
from scaling.sizes import parameters

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
    with pytest.raises(ValueError, match=r"points\.csv:3: l is .* must be a positive number"):
        read_table(table(tmp_path, "1e6,2e7,4.5", f"2e6,4e7,{value}"), COLUMNS)


def test_missing_column_is_named(tmp_path):
    path = table(tmp_path, "1e6,2e7,4.5")
    with pytest.raises(ValueError, match="no column 'size'; it has n, t, l"):
        read_table(path, {"params": "size", "loss": "l"})
    with pytest.raises(ValueError, match="no column 'loss'; name it with --loss=COL"):
        read_table(path, {})
    with pytest.raises(ValueError, match="needs a column of params; name it with --params=COL"):
        read_table(path, {"loss": "l"})["params"]


def test_bad_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_table(tmp_path / "absent.csv", {})
    with pytest.raises(ValueError, match="has no rows"):
        read_table(table(tmp_path), {})
    lines = tmp_path / "points.jsonl"
    lines.write_text('{"loss": 1}\n{"loss": ')
    with pytest.raises(ValueError, match=r"points\.jsonl:2 is not a JSON object"):
        read_table(lines, {})


def run(folder, name, losses, layers=2, **changes):
    """A run directory as training leaves it: ``losses`` at equal distances over 1,000 tokens."""
    model = cfg.Model(vocab_size=64, context_length=8, num_layers=layers, d_model=16, num_heads=2, d_head=8, d_ff=64)
    config = cfg.to_dict(cfg.Config(model=model, train=cfg.Train(tokens=1000, batch_tokens=100)))
    config["data"] |= changes
    path = folder / name
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"config": config, "flops_per_token": 1234.0}))
    records = [{"step": i, "tokens": 1000 * i // len(losses), "loss": loss} for i, loss in enumerate(losses, 1) if loss]
    for file in ("metrics.jsonl", "evals.jsonl"):
        (path / file).write_text("".join(json.dumps(record) + "\n" for record in records))
    return model


def test_runs(tmp_path):
    small = run(tmp_path, "a", [5.0, 4.0])
    run(tmp_path, "b", [5.0, 3.0], layers=4)
    points = read_runs([tmp_path])
    assert points["loss"].tolist() == [4.0, 3.0]
    assert points["flops"].tolist() == [1_234_000.0] * 2
    assert points["params"][0] == parameters(small).total
    assert read_runs([tmp_path / "a"], count="kaplan")["params"].tolist() == [parameters(small).kaplan]
    assert read_runs([tmp_path], curves=True)["loss"].tolist() == [5.0, 4.0, 5.0, 3.0]


def test_unusable_runs_are_left_out_aloud(tmp_path):
    run(tmp_path, "good", [5.0, 4.0])
    run(tmp_path, "empty", [])
    run(tmp_path, "nan", [5.0, float("nan")])
    run(tmp_path, "short", [5.0, None])
    points = read_runs([tmp_path])
    assert len(points) == 1
    empty, nan, short = points.left_out
    assert "empty: has no validation loss yet" in empty
    assert "nan: diverged, its loss is nan at step 2" in nan
    assert "short: is not finished, 500 of 1,000 tokens" in short
    with pytest.raises(ValueError, match=r"no run can be used: .*empty"):
        read_runs([tmp_path / "empty"])


def test_losses_that_cannot_be_compared_are_refused(tmp_path):
    run(tmp_path, "a", [4.0])
    run(tmp_path, "b", [4.0], tokenizer="bytes")
    with pytest.raises(ValueError, match=r"b has config\.data\.tokenizer='bytes' but .*a has 'gpt2'"):
        read_runs([tmp_path])


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a run directory"):
        read_runs([tmp_path])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is not that of a run"):
        read_runs([tmp_path])
    with pytest.raises(ValueError, match="--params=guessed"):
        read_runs([tmp_path], count="guessed")


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
