"""Two processes that find each other, as on two hosts: the same run as one process."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from scaling import exit_codes
from scaling.config import schema as cfg
from scaling.parallel import distributed
from scaling.train.placement import local_rows
from tests.programs import environment

ROOT = Path(__file__).resolve().parents[2]
COMMON = [
    "--config.mesh.fsdp=2",
    "--config.mesh.tensor=2",
    "--config.train.microbatch_sequences=8",
    "--config.log.tensorboard=False",
]
NO_SAMPLES = "--config.sample.prompts=()"


def until(tokens):
    """A part of the smoke run's 8,192 tokens: each collective of two processes takes milliseconds."""
    return (f"--config.train.tokens={tokens}", "--config.optimizer.decay_tokens=8192")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def launch(run_dir, processes, *overrides):
    address = f"127.0.0.1:{free_port()}"
    commands = []
    for index in range(processes):
        command = [sys.executable, "-m", "scaling", "train", f"--config={ROOT / 'experiments/cpu/smoke.py'}"]
        command += [f"--config.workdir={run_dir}", f"--config.mesh.cpu_devices={8 // processes}", *COMMON, *overrides]
        if processes > 1:
            command += [
                f"--config.distributed.coordinator_address={address}",
                f"--config.distributed.num_processes={processes}",
                f"--config.distributed.process_id={index}",
            ]
        commands.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    outputs = [p.communicate(timeout=300) for p in commands]
    for process, (_, error) in zip(commands, outputs, strict=True):
        assert process.returncode == 0, error
    return outputs


def losses(run_dir):
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_are_one_run_and_resume_as_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    launch(one, 1, *until(4096), NO_SAMPLES)
    outputs = launch(two, 2, *until(2048))
    assert ["validation loss" in out for out, _ in outputs] == [True, False]  # only the first process speaks
    half = len(losses(two))
    np.testing.assert_allclose(losses(two), losses(one)[:half], rtol=1e-5)
    (_, error), _ = launch(two, 2, *until(4096), NO_SAMPLES)
    assert "resuming" in error
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)
    newest = sorted((two / "checkpoints").iterdir())[-1]
    assert {p.name for p in newest.glob("checksums-*")} == {"checksums-00000.json", "checksums-00001.json"}
    first, second = (json.loads((newest / f"checksums-0000{i}.json").read_text()) for i in (0, 1))
    assert first and second and not set(first) & set(second)
    # and one process can take over what two have saved
    launch(two, 1, *until(5120), NO_SAMPLES)
    assert len(losses(two)) == len(losses(one)) + 2


@pytest.mark.slow
def test_a_sequence_may_lie_over_two_processes(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    short = [*until(2048), NO_SAMPLES]
    launch(one, 1, *short)
    launch(two, 2, *short, "--config.mesh.fsdp=1", "--config.mesh.tensor=1", "--config.mesh.context=8")
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)


@pytest.mark.slow
def test_two_processes_can_be_two_stages(tmp_path):
    """Each process holds the layers of one stage, and reads only the rows that its devices hold."""
    given = ("--config.model.num_layers=4", "--config.optimizer.peak_lr=1e-3", *until(2048), NO_SAMPLES)
    launch(tmp_path / "one", 1, *given)
    launch(tmp_path / "two", 2, "--config.mesh.stage=2", *given)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)


def test_the_coordinator_needs_its_numbers(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:1234")
    with pytest.raises(ValueError, match=r"10\.0\.0\.1:1234 .*num_processes"):
        distributed.initialize(cfg.Distributed())
    with pytest.raises(ValueError, match="num_processes=2, process_id=2"):
        distributed.initialize(cfg.Distributed(num_processes=2, process_id=2))
    with pytest.raises(ValueError, match="HOST:PORT"):
        distributed.initialize(cfg.Distributed(coordinator_address="10.0.0.1", num_processes=2, process_id=0))
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES='two'"):
        distributed.initialize(cfg.Distributed(process_id=0))


STEP = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "a[1-2]"}


