"""lm-evaluation-harness: our answers to its requests against those of its Hugging Face backend on the same weights.

``tests/fixtures/make_harness.py`` ran lm_eval and PyTorch; only the last tests here need lm_eval, none needs PyTorch.
"""

import argparse
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from scaling.commands import evaluate as command
from scaling.data.tokenizer import BPETokenizer
from scaling.evaluate.harness.requests import Answers, rolling_windows, sampling
from scaling.evaluate.scoring.answers import Asking
from scaling.evaluate.scoring.evaluator import Evaluator
from scaling.evaluate.tasks.file import load
from scaling.evaluate.tasks.kinds.completion import Completion
from scaling.evaluate.tasks.prompts import build_requests
from scaling.generate.sampling import Sampling
from scaling.interop import served
from scaling.interop.logits import load_model
from tests import tiny

FIXTURES = Path(__file__).parents[2] / "fixtures"
TASKS = FIXTURES / "harness"
EXPECTED = json.loads((TASKS / "expected.json").read_text())
RESULTS = EXPECTED["results"]

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs lm_eval: pip install 'scaling[harness]'"
)


@pytest.fixture(scope="module")
def model():
    network, params = load_model(FIXTURES / "gpt2")
    words = BPETokenizer("harness/bpe", {token.encode(): i for i, token in enumerate(EXPECTED["tokens"])})
    assert (words.eot, words.vocab_size) == (100, network.model.vocab_size)
    network = tiny.in_float32(network.model)
    return served.Served(network, params, words, None, step=7, tokens=700)


@pytest.fixture(scope="module")
def answers(model):
    return Answers(model)


def noted(kind):
    found = [request for request in EXPECTED["requests"] if request["kind"] == kind]
    return [tuple(request["arguments"]) for request in found], [request["answer"] for request in found]


def test_loglikelihoods_are_those_of_the_hugging_face_backend(answers):
    pairs, expected = noted("loglikelihood")
    assert len(pairs) > 250
    found = answers.loglikelihoods(pairs)
    assert [logprob for logprob, _ in found] == pytest.approx([logprob for logprob, _ in expected], rel=2e-5, abs=2e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert sum(greedy for _, greedy in found) >= 8


def test_rolling_loglikelihoods_are_those_of_the_hugging_face_backend(answers):
    texts, expected = noted("rolling")
    assert answers.rolling([text for (text,) in texts]) == pytest.approx(expected, rel=2e-5)


def test_generated_texts_are_those_of_the_hugging_face_backend(answers):
    requests, expected = noted("generation")
    found = answers.continuations(requests)
    assert found == expected
    assert len(set(found)) > 5
    assert not any(stop in text for text, (_, knobs) in zip(found, requests, strict=True) for stop in knobs["until"])
    plain = answers.continuations([(context, {"max_gen_toks": 8}) for context, _ in requests])
    cut = [text for text, whole in zip(found, plain, strict=True) if text != whole]
    assert cut and all(whole.startswith(text) for text, whole in zip(found, plain, strict=True))


@pytest.mark.parametrize("name", ["endings", "questions", "yesno", "lastword"])
def test_our_evaluator_gives_the_same_accuracy_to_the_same_prompts(model, name):
    evaluator = Evaluator(model.network, model.params, model.words, asking=Asking(prefix=False))
    (task,) = load(TASKS / f"{name}.toml")
    requests = build_requests(task, 0, data=TASKS)
    found = evaluator.evaluate(requests)
    expected = [RESULTS[name][name][f"acc{x},none"] for x in ("", "_stderr")]
    assert found.scores["accuracy"] == pytest.approx(expected)
    if isinstance(task.scoring, Completion):  # lm_eval's perplexity is per item too
        both = dataclasses.replace(requests, task=dataclasses.replace(task, metrics=("accuracy", "perplexity")))
        perplexity, error = evaluator.evaluate(both).scores["perplexity"]
        assert perplexity == pytest.approx(RESULTS[name][name]["perplexity,none"], rel=1e-4) and error > 0
    pairs = {tuple(r["arguments"]): r["answer"] for r in EXPECTED["requests"] if r["task"] == name}
    for request, sample in zip(requests.items, found.samples, strict=True):
        theirs = [pairs[option.context, option.completion][0] for option in request.options]
        assert sample.log_likelihoods == pytest.approx(theirs, rel=2e-5)


def test_a_shared_context_is_computed_once(model):
    endings = [" ran", " sat down", " ate some bread", " saw it"]
    apart, together = Answers(model), Answers(model)
    expected = [apart.loglikelihoods([("the cat went home and", ending)])[0] for ending in endings]
    found = together.loglikelihoods([("the cat went home and", ending) for ending in endings + endings])
    for (a, greedy), (b, same) in zip(expected + expected, found, strict=True):
        assert a == pytest.approx(b, abs=1e-4) and greedy == same
    assert together._scorer.work.real < 0.5 * apart._scorer.work.real


def test_windows_predict_every_token_once():
    assert list(rolling_windows((), 9, 4)) == []
    assert list(rolling_windows((0, 1, 2), 9, 4)) == [((9,), (0, 1, 2))]
    # The example in lm_eval.api.model.LM.loglikelihood_rolling.
    assert list(rolling_windows(tuple(range(10)), 9, 4)) == [
        ((9,), (0, 1, 2, 3)),
        ((3,), (4, 5, 6, 7)),
        ((5, 6, 7), (8, 9)),
    ]
    for count in range(1, 30):
        windows = list(rolling_windows(tuple(range(count)), -1, 7))
        assert [token for _, new in windows for token in new] == list(range(count))
        assert all(len(context) + len(new) - 1 <= 7 for context, new in windows)


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({}, Sampling(tokens=256, temperature=0.0)),
        ({"until": "\n", "max_gen_toks": 5}, Sampling(tokens=5, temperature=0.0, stop=("\n",))),
        ({"max_new_tokens": 6, "max_gen_toks": 5}, Sampling(tokens=5, temperature=0.0)),
        ({"do_sample": False, "temperature": 0.7}, Sampling(tokens=256, temperature=0.0)),
        ({"temperature": 0.7, "top_p": 0.9}, Sampling(tokens=256, temperature=0.7, top_p=0.9)),
        ({"do_sample": True, "top_k": 3}, Sampling(tokens=256, temperature=1.0, top_k=3)),
        ({"num_beams": 4, "length_penalty": 0.6}, Sampling(tokens=256, beams=4, length_penalty=0.6)),
    ],
)
def test_generation_kwargs(knobs, expected):
    assert sampling(knobs, 1024) == expected


