"""Runs in object stores that come from elsewhere or go elsewhere: imported, exported, with a template or a task."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
from etils import epath

from scaling import cli, exit_codes
from scaling.align import classify, rewards
from scaling.config import schema as cfg
from scaling.data import tokenizer
from scaling.interop import new_folder
from tests.commands.test_train import ROOT
from tests.interop.test_import_run import folder

__all__ = ["folder"]

SMALL = [
    "--config.data.train=books",
    "--config.train.tokens=256",
    "--config.train.sequence_length=16",
    "--config.train.batch_tokens=128",
    "--config.train.microbatch_sequences=8",
    "--config.optimizer.warmup_tokens=64",
    "--config.eval.tokens=64",
    "--config.sample.prompts=()",
]


def said(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.slow
def test_a_folder_is_imported_into_a_store_trained_and_exported(store, url, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["import", str(folder), url]) == 0
    assert cli.main(["import", str(folder), str(tmp_path / "here")]) == 0
    assert cli.main(["export", url, "there-again"]) == 0
    assert cli.main(["export", "here", "here-again"]) == 0
    again = {file.name: file.read_bytes() for file in (tmp_path / "here-again").iterdir()}
    assert {file.name: file.read_bytes() for file in (tmp_path / "there-again").iterdir()} == again
    assert again.keys() >= {"vocab.json", "merges.txt", "model.safetensors"}

    names = epath.Path(url).names()
    assert ".unfinished" not in names and not [target for _, _, target in store.journal if "-tmp" in target]
    capsys.readouterr()
    assert cli.main(["import", str(folder), url]) == exit_codes.USAGE
    assert "not an empty folder" in said(capsys) and epath.Path(url).names() == names

    assert cli.main(["train", f"--config={url}/config.json", *SMALL]) == 0  # its tokenizer needs no package of fsspec's
    for path in ("gs:", "s3:"):
        assert not (tmp_path / path).exists()


@pytest.mark.slow
def test_what_a_killed_import_left_is_replaced(store, url, folder, tmp_path, capsys):
    code = (
        "import os, signal, sys; from scaling.runs import config_json; "
        "config_json.write_imported = lambda *_: os.kill(os.getpid(), signal.SIGKILL); "
        "from scaling import cli; cli.main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "import", str(folder), url]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == -signal.SIGKILL
    left = epath.Path(url).names()
    assert new_folder._UNFINISHED in left and len(left) > 10 and "config.json" not in left
    (epath.Path(url) / "huggingface/old").write_text("of the killed one")
    assert cli.main(["import", str(folder), url]) == 0
    assert {"config.json", "huggingface/config.json"} <= set(epath.Path(url).names())
    assert not {"huggingface/old", new_folder._UNFINISHED} & set(epath.Path(url).names())

    other = epath.Path(f"{url}-of-others")
    (other / "data.txt").write_text("mine")
    capsys.readouterr()
    assert cli.main(["import", str(folder), str(other)]) == exit_codes.USAGE
    assert "not an empty folder" in said(capsys) and other.names() == ["data.txt"]

    store.denied_writes = True
    assert cli.main(["import", str(folder), f"{url}-denied"]) == exit_codes.USAGE
    assert "does not permit" in said(capsys)


@pytest.mark.fast
def test_what_must_be_local_is_refused(url, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    for arguments in (
        ["export", "run", f"{url}/out"],
        ["export", "run", f"--output={url}/out"],
        ["logits", "run", "--ids=1", f"--output={url}/x.npy"],
        ["align", "sample", "run", "--prompts=p.jsonl", "--reward=length", f"--out={url}/x.jsonl"],
        ["import", f"{url}/hf", "run"],
    ):
        assert cli.main(arguments) == exit_codes.USAGE, arguments
        assert "on this machine" in said(capsys), arguments
    shutil.copy(folder / "config.json", tmp_path / "config.json")
    (epath.Path(url) / "hf/config.json").write_bytes((folder / "config.json").read_bytes())
    assert cli.main(["generate", f"{url}/hf", "--prompt=x", "--tokenizer=bytes"]) == exit_codes.USAGE
    assert "on this machine" in said(capsys)
    assert set(tmp_path.iterdir()) - before == {tmp_path / "config.json"}


@pytest.mark.fast
def test_files_of_a_run_are_read_from_a_store(url, tmp_path):
    run = epath.Path(url)
    (run / "chat.jinja").write_text("{{ messages }}")
    assert rewards.template_of(url, cfg.Chat()) == "{{ messages }}"
    with pytest.raises(ValueError, match=r"no run of .scaling align finetune"):
        classify.load(url)
    (run / "task.toml").write_text('about = "x"\ntexts = ["{a}"]\nlabel = "{b}"\n')
    with pytest.raises((ValueError, FileNotFoundError)) as found:
        classify.load(url)
    assert "align finetune" not in str(found.value)

    words = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}
    (run / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ValueError) as wrong:
        tokenizer.load(f"{url}/tokenizer.json")
    assert "pip install" not in str(wrong.value)
    with pytest.raises(FileNotFoundError):
        tokenizer.load(f"{url}/no.model")
