"""The verb distill through the command line: a student of a run, resumed, and what is refused."""

import json
import re

import pytest

from scaling import cli, exit_codes
from tests.commands.test_encoder import ENCODER
from tests.commands.test_seq2seq import BOTH
from tests.commands.test_train import PLAIN, SMOKE, curve, train, weights


def distill(workdir, *changes):
    return cli.main(["distill", SMOKE, f"--config.workdir={workdir}", *PLAIN, *changes])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "bert"
    assert train(path, *ENCODER, "--config.train.tokens=5120") == 0
    return path


@pytest.mark.slow
def test_a_student_begins_with_layers_of_its_teacher_and_goes_on_to_the_same_numbers(teacher, tmp_path, capsys):
    knobs = ["--config.data.objective=mlm", "--config.data.tokenizer=", "--config.model.attention_pattern=('dense',)"]
    knobs += [f"--config.start={teacher}", "--config.distill.layers=1"]
    knobs += ["--config.checkpoint.every_steps=10", "--config.optimizer.schedule=constant"]
    assert distill(tmp_path / "a", *knobs) == 0
    lines = curve(tmp_path / "a")
    record = json.loads((tmp_path / "a/metrics.jsonl").read_text().splitlines()[-1])
    assert record["kl"] > 0 and record["cosine_loss"] > 0
    config = json.loads((tmp_path / "a/config.json").read_text())["config"]
    assert config["model"]["num_layers"] == 1
    first = json.loads((tmp_path / "a/metrics.jsonl").read_text().splitlines()[0])
    assert record["loss"] < first["loss"]
    assert distill(tmp_path / "b", *knobs, "--config.train.tokens=5120") == 0
    assert distill(tmp_path / "b", *knobs) == 0
    assert curve(tmp_path / "b")[-1]["loss"] == lines[-1]["loss"]
    assert weights(tmp_path / "b") == weights(tmp_path / "a")
    assert train(tmp_path / "b", *knobs[:-2]) == exit_codes.USAGE
    assert "is a run of `scaling distill`, and only that verb goes on with it" in capsys.readouterr().err


@pytest.mark.slow
def test_another_shape_with_random_weights(teacher, tmp_path):
    knobs = [*ENCODER, f"--config.distill.teacher={teacher}", "--config.model.d_model=16", "--config.distill.cosine=0"]
    assert distill(tmp_path / "run", *knobs, "--config.train.tokens=2560") == 0
    assert (tmp_path / "run/teacher_start.json").exists()
    (tmp_path / "run/teacher_start.json").write_text(
        (tmp_path / "run/teacher_start.json").read_text().replace('"step": ', '"step": 1')
    )
    assert distill(tmp_path / "run", *knobs, "--config.train.tokens=5120") == exit_codes.USAGE


@pytest.mark.slow
def test_an_encoder_with_a_decoder_is_taught_by_one(tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text("".join(f'{{"source": "{i}", "target": "{i}!"}}\n' for i in range(40)))
    knobs = [
        *BOTH, "--config.data.objective=pairs", f"--config.data.train={tmp_path / 'pairs.jsonl'}",
        "--config.train.tokens=1024", "--config.train.sequence_length=16", "--config.train.ramp_tokens=0",
        "--config.eval.every_steps=0", "--config.checkpoint.every_steps=0",
    ]  # fmt: skip
    teacher = tmp_path / "teacher"
    assert train(teacher, *knobs, "--config.model.context_length=32") == 0
    knobs += [
        f"--config.distill.teacher={teacher}",
        "--config.model.encoder_layers=1",
        "--config.model.context_length=64",
    ]
    assert distill(tmp_path / "run", *knobs, "--config.data.source_length=40") == exit_codes.USAGE
    assert "config.data.source_length=40 must be at most 32, the tokens that" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert distill(tmp_path / "run", *knobs) == 0
    record = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert record["kl"] > 0 and record["cosine_loss"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ([], "config.distill.teacher='' must name the run that is imitated, or config.start must"),
        (
            [*ENCODER, "--config.start=TEACHER", "--config.distill.layers=9"],
            "config.distill.layers=9 must be at most 2",
        ),
        (["--config.distill.teacher=TEACHER", "--config.distill.layers=1"], "must be 0 without config.start"),
        (
            ["--config.distill.teacher=TEACHER", "--config.data.tokenizer=bytes+mask"],
            "must be an encoder, a decoder, or both, as the student is",
        ),
        (
            [*ENCODER, "--config.distill.teacher=TEACHER", "--config.model.d_model=16"],
            "config.distill.cosine=1.0 must be 0, since the teacher's final states have 32 features, here 16",
        ),
        (
            [*ENCODER, "--config.distill.teacher=TEACHER", "--config.data.tokenizer=books+mask"],
            "has the tokenizer 'bytes.mask' of 260 tokens, and must have that of the student, 'books.mask' of",
        ),
        (["--config.distill.teacher=TEACHER", "--config.distill.temperature=0"], "must be more than 0"),
    ],
)
def test_what_is_refused(teacher, tmp_path, capsys, changes, sentence):
    given = [change.replace("TEACHER", str(teacher)) for change in changes]
    assert distill(tmp_path / "run", *given) == exit_codes.USAGE
    assert re.search(sentence, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