def test_generation_kwargs_that_cannot_be_obeyed():
    assert sampling({}, 256).tokens == 128
    with pytest.raises(ValueError, match="leaves no room for a prompt in the model's context of 64"):
        sampling({"max_gen_toks": 64}, 64)
    with pytest.raises(ValueError, match=r"generation_kwargs\.top_q of the task is not known .* mean top_p"):
        sampling({"top_q": 1}, 64)
    with pytest.raises(ValueError, match="exclude each other"):
        sampling({"num_beams": 2, "temperature": 1.0}, 1024)


def test_draws_depend_on_the_seed_and_the_request(model):
    requests = [("the cat", {"max_gen_toks": 8, "do_sample": True})] * 6
    first, again, other = (Answers(model, seed=seed).continuations(requests) for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) > 3


def test_a_missing_extra_is_one_sentence(monkeypatch):
    from scaling.evaluate.harness import adapter as harness

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"pip install 'scaling\[harness\]'"):
        harness.Tasks("hellaswag")


# The verb itself, with lm_eval.


@pytest.fixture
def evaluate(model, monkeypatch, tmp_path, capsys):
    """Runs ``scaling evaluate RUN --harness``; RUN is ``tmp_path``."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(served, "load_decoder", lambda *_: model)
    (tmp_path / "config.json").write_text("{}")  # of a model that is there
    monkeypatch.chdir(TASKS)  # where the paths in the task files begin

    def run(*arguments):
        parser = argparse.ArgumentParser()
        command.add_options(parser)
        assert command.run(parser.parse_args([str(tmp_path), "--harness", f"--data={TASKS}", *arguments])) == 0
        shown = capsys.readouterr()
        run.notes = shown.err
        return shown.out

    return run


def clean(results):
    """Metrics of lm_eval's results, named as in our records; its errors too, where it has one of its own."""
    found = {}
    for key, value in results.items():
        metric, _, filtered = key.partition(",")
        if not metric.endswith("_stderr"):
            error = results[f"{metric}_stderr,{filtered}"] if metric in ("acc", "acc_norm", "exact_match") else None
            found[metric if filtered == "none" else key] = (value, error)
    return found


