"""Run directories: what is read, what is left out aloud, and what cannot be compared."""

import json
import math
import re

import pytest

from scaling.catalog.sizes import parameters
from scaling.cli import main
from scaling.config import schema as cfg
from scaling.laws.runs import read_runs
from scaling.report.collect import collect
from scaling.report.curves import plot
from scaling.runs.json_lines import last_record
from scaling.runs.run_directory import find_runs


def run(folder, name, losses, layers=2, experts=0, **changes):
    """A run directory as training leaves it: ``losses`` at equal distances over 1,000 tokens."""
    shape = {"vocab_size": 64, "context_length": 8, "d_model": 16, "num_heads": 2, "d_head": 8, "d_ff": 64}
    model = cfg.Model(num_layers=layers, experts=cfg.Experts(count=experts), **shape)
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


def test_active_parameters_are_those_that_a_token_uses(tmp_path):
    dense = run(tmp_path, "dense", [4.0])
    mixture = run(tmp_path, "mixture", [3.0], experts=8)
    total, active = (read_runs([tmp_path], count=count)["params"] for count in ("total", "active"))
    assert total[0] == active[0] == parameters(dense).total
    assert total[1] == parameters(mixture).total
    expert = 3 * 16 * 64
    assert active[1] == total[1] - 2 * 6 * expert  # 2 layers in which a token takes 2 of 8 experts
    assert read_runs([tmp_path])["params"].tolist() == active.tolist()
    config = tmp_path / "mixture/config.json"
    config.write_text(json.dumps({"config": json.loads(config.read_text())["config"]}))
    old = read_runs([tmp_path / "mixture"])  # a run that did not record its FLOPs
    assert old["flops"].tolist() == [6 * active[1] * 1000]


def test_unusable_runs_are_left_out_aloud(tmp_path):
    run(tmp_path, "good", [5.0, 4.0])
    run(tmp_path, "empty", [])
    run(tmp_path, "nan", [5.0, float("nan")])
    run(tmp_path, "short", [5.0, None])
    points = read_runs([tmp_path])
    assert len(points) == 1
    empty, nan, short = points.left_out
    assert re.search("empty: .*no validation loss", empty)
    assert re.search("nan: diverged, .*nan .*step 2", nan)
    assert re.search("short: .*not finished, 500 of 1,000", short)
    with pytest.raises(ValueError, match=r"no run .*empty"):
        read_runs([tmp_path / "empty"])


def test_losses_that_cannot_be_compared_are_refused(tmp_path):
    run(tmp_path, "a", [4.0])
    run(tmp_path, "b", [4.0], tokenizer="bytes")
    with pytest.raises(ValueError, match=r"b .*config\.data\.tokenizer='bytes' .*a .*'gpt2'"):
        read_runs([tmp_path])


def test_a_tokenizer_is_told_by_its_fingerprint_where_runs_have_one(tmp_path):
    for name, fingerprint in (("a", "01"), ("b", None), ("c", "02")):
        run(tmp_path, name, [4.0 + len(list(tmp_path.iterdir()))])
        path = tmp_path / name / "config.json"
        if fingerprint:
            path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_fingerprint": fingerprint}))
    assert len(read_runs([tmp_path / "a", tmp_path / "b"])) == 2
    with pytest.raises(ValueError, match=r"c .*tokenizer_fingerprint='02' .*a .*'01'"):
        read_runs([tmp_path])


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a run directory"):
        read_runs([tmp_path])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="not that of a run"):
        read_runs([tmp_path])
    with pytest.raises(ValueError, match="--params=guessed"):
        read_runs([tmp_path], count="guessed")


def test_what_the_product_writes_beside_runs_is_passed_over(tmp_path, capsys):
    """As in ``scaling fit runs/demo/*``, after a report, a launch and a fit."""
    for i, losses in enumerate(([5.0, 4.0], [5.0, 3.0], [5.0, 2.5], [5.0, 2.2])):
        run(tmp_path, f"run{i}", losses, layers=2 + 2 * i)
    (tmp_path / "report").mkdir()
    for name in ("report/report.html", "launch.json", "fit.json", "launch.log", "report.html", "points.csv"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "figures").mkdir()
    inside = sorted(tmp_path.iterdir())
    assert [path.name for path in find_runs(inside)] == ["run0", "run1", "run2", "run3"]
    assert len(collect(inside).points) == 4
    assert main(["fit", *map(str, inside), "--form=envelope", "--resamples=0"]) == 2
    assert "envelope" in capsys.readouterr().err  # it has read them
    (tmp_path / "table.csv").write_text("params,loss\n1,2\n")
    (tmp_path / "empty").mkdir()
    for other in ("table.csv", "empty"):  # the user may mean these
        with pytest.raises(ValueError, match=f"{other} is not a run directory"):
            find_runs([*inside, tmp_path / other])
    with pytest.raises(ValueError, match="is not a run directory"):
        find_runs([tmp_path / "launch.json"])
    with pytest.raises(FileNotFoundError, match="absent"):
        find_runs([tmp_path / "run0", tmp_path / "absent"])


