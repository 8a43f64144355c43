"""Whole runs through the command line: resuming, refusing, stopping, failing."""

import fcntl
import json
import math
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from scaling import cli, exit_codes
from scaling.data.tokenizer import ByteTokenizer
from scaling.laws.runs import read_runs
from tests.programs import environment

ROOT = Path(__file__).resolve().parents[2]
SMOKE = f"--config={ROOT / 'experiments/cpu/smoke.py'}"
# The smoke run without what does not matter here: 20 steps.
PLAIN = ["--config.sample.prompts=()", "--config.log.tensorboard=false"]
# Long enough to be stopped in the middle: 100 steps.
LONG = ["--config.train.tokens=49152", "--config.checkpoint.every_steps=10", "--config.eval.every_steps=25"]
SAME = ("step", "tokens", "loss", "lr", "grad_norm")


def train(run_dir, *overrides):
    return cli.main(["train", SMOKE, f"--config.workdir={run_dir}", *PLAIN, *overrides])


@pytest.mark.parametrize(
    ("knob", "words"), [("optimizer.name=adamx", "adamx"), ("compute.decode_int8=cache", "'none' for `scaling train`")]
)
def test_what_cannot_be_is_refused_before_text_is_tokenized(knob, words, tmp_path, capsys):
    folders = f"--config.data.cache_dir={tmp_path / 'cache'}"
    assert train(tmp_path / "run", folders, f"--config.{knob}") == exit_codes.USAGE
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def start(run_dir, *overrides, **variables):
    command = [sys.executable, "-m", "scaling", "train", SMOKE, f"--config.workdir={run_dir}", *PLAIN, *overrides]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment() | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def curve(run_dir, file="metrics.jsonl"):
    lines = (Path(run_dir) / file).read_text().splitlines()
    return [{k: r[k] for k in SAME if k in r} for r in map(json.loads, lines)]


def weights(run_dir):
    """Every parameter at the last checkpoint, as bytes by name."""
    import jax

    from scaling.runs.model import load_run

    _, params = load_run(run_dir)

    return {jax.tree_util.keystr(k): np.asarray(v).tobytes() for k, v in jax.tree.leaves_with_path(params)}


def contents(directory):
    return {p: p.read_bytes() for p in sorted(Path(directory).rglob("*")) if p.is_file()}


def wait_for_step(run_dir, step, process, seconds=120):
    path, deadline = Path(run_dir) / "metrics.jsonl", time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= step:
            return
        time.sleep(0.002)
    raise AssertionError(f"step {step} not reached: {process.communicate()[1]}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run of a subprocess on one device."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    process = start(run_dir)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "validation loss" in out and (run_dir / "loss.png").read_bytes().startswith(b"\x89PNG")
    return run_dir


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """The same, 100 steps."""
    run_dir = tmp_path_factory.mktemp("long") / "run"
    process = start(run_dir, *LONG)
    _, err = process.communicate()
    assert process.returncode == 0 and len(curve(run_dir)) == 100, err
    return run_dir


def test_a_run_directory_holds_what_the_docs_say(finished):
    record = json.loads((finished / "config.json").read_text())
    assert record["config"]["model"]["d_ff"] == 128 and record["config"]["model"]["vocab_size"] == 257
    assert record["tokenizer_fingerprint"] == ByteTokenizer().fingerprint
    assert "MFU =" in record["mfu"]["formula"] and record["mfu"]["peak_flops"] > 1e9
    assert "measured" in record["mfu"]["peak_source"] and record["versions"]["jax"]
    steps = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in steps] == list(range(1, 21))
    assert steps[-1]["flops"] == pytest.approx(steps[-1]["tokens"] * record["flops_per_token"])
    assert all(r["mfu"] > 0 and r["tokens_per_second"] > 0 for r in steps)
    evals = [json.loads(line) for line in (finished / "evals.jsonl").read_text().splitlines()]
    assert [r["step"] for r in evals] == [8, 16, 20] and evals[-1]["loss"] < evals[0]["loss"] < math.log(257)


