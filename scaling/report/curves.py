"""The curves of one run, from its metrics.jsonl and evals.jsonl alone: no accelerator, no model code."""

import io

from etils import epath

from scaling.runs.json_lines import is_sound, read_lines
from scaling.runs.paths import EVALS, LOSS_CURVE, METRICS, REWARD_CURVE


def plot(run_dir: epath.PathLike) -> epath.Path:
    """Draws training and validation loss against tokens to ``loss.png`` in the run directory.

    The loss of a run that learns from rewards says little, so of such a run rewards and divergence are drawn, to
    ``reward.png``.

    Returns:
        The path of the picture.

    Raises:
        ValueError: the run has no logged step yet.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from scaling.report.reward_figures import curves, reward_log
    from scaling.report.style import plain
    from scaling.runs.run_directory import RunDirectory

    run_dir = epath.Path(run_dir)
    if log := reward_log(run_dir.name, RunDirectory(run_dir, {})):
        curves(log).save(run_dir, ("png",))
        return run_dir / REWARD_CURVE
    steps = [record for record in read_lines(run_dir / METRICS) if is_sound(record)]
    evals = [record for record in read_lines(run_dir / EVALS) if is_sound(record)]  # tasks have no loss
    if not steps:
        raise ValueError(f"{run_dir} has no logged step (metrics.jsonl is missing or empty); is it a run directory?")
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.plot([r["tokens"] for r in steps], [r["loss"] for r in steps], color="#7aa6c2", lw=1, label="training")
    if evals:
        label = f"validation, {evals[-1]['loss']:.3f} at the end"
        axes.plot([r["tokens"] for r in evals], [r["loss"] for r in evals], "o-", color="#c23b22", ms=4, label=label)
    axes.set(xlabel="tokens", ylabel="loss (nats/token)", title=plain(run_dir.name))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path = run_dir / LOSS_CURVE
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150)
    plt.close(figure)
    path.write_bytes(picture.getvalue())
    return path
