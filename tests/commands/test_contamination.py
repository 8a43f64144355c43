"""`scaling contamination` from options to table, JSON lines and figure, against a recount in the test."""

import argparse
import json
import math
import random
import statistics
import string

import pytest

from scaling.commands import contamination as command
from scaling.evaluate.contamination.search import Score, relative_difference

TASK = """
about = "questions"
few_shot = 2
metrics = ["accuracy"]
[[source]]
format = "jsonl"
test = "items.jsonl"
[source.fields]
question = "question"
answer = "answer"
[prompt]
context = "{question}"
[scoring]
kind = "completion"
target = "{answer}"
"""
COUNT = 40
DIRTY = {f"test/{i}" for i in range(0, COUNT, 5)}


@pytest.fixture
def world(tmp_path):
    """A task of 40 items, every fifth of which stands in the corpus of a run that has samples of it."""
    rng = random.Random(0)
    words = ["".join(rng.choices(string.ascii_lowercase, k=5)) for _ in range(400)]
    items = [{"question": " ".join(rng.sample(words, 15)) + "?", "answer": rng.choice(words)} for _ in range(COUNT)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "questions.toml").write_text(TASK)
    texts = [" ".join(rng.sample(words, 60)) for _ in range(5)]
    texts += [f"so {items[i]['question'].upper()} indeed" for i in range(0, COUNT, 5)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    data = {"train": str(tmp_path / "corpus.jsonl"), "mixture": [], "text_key": "body"}
    (run / "config.json").write_text(json.dumps({"config": {"data": data}}))
    scores = {}
    for shots in (0, 2):
        lines = []
        for i, item in enumerate(items):
            score = float(rng.random() < (0.9 if f"test/{i}" in DIRTY else 0.4))
            scores[shots, f"test/{i}"] = score
            lines.append(
                {
                    "id": f"test/{i}",
                    "expected": f" {item['answer']}",
                    "scores": {"accuracy": score, "log_likelihood": -3.0, "tokens": 2.0},
                }
            )
        (run / "samples" / f"questions-{shots}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "samples" / "questions-of-others-3.jsonl").write_text("not read\n")
    return tmp_path, scores


def parse(*arguments):
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def arguments(folder, *more):
    return parse(f"--tasks={folder / 'questions.toml'}", f"--data={folder}", *more)


def mean_and_error(values):
    mean = sum(values) / len(values)
    return mean, statistics.stdev(values) / math.sqrt(len(values))


def test_scores_of_all_dirty_and_clean_items(world, capsys):
    folder, scores = world
    run = folder / "run"
    assert command.run(arguments(folder, run)) == 0
    out = capsys.readouterr()
    assert "questions     13     40      8     32     80.0" in out.out and out.err == ""
    (line,) = [json.loads(line) for line in (run / "contamination.jsonl").read_text().splitlines()]
    assert set(line["dirty_items"]) == DIRTY and line["documents"] == 13
    assert (line["words"], line["items"], line["dirty"], line["clean"]) == (13, COUNT, 8, 32)
    assert line["percent_clean"] == 80 and line["corpus"] == str(folder / "corpus.jsonl")
    assert [(found["shots"], found["metric"]) for found in line["scores"]] == [(0, "accuracy"), (2, "accuracy")]
    for found in line["scores"]:
        values = {item: score for (shots, item), score in scores.items() if shots == found["shots"]}
        parts = {
            "all": list(values.values()),
            "dirty": [score for item, score in values.items() if item in DIRTY],
            "clean": [score for item, score in values.items() if item not in DIRTY],
        }
        for name, part in parts.items():
            mean, error = mean_and_error(part)
            assert found[name] == {"count": len(part), "mean": pytest.approx(mean), "error": pytest.approx(error)}
        everything, clean = mean_and_error(parts["all"])[0], mean_and_error(parts["clean"])[0]
        assert found["relative_difference"] == pytest.approx((clean - everything) / everything)
        assert clean < everything and f"{100 * (clean - everything) / everything:+.1f}" in out.out
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        assert (run / f"contamination.{kind}").read_bytes().startswith(start)
    svg = (run / "contamination.svg").read_text()
    assert all(f"<!-- {text} -->" in svg for text in ("questions", "zero-shot", "few-shot"))


def test_json_goes_to_stdout_and_no_files_are_written(world, capsys):
    folder, _ = world
    run = folder / "run"
    assert command.run(arguments(folder, run, "--json")) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line["model"] == str(run) and line["dirty"] == 8 and len(line["scores"]) == 2
    assert not list(run.glob("contamination.*"))
    corpus = f"--corpus={folder / 'corpus.jsonl'}"
    assert command.run(arguments(folder, corpus, "--text_key=body", "--json")) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert "model" not in line and "scores" not in line and set(line["dirty_items"]) == DIRTY


def test_several_corpora_are_one(world, capsys):
    folder, _ = world
    lines = (folder / "corpus.jsonl").read_text().splitlines(keepends=True)
    (folder / "a.jsonl").write_text("".join(lines[:9]))
    (folder / "b.jsonl").write_text("".join(lines[9:]))
    corpora = [f"--corpus={folder / name}.jsonl" for name in "ab"]
    assert command.run(arguments(folder, *corpora, "--text_key=body", "--json")) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert set(line["dirty_items"]) == DIRTY and line["documents"] == 13


def test_a_run_without_samples_is_told_how_to_get_them(world, capsys):
    folder, _ = world
    run = folder / "run"
    for path in (run / "samples").iterdir():
        path.unlink()
    assert command.run(arguments(folder, run)) == 0
    out = capsys.readouterr()
    assert f"`scaling evaluate {run} --tasks=questions --data={folder} --save_samples` writes them" in out.err
    assert "80.0" in out.out and not (run / "contamination.png").exists()
    assert json.loads((run / "contamination.jsonl").read_text())["scores"] == []


def test_a_run_that_cannot_be_written_to_is_told_before_the_search(world, capsys):
    folder, _ = world
    (folder / "run" / "contamination.jsonl").mkdir()
    with pytest.raises(IsADirectoryError, match=r"contamination\.jsonl"):
        command.run(arguments(folder, folder / "run"))
    assert capsys.readouterr().out == ""
    assert command.run(arguments(folder, folder / "run", "--json")) == 0  # writes no files


def test_nothing_clean_or_nothing_right_has_no_difference():
    some, none = Score(4, 0.5, 0.25), Score(0, math.nan, math.nan)
    assert relative_difference({"all": some, "dirty": none, "clean": some}) == (0, 0)
    assert math.isnan(relative_difference({"all": some, "dirty": some, "clean": none})[0])
    zero = Score(4, 0.0, 0.0)
    assert math.isnan(relative_difference({"all": zero, "dirty": zero, "clean": zero})[0])
    both = {"all": Score(4, 0.5, 0.25), "dirty": Score(1, 0.8, 0.3), "clean": Score(3, 0.4, 0.4)}
    difference, error = relative_difference(both)
    assert difference == pytest.approx((0.4 - 0.5) / 0.5) and error == pytest.approx(0.25 / 0.5 * 0.5)


def test_mistakes_are_sentences(world):
    folder, _ = world
    run = folder / "run"
    with pytest.raises(ValueError, match="--corpus=GLOB must name the training text"):
        command.run(arguments(folder))
    with pytest.raises(ValueError, match="without one RUN, whose config says"):
        command.run(arguments(folder, run, run))
    with pytest.raises(FileNotFoundError, match=r"nowhere has no config\.json"):
        command.run(arguments(folder, folder / "nowhere"))
    with pytest.raises(FileNotFoundError, match="no file matches"):
        command.run(arguments(folder, f"--corpus={folder}/*.txt"))
    with pytest.raises(ValueError, match="no task; did you mean lambada"):
        command.run(parse("--tasks=lambda", "--corpus=books"))
    samples = run / "samples" / "questions-0.jsonl"
    lines = samples.read_text().splitlines(keepends=True)
    samples.write_text("".join([*lines[:3], lines[4].replace("test/4", "test/3")]))
    with pytest.raises(ValueError, match=r"questions-0.jsonl:4: test/3 is not the same item as in the present"):
        command.run(arguments(folder, run))
    samples.write_text('{"id": "test/0"}\n' * 2)
    with pytest.raises(ValueError, match=r"questions-0.jsonl:1 must have id, expected and scores"):
        command.run(arguments(folder, run))
    samples.write_text(lines[0])
    config = {"config": {"data": {"train": str(folder), "mixture": [], "text_key": "text"}}}
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="a folder of tokens; name its text by --corpus"):
        command.run(arguments(folder, run))
    (run / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="does not say what it was trained on"):
        command.run(arguments(folder, run))