@pytest.mark.slow
def test_killed_at_random_steps_and_resumed_is_bit_identical(long_run, tmp_path):
    run_dir, dice = tmp_path / "run", random.Random(7)
    for step in sorted(dice.sample(range(5, 85), 3)):
        process = start(run_dir, *LONG)
        wait_for_step(run_dir, step, process)
        process.kill()
        process.communicate()
    process = start(run_dir, *LONG)
    _, err = process.communicate()
    assert process.returncode == 0 and "resuming" in err, err
    assert curve(run_dir) == curve(long_run)
    assert curve(run_dir, "evals.jsonl") == curve(long_run, "evals.jsonl")
    assert weights(run_dir) == weights(long_run)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_signals_save_at_the_current_step_and_exit_with_their_code(long_run, tmp_path, number, code):
    run_dir = tmp_path / "run"
    process = start(run_dir, *LONG, "--config.checkpoint.every_steps=0")
    wait_for_step(run_dir, 3, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    saved = [int(p.name) for p in (run_dir / "checkpoints").iterdir()]
    assert len(saved) == 1 and 3 <= saved[0] < 100 and f"step {saved[0]}" in err
    assert [r["step"] for r in curve(run_dir)] == list(range(1, saved[0] + 1))
    if number != signal.SIGTERM:  # what is saved does not depend on the signal
        return
    process = start(run_dir, *LONG, "--config.checkpoint.every_steps=0")
    _, err = process.communicate()
    assert process.returncode == 0 and f"from step {saved[0]}" in err
    assert curve(run_dir) == curve(long_run) and weights(run_dir) == weights(long_run)


@pytest.mark.slow
def test_a_reader_that_goes_does_not_end_a_run(tmp_path):
    """`scaling train ... 2>&1 | head -1`, ssh that is cut, tee that is killed."""
    run_dir = tmp_path / "run"
    process = start(run_dir)
    wait_for_step(run_dir, 1, process)
    process.stdout.close()
    process.stderr.close()
    assert process.wait(60) == exit_codes.OK
    assert len(curve(run_dir)) == 20 and (run_dir / "loss.png").exists()


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(tmp_path, capfd):
    run_dir = tmp_path / "run"
    assert train(run_dir) == 0
    before = contents(run_dir / "checkpoints"), curve(run_dir), curve(run_dir, "evals.jsonl")
    assert train(run_dir) == 0
    assert (contents(run_dir / "checkpoints"), curve(run_dir), curve(run_dir, "evals.jsonl")) == before
    assert "already finished" in capfd.readouterr().err


@pytest.mark.slow
def test_resumes_on_another_mesh_and_microbatch(finished, tmp_path):
    run_dir = tmp_path / "run"
    assert train(run_dir, "--config.mesh.fsdp=4", "--config.train.tokens=4096") == 0
    changed = ["--config.mesh.fsdp=2", "--config.mesh.tensor=2", "--config.train.tokens=8192"]
    assert train(run_dir, *changed) == 0
    # The learning rate depends on the length of the run, so the first part differs from the reference.
    assert [r["tokens"] for r in curve(run_dir)] == [r["tokens"] for r in curve(finished)]
    whole = tmp_path / "whole"
    assert train(whole, "--config.optimizer.schedule=constant") == 0
    parts = tmp_path / "parts"
    assert train(parts, "--config.optimizer.schedule=constant", "--config.train.tokens=4096") == 0
    assert train(parts, "--config.optimizer.schedule=constant", "--config.mesh.tensor=2") == 0
    np.testing.assert_allclose([r["loss"] for r in curve(parts)], [r["loss"] for r in curve(whole)], rtol=1e-5)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--config.model.d_model=64", "config.model.d_model .*32 .*64"),
        ("--config.train.tokens=4096", "step 20.* config.train.tokens=4096 .*step 12"),
        ("--config.seed=3", "config.seed .*0 .*3"),
        ("--config.train.batch_tokens=1024", "batches .*consumed"),
        ("--config.data.tokenizer=books", "config.model.vocab_size .*257 .*4096"),
    ],
)
def test_a_run_directory_of_another_run_is_refused(finished, capfd, override, words):
    before = contents(finished)
    assert train(finished, override) == exit_codes.USAGE
    message = capfd.readouterr().err
    assert re.search(words, message.splitlines()[-1]) and "Traceback" not in message
    assert contents(finished) == before


