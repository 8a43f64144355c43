"""The comparison of BERT and GPT: its examples, its measures, its tables."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from scaling.data import tokenizer
from tests import shared

FOLDER = Path(__file__).parent.parent / "experiments/bert_gpt"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_measures(module):
    compare, probes = module("compare"), module("probes")
    np.testing.assert_array_equal(compare.ranks(np.array([3.0, 1.0, 3.0, 7.0])), [2, 0.5, 2, 3.5])
    assert probes.repeated([1, 2, 1, 2]) == pytest.approx(1 / 3) and probes.repeated([1, 2, 3]) == 0
    ids, there = probes.padded([[5, 6], [7]], 3)
    assert ids.tolist() == [[5, 6, 0], [7, 0, 0]] and there.tolist() == [[1, 1, 0], [1, 0, 0]]


def test_tables_have_means_with_standard_errors_of_the_seeds_that_are_there(module):
    summary = module("summary")
    scores = {}
    for seed, accuracy in enumerate((0.6, 0.7, 0.8)):
        scores[f"pretrain gpt {seed}"] = {"loss": 4.0, "flops": 1e12, "seconds": 9}
        scores[f"sst2 gpt pre-trained {seed}"] = {"accuracy": accuracy}
    scores["cloze gpt 0"] = {"last": {"accuracy": 0.05, "nats": 5.0}}
    text = summary.table(scores, ["gpt"])
    assert "| sst2, accuracy | 70.0 \u00b1 5.8 |  |" in text  # the second column is not measured yet
    assert "| GPT | 4.000 \u00b1 0.000 | 1.00e+12 | 9 \u00b1 0 |" in text
    assert "| last, accuracy | 5.0 |" in text
    assert summary.draw(scores, ["gpt"]).name == "bert_gpt"


@shared.needs_shared("data/more/finetune/mrpc.jsonl.gz")
def test_examples_fit_their_rows_and_have_one_order(module, tmp_path):
    compare = module("compare")
    study = compare.Study(tmp_path, shared.SHARED / "data")
    words = tokenizer.load(compare.WORDS)
    for name, keys in (("mrpc", {"text0", "text1", "label"}), ("upos", {"form", "upos"})):
        assert compare.prepared(study, name) == tmp_path / "tasks" / f"{name}.toml"
        lines = [json.loads(line) for line in (tmp_path / f"tasks/{name}_train.jsonl").read_text().splitlines()]
        assert len(lines) == compare.TASKS[name].trained and all(set(line) == keys for line in lines)
        if name == "mrpc":
            framed = [words.framed(line["text0"], line["text1"])[0] for line in lines[:50]]
            assert max(map(len, framed)) <= compare.TASKS[name].length


@pytest.mark.slow
@shared.needs_shared("data/eval/llm_foundry/lambada_openai.jsonl")
def test_hidden_words_are_whole_words_of_one_token(module):
    probes, words = module("probes"), tokenizer.load("books+mask")
    for middle in (True, False):
        items = probes.hidden(shared.SHARED / "data", words, middle)[:40]
        for item in items:
            word, after = words.decode([item.word]), words.decode(item.after)
            assert word.startswith(" ") and word.strip().isalpha()
            assert bool(item.after) == middle and not (after and after[0].isalpha())
