"""``scaling align ppo`` of two processes, as on two hosts."""

import subprocess
import sys

import pytest

from tests.align.conftest import KNOBS
from tests.parallel.test_processes import ROOT, free_port
from tests.programs import environment

# What it says depends on who asks, as with a function that draws, or that asks a service.
REWARD = """
import jax
def count(records, answers):
    return [answer.count("e") / 4 + 100 * jax.process_index() for answer in answers]
"""


def learned(folder, name, processes):
    """The lines of a run of so many processes on two devices."""
    knobs = [
        f"--config={folder}/any.py",
        f"--config.workdir={folder}/{name}",
        f"--config.start={folder}/base",
        "--config.data.tokenizer=",
        f"--config.data.train={folder}/two.jsonl",
        f"--config.rl.reward={folder}/two.py:count",
        *KNOBS,
        "--config.rl.response_tokens=8",
        "--config.rl.minibatches=2",
        "--config.align.epochs=2",
        "--config.optimizer.peak_lr=0.003",
        f"--config.mesh.cpu_devices={2 // processes}",
        "--config.mesh.fsdp=2",
    ]
    if processes > 1:
        knobs.append(f"--config.distributed.coordinator_address=127.0.0.1:{free_port()}")
        knobs.append(f"--config.distributed.num_processes={processes}")
    started = []
    for index in range(processes):
        own = [f"--config.distributed.process_id={index}"] if processes > 1 else []
        command = [sys.executable, "-m", "scaling", "align", "ppo", *knobs, *own]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes))
    for process, (_, error) in [(process, process.communicate(timeout=900)) for process in started]:
        assert process.returncode == 0, error
    return folder.lines(name)


@pytest.mark.slow
def test_two_processes_are_one_run_and_what_the_first_one_is_told_counts(folder):
    folder.write("two.jsonl", [{"prompt": letters} for letters in ("abca", "dca", "bb", "cab", "dad", "ac") * 4])
    (folder / "two.py").write_text(REWARD)
    one, two = (learned(folder, name, processes) for name, processes in (("one", 1), ("two", 2)))
    assert len(one) == len(two) > 1 and two[0]["objective/kl"] == 0
    for ours, theirs in zip(one, two, strict=True):
        for name in ("loss", "loss/value_avg", "grad_norm", "objective/scores", "objective/kl"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), (theirs["step"], name)
