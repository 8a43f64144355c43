"""Answers rated by a run of ``align finetune``, and prompts framed by a chat template, through the command line."""

import pytest

from scaling import cli, exit_codes
from scaling.align import classify
from scaling.align import task as tasks
from scaling.corpus import documents
from scaling.corpus.filters import toxicity
from scaling.corpus.filters.toxicity import Toxicity
from scaling.data.chat.dialogues import Skipped
from tests.align.conftest import SIZES
from tests.shared import SHARED, needs_shared

TOXIC = """
texts = ["{text}"]
label = "{kind}"
labels = { a = "Fine", b = "Toxic" }
"""
RATED = """
metrics = ["expected_max_toxicity", "toxicity_probability"]
measures = "bias"
[prompt]
context = "{text}"
[scoring]
kind = "rated"
label = "toxic"
samples = 3
max_tokens = 4
[[source]]
format = "jsonl"
test = "prompts.jsonl"
"""
CHOICE = """
metrics = ["accuracy"]
[prompt]
context = "{text}"
[scoring]
kind = "choices"
choices = ["a", "b"]
gold = "{gold}"
[[source]]
format = "jsonl"
test = "prompts.jsonl"
"""


@pytest.fixture(scope="module")
def rater(folder):
    """The run ``rater``, which knows texts of b from texts of a; tasks, and their data."""
    (folder / "toxic.toml").write_text(TOXIC)
    (folder / "rated.toml").write_text(RATED)
    (folder / "choice.toml").write_text(CHOICE)
    records = [{"text": "ab"[i % 2] * (1 + i % 5), "kind": "ab"[i % 2]} for i in range(64)]
    data = folder.write("toxic.jsonl", records)
    folder.write("prompts.jsonl", [{"text": text, "gold": i} for i, text in enumerate("xy")])
    knobs = [f"--task={folder}/toxic.toml", f"--config.data.train={data}", f"--config.data.validation={data}"]
    knobs += ["--config.align.epochs=6", "--config.optimizer.peak_lr=0.01"]
    assert folder.align("finetune", "rater", *knobs) == 0
    return classify.load(folder / "rater")


@pytest.mark.slow
def test_documents_of_a_corpus_are_dropped_by_what_a_run_says(folder, rater):
    texts = ["aaa", "bbb", "b" * 20 + " " + "a" * 200, "a" * 200, ""]
    columns = {"id": list("12345"), "text": texts, "file": [""] * 5, "place": [0] * 5, "url": [""] * 5}
    for pool, ids in (("max", ["1", "4", "5"]), ("mean", ["1", "3", "4", "5"])):
        knobs = Toxicity(classifier=f"{folder}/rater", pool=pool)
        kept, tally = toxicity.stage(documents.table(columns), knobs, toxicity.load(knobs))
        assert kept["id"].to_pylist() == ids and tally.counts == {"toxic": 5 - len(ids)}
        assert max(kept["toxicity"].to_pylist()) < 0.5
    with pytest.raises(ValueError, match="no 'rude'"):
        toxicity.load(Toxicity(classifier=f"{folder}/rater", label="rude"))
    with pytest.raises(ValueError, match="is no run of `scaling align finetune`"):
        toxicity.load(Toxicity(classifier=f"{folder}/base"))


def evaluate(folder, run, task, *options):
    arguments = [f"--tasks={folder}/{task}.toml", f"--data={folder}", "--shots=0", *options]
    return cli.main(["evaluate", f"{folder}/{run}", *arguments])


@pytest.mark.slow
def test_a_class_is_rated_and_a_long_text_loses_its_beginning(folder, rater):
    found = classify.rate(rater, "toxic", ["aaa", "bbb", "a" * 50 + "b" * 30, "b" * 50 + "a" * 30])
    assert [rating > 0.5 for rating in found] == [False, True, True, False]
    assert found[2] == classify.rate(rater, "toxic", ["b" * 30])[0]
    assert classify.rate(rater, "toxic", []) == []
    with pytest.raises(ValueError, match="has the classes Fine, Toxic, and no 'rude'"):
        classify.rate(rater, "rude", ["a"])


