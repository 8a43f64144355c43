"""Control codes through the command line: a run on two domains writes the one that is asked for."""

import json
import random
from pathlib import Path

import pytest

from scaling import cli

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on texts xaxa... and xbxb...; most are longer than a sequence, so most sequences begin inside one."""
    folder = tmp_path_factory.mktemp("control")
    chance = random.Random(0)
    texts = [(code, f"x{letter}" * chance.randint(20, 600)) for code, letter in ("Aa", "Bb") for _ in range(100)]
    records = [{"domain": code, "text": text} for code, text in texts]
    (folder / "texts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    arguments = [
        f"--config={ROOT / 'experiments/cpu/smoke.py'}", f"--config.workdir={folder}/run",
        f"--config.data.train={folder}/texts.jsonl", f"--config.data.cache_dir={folder}/cache",
        "--config.data.control_field=domain", "--config.sample.prompts=()", "--config.log.tensorboard=false",
        "--config.train.tokens=65536", "--config.model.attention_pattern=('dense',)",
    ]  # fmt: skip
    assert cli.main(["train", *arguments]) == 0
    return folder / "run"


def generated(capsys, run, *arguments):
    capsys.readouterr()
    assert cli.main(["generate", str(run), "--tokens=20", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_the_code_decides_the_text(run, capsys):
    for code, letter in (("A", "a"), ("B", "b")):
        # Without a prompt, and after a prompt that is in the texts of both domains.
        for prompt in ([], ["--prompt=x"]):
            text = generated(capsys, run, f"--control={code}", "--temperature=0", *prompt)
            assert set(text) == {"x", letter, "\n"}
        found = generated(capsys, run, f"--control={code}", "--prompt=x", "--num_samples=8", "--top_p=0.8", "--json")
        records = [json.loads(line) for line in found.splitlines()]
        assert [record["control"] for record in records] == [code] * 8
        assert set("".join(record["text"] for record in records)) == {"x", letter}
    # Several prompts, each after the code; and a record says nothing of a code where there is none.
    found = generated(capsys, run, "--control=B", "--prompt=x", "--prompt=xbx", "--temperature=0")
    assert [set(text) for text in found.splitlines() if text] == [{"x", "b"}] * 2
    (line,) = generated(capsys, run, "--prompt=x", "--json").splitlines()
    assert "control" not in json.loads(line)


@pytest.mark.parametrize("code", ["", "\ud800"])
def test_a_code_that_is_no_text_is_refused(code, tmp_path, capsys):
    assert cli.main(["generate", str(tmp_path), f"--control={code}"]) == 2
    assert "--control must be valid Unicode text of at least one character" in capsys.readouterr().err


def test_without_prompt_and_code_there_is_nothing_to_write(tmp_path, capsys):
    assert cli.main(["generate", str(tmp_path)]) == 2
    assert "or --control=CODE" in capsys.readouterr().err


def test_a_run_that_was_trained_without_codes_takes_none(tmp_path, capsys):
    record = {"config": {"data": {"control_field": ""}}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert cli.main(["generate", str(tmp_path), "--control=Wiki"]) == 2
    assert "trained without control codes" in capsys.readouterr().err


def test_tokenize_refuses_the_field_of_the_text(tmp_path, capsys):
    arguments = ["--tokenizer=bytes", f"--output={tmp_path}/out", "--control_field=text"]
    assert cli.main(["tokenize", str(tmp_path / "a.jsonl"), *arguments]) == 2
    assert "--control_field=text is the field of the text" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_field_of_the_text_is_no_control_field(tmp_path, capsys):
    arguments = [f"--config={ROOT / 'experiments/cpu/smoke.py'}", f"--config.workdir={tmp_path}/run"]
    assert cli.main(["train", *arguments, "--config.data.control_field=text"]) == 2
    assert "config.data.control_field='text' is the field of the text" in capsys.readouterr().err
