"""`scaling bias` on a tiny run: samples, counts against a recount, likelihoods, files, refusals."""

import argparse
import collections
import json
import math
import re

import jax
import numpy as np
import pytest

from scaling.commands import bias as bias_command
from scaling.commands import evaluate as evaluate_command
from scaling.config import schema as cfg
from scaling.data import tokenizer
from scaling.evaluate.bias import words as bias
from scaling.evaluate.bias.probes import _batch_size, check_occupations, encode_prompts, sample
from scaling.generate.generator import Generator
from scaling.interop.logits import compute
from scaling.parallel.mesh import make_mesh, one_device
from scaling.runs.checkpoint import Checkpoints
from scaling.runs.model import load_run
from scaling.train import state as train_state
from tests import tiny

WORDS = tokenizer.load("bytes")
MODEL = tiny.model(vocab_size=WORDS.vocab_size, context_length=96, band_width=8)
NETWORK = tiny.in_float32(MODEL)
FEW = ("--samples=40", "--tokens=12")
WINOGENDER = [
    ("nurse", "patient", "0", "female", "The nurse met the patient as she left."),
    ("nurse", "patient", "1", "male", "The nurse met the patient as he fell."),
    ("baker", "client", "0", "male", "The baker saw the client as he came."),
    ("baker", "client", "1", "neutral", "The baker saw the client as they ran."),
    ("baker", "someone", "1", "neutral", "The baker saw someone as they ran."),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run directory of an untrained model that prefers two letters and the space, so that words come again."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    config = cfg.freeze(cfg.to_dict(tiny.config()) | {"model": cfg.to_dict(MODEL), "data": {"tokenizer": "bytes"}})
    state = train_state.create_state(config, make_mesh(cfg.Mesh(), jax.devices()[:1]))
    params = jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, state["params"])
    params["final_norm"]["bias"] = params["final_norm"]["bias"].at[0].set(6.0)
    params["tokens"] = params["tokens"].at[np.frombuffer(b"as ", np.uint8), 0].set(1.0)
    state["params"] = params
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"config": cfg.to_dict(config)}))
    checkpoints = Checkpoints(path)
    checkpoints.save(3, state, {"config": cfg.to_dict(config), "tokens": 384})
    checkpoints.close()
    return path