def edit(path, change):
    """Applies ``change`` to the JSON of a file, in place."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def planned(folder, name):
    """What a sweep leaves of a run that failed at once."""
    (folder / name).mkdir()
    (folder / name / "plan.json").write_text(cfg.to_json(cfg.Config(train=cfg.Train(tokens=1000, batch_tokens=100))))
    (folder / name / "train.log").write_text("out of memory")


def test_runs_that_did_not_begin_are_named(tmp_path):
    run(tmp_path, "good", [5.0, 4.0])
    planned(tmp_path, "failed")
    points = read_runs([tmp_path])
    assert len(points) == 1
    (sentence,) = points.left_out
    assert re.search("failed: has not begun.* train.log", sentence)
    with pytest.raises(ValueError, match=r"no run .*failed: "):
        read_runs([tmp_path / "failed"])
    (tmp_path / "failed/plan.json").write_text("{}")
    with pytest.raises(ValueError, match=r"failed/plan\.json .*not that of a run"):
        read_runs([tmp_path])


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"loss": None}, "loss is null, .*positive.* step 2"),
        ({"loss": 0.0}, "loss is 0.0, .*positive.* step 2"),
        ({"loss": -1}, "loss is -1, .*positive.* step 2"),
        ({"loss": "4.0"}, 'loss is "4.0", .*positive.* step 2'),
        ({"loss": True}, "loss is true, .*positive.* step 2"),
        ({"loss": math.inf}, "diverged, .*loss is inf .*step 2"),
        ({"grad_norm": math.nan}, "diverged, .*gradient norm is nan .*step 2"),
        ({"tokens": None}, "tokens are null, .*positive.* step 2"),
        ({"tokens": 0}, "tokens are 0, .*positive.* step 2"),
        ({"step": None}, "step is null, .*record 2"),
    ],
)
def test_records_that_are_no_numbers_leave_the_run_out(tmp_path, record, reason):
    run(tmp_path, "good", [5.0, 4.0])
    run(tmp_path, "odd", [5.0, 4.5])
    path = tmp_path / "odd/evals.jsonl"
    first, second = map(json.loads, path.read_text().splitlines())
    path.write_text(f"{json.dumps(first)}\n{json.dumps(second | record)}\n")
    for curves in (False, True):
        (sentence,) = read_runs([tmp_path], curves=curves).left_out
        assert re.search(f"odd: .*{reason}$", sentence)


@pytest.mark.parametrize("line", [1, 2])
@pytest.mark.parametrize("file", ["evals.jsonl", "metrics.jsonl"])
def test_integers_of_too_many_digits_are_named_by_their_line(tmp_path, capsys, file, line):
    """In a field that nobody reads, and in the last line too, which would otherwise pass for a torn one."""
    run(tmp_path, "a", [5.0, 4.0])
    path = tmp_path / "a" / file
    lines = path.read_text().splitlines()
    lines[line - 1] = lines[line - 1][:-1] + f', "note": {"7" * 5000}}}'
    path.write_text("\n".join(lines) + "\n")
    assert main(["fit", str(tmp_path)]) == 2
    assert re.search(rf"{path}:{line} .*4300 digits", capsys.readouterr().err)
    if line == 2:
        with pytest.raises(ValueError, match=f"{file}, .*number"):
            last_record(path, "loss")


@pytest.mark.parametrize("file", ["config.json", "plan.json", "fit.json"])
def test_integers_of_too_many_digits_in_whole_files(tmp_path, capsys, file):
    path = tmp_path / file
    path.write_text('{"form": "isoflop", "note": ' + "7" * 5000 + "}")
    assert main(["predict", str(path), "--flops=1"] if file == "fit.json" else ["fit", str(tmp_path)]) == 2
    assert re.search(f"{path} .*4300 digits", capsys.readouterr().err)


def test_plot_passes_over_records_without_a_loss(tmp_path):
    run(tmp_path, "a", [5.0, 4.0])
    with (tmp_path / "a/evals.jsonl").open("a") as file:
        file.write('{"step": 2, "tokens": 1000, "task": "lambada"}\n{"step": 2, "tokens": 1000, "loss": null}\n')
    assert plot(tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["config"]["train"].pop("tokens"), "train.tokens is null"),
        (lambda v: v.update(flops_per_token=0), "flops_per_token is 0"),
        (lambda v: v["config"].update(data=5), "not that of a run"),
    ],
)
def test_damaged_configs_are_refused(tmp_path, change, message):
    run(tmp_path, "a", [4.0])
    edit(tmp_path / "a/config.json", change)
    with pytest.raises(ValueError, match=rf"a/config\.json:? .*{message}"):
        read_runs([tmp_path])


@pytest.mark.parametrize(("section", "knob"), [("model", "context_length"), ("train", "sequence_length")])
def test_other_lengths_of_sequences_are_refused(tmp_path, section, knob):
    run(tmp_path, "a", [4.0])
    run(tmp_path, "b", [4.1])
    edit(tmp_path / "b/config.json", lambda v: v["config"][section].update({knob: 16}))
    with pytest.raises(ValueError, match=r"b .*config\.train\.sequence_length=16 .*a .*8"):
        read_runs([tmp_path])


def test_other_validation_sets_are_refused(tmp_path):
    run(tmp_path, "a", [4.0])
    run(tmp_path, "b", [4.1])
    edit(tmp_path / "b/config.json", lambda v: v["config"]["eval"].update(tokens=64))
    with pytest.raises(ValueError, match=r"b .*eval_tokens=64 .*a .*1048576"):
        read_runs([tmp_path])
    assert len(read_runs([tmp_path], loss="training")) == 2
    for name in ("a", "b"):  # both were cut to the same held-out data
        edit(tmp_path / name / "evals.jsonl", lambda v: v.update(eval_tokens=64.0))
    assert len(read_runs([tmp_path])) == 2


def test_runs_on_parts_of_a_corpus_fit_the_law_of_repeated_data(tmp_path):
    for name, tokens in (("a", 1000), ("b", 250)):
        run(tmp_path, name, [4.0 + tokens / 1e4], train=f"tokens/{name}", validation="held.jsonl")
        edit(tmp_path / name / "config.json", lambda v, tokens=tokens: v.update(unique_tokens=tokens))
    with pytest.raises(ValueError, match=r"b .*config\.data\.train='tokens/b' .*a .*tokens/a"):
        read_runs([tmp_path])
    points = read_runs([tmp_path], repeated=True)
    assert points["unique"].tolist() == [1000, 250]
    with pytest.raises(ValueError, match=r"config\.data\.train='tokens/b'"):  # that loss is on the text of each
        read_runs([tmp_path], repeated=True, loss="training")
    edit(tmp_path / "b/config.json", lambda v: v["config"]["data"].update(validation="other.jsonl"))
    with pytest.raises(ValueError, match=r"config\.data\.validation='other\.jsonl'"):
        read_runs([tmp_path], repeated=True)
    edit(tmp_path / "b/config.json", lambda v: v.update(unique_tokens=0))
    with pytest.raises(ValueError, match=r"b/config\.json has no unique_tokens"):
        read_runs([tmp_path], repeated=True)


def test_held_out_parts_of_different_text_are_not_the_same(tmp_path):
    for name in "ab":
        run(tmp_path, name, [4.0], train=f"tokens/{name}")
        edit(tmp_path / name / "config.json", lambda v: v.update(unique_tokens=10))
    with pytest.raises(ValueError, match=r"config\.data\.train='tokens/b'"):
        read_runs([tmp_path], repeated=True)


def test_copies_count_once(tmp_path):
    run(tmp_path, "a", [5.0, 4.0])
    run(tmp_path, "b", [5.0, 4.0])
    run(tmp_path, "c", [5.0, 4.1])
    points = read_runs([tmp_path, tmp_path / "a"])
    assert points["loss"].tolist() == [4.0, 4.1]
    (sentence,) = points.left_out
    assert "b: is a copy of " in sentence and "a, with the same" in sentence


def test_reasons_say_how_far_a_run_is(tmp_path):
    run(tmp_path, "good", [5.0, 4.0])
    run(tmp_path, "early", [5.0, 4.5, None, None])
    (tmp_path / "early/evals.jsonl").write_text("")
    run(tmp_path, "late", [5.0, 4.5, 4.4, None])
    evals = (tmp_path / "late/evals.jsonl").read_text().splitlines()
    (tmp_path / "late/evals.jsonl").write_text(evals[0] + "\n")
    run(tmp_path, "unvalidated", [5.0, 4.0])
    (tmp_path / "unvalidated/evals.jsonl").write_text("")
    early, late, unvalidated = read_runs([tmp_path]).left_out
    assert re.search("early: .*500 of 1,000", early)
    assert re.search("late: .*750 of 1,000", late)
    assert re.search("unvalidated: .*no validation loss", unvalidated)


def test_fit_names_what_was_left_out_once(tmp_path, capsys):
    for i, layers in enumerate(range(1, 7)):
        run(tmp_path, f"r{i}", [5.0, 4.0 + 3 / layers], layers=layers)
    planned(tmp_path, "failed")
    arguments = ["fit", str(tmp_path), "--form=power", "--against=params", "--resamples=0"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\nleft out: ") == 1 and "left out" not in captured.err
    assert main([*arguments, "--json"]) == 0
    assert capsys.readouterr().err.count("left out: ") == 1
    assert main(["fit", str(tmp_path), "--form=chinchilla"]) == 2
    assert capsys.readouterr().err.count("left out: ") == 1


def test_constant_loss_is_refused(tmp_path, capsys):
    for layers in range(1, 7):
        run(tmp_path, f"r{layers}", [4.0], layers=layers)
    for form in ("--form=power --against=params", "--form=isoflop"):
        assert main(["fit", str(tmp_path), *form.split()]) == 2
        assert "1 value of loss (4)" in capsys.readouterr().err
