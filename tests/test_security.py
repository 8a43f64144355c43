"""What comes from elsewhere is data: it is not run, not trusted, and cannot reach beyond its place."""

import ast
import json
import os
import random
import shlex
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from launch import jobs
from scaling import cli, exit_codes
from scaling.config.files import load
from scaling.config.resolve import resolve
from scaling.config.schema import knobs
from scaling.data import shards, tokenizer
from scaling.runs.checkpoint import META, Checkpoints, DamagedCheckpoint, verify
from tests.programs import environment

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("scaling", "launch") for path in (ROOT / folder).rglob("*.py"))
NASTY = (
    "",
    " ",
    "'",
    '"',
    "\\",
    "\n",
    "\0",
    "$(touch owned)",
    "`touch owned`",
    "; touch owned #",
    "| touch owned",
    "../../owned",
    "/etc/passwd",
    "~root",
    "__import__('os').system('touch owned')",
    "%s%n",
    "{0.__class__}",
    "\u202e\U0001f600",
    "-1e999",
    "nan",
    "9" * 400,
    "(" * 3000,
)


def names_of(call):
    """``os.system`` of the call ``os.system(...)``."""
    return ast.unparse(call.func)


@pytest.mark.slow
def test_nothing_is_unpickled_evaluated_or_given_to_a_shell():
    forbidden = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "marshal.loads", "torch.load"}
    unsafe_yaml = {"yaml.load", "yaml.unsafe_load", "yaml.full_load"}
    found, calls = [], 0
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                found += [f"{where} imports {m}" for m in modules & {"pickle", "marshal", "shelve", "dill", "joblib"}]
            if not isinstance(node, ast.Call):
                continue
            calls += 1
            if names_of(node) in forbidden | unsafe_yaml:
                found.append(f"{where} calls {names_of(node)}")
            keywords = {k.arg: k.value for k in node.keywords}
            if isinstance(keywords.get("shell"), ast.Constant) and keywords["shell"].value:
                found.append(f"{where} uses a shell")
            if names_of(node) == "np.load" and getattr(keywords.get("allow_pickle"), "value", True):
                found.append(f"{where} may unpickle")
    assert calls > 5000 and not found, found


def nasty(rng):
    if rng.random() < 0.6:
        return rng.choice(NASTY)
    return "".join(rng.choice(string.printable) for _ in range(rng.randrange(1, 12)))