@needs_lm_eval
@pytest.mark.slow
def test_the_verb_gives_lm_evals_own_results(evaluate, tmp_path):
    names = "endings,questions,yesno,lastword,stories,answers"
    lines = [json.loads(line) for line in evaluate(f"--tasks={names}", "--json", "--save_samples").splitlines()]
    assert [line["task"] for line in lines] == names.split(",")
    for line in lines:
        expected = clean(RESULTS[line["task"]][line["task"]])
        assert set(line["scores"]) == set(expected)
        for metric, (value, error) in line["scores"].items():
            assert value == pytest.approx(expected[metric][0], rel=1e-4)
            assert error == pytest.approx(expected[metric][1]) if expected[metric][1] is not None else error > 0
        assert (line["group"], line["shots"], line["chance"]) == ("harness", 0, None)
        assert (line["shots_used"], line["left_out"]) == (0.0, 0)
        assert line["count"] == len((TASKS / f"{line['task']}.jsonl").read_text().splitlines())
    kept = [json.loads(line) for line in (tmp_path / "evals.jsonl").read_text().splitlines()]
    assert all((record.pop("step"), record.pop("tokens")) == (7, 700) for record in kept)
    assert [{"model": str(tmp_path)} | record for record in kept] == lines

    def samples(name):
        return [json.loads(x) for x in (tmp_path / "samples" / f"harness-{name}-0.jsonl").read_text().splitlines()]

    first, item = samples("endings")[0], json.loads((TASKS / "endings.jsonl").read_text().splitlines()[0])
    assert (first["prompt"], first["expected"]) == (item["context"], f" {item['endings'][item['label']]}")
    best = max(range(4), key=first["log_likelihoods"].__getitem__)
    assert first["answer"] == f" {item['endings'][best]}" and set(first["scores"]) == {"acc", "acc_norm"}
    generated, filtered = samples("answers")[0], samples("answers")[12]
    assert (generated["id"], filtered["id"]) == ("0", "0/letters")
    assert generated["answer"] == noted("generation")[1][0]
    assert len(samples("stories")[0]["log_likelihoods"]) == 1


@needs_lm_eval
@pytest.mark.slow
def test_shots_limits_groups_and_tables(evaluate):
    shown = evaluate("--tasks=yesno", "--shots=0,2", "--limit=5")
    assert [line.split()[:5] for line in shown.splitlines()[1:]] == [
        ["yesno", str(shots), "shots", "5", "items"] for shots in (0, 2)
    ]
    (one,) = [json.loads(line) for line in evaluate("--tasks=yesno", "--limit=1", "--json").splitlines()]
    assert one["count"] == 1 and [error for _, error in one["scores"].values()] == [None]
    (two,) = [json.loads(line) for line in evaluate("--tasks=yesno", "--shots=2", "--json").splitlines()]
    assert two["shots"] == 2
    assert two["scores"]["acc"] == pytest.approx([RESULTS["yesno-2"]["yesno"][f"acc{x},none"] for x in ("", "_stderr")])
    lines = [json.loads(line) for line in evaluate("--tasks=pair", "--json").splitlines()]
    assert [(line["task"], line["group"]) for line in lines] == [
        ("endings", "harness/pair"),
        ("questions", "harness/pair"),
        ("pair", "harness"),
    ]
    whole = RESULTS["pair"]["pair"]
    assert lines[-1]["scores"] == {"acc": pytest.approx([whole["acc,none"], whole["acc_stderr,none"]])}
    assert lines[-1]["count"] == 44


@needs_lm_eval
@pytest.mark.slow
def test_a_task_that_fixes_its_number_of_shots_and_data_that_are_not_there(evaluate, tmp_path, monkeypatch):
    (tmp_path / "fixed.yaml").write_text((TASKS / "yesno.yaml").read_text() + "num_fewshot: 0\n")
    (line,) = evaluate("--tasks=yesno", f"--data={tmp_path}", "--shots=2", "--json").splitlines()
    assert json.loads(line)["shots"] == 0
    assert "yesno: its file fixes the number of shots at 0" in evaluate.notes
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"task yesno: its data cannot be loaded .*yesno\.jsonl"):
        evaluate("--tasks=yesno")


@needs_lm_eval
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tasks=yes_no"], "yes_no is no task of lm-evaluation-harness; did you mean yesno"),
        (["--tasks=,"], "no task is named"),
        (["--tasks=yesno", "--shots=few"], "there is no 'few'"),
        (["--tasks=yesno", "--limit=0"], "at least 1"),
        (["--tasks=yesno", "--data=nowhere"], "no such directory"),
    ],
)
def test_mistakes_are_sentences(evaluate, arguments, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        evaluate(*arguments)


@needs_lm_eval
def test_windows_are_those_of_lm_eval():
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    for count in range(30):
        theirs = map(make_disjoint_window, get_rolling_token_windows(list(range(count)), -1, 7, 1))
        assert [(tuple(a), tuple(b)) for a, b in theirs] == list(rolling_windows(tuple(range(count)), -1, 7))
