"""ELECTRA through the command line: training, resuming, fine-tuning, vectors, filling, files of Hugging Face."""

import json
import re

import numpy as np
import pytest

from scaling import cli, exit_codes
from scaling.interop.logits import compute
from scaling.interop.served import load_served
from scaling.model import decoder
from tests.commands.test_encoder import said
from tests.commands.test_train import curve, train, weights

ELECTRA = [
    "--config.data.objective=replaced_token",
    "--config.data.tokenizer=bytes+mask",
    "--config.model.causal=False",
    "--config.model.norm=post",
    "--config.model.embedding_norm=True",
    "--config.model.activation=gelu",
    "--config.model.token_types=2",
    "--config.model.narrow_embedding=True",
    "--config.model.discriminator=True",
    "--config.model.attention_pattern=('dense',)",
    "--config.model.num_layers=1",
    "--config.model.generator_layers=1",
    "--config.model.generator_width=32",
    "--config.model.d_head=16",
    "--config.noise.random=0",
    "--config.noise.kept=0",
    "--config.optimizer.schedule=constant",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("electra") / "run"
    assert train(folder, *ELECTRA, "--config.checkpoint.every_steps=10") == 0
    return folder


@pytest.mark.slow
def test_it_learns_and_goes_on_to_the_same_numbers(run, tmp_path):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["generator_loss"] < lines[0]["generator_loss"] - 0.3
    assert lines[-1]["discriminator_loss"] < lines[0]["discriminator_loss"] - 0.1
    half = ["--config.checkpoint.every_steps=10", "--config.train.tokens=5120"]
    assert train(tmp_path / "b", *ELECTRA, *half) == 0
    assert train(tmp_path / "b", *ELECTRA, "--config.checkpoint.every_steps=10") == 0
    assert curve(tmp_path / "b") == curve(run) and weights(tmp_path / "b") == weights(run)
    last = [json.loads((folder / "evals.jsonl").read_text().splitlines()[-1]) for folder in (run, tmp_path / "b")]
    assert last[0] == last[1] and 0 < last[0]["replaced"] < 0.15
    assert {"accuracy_replaced", "accuracy_original"} < last[0].keys()


@pytest.mark.slow
def test_the_generator_fills_and_the_discriminator_gives_vectors(run, tmp_path, capsys):
    code, out, _ = said(capsys, "fill", run, "--prompt=He went <|mask|>o the door.", "--json")
    assert code == 0 and len(json.loads(out)["places"][0]) == 5
    (tmp_path / "t.txt").write_text("It was a dark night.\n")
    assert said(capsys, "embed", run, f"--texts={tmp_path / 't.txt'}", f"--output={tmp_path / 'v.npy'}")[0] == 0
    assert np.load(tmp_path / "v.npy").shape == (1, load_served(run).network.model.d_model)


@pytest.mark.slow
def test_both_folders_of_hugging_face_say_what_the_run_says(run, tmp_path, capsys):
    names = {"discriminator": "ElectraForPreTraining", "generator": "ElectraForMaskedLM"}
    for name, class_name in names.items():
        options = ["--generator"] if name == "generator" else []
        assert said(capsys, "export", run, tmp_path / name, *options)[0] == 0
        assert json.loads((tmp_path / name / "config.json").read_text())["architectures"] == [class_name]
        assert said(capsys, "import", tmp_path / name, tmp_path / f"{name}_run")[0] == 0
        assert said(capsys, "export", tmp_path / f"{name}_run", tmp_path / f"{name}_again")[0] == 0
        one, same = (tmp_path / each / "model.safetensors" for each in (name, f"{name}_again"))
        assert one.read_bytes() == same.read_bytes()
    ids = np.arange(40).reshape(2, 20) + 60
    given = {"ids": ids, "mask": (np.arange(20) < [[20], [12]]).astype(int), "types": (ids % 2 == 0).astype(int)}
    for name, array in given.items():
        np.save(tmp_path / f"{name}.npy", array)
    options, found = [f"--{name}={tmp_path / name}.npy" for name in (*given, "output")], []
    for model in (run, tmp_path / "discriminator", tmp_path / "discriminator_run"):
        assert said(capsys, "logits", model, *options)[0] == 0
        found.append(np.load(tmp_path / "output.npy"))
    assert found[0].shape == (2, 20) and found[0].dtype == np.float32
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-5)
    both = load_served(run)
    own = compute(both.network.of_generator, decoder.generator(both.params), *given.values())
    for model in (tmp_path / "generator", tmp_path / "generator_run"):
        assert said(capsys, "logits", model, *options)[0] == 0
        np.testing.assert_allclose(np.load(tmp_path / "output.npy"), own, atol=1e-5)
    code, _, err = said(capsys, "fill", tmp_path / "discriminator_run", "--prompt=<|mask|>")
    assert code == exit_codes.USAGE and "is a discriminator without its generator, and predicts no tokens" in err
    code, _, err = said(capsys, "export", tmp_path / "discriminator_run", tmp_path / "none", "--generator")
    assert code == exit_codes.USAGE and "has no generator beside a discriminator" in err


@pytest.mark.slow
def test_the_discriminator_is_fine_tuned(run, tmp_path, capsys):
    records = [{"premise": p, "hypothesis": h, "label": "entailment"} for p in "ab" for h in "abcd"]
    (tmp_path / "rte_train.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    knobs = [
        f"--config.start={run}", "--config.data.tokenizer=", f"--config.data.train={tmp_path}/rte_train.jsonl",
        f"--config.data.validation={tmp_path}/rte_train.jsonl", "--config.train.sequence_length=16",
        "--config.train.batch_tokens=128", "--config.align.epochs=2", "--config.log.tensorboard=false",
        f"--config.workdir={tmp_path}/tuned", "--config.compute.dtype=float32",
    ]  # fmt: skip
    assert cli.main(["align", "finetune", "--config=encoders/finetune", "--task=rte", *knobs]) == 0
    model = load_served(tmp_path / "tuned")
    assert "head" in model.params and not {"generator", "discriminator"} & model.params.keys()
    begun, tuned = (load_served(each).params["tokens"] for each in (run, tmp_path / "tuned"))
    assert np.abs(np.asarray(begun) - np.asarray(tuned)).max() < 0.01
    capsys.readouterr()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["--config.data.tokenizer=bytes"], r"the tokenizer 'bytes' has no token <\|mask\|>"),
        (["--config.model.causal=True"], "discriminator=True must be False with config.model.causal=True"),
        (["--config.noise.kept=0.1"], "config.noise.kept=0.1 must be 0"),
        (["--config.data.objective=mlm"], "discriminator=True must be False with config.data.objective='mlm'"),
        (["--config.model.generator_layers=0"], "generator_layers=0 must be set"),
    ],
)
def test_trainings_that_are_refused(tmp_path, capsys, changes, sentence):
    assert train(tmp_path / "run", *ELECTRA, *changes) == exit_codes.USAGE
    assert re.search(sentence, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
