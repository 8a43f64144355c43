"""Whole runs in object stores, against emulators: the same numbers as on disk, resumed, read, refused."""

import json
import signal
import time

import pytest
from etils import epath

from scaling import cli, exit_codes
from scaling.runs import store_lock
from tests.commands.test_train import LONG, PLAIN, SMOKE, start
from tests.faults.lab import curve, weights
from tests.parallel.test_processes import NO_SAMPLES, launch
from tests.stores.emulators import download

SHORT = [*PLAIN, "--config.checkpoint.every_steps=10", "--config.log.batch_hash=true"]


TASK = """
about = "capitals of letters"
metrics = ["accuracy"]
[[source]]
format = "jsonl"
test = "test.jsonl"
[source.fields]
letter = "letter"
options = "options"
gold = "gold"
[prompt]
context = "{letter} is"
[scoring]
kind = "choices"
choices = "options"
gold = "{gold}"
"""


def train(url, *overrides):
    return cli.main(["train", SMOKE, f"--config.workdir={url}", *SHORT, *overrides])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The same run on disk."""
    run = tmp_path_factory.mktemp("reference") / "run"
    assert train(run) == 0
    return run


def same(url, folder, reference):
    run = download(url, folder)
    assert [curve(run, file) for file in ("metrics.jsonl", "evals.jsonl")] == [
        curve(reference, file) for file in ("metrics.jsonl", "evals.jsonl")
    ]
    assert weights(run) == weights(reference)
    return run


@pytest.mark.slow
def test_a_run_is_that_on_disk_and_is_read_like_it(store, url, reference, tmp_path, capsys):
    assert train(url, "--config.log.tensorboard=true") == 0
    run = same(url, tmp_path / "run", reference)
    left = {path.name.partition(".out")[0] for path in run.iterdir()}
    assert left == {"attempts", "checkpoints", "config.json", "evals.jsonl", "events", "loss.png", "metrics.jsonl"}
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["000000010", "000000020"]
    capsys.readouterr()
    assert train(url) == 0 and "already finished" in capsys.readouterr().err

    asked = ["--prompt=The", "--tokens=8", "--temperature=0"]
    assert cli.main(["generate", url, *asked]) == 0
    there = capsys.readouterr().out
    assert cli.main(["generate", str(reference), *asked]) == 0
    assert capsys.readouterr().out == there and there.strip()

    (task := tmp_path / "letters.toml").write_text(TASK)
    (tmp_path / "test.jsonl").write_text('{"letter": "a", "options": ["A", "B"], "gold": "0"}\n' * 4)
    assert cli.main(["evaluate", url, f"--tasks={task}", f"--data={tmp_path}", "--shots=0", "--save_samples"]) == 0
    lines = [json.loads(line) for line in (epath.Path(url) / "evals.jsonl").read_text().splitlines()]
    assert lines[-1]["task"] == "letters" and [line for line in lines if "loss" in line]
    assert [path.name for path in (epath.Path(url) / "samples").iterdir()] == ["letters-0.jsonl"]

    capsys.readouterr()
    assert cli.main(["status", "--json", url]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["state"], row["step"], row["checkpoint"]) == ("finished", 20, 20)
    assert cli.main(["plot", url]) == 0


@pytest.mark.slow
def test_a_checkpoint_is_put_once(store, url):
    assert train(url, "--config.checkpoint.every_steps=20") == 0
    names = epath.Path(url).names()
    state = sum(len((epath.Path(url) / name).read_bytes()) for name in names if name.startswith("checkpoints/"))
    targets = [target for _, _, target in store.journal]
    assert not [target for target in targets if "orbax-checkpoint-tmp" in target]  # what would then be copied
    assert store.sent < 1.5 * state


@pytest.mark.slow
def test_two_processes_in_a_store_are_those_on_disk(store, url, tmp_path):
    launch(url, 2, NO_SAMPLES)
    launch(tmp_path / "two", 2, NO_SAMPLES)
    run = download(url, tmp_path / "run")
    assert curve(run) == curve(tmp_path / "two") and curve(run, "evals.jsonl") == curve(tmp_path / "two", "evals.jsonl")
    newest = sorted((run / "checkpoints").iterdir())[-1]
    assert {path.name for path in newest.glob("checksums-*")} == {"checksums-00000.json", "checksums-00001.json"}


@pytest.mark.slow
def test_what_cannot_work_is_a_sentence(store, url, capsys, monkeypatch):
    bad = f"{store.scheme}://no-such-bucket/run"
    assert train(bad) == exit_codes.USAGE
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and bad in said[0] and "no such bucket" in said[0]

    store.denied_writes = True
    assert train(url) == exit_codes.USAGE
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and url in said[0] and "does not permit" in said[0]
    store.denied_writes = False
    assert not epath.Path(url).exists()

    with store_lock.held(epath.Path(url) / ".lock", ""):
        monkeypatch.setattr(store_lock, "LEASE", 30.0)
        monkeypatch.setattr(store_lock, "_POLL", 0.1)
        token = epath.Path(url, ".lock").read_text()
        assert train(url) == exit_codes.USAGE
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and "another process is training" in said[0]
        assert (
            epath.Path(url).names() == [".lock"] and json.loads(token)["token"] in epath.Path(url, ".lock").read_text()
        )


@pytest.mark.slow
def test_credentials_that_expire_end_the_run(store, url, capsys):
    process = start(url, *SHORT, *LONG, "--config.train.tokens=4915200")
    while not (epath.Path(url) / "checkpoints/000000010/checksums-00000.json").is_file():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    store.status = 401
    said = process.communicate(timeout=120)[1]
    store.status = 0
    assert process.returncode not in (0, -signal.SIGKILL)
    errors = [line for line in said.splitlines() if line.startswith("scaling train: error: ")]
    assert len(errors) == 1 and "credentials" in errors[0]
    usual = ("step ", "tokenizing ", "I1", "I0", f"{url}: 38,784 parameters")
    assert [line for line in said.splitlines() if not line.startswith(usual)] == errors
    assert (epath.Path(url) / "checkpoints/000000010/checksums-00000.json").is_file()