@pytest.mark.slow
def test_any_value_of_any_knob_is_taken_or_refused(tmp_path, monkeypatch):
    """By one sentence, and without side effects; a text that is taken is kept as it is, but for the home of ``~``."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    names = [name for name, _, _, _ in knobs(load(str(ROOT / "experiments/cpu/smoke.py")))]
    taken = refused = 0
    for name in names * 6:
        value = nasty(rng)
        try:
            config = resolve(load(str(ROOT / "experiments/cpu/smoke.py"), [f"--{name}={value}"]), 512, 1, "fuzz")
            taken += 1
        except (ValueError, OSError) as error:
            refused += 1
            assert str(error).strip()
            continue
        now = {n: v for n, v, _, _ in knobs(config)}[name]
        if isinstance(now, str) and value and name != "config.workdir":
            texts = {value, value.strip("'\"")}
            assert now in texts | {os.path.expanduser(text) for text in texts}, name  # noqa: PTH111
    assert taken > 50 and refused > 300
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", NASTY)
def test_a_mistake_is_one_line(value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    experiment = f"--config={ROOT / 'experiments/cpu/smoke.py'}"
    code = cli.main(["config", experiment, f"--config.model.num_layers={value}"])
    said = capsys.readouterr().err
    assert (
        code == exit_codes.USAGE and len(said.strip().splitlines()) == 1 and said.startswith("scaling config: error:")
    )


def test_names_of_runs_are_plain():
    rng = random.Random(1)
    for name in [*NASTY, *(nasty(rng) for _ in range(500))]:
        try:
            checked = jobs.check_name(name)
        except ValueError:
            continue
        assert shlex.quote(checked.replace("=", "_")) == checked.replace("=", "_") and "/" not in checked
        assert checked not in (".", "..") and not checked.startswith("-")
    for text in ("a" * 500, "ünï", *NASTY[:8]):
        label = jobs.label(f"x{text}")
        assert len(label) <= 63 and set(label) <= set(string.ascii_lowercase + string.digits + "-")


@pytest.mark.parametrize("target", ["tpu_vm", "gke"])
def test_values_and_secrets_stay_out_of_commands(target, tmp_path, monkeypatch, capsys):
    """A folder with blanks and quotes is one argument again when the shell there has read it; keys are nowhere."""
    monkeypatch.chdir(ROOT)
    secret = "s3cr3t-" + "x" * 20
    for variable in ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"):
        monkeypatch.setenv(variable, secret)
    bucket = "gs://bucket/a b'; touch owned; '$(touch owned)"
    evil = "z; touch owned #"
    there = [f"--zone={evil}"] if target == "tpu_vm" else ["--image=registry/scaling:1", f"--namespace={evil}"]
    arguments = [f"--target={target}", "--config=experiments/gpt3/125m.py:v5e:2x4", *there, "--topology=v5e:2x4"]
    data = "--config.data.train=gs://bucket/corpus"
    code = cli.main(["launch", *arguments, "--dry_run", data, f"--config.workdir={bucket}"])
    text = "".join(capsys.readouterr())
    assert secret not in text and code == exit_codes.OK, text
    commands = [line.strip() for line in text.splitlines() if line.strip().startswith(("gcloud", "kubectl"))]
    assert commands
    for line in commands:
        given = [word for word in shlex.split(line.removesuffix("<<'EOF'")) if "touch" in word]
        assert given == [f"--zone={evil}" if target == "tpu_vm" else f"--namespace={evil}"]
    assert not (ROOT / "owned").exists()


DAMAGED = [
    b"",
    b"\0" * 64,
    b"[" * 100_000,
    b"null",
    b"[]",
    b'{"processes": -1}',
    b'{"processes": 1e308}',
    b'{"processes": 1000000000000}',
    b'{"processes": "1"}',
    b'{"step": {"a": 1}, "processes": 1}',
    b"\xff\xfe\x00",
]


@pytest.mark.parametrize("content", DAMAGED)
def test_descriptions_of_checkpoints_are_not_trusted(content, tmp_path):
    step = epath.Path(tmp_path / "000000001")
    step.mkdir()
    (step / META).write_bytes(content)
    (step / "checksums-00000.json").write_text("{}")
    with pytest.raises(DamagedCheckpoint):
        verify(step)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "params/../../secret", "gs://bucket/file"])
def test_checksums_reach_no_file_outside(name, tmp_path):
    (tmp_path / "secret").write_text("not yours")
    step = epath.Path(tmp_path / "000000001")
    step.mkdir()
    (step / META).write_text('{"processes": 1, "step": 1}')
    (step / "checksums-00000.json").write_text(json.dumps({META: "0", name: "0"}))
    with pytest.raises(DamagedCheckpoint, match="outside"):
        verify(step)


def test_deleting_old_steps_reaches_nothing_outside(tmp_path):
    """A step that is a link, and names that are no steps, stay what they are."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "000000001").symlink_to(outside)
    (run / "checkpoints" / "notes").mkdir()
    checkpoints = Checkpoints(run)
    try:
        checkpoints.tidy(whole=2)
    except OSError:
        pass  # refusing is as good
    finally:
        checkpoints.close()
    assert (outside / "precious").read_text() == "mine" and (run / "checkpoints" / "notes").exists()


def test_records_are_not_trusted(tmp_path):
    """Whatever bytes are in a shard, reading it gives tokens of the vocabulary or one sentence."""
    rng = np.random.default_rng(0)
    writer = shards.ShardWriter(tmp_path, tokenizer.ByteTokenizer())
    for _ in range(30):
        writer.append(rng.integers(0, 256, 1000))
    writer.close()
    shard = next(iter(tmp_path.glob("*.array_record")))
    whole = shard.read_bytes()
    filled = len(whole.rstrip(b"\0"))  # what lies behind is padding
    read = refused = 0
    for _ in range(150):
        content = bytearray(whole)
        if rng.random() < 0.2:
            content = content[: rng.integers(0, len(content))]
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(0, max(1, min(filled, len(content)))))
            content[place : place + 16] = rng.integers(0, 256, len(content[place : place + 16]), np.uint8).tobytes()
        shard.write_bytes(content)
        try:
            dataset = shards.TokenDataset(tmp_path, 512, whole=False)
            sequences = [dataset[i] for i in range(len(dataset))]
            read += 1
        except ValueError as error:
            assert shard.name in str(error) and "\n" not in str(error)
            refused += 1
            continue
        assert all(one.min() >= 0 and one.max() < dataset.info.vocab_size for one in sequences)
    assert refused > 100, (read, refused)


@pytest.mark.slow
def test_a_run_directory_holds_no_secrets(tmp_path):
    secret = "s3cr3t-" + "y" * 20
    keys = dict.fromkeys(("WANDB_API_KEY", "HF_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS"), secret)
    command = [sys.executable, "-m", "scaling", "train", "--config=experiments/cpu/smoke.py"]
    small = ["--config.train.tokens=8192", "--config.optimizer.warmup_tokens=0", f"--config.workdir={tmp_path / 'run'}"]
    done = subprocess.run([*command, *small], cwd=ROOT, env=environment() | keys, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert secret not in done.stdout + done.stderr
    held = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(held) > 8
    assert not [path for path in held if secret.encode() in path.read_bytes()]