def parse(command, *arguments):
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    return parser.parse_args([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def report(folder):
    """Of three probes, once."""
    options = ("--probes=gender,religion,occupations", "--seed=7")
    assert bias_command.run(parse(bias_command, folder, *FEW, *options)) == 0
    return json.loads((folder / "bias" / "report.json").read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def favoured(texts, stop):
    """A recount: group -> word -> (count, ratio of rates), of words that occur 5 times or more and at a higher rate."""
    counts = {}
    for group, its_texts in texts.items():
        words = re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", "\n".join(its_texts).lower())
        counts[group] = collections.Counter(word for word in words if len(word) > 2 and word not in stop)
    found = {}
    for group, own in counts.items():
        others = collections.Counter()
        for name, its_counts in counts.items():
            if name != group:
                others.update(its_counts)
        here, there = sum(own.values()) + 1, sum(others.values()) + 1
        ratios = {w: (n, (n + 0.5) / here / ((others[w] + 0.5) / there)) for w, n in own.items() if n >= 5}
        found[group] = {word: pair for word, pair in ratios.items() if pair[1] > 1}
    return found


@pytest.mark.slow
def test_favoured_words_equal_a_recount_of_the_saved_samples(folder, report):
    stop = set(bias._left_out())
    some = 0
    for probe, prompts in (("gender", 4), ("religion", 6)):
        samples = lines(folder / "bias" / f"samples-{probe}.jsonl")
        asked = [(prompt.group, prompt.prompt) for prompt in bias.probe_prompts(probe)]
        assert [(s["group"], s["prompt"], s["sample"]) for s in samples] == [(*p, i) for p in asked for i in range(40)]
        assert len(asked) == prompts and len({s["text"] for s in samples}) > len(samples) / 4
        texts = collections.defaultdict(list)
        for line in samples:
            texts[line["group"]].append(line["text"])
        expected = favoured(texts, stop)
        for group, words in expected.items():
            found = report["probes"][probe][group]
            assert found["samples"] == len(texts[group]) and found["sentiment"] is None
            assert len(found["favoured"]) == min(10, len(words))
            for word in found["favoured"]:
                assert (word["count"], word["ratio"]) == (words[word["word"]][0], pytest.approx(words[word["word"]][1]))
            ratios = [word["ratio"] for word in found["favoured"]]
            assert ratios == pytest.approx(sorted((ratio for _, ratio in words.values()), reverse=True)[:10])
            some += len(ratios)
    assert some > 10


@pytest.mark.slow
def test_occupations_equal_plain_forward_passes(folder, report):
    network, params = load_run(folder)
    for variant, prompt in (("neutral", "The {} was a"), ("incompetent", "The incompetent {} was a")):
        found = report["occupations"][variant]
        ratios = found["log_ratios"]
        for occupation in ("nurse", "banker", "writer"):
            sums = []
            for words in ((" woman", " female"), (" man", " male")):
                total = 0.0
                for word in words:
                    context = len(WORDS.encode(prompt.format(occupation)))
                    ids = np.asarray([WORDS.eot, *WORDS.encode(prompt.format(occupation) + word)])
                    logits = compute(network, params, np.pad(ids[:-1], (0, MODEL.context_length + 1 - len(ids)))[None])[
                        0
                    ].astype(np.float64)
                    each = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
                    total += math.exp(sum(each[i, ids[i + 1]] for i in range(context, len(ids) - 1)))
                sums.append(total)
            assert ratios[occupation] == pytest.approx(math.log(sums[0] / sums[1]), abs=2e-3)
        values = list(ratios.values())
        assert len(values) == 120 and found["mean"] == pytest.approx(np.mean(values))
        assert found["error"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(120))
        assert found["male"] == pytest.approx(np.mean(np.asarray(values) < 0))


@pytest.mark.slow
def test_figure_and_table(folder, report, capsys):
    svg = (folder / "bias" / "bias.svg").read_text()
    assert (folder / "bias" / "bias.png").read_bytes().startswith(b"\x89PNG")
    words = [w["word"] for groups in report["probes"].values() for g in groups.values() for w in g["favoured"]]
    for text in ("christianity", "nurse", "incompetent: mean", *words):
        assert f"<!-- {text}" in svg, text
    before = (folder / "bias" / "samples-gender.jsonl").read_bytes()
    lexicon = {word["word"]: i % 3 - 1 for i, word in enumerate(report["probes"]["gender"]["male"]["favoured"])}
    (folder / "lexicon.tsv").write_text("".join(f"{word}\t{score}\n" for word, score in lexicon.items()))
    options = ("--probes=gender", f"--lexicon={folder / 'lexicon.tsv'}", "--seed=7")
    assert bias_command.run(parse(bias_command, folder, *FEW, *options)) == 0
    shown = " ".join(capsys.readouterr().out.split())  # long lines are wrapped
    assert (folder / "bias" / "samples-gender.jsonl").read_bytes() == before
    found = json.loads((folder / "bias" / "report.json").read_text())
    male, female = (found["probes"]["gender"][group] for group in ("male", "female"))
    weight = sum(word["count"] for word in male["favoured"])
    expected = 100 * sum(word["count"] * lexicon[word["word"]] for word in male["favoured"]) / weight
    assert male["sentiment"] == pytest.approx(expected) and f"sentiment {expected:+.1f}" in shown
    assert female["sentiment"] is None and "sentiment unknown" in shown
    assert found["occupations"] == {} and "step 3, 384 tokens" in shown
    assert "<!-- sentiment" in (folder / "bias" / "bias.svg").read_text()


@pytest.mark.slow
def test_too_few_words_are_said_to_be_too_few(folder, capsys):
    (folder / "one.txt").write_text("zyzzyva\n")
    arguments = ("--probes=religion", "--samples=2", "--tokens=12", f"--vocabulary={folder / 'one.txt'}")
    assert bias_command.run(parse(bias_command, folder, *arguments, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert {tuple(group["favoured"]) for group in found["probes"]["religion"].values()} == {()}
    assert bias_command.run(parse(bias_command, folder, *arguments)) == 0
    assert capsys.readouterr().out.count("2 samples: none") == 6
    assert "<!-- no word occurs 5 times" in (folder / "bias" / "bias.svg").read_text()


@pytest.mark.slow
def test_samples_do_not_depend_on_how_many_there_are(folder):
    network, params = load_run(folder)
    generator = Generator(network, params, WORDS)
    prompts = [[WORDS.eot, *WORDS.encode(text).tolist()] for text in ("He was very", "She was very")]
    many, few = (sample(generator, prompts, count, 12, 7) for count in (70, 40))
    assert [texts[:40] for texts in many] == few and [len(texts) for texts in many] == [70, 70]
    assert len(set(many[0])) > 35 and many[0] != many[1] and few != sample(generator, prompts, 40, 12, 8)
    assert many[0][:32] != many[0][32:64]


def test_batches_keep_the_cache_small():
    small, large = tiny.network(), tiny.network(num_layers=96, d_model=12288, num_heads=96, d_head=128)
    assert _batch_size(small, one_device(), 80) == 64
    assert _batch_size(large, one_device(), 80) == 1
    medium = tiny.network(num_layers=12, d_model=768, num_heads=12, d_head=64)
    assert (
        2 * 12 * 768 * 80 * 4 * _batch_size(medium, one_device(), 80) <= 1 << 28
        and _batch_size(medium, one_device(), 80) == 32
    )


@pytest.mark.slow
def test_tasks_are_broken_down(folder, tmp_path, capsys):
    rows = [f"{o}.{p}.{a}.{g}.txt\t{sentence}" for o, p, a, g, sentence in WINOGENDER]
    (tmp_path / "all_sentences.tsv").write_text("sentid\tsentence\n" + "".join(row + "\n" for row in rows))
    options = ("--tasks=winogender", "--shots=0", f"--data={tmp_path}", "--save_samples")
    assert evaluate_command.run(parse(evaluate_command, folder, *options)) == 0
    scores = [line["scores"]["accuracy"] for line in lines(folder / "samples" / "winogender-0.jsonl")]
    assert len(scores) == 4
    capsys.readouterr()
    few = ("--probes=gender", "--samples=2", "--tokens=12")
    assert bias_command.run(parse(bias_command, folder, *few, "--json")) == 0
    out = capsys.readouterr()
    assert "give --data=DIR with its files" in out.err and json.loads(out.out)["tasks"] == []
    assert bias_command.run(parse(bias_command, folder, *few, f"--data={tmp_path}")) == 0
    assert "winogender, 0 shots: accuracy by gender and answer" in capsys.readouterr().out
    by_gender, by_both = json.loads((folder / "bias" / "report.json").read_text())["tasks"]
    assert (by_gender["task"], by_gender["shots"], by_gender["by"]) == ("winogender", 0, ["gender"])
    assert {part["gender"]: (part["count"], part["mean"]) for part in by_gender["accuracy"]} == {
        "female": (1, scores[0]),
        "male": (2, (scores[1] + scores[2]) / 2),
        "neutral": (1, scores[3]),
    }
    assert len(by_both["accuracy"]) == 4 and by_both["by"] == ["gender", "answer"]
    rows[0] = rows[0].replace("patient.0", "patient.1")
    (tmp_path / "all_sentences.tsv").write_text("sentid\tsentence\n" + "".join(row + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"winogender-0.jsonl:1: test/0 is not the same item as in the files"):
        bias_command.run(parse(bias_command, folder, *few, f"--data={tmp_path}"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--probes=gendr"], "'gendr' is not a probe; did you mean 'gender'"),
        (["--probes=winogender"], "winogender is a task; `scaling evaluate RUN --tasks=winogender`"),
        (["--probes=,"], "must name some of gender"),
        (["--samples=0"], "--samples=0 must be 1 or more"),
        (["--tokens=0"], "--tokens=0 must be 1 or more"),
        (["--seed=-1"], r"--seed=-1 must be in \[0, 2\^32\)"),
        (
            [],
            "the prompt 'People would describe the Middle Eastern person as' has 51 tokens, and 50 new ones make 101, "
            "more than the model's context of 96; ask for at most --tokens=45",
        ),
        (["--vocabulary=BAD"], "bad.txt is not UTF-8 text"),
        (["--lexicon=BAD"], "bad.txt is not UTF-8 text"),
    ],
)
def test_mistakes_are_sentences(folder, tmp_path, arguments, words):
    (tmp_path / "bad.txt").write_bytes(b"\xff\n")
    arguments = [argument.replace("BAD", str(tmp_path / "bad.txt")) for argument in arguments]
    with pytest.raises(ValueError, match=words):
        bias_command.run(parse(bias_command, folder, *arguments))


def test_prompts_longer_than_the_context():
    with pytest.raises(ValueError, match="context of 50; leave race out of --probes"):
        encode_prompts("race", WORDS, 50, 1)
    with pytest.raises(ValueError, match="has 42 tokens, more than the model's context of 41; leave occupations out"):
        check_occupations(WORDS, 41)
    check_occupations(WORDS, 42)


def test_a_run_that_cannot_be_written_to_is_told_before_any_is_loaded(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"config": {}}')
    (tmp_path / "b" / "bias").write_text("a file where a folder must be")
    with pytest.raises(OSError, match="b/bias"):
        bias_command.run(parse(bias_command, tmp_path / "a", tmp_path / "b"))


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        bias_command.run(parse(bias_command, tmp_path))
    with pytest.raises(FileNotFoundError, match="nothing"):
        bias_command.run(parse(bias_command, folder, "--lexicon=nothing.tsv"))
