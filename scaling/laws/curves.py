"""The loss curve of one run, from its metrics.jsonl alone: no accelerator, no model code."""

import io
import json
from typing import Any

from etils import epath


def read_lines(path: epath.Path) -> list[dict[str, Any]]:
    """Records of a .jsonl file; a torn last line (the run was killed while writing) is left out.

    Raises:
        ValueError: a line in the middle is not JSON.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise ValueError(f"{path}:{number} is not JSON; the file is damaged") from None
    return records


def plot(run_dir: epath.PathLike) -> epath.Path:
    """Draws training and validation loss against tokens to ``loss.png`` in the run directory.

    Raises:
        ValueError: the run has no logged step yet.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    run_dir = epath.Path(run_dir)
    steps = read_lines(run_dir / "metrics.jsonl")
    evals = read_lines(run_dir / "evals.jsonl")
    if not steps:
        raise ValueError(f"{run_dir} has no logged step (metrics.jsonl is missing or empty); is it a run directory?")
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.plot([r["tokens"] for r in steps], [r["loss"] for r in steps], color="#7aa6c2", lw=1, label="training")
    if evals:
        label = f"validation, {evals[-1]['loss']:.3f} at the end"
        axes.plot([r["tokens"] for r in evals], [r["loss"] for r in evals], "o-", color="#c23b22", ms=4, label=label)
    axes.set(xlabel="tokens", ylabel="loss (nats/token)", title=run_dir.name)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path = run_dir / "loss.png"
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150)
    plt.close(figure)
    path.write_bytes(picture.getvalue())
    return path
