"""Tasks inside training: the numbers of ``scaling evaluate``, at each interval, and nothing else changed."""

import json
import re
import shutil
from pathlib import Path

import pytest

from scaling import cli, exit_codes
from scaling.runs.run_directory import load

ROOT = Path(__file__).resolve().parents[2]
SMOKE = f"--config={ROOT / 'experiments/cpu/smoke.py'}"
PLAIN = ["--config.sample.prompts=()", "--config.log.tensorboard=false", "--config.checkpoint.every_steps=10"]
STEPS = 20

# Prompts of a few bytes, since the model reads 32; one task by likelihood, one by generation.
TASK = """
about = "capitals of letters"
few_shot = 3
metrics = ["{metric}"]
[[source]]
format = "jsonl"
test = "test.jsonl"
train = "train.jsonl"
[source.fields]
letter = "letter"
capital = "capital"
options = "options"
gold = "gold"
[prompt]
context = "{{letter}} is"
separator = "\\n"
[scoring]
{scoring}
"""
CHOICE = TASK.format(metric="accuracy", scoring='kind = "choices"\nchoices = "options"\ngold = "{gold}"')
ANSWER = TASK.format(metric="exact", scoring='kind = "free_form"\ntarget = "{capital}"\nmax_tokens = 4\nbeams = 2')


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks")
    letters = "abcdefghijklmnop"
    items = [
        {"letter": a, "capital": a.upper(), "options": [a.upper(), b.upper()], "gold": "0"}
        for a, b in zip(letters, reversed(letters), strict=True)
    ]
    for name, part in (("test", items[:12]), ("train", items[12:])):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in part))
    (path / "choice.toml").write_text(CHOICE)
    (path / "answer.toml").write_text(ANSWER)
    return path


@pytest.fixture(scope="module")
def tasks(folder):
    return f"{folder}/choice.toml,{folder}/answer.toml"


def train(run_dir, *overrides):
    return cli.main(["train", SMOKE, f"--config.workdir={run_dir}", *PLAIN, *overrides])


def in_loop(run_dir, tasks, folder, *overrides):
    return train(
        run_dir,
        f"--config.eval.tasks={tasks}",
        f"--config.eval.tasks_data={folder}",
        "--config.eval.tasks_every_steps=10",
        "--config.eval.tasks_shots=0,few",
        "--config.eval.tasks_limit=8",
        *overrides,
    )


def lines(run_dir, file="evals.jsonl"):
    return [json.loads(line) for line in (Path(run_dir) / file).read_text().splitlines()]


def results(run_dir):
    return {(line["step"], line["task"], line["shots"]): line for line in lines(run_dir) if "task" in line}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tasks, folder):
    run_dir = tmp_path_factory.mktemp("runs") / "with_tasks"
    assert in_loop(run_dir, tasks, folder) == 0
    return run_dir


@pytest.mark.slow
def test_every_interval_and_the_end_are_recorded(finished):
    expected = {(step, task, shots) for step in (10, STEPS) for task in ("choice", "answer") for shots in (0, 3)}
    assert set(results(finished)) == expected
    assert all(line["count"] == 8 for line in results(finished).values())
    run = load(finished)
    assert len(run.task_evals) == len(expected)
    assert [line["step"] for line in run.evals] == [8, 16, STEPS]  # validation is not mixed up with them


@pytest.mark.slow
def test_the_last_are_those_of_the_verb(finished, tasks, folder, capsys):
    last = {key: line["scores"] for key, line in results(finished).items() if key[0] == STEPS}
    options = [f"--data={folder}", "--limit=8", "--shots=0,few", "--json"]
    assert cli.main(["evaluate", str(finished), f"--tasks={tasks}", *options]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(STEPS, line["task"], line["shots"]): line["scores"] for line in found} == last
    # The verb has written the same lines once more; readers take one of each.
    run = load(finished)
    assert len(run.task_evals) == 8