@pytest.mark.slow
def test_answers_are_rated_by_a_run(folder, rater, capsys):
    assert evaluate(folder, "base", "rated", f"--classifier={folder}/rater", "--save_samples") == 0
    (line,) = [line for line in folder.lines("base", "evals.jsonl") if line.get("task") == "rated"]
    samples = [sample["scores"] for sample in folder.lines("base", "samples/rated-0.jsonl")]
    highest = [max(scores[f"rating_{place}"] for place in range(3)) for scores in samples]
    assert line["measures"] == "bias" and len(highest) == line["count"] == 2
    assert line["scores"]["expected_max_toxicity"][0] == pytest.approx(sum(highest) / 2)
    assert line["scores"]["toxicity_probability"][0] == sum(rating >= 0.5 for rating in highest) / 2


@pytest.mark.slow
def test_classifiers_that_cannot_be_used(folder, rater, capsys):
    for task, options, said in (
        ("rated", (), "task rated needs the probability of the class 'toxic'"),
        ("rated", (f"--classifier={folder}/base",), "is no run of `scaling align finetune`"),
        ("choice", (f"--classifier={folder}/rater",), "no answers of these tasks are rated"),
        ("rated", (f"--classifier={folder}/rater", "--harness"), "--classifier cannot be used with --harness"),
    ):
        assert evaluate(folder, "base", task, *options) == exit_codes.USAGE
        assert said in capsys.readouterr().err
    (folder / "rude.toml").write_text(RATED.replace('"toxic"', '"rude"'))
    assert evaluate(folder, "base", "rude", f"--classifier={folder}/rater") == exit_codes.USAGE
    assert "rater has Fine, Toxic)" in capsys.readouterr().err
    arguments = [f"--config.eval.tasks={folder}/rated.toml", f"--config.eval.tasks_data={folder}"]
    sizes = [f"--config.model.{size}" for size in SIZES]
    assert folder.run("train", "tasks", "--config.data.tokenizer=bytes", *sizes, *arguments) == exit_codes.USAGE
    assert "rated needs a classifier" in capsys.readouterr().err


@pytest.mark.slow
def test_prompts_are_framed_by_the_chat_template(folder, rater, capsys):
    sizes = [f"--config.model.{size}" for size in SIZES]
    arguments = [*sizes, "--config.data.tokenizer=bytes+chat", "--config.train.tokens=512"]
    assert folder.run("train", "talks", *arguments) == 0
    assert evaluate(folder, "talks", "choice", "--chat", "--save_samples") == 0
    assert "talks, asked in dialogues" in capsys.readouterr().out
    assert evaluate(folder, "talks", "choice", "--save_samples") == 0
    framed, plain = [line for line in folder.lines("talks", "evals.jsonl") if "task" in line]
    assert (framed["group"], plain["group"]) == ("chat/choice", "choice")
    framed, plain = (folder.lines("talks", f"samples/{name}-0.jsonl") for name in ("chat-choice", "choice"))
    assert framed[0]["log_likelihoods"] != plain[0]["log_likelihoods"]
    for run, options, said in (
        ("base", ("--chat",), "the tokenizer 'bytes' has no chat template; evaluate without --chat"),
        ("talks", ("--chat", "--no_prefix"), "--no_prefix cannot be used with --chat"),
        ("talks", ("--chat", "--harness"), "--chat cannot be used with --harness"),
    ):
        assert evaluate(folder, run, "choice", *options) == exit_codes.USAGE
        assert said in capsys.readouterr().err


@needs_shared("data/more/alignment")
@pytest.mark.parametrize(
    ("name", "file", "count", "names"),
    [
        ("toxicity", "surge_toxicity_en.csv", 1000, ["not toxic", "toxic"]),
        ("truth", "truthfulqa_judge_finetune.jsonl.gz", 11217, ["false", "true"]),
    ],
)
def test_the_real_files_of_classifiers(name, file, count, names):
    found = tasks.find(name)
    examples = list(tasks.read(found, str(SHARED / "data/more/alignment" / file), "train", Skipped(True)))
    assert found.names == names and len(examples) == count
    assert 0.3 < sum(example.label for example in examples) / count < 0.7
