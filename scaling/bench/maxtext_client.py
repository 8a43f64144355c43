"""Talks to the MaxText peer: one process for each program that it compiles.

Not called ``maxtext``: the peer runs as a script in this folder, and would import this module instead of MaxText.
"""

import functools
import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from scaling.plan import topology

PROGRAM = Path(__file__).with_name("maxtext_peer.py")


def topology_knobs(name: str) -> dict[str, Any]:
    """What makes MaxText compile for a topology, with nothing else to do."""
    return {
        "run_name": "peer",
        "enable_checkpointing": False,
        "dataset_type": "synthetic",
        "log_config": False,
        "jax_cache_dir": "",
        "internal_compile": True,  # the topology by libtpu's own name
        "compile_topology": topology.library_name(name),
        "compile_topology_num_slices": 1,
        "internal_compile_num_devices": topology.count(name, 1),
        "attention": "flash",
    }


def compile_step(python: str, library: str, knobs: list[str], text: Path) -> dict[str, Any]:
    """Has MaxText compile its train step.

    Args:
        python: an interpreter that has MaxText.
        library: path of the libtpu.so that compiles.
        knobs: ``name=value``, MaxText's.
        text: where the optimized program is to be written.

    Returns:
        ``seconds``, ``bytes`` a device and ``version``; or ``error``.

    Raises:
        ValueError: there is no such interpreter, or it has no MaxText.
    """
    environment = {"JAX_PLATFORMS": "cpu", "TPU_LIBRARY_PATH": library, **topology.ENVIRONMENT}
    done = _run([python, str(PROGRAM), json.dumps({"knobs": knobs, "text": str(text)})], environment)
    if not done.stdout.strip():
        raise _ended(python, done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


@functools.cache
def versions(python: str) -> str:
    """Of MaxText and JAX in an interpreter.

    Raises:
        ValueError: there is no such interpreter, or it has no MaxText.
    """
    program = (
        "import importlib.metadata as m; print(*(f'{name} {m.version(name)}' for name in ('maxtext', 'jax', 'jaxlib')))"
    )
    done = _run([python, "-c", program], {})
    return done.stdout.strip()


def _run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The output of a command whose first word is the peer's interpreter."""
    try:
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    except OSError as error:
        raise ValueError(f"--peer={command[0]} cannot be run ({error.strerror})") from None
    if done.returncode:
        raise _ended(command[0], done.stderr)
    return done


def _ended(python: str, stderr: str) -> ValueError:
    last = (stderr.strip().splitlines() or ["it ended without a message"])[-1]
    return ValueError(f"the peer {python} ended: {last[:300]}; --peer=PYTHON must have maxtext[tpu]")


@functools.cache
def identity(library: str) -> str:
    """A hash of the library's bytes, which alone say which compiler it is."""
    try:
        with Path(library).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"TPU_LIBRARY_PATH={library} cannot be read ({error.strerror})") from None


def library() -> str:
    """The libtpu that both compile with: what ``TPU_LIBRARY_PATH`` names, else ours."""
    if named := os.environ.get("TPU_LIBRARY_PATH"):
        return named
    try:
        import libtpu
    except ImportError:
        raise ValueError("the TPU compiler is not installed; pip install 'scaling[plan]'") from None
    path: str = libtpu.get_library_path()
    return path


def version(library: str) -> str:
    """As its package says it, which lies beside it."""
    found = sorted(Path(library).resolve().parent.parent.glob("libtpu-*.dist-info"))
    return found[-1].name.removeprefix("libtpu-").removesuffix(".dist-info") if found else library
