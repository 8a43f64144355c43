"""Memory and time of ``scaling import`` and ``scaling export`` for a model that is larger than the memory."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from scaling.config import schema as cfg
from scaling.interop import config_keys, huggingface, new_folder, shards, weights
from scaling.interop.import_run import import_folder
from scaling.model import decoder
from scaling.runs.stores import by_path

_CHILD = "import sys; from scaling.bench import convert; convert.child(*sys.argv[1:])"


def bench(gigabytes: float, width: int, folder: Path) -> Iterator[str]:
    """Imports a synthetic LLaMA in float32, exports it, and compares the files.

    Each conversion is a process of its own. What it holds at most is VmHWM of ``/proc/self/status``, less VmRSS after
    its imports. That counts pages that the process has mapped, and no cache of files that it reads or writes.

    Args:
        gigabytes: size of the folder, in 1e9 bytes; the disk must hold twice as much.
        width: of the model.
        folder: new or empty; emptied again at the end.

    Yields:
        Lines of text.

    Raises:
        FileExistsError: the folder holds something.
        OSError: a conversion failed, or there is no ``/proc``.
    """
    new_folder.check_new(folder)
    if not Path("/proc/self/status").exists():
        raise OSError("memory is read from /proc/self/status, which this system does not have")
    folder.mkdir(parents=True, exist_ok=True)
    source, run, back = (folder / name for name in ("source", "run", "back"))
    try:
        model = _model(gigabytes * 1e9, width)
        largest = max(np.prod(leaf.shape) * 4 for leaf in by_path(decoder.abstract(model)).values())
        _write_random(model, source)
        before = _digests(source)
        size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        shape = f"{model.num_layers} layers, largest stacked parameter {largest / 1e9:.2f} GB"
        yield f"convert: {size / 1e9:.2f} GB, {shape}"
        yield _measured("import", source, run)
        shutil.rmtree(source)
        yield _measured("export", run, back)
        same = _digests(back) == before
        yield f"convert: the exported files are {'the same, byte for byte' if same else 'NOT those of the source'}"
    finally:
        for path in (source, run, back):
            shutil.rmtree(path, ignore_errors=True)


def child(what: str, source: str, target: str) -> None:
    """One conversion; prints what it took as JSON: seconds, and bytes of memory before it and at its most."""
    before, start = _memory("VmRSS"), time.monotonic()
    if what == "import":
        import_folder(source, target, "bytes")
    else:
        huggingface.export(source, target)
    print(json.dumps([time.monotonic() - start, before, _memory("VmHWM")]))


def _measured(what: str, source: Path, target: Path) -> str:
    done = subprocess.run([sys.executable, "-c", _CHILD, what, source, target], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{what} failed: {done.stderr.strip().splitlines()[-1]}")
    seconds, before, most = json.loads(done.stdout.splitlines()[-1])
    return f"{what}: {seconds:.0f} s, at most {(most - before) / 1e9:.2f} GB of memory above {before / 1e9:.2f} GB"


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _model(size: float, width: int) -> cfg.Model:
    """LLaMA of about so many bytes in float32."""
    d_ff, vocabulary = 256 * -(-width // 96), 32_000
    layers = round((size / 4 - 2 * vocabulary * width) / (4 * width * width + 3 * width * d_ff))
    if layers < 1:
        raise ValueError(f"--width={width}: one layer is more than the {size / 1e9:g} GB of --gb")
    values = {
        "model_type": "llama", "vocab_size": vocabulary, "max_position_embeddings": 2048, "hidden_size": width,
        "num_hidden_layers": layers, "num_attention_heads": max(1, width // 128), "intermediate_size": d_ff,
    }  # fmt: skip
    return config_keys.to_model(values, "synthetic", 1)[0]


def _write_random(model: cfg.Model, folder: Path) -> None:
    """A folder whose tensors are all different, each of random numbers that are repeated."""
    values, family = config_keys.from_model(model)
    shapes = weights.shapes(model, family)
    random = np.random.default_rng(0)
    some = random.standard_normal(1 << 24, np.float32)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, shape in shapes.items():
            yield name, np.resize(np.roll(some, random.integers(len(some))), shape)

    folder.mkdir()
    (folder / huggingface.CONFIG).write_text(json.dumps(values))
    shards.write(folder, shapes, tensors(), "float32", huggingface.SHARD_GB * 1e9)


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of a folder's files of tensors, which lie in the same order if they were written by ``shards``."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
