"""What is added to the numbers of a run's reward model, ``reward.json``. No JAX."""

from etils import epath

from scaling import json_text

FILE = "reward.json"  # of a run of a reward model


def read_bias(run_dir: epath.PathLike) -> float:
    """What is added to the rewards of a run; 0 if it has none yet.

    Raises:
        ValueError: the file is damaged.
    """
    path = epath.Path(run_dir) / FILE
    bias: float = json_text.parse(path.read_bytes(), str(path))["bias"] if path.exists() else 0.0
    return bias