def test_other_data_is_refused(finished, tmp_path, capfd):
    (tmp_path / "text.txt").write_text("some other words " * 2000)
    before = contents(finished)
    assert train(finished, f"--config.data.train={tmp_path}/*.txt") == exit_codes.USAGE
    assert "other data" in capfd.readouterr().err and contents(finished) == before


@pytest.mark.slow
def test_a_relative_run_directory_in_the_default_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", SMOKE, *PLAIN]) == 0
    assert sorted(p.name for p in (tmp_path / "runs/smoke/checkpoints").iterdir()) == [
        "000000008",
        "000000016",
        "000000020",
    ]
    record = json.loads((tmp_path / "runs/smoke/config.json").read_text())
    assert record["config"]["workdir"] == "runs/smoke"


@pytest.mark.slow
def test_a_kill_inside_the_first_save_is_a_fresh_start(finished, tmp_path, capfd):
    run_dir = tmp_path / "run"
    assert train(run_dir, "--config.train.tokens=2048", "--config.optimizer.decay_tokens=8192") == 0
    (run_dir / "checkpoints/000000008/checksums-00000.json").unlink()
    (run_dir / "checkpoints/000000099.orbax-checkpoint-tmp").mkdir()
    assert train(run_dir) == 0
    assert "checksums-00000.json is missing" in capfd.readouterr().err
    assert [r["step"] for r in curve(run_dir)] == list(range(1, 21))
    left = {p.name for p in (run_dir / "checkpoints").iterdir()}
    assert left == {"000000008", "000000016", "000000020"}


@pytest.mark.slow
def test_a_copied_or_moved_run_goes_on_where_its_config_is(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "copy")
    before = contents(finished)
    longer = ["--config.train.tokens=9216", "--config.optimizer.decay_tokens=8192", "--config.mesh.data=-1"]
    assert cli.main(["train", "--config=copy/config.json", *longer]) == 0
    assert contents(finished) == before and len(curve("copy")) == 22
    assert json.loads(Path("copy/config.json").read_text())["config"]["workdir"] == "copy"
    Path("copy").rename("moved")
    assert cli.main(["train", f"--config={tmp_path}/moved/config.json"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved"] and len(curve("moved")) == 22


@pytest.mark.slow
def test_what_only_shows_the_run_is_a_warning(tmp_path, capfd, monkeypatch):
    def fails(*arguments, **named):
        raise ValueError("not today")

    class Writer:
        event_writer = SimpleNamespace(_worker=threading.main_thread())
        added = 0

        def __init__(self, *arguments, **named):
            self.file_writer = self

        def add_summary(self, summary, step):
            Writer.added += len(summary.value)
            assert step < 4, "no more room"

        close = fails

    monkeypatch.setattr("scaling.commands.training.plot", fails)
    monkeypatch.setattr("scaling.commands.training.continue_texts", fails)
    monkeypatch.setattr("tensorboardX.SummaryWriter", Writer)
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))  # whose init is missing
    sys.modules["wandb"].__spec__ = ModuleSpec("wandb", None)
    shown = ["--config.log.tensorboard=true", "--config.log.wandb_project=p", "--config.sample.prompts=x"]
    assert train(tmp_path / "run", *shown) == 0
    said = capfd.readouterr().err
    for words in ("TensorBoard failed", "no more room", "Weights & Biases failed", "no samples", "no loss curve"):
        assert said.count(words) == 1, said
    assert len(curve(tmp_path / "run")) == 20 and Writer.added > 3