@pytest.mark.parametrize(
    ("environment", "arguments"),
    [
        (
            {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "4", "JOB_COMPLETION_INDEX": "3"},
            ("host:1", 4, 3),
        ),
        ({"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}, ("host:1", 4, 2)),
        (STEP | {"SLURM_STEP_NUM_TASKS": "4"}, ()),
        (STEP | {"SLURM_STEP_NUM_TASKS": "4", "JAX_COORDINATOR_ADDRESS": "host:1"}, ("host:1", 4, 0)),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, None),  # a shell that salloc starts as a step
        (STEP, None),  # what else has a rank, but no step
        ({"SLURM_NTASKS": "4"}, None),  # a shell of salloc on the machine that it was called on
        ({"OMPI_COMM_WORLD_SIZE": "x"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, ()),
        ({"MEGASCALE_NUM_SLICES": "2"}, ()),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, ()),
        ({"SLURM_NTASKS": "1", "TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({}, None),
    ],
)
def test_launchers_are_recognised(monkeypatch, environment, arguments):
    """Which environments join processes, and with what; joining itself is tested above."""
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda **named: calls.append(named))
    for name in (
        "JAX_COORDINATOR_ADDRESS",
        "SLURM_NTASKS",
        "SLURM_STEP_NUM_TASKS",
        "TPU_WORKER_HOSTNAMES",
        "OMPI_COMM_WORLD_SIZE",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.initialize(cfg.Distributed(heartbeat_seconds=7, join_seconds=5))
    if arguments is None:
        assert calls == []
    else:
        [call] = calls
        assert (call.pop("heartbeat_timeout_seconds"), call.pop("initialization_timeout") > 5) == (7, True)
        assert call == dict(zip(("coordinator_address", "num_processes", "process_id"), arguments, strict=False))


WAITS = """
import sys
from scaling.config import schema as cfg
from scaling.parallel import distributed
distributed._TOLD_SECONDS, distributed._LOOK_SECONDS = 1.5, 0.2
distributed.initialize(cfg.Distributed(sys.argv[1], 3, int(sys.argv[2]), join_seconds=3))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "indices", "said"),
    [
        ("127.0.0.1", (0,), "the other 2 processes of this run, which .*127.0.0.1:{port} .*answers.*1 of 3 have come"),
        ("127.0.0.1", (0, 2), "which must reach this first one at 127.0.0.1:{port} .*answers.*2 of 3 have come"),
        ("127.0.0.1", (1,), "the first of the 3 processes .*127.0.0.1:{port} .*does not answer.*this is process 1"),
        ("nowhere.invalid", (1,), "nowhere.invalid:{port} .the name nowhere.invalid cannot be resolved.*process 1"),
        ("nowhere.invalid", (0,), "nowhere.invalid:{port} .the name nowhere.invalid cannot be resolved.*1 of 3 have"),
    ],
)
def test_who_waits_for_others_says_so_and_ends(host, indices, said):
    """With a second and a half in place of the ten after which it is said, in processes of their own: they end."""
    port = free_port()
    commands = [[sys.executable, "-c", WAITS, f"{host}:{port}", str(index)] for index in indices]
    given = dict(cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    processes = [subprocess.Popen(command, **given) for command in commands]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [exit_codes.HUNG] * len(indices)
    waiting, error = errors[0].splitlines()
    assert re.match("waiting for .*" + said.format(port=port), waiting)
    assert re.match(
        "scaling train: error: waited 3 s .*config.distributed.join_seconds.*" + said.format(port=port), error
    )


def test_virtual_devices_have_threads_to_wait_in_several_collectives(monkeypatch):
    """With one thread a device, two stages with dropout wait for ever (tests/model/test_pipeline.py, quick code)."""
    given = {}
    monkeypatch.setattr(jax.config, "update", given.__setitem__)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setenv("PJRT_NPROC", "")  # so that it is put back
    monkeypatch.delenv("PJRT_NPROC")
    distributed.virtual_cpu_devices(1)
    assert given == {"jax_num_cpu_devices": 1} and "PJRT_NPROC" not in os.environ
    distributed.virtual_cpu_devices(8)
    assert given == {"jax_num_cpu_devices": 8} and os.environ["PJRT_NPROC"] == "32"
    distributed.virtual_cpu_devices(16)
    assert os.environ["PJRT_NPROC"] == "32"  # the user's own stays


def test_rows_of_one_process_are_all_rows():
    from scaling.parallel.mesh import make_mesh
    from scaling.parallel.sharding import batch_sharding

    for mesh in (cfg.Mesh(), cfg.Mesh(tensor=8)):
        rows = local_rows(batch_sharding(make_mesh(mesh, jax.devices())), 16)
        np.testing.assert_array_equal(rows, np.arange(16))
