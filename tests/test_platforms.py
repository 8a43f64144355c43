"""Which platforms JAX is told to look for, and the sentence where one is not there."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scaling import exit_codes, platforms

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("installed", "devices", "before", "after"),
    [
        (["libtpu"], [], None, "cpu"),
        (["libtpu"], ["accel0"], None, None),
        (["libtpu"], ["vfio/0"], None, None),
        (["libtpu"], [], "tpu", "tpu"),
        (["libtpu"], ["nvidia0"], None, "cpu"),  # a GPU without JAX's part for it
        (["libtpu", "jax_cuda12_plugin"], ["nvidiactl"], None, "cuda,cpu"),
        (["libtpu", "jax_cuda12_plugin"], [], None, "cpu"),
        (["libtpu", "jax_rocm7_plugin"], ["kfd"], None, "rocm,cpu"),
        ([], [], None, None),
        (["jax_cuda12_plugin"], ["nvidia0"], None, None),
    ],
)
def test_a_tpu_is_not_looked_for_where_there_is_only_its_compiler(
    tmp_path, monkeypatch, installed, devices, before, after
):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed else None)
    for device in devices:
        (tmp_path / device).parent.mkdir(exist_ok=True)
        (tmp_path / device).touch()
    environment = {} if before is None else {"JAX_PLATFORMS": before}
    platforms.leave_out_tpu(environment, tmp_path)
    assert environment.get("JAX_PLATFORMS") == after


def test_no_verb_lets_libtpu_look_for_a_tpu(tmp_path):
    (tmp_path / "libtpu.py").touch()
    program = (
        "import os, sys; from scaling import cli; cli.main(['sizes', '--json']); sys.exit(os.environ['JAX_PLATFORMS'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    environment["PYTHONPATH"] = f"{ROOT}:{tmp_path}"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert done.stderr == ("" if platforms.has_tpu() else "cpu\n")


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["cuda", "nothing"])
@pytest.mark.parametrize("verb", [["train", "--config=experiments/cpu/smoke.py"], ["sweep", "--dry_run"]])
def test_a_platform_that_is_not_there_is_one_sentence(tmp_path, verb, asked):
    if verb[0] == "sweep":
        verb = [*verb, "--config=experiments/sweeps/cpu_ladder.py:demo"]
    elif Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU")
    command = [sys.executable, "-m", "scaling", *verb, f"--config.workdir={tmp_path / 'run'}"]
    environment = os.environ | {"JAX_PLATFORMS": asked}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == exit_codes.USAGE and done.stdout == ""
    assert f"JAX_PLATFORMS={asked}" in done.stderr and done.stderr.count("\n") == 1