def test_one_directory_one_training(tmp_path, capfd):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with (run_dir / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert train(run_dir) == exit_codes.USAGE
    assert re.search(f"another process.*{re.escape(str(run_dir))}", capfd.readouterr().err)
    assert [p.name for p in run_dir.iterdir()] == [".lock"]


@pytest.mark.slow
def test_reading_verbs_take_relative_paths(finished, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(finished.parent)
    np.save(tmp_path / "ids.npy", np.arange(8)[None])
    assert cli.main(["logits", "run", f"--ids={tmp_path}/ids.npy", f"--output={tmp_path}/logits.npy"]) == 0
    assert np.load(tmp_path / "logits.npy").shape == (1, 8, 257)
    assert cli.main(["plot", "run"]) == 0


@pytest.mark.slow
def test_divergence_stops_with_its_own_code_and_saves_nothing_after(tmp_path, capfd):
    code = train(tmp_path / "run", "--config.optimizer.peak_lr=1e30", "--config.optimizer.clip_norm=0")
    assert code == exit_codes.DIVERGED
    error = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert len(error) == 1 and "nan" in error[0] and "at step" in error[0] and "peak_lr" in error[0]
    with pytest.raises(ValueError, match=r"run: diverged.* step \d+"):
        read_runs([tmp_path / "run"])


@pytest.mark.slow
def test_weights_gone_bad_never_become_a_checkpoint(tmp_path):
    """Here the loss of a step is still finite, and its gradient is not."""
    overrides = [
        "--config.optimizer.peak_lr=1e6",
        "--config.optimizer.clip_norm=0",
        "--config.checkpoint.every_steps=1",
    ]
    assert train(tmp_path / "run", *overrides) == exit_codes.DIVERGED
    finite = [np.isfinite(r["loss"]) and np.isfinite(r["grad_norm"]) for r in curve(tmp_path / "run")]
    assert all(finite[:-1]) and not finite[-1]
    for values in weights(tmp_path / "run").values():
        assert np.isfinite(np.frombuffer(values, np.float32)).all()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, capfd):
    run_dir = tmp_path / "run"
    assert train(run_dir) == 0
    want = curve(run_dir)
    victim = max((run_dir / "checkpoints/000000020").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    data = bytearray(victim.read_bytes())
    data[100] ^= 16
    victim.write_bytes(bytes(data))
    assert train(run_dir) == 0
    error = capfd.readouterr().err
    assert f"{victim} has changed" in error and "from step 16" in error
    assert curve(run_dir) == want
    for name in ("000000008", "000000016", "000000020"):
        (run_dir / "checkpoints" / name / "meta.json").write_text("")
    before = contents(run_dir)
    assert train(run_dir) == exit_codes.USAGE
    assert "[8, 16, 20]" in capfd.readouterr().err
    assert contents(run_dir) == before


@pytest.mark.parametrize("parent", ["file", "readonly", "link"])
def test_a_run_directory_that_cannot_be_written(tmp_path, capfd, parent):
    if parent == "file":
        (tmp_path / "file").write_text("")
        where = tmp_path / "file" / "run"
    elif parent == "link":
        where = tmp_path / "run"
        where.symlink_to("nowhere")
    else:
        where = Path("/proc/run")
    assert train(where) in (exit_codes.USAGE, exit_codes.IO)
    message = capfd.readouterr().err.strip()
    assert f"the run directory {where} cannot be written" in message and "\n" not in message


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    """A file size limit stands in for the full disk: writes beyond it fail as they would there."""
    run_dir = tmp_path / "run"
    process = start(run_dir, "--config.train.tokens=4096")
    assert process.wait() == 0, process.communicate()[1]
    before = contents(run_dir / "checkpoints")
    limited = f"ulimit -f 64; exec {sys.executable} -m scaling train {SMOKE} --config.workdir={run_dir}"
    done = subprocess.run(
        ["bash", "-c", f"{limited} --config.sample.prompts='()'"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == exit_codes.IO, (done.returncode, done.stderr)
    error = [line for line in done.stderr.splitlines() if line.startswith("scaling train: error")]
    assert len(error) == 1, done.stderr
    for words in ("could not be written", "File too large", "the last good one is step"):
        assert words in error[0]
    kept = contents(run_dir / "checkpoints")
    assert all(kept.get(path) == data for path, data in before.items())
    process = start(run_dir)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert [r["step"] for r in curve(run_dir)] == list(range(1, 21))
