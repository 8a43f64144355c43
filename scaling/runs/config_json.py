"""The ``config.json`` of a run directory: the resolved config, and data that is needed to understand the numbers."""

import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath

from scaling import __version__, durable, json_text
from scaling.catalog import flops
from scaling.config import schema as cfg
from scaling.config.refusal import refused
from scaling.runs.paths import CONFIG
from scaling.runs.tokenizer import KEY

UNIQUE = "unique_tokens"  # key of a run's config.json
VERB = "verb"

if TYPE_CHECKING:
    import jax

    from scaling.data.tokenizer import Tokenizer


def read_config_json(folder: epath.PathLike) -> dict[str, Any]:
    """The ``config.json`` of a run directory or a Hugging Face folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a JSON object.
    """
    path = epath.Path(folder) / CONFIG
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} has no config.json; it must be a run directory of `scaling train` or a Hugging Face folder"
        )
    values = json_text.parse(path.read_bytes(), str(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(values).__name__}")
    return values


def write(
    run_dir: epath.Path,
    config: cfg.Config,
    words: "Tokenizer",
    mesh: "jax.sharding.Mesh",
    mfu: Mapping[str, Any],
    unique: int | None,
    verb: str,
) -> None:
    """Writes ``config.json`` for a training that begins or resumes.

    Args:
        run_dir: the directory.
        config: resolved.
        words: tokenizer.
        mesh: the mesh of the training.
        mfu: the formula of MFU and its peak.
        unique: tokens of text that the whole training sees at least once; None = it does not read a stream of text.
        verb: that trains it.
    """
    import jax

    record = _record(config, words) | {
        "devices": {"kind": mesh.devices.flat[0].device_kind, "count": mesh.size, "processes": jax.process_count()},
        "mesh": dict(mesh.shape),
        "mfu": dict(mfu),
        VERB: verb,
    }
    if unique is not None:
        record[UNIQUE] = unique
    durable.replace_text(run_dir / CONFIG, json.dumps(record, indent=2))


def check_verb(run_dir: epath.Path, verb: str) -> None:
    """Refuses to go on with the run of another verb, which minimises something else.

    A folder without a ``config.json`` that says so is not refused, since older runs have none.

    Raises:
        ValueError: the run is another verb's.
    """
    try:
        other = read_config_json(run_dir).get(VERB, verb)
    except (FileNotFoundError, ValueError):
        return
    if other != verb:
        raise refused("workdir", str(run_dir), f"is a run of `scaling {other}`, and only that verb goes on with it")


def write_imported(run_dir: epath.Path, config: cfg.Config, words: "Tokenizer", source: str) -> None:
    """Writes it for a run whose weights come from a Hugging Face folder, ``source``; arguments as of ``write``."""
    record = _record(config, words) | {"imported": source}
    durable.replace_text(run_dir / CONFIG, json.dumps(record, indent=2))


def _record(config: cfg.Config, words: "Tokenizer") -> dict[str, Any]:
    import jax

    return {
        "config": cfg.to_dict(config),
        KEY: words.fingerprint,
        "versions": {
            "scaling": __version__,
            "git": git_commit(),
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
        "flops_per_token": flops.of_pretraining(config),
    }


def git_commit() -> str:
    """Commit of the checkout this package lies in, with a + if it has been edited; empty outside a checkout."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
