"""Talks to the PyTorch peer, a process that works only while it is asked to."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scaling.bench.quiet import Timing, busy

PROGRAM = Path(__file__).with_name("torch_peer.py")


class Peer:
    """A PyTorch process on as many threads as the machine has cores.

    Args:
        python: an interpreter that has torch (for decoding transformers too); empty = this one.

    Raises:
        ValueError: there is no such interpreter, or it has no torch.
    """

    def __init__(self, python: str = ""):
        self._python = python or sys.executable
        self._count = os.cpu_count() or 1
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (a pipe that nobody reads would stop the peer)
        environment = os.environ | {"OMP_NUM_THREADS": str(self._count), "MKL_NUM_THREADS": str(self._count)}
        try:
            self._process = subprocess.Popen(
                [self._python, "-u", str(PROGRAM), str(self._count)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
                env=environment,
            )
        except OSError as error:
            raise ValueError(f"--peer={python} cannot be run ({error.strerror})") from None
        self.version = ""
        self.how = ""
        self.memory = 0

    def measure(self, what: str, **shape: Any) -> Timing:
        """One more repetition of some work; the first time it is warmed up before.

        Afterwards ``version`` and ``how`` say what did it, and ``memory`` the most bytes that it held on a GPU.

        Raises:
            ValueError: the peer cannot do it.
        """
        assert self._process.stdin and self._process.stdout
        before = busy()
        try:
            self._process.stdin.write(json.dumps({"what": what} | shape) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            self._said.seek(0)
            last = (self._said.read().strip().splitlines() or ["it ended without a message"])[-1]
            raise ValueError(f"the peer {self._python} ended: {last}; --peer=PYTHON must have torch and transformers")
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(f"the peer {self._python} cannot {what}: {answer['error']}")
        self.version, self.how, self.memory = answer["version"], answer["how"], answer["memory"]
        if shape.get("device", "cpu") != "cpu":
            return Timing(answer["seconds"], answer["cpu"], shared=False)
        taken = busy() - before - answer["cpu"]
        return Timing(answer["seconds"], answer["cpu"], max(0.0, taken) / (answer["seconds"] * self._count))

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._said.close()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