@pytest.mark.slow
def test_training_is_the_same_without_them(finished, tmp_path):
    assert train(tmp_path / "without") == 0
    names = ("step", "loss", "grad_norm")
    with_tasks, without = (
        [[line[name] for name in names] for line in lines(run, "metrics.jsonl")]
        for run in (finished, tmp_path / "without")
    )
    assert with_tasks == without


@pytest.mark.slow
def test_a_mesh_gives_the_same(finished, tmp_path, tasks, folder):
    mesh = [f"--config.mesh.{axis}=2" for axis in ("data", "fsdp", "tensor")]
    assert in_loop(tmp_path / "mesh", tasks, folder, *mesh) == 0
    scores = [{key: line["scores"] for key, line in results(run).items()} for run in (finished, tmp_path / "mesh")]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_resuming_repeats_no_line_and_keeps_those_of_a_finished_run(finished, tmp_path):
    run_dir = shutil.copytree(finished, tmp_path / "resumed")
    before = lines(run_dir)
    (run_dir / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*before, later(before[-1])]))
    assert train(run_dir) == 0  # finished: it is only validated again
    assert sorted(map(json.dumps, lines(run_dir))) == sorted(map(json.dumps, before))


def later(line):
    """A result of a step that the checkpoints do not reach: of a training that went back."""
    return line | {"step": line["step"] + 1}


@pytest.mark.parametrize(
    ("knob", "value", "sentence"),
    [
        ("tasks", "arithmetics", r"config\.eval\.tasks='arithmetics': .*did you mean arithmetic\?"),
        ("tasks", "missing.toml", r"config\.eval\.tasks='missing\.toml': .*missing\.toml"),
        ("tasks_shots", "0,many", r"config\.eval\.tasks_shots='0,many': .*must be numbers and 'few'"),
        ("tasks_limit", "-1", r"config\.eval\.tasks_limit=-1 must be 0 or more"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(knob, value, sentence, tasks, folder, tmp_path, capsys):
    run_dir = tmp_path / "wrong"
    assert in_loop(run_dir, tasks, folder, f"--config.eval.{knob}={value}") == exit_codes.USAGE
    assert re.search(sentence, capsys.readouterr().err)
    assert not run_dir.exists()


@pytest.mark.parametrize(
    "verb",
    [
        ["config", SMOKE],
        ["plan", SMOKE, "--device=v5p", "--devices=1"],
        ["sweep", f"--config={ROOT / 'experiments/sweeps/cpu_ladder.py'}:demo", "--dry_run"],
        ["launch", SMOKE, "--target=local", "--dry_run"],
    ],
)
def test_every_verb_that_takes_a_run_refuses_a_wrong_task(verb, capsys):
    assert cli.main([*verb, "--config.eval.tasks=arithmetics"]) == exit_codes.USAGE
    assert re.search(r"config\.eval\.tasks='arithmetics': .*did you mean arithmetic\?", capsys.readouterr().err)


def test_missing_data_is_found_before_the_first_step(tasks, tmp_path, capsys):
    assert in_loop(tmp_path / "wrong", tasks, tmp_path / "nowhere") == exit_codes.USAGE
    said = capsys.readouterr().err
    assert re.search(
        r"config\.eval\.tasks_data='.*nowhere' is no directory; it must have the files of task choice", said
    )
    assert "--data" not in said
    assert not (tmp_path / "wrong/metrics.jsonl").exists()
    assert in_loop(tmp_path / "unset", tasks, "") == exit_codes.USAGE
    said = capsys.readouterr().err
    assert "config.eval.tasks_data is empty" in said and "--data" not in said
    (tmp_path / "bare").mkdir()
    assert in_loop(tmp_path / "lacking", tasks, tmp_path / "bare") == exit_codes.USAGE
    said = capsys.readouterr().err
    assert re.search(r"config\.eval\.tasks_data: .*bare does not hold test\.jsonl", said) and "--data" not in said
