"""An encoder that is fine-tuned: its rows, what it learns, what cannot be trained from it."""

import json

import numpy as np
import pytest

from scaling import cli, exit_codes
from scaling.align import classify, finetune
from scaling.align import task as tasks
from scaling.data import tokenizer
from scaling.data.batch import scored
from tests.align.conftest import SIZES

ENCODER = [
    "--config.data.objective=mlm", "--config.data.tokenizer=bytes+mask", "--config.model.causal=False",
    "--config.model.token_types=2", "--config.model.head_transform=True", "--config.model.logit_bias=True",
    "--config.model.pooler=True",
]  # fmt: skip
# The second text decides, and the first, which has the same letters, does not.
PAIRS = [
    {"premise": p, "hypothesis": h, "label": "entailment" if h in "ab" else "not_entailment"}
    for p in "abcd" for h in "abcd" for _ in range(2)
]  # fmt: skip


@pytest.fixture(scope="module")
def encoder(folder):
    sizes = [f"--config.model.{size}" for size in SIZES]
    assert folder.run("train", "encoder", *sizes, *ENCODER, "--config.train.tokens=2048") == 0
    return folder / "encoder"


def test_rows_are_framed_and_read_at_the_first_token():
    words = tokenizer.load("bytes+mask")
    rows = finetune.layout(words, False)(tasks.Example("", (("ab", "c"), ("c",))))
    begin, end = (words.controls[token] for token in ("<|begin|>", "<|separator|>"))
    assert [row.ids.tolist() for row in rows] == [[begin, 97, 98, end, 99, end], [begin, 99, end]]
    assert [row.types.tolist() for row in rows] == [[0, 0, 0, 0, 1, 1], [0, 0, 0]]
    row = scored(rows[0].ids, 8, 2.0, types=rows[0].types)
    assert row.reads.tolist() == [1, 0, 0, 0, 0, 0, 0, 0] and row.labels[0] == 2
    assert row.types.tolist() == [0, 0, 0, 0, 1, 1, 0, 0]
    assert row.segments.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    with pytest.raises(ValueError, match="x:1: an encoder reads one text or two, and not 3"):
        finetune.layout(words, False)(tasks.Example("x:1", (("a", "b", "c"),)))


@pytest.mark.slow
def test_it_learns_pairs_and_classifies_them_whatever_the_padding(folder, encoder, capsys):
    file = folder.write("rte_train.jsonl", PAIRS)
    folder.write("rte_val.jsonl", PAIRS)
    given = [f"--config.start={encoder}", f"--config.data.train={file}", f"--config.data.validation={file}"]
    knobs = ["--task=rte", "--config.data.tokenizer=", "--config.align.lm_weight=0", "--config.align.epochs=12",
             "--config.align.dropout=0", "--config.optimizer.peak_lr=3e-3", "--config.train.sequence_length=16",
             "--config.train.batch_tokens=128"]  # fmt: skip
    assert folder.run("align finetune", "pairs", *given, *knobs) == 0
    assert folder.lines("pairs", "evals.jsonl")[-1]["accuracy"] == 1
    classifier = classify.load(folder / "pairs")
    assert classifier.served.words.name == "bytes+mask"
    asked = classify.examples(tasks.find("rte"), folder / "rte_train.jsonl")
    found = classifier(asked, batch_size=4)
    right = [record["label"] for record in PAIRS]
    assert [classifier.task.names[i] for i in found.argmax(1)] == right
    np.testing.assert_allclose(classifier(asked[:1], batch_size=1)[0], found[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_what_continues_texts_cannot_begin_with_an_encoder(folder, encoder, capsys, kind):
    file = folder.write("any.jsonl", [{"prompt": "a", "response": "b"}])
    given = [f"--config.start={encoder}", f"--config.data.train={file}", "--config.data.tokenizer="]
    assert folder.run(f"align {kind}", f"no-{kind}", *given) == exit_codes.USAGE
    assert f"is an encoder, which `scaling align {kind}` cannot train" in capsys.readouterr().err
    assert not (folder / f"no-{kind}").exists()


def test_pre_training_goes_on_from_an_encoder(folder, encoder):
    given = [f"--config.start={encoder}", "--config.data.tokenizer=", "--config.data.objective=mlm"]
    assert (
        folder.run("train", "further", *given, "--config.train.tokens=1024", "--config.train.sequence_length=32") == 0
    )
    assert json.loads((folder / "further" / "config.json").read_text())["config"]["model"]["causal"] is False
    assert cli.main(["fill", str(folder / "further"), "--prompt=a<|mask|>c"]) == 0
