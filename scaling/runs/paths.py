"""Names of the files in a run directory, and checks of the directory itself. Imports no JAX."""

from pathlib import Path

from etils import epath

from scaling import durable, object_store
from scaling.paths import is_url, must_be_utf8

CONFIG = "config.json"  # as it was run, with what is needed to understand the numbers beside it
PLAN = "plan.json"  # as a sweep or a launcher planned it
METRICS = "metrics.jsonl"  # a line a logged step
EVALS = "evals.jsonl"  # a line a validation, a line a result of a task
LOG = "train.log"  # output of a training that a sweep or a launcher started
CHECKPOINTS = "checkpoints"
TEMPLATE = "chat.jinja"  # the chat template of a training with config.chat.template
SAMPLES = "samples"  # prompts and answers of an evaluation
LOSS_CURVE = "loss.png"
REWARD_CURVE = "reward.png"  # of a run that learns from rewards, in the place of the loss curve


def is_run(path: epath.Path | Path) -> bool:
    """Whether a folder is a run directory, also one of a run that has only been planned."""
    return (path / CONFIG).exists() or (path / PLAN).exists()


def absolute(path: epath.PathLike) -> epath.Path:
    """The absolute path, which Orbax needs; remote paths (``gs://...``) are absolute already.

    Raises:
        ValueError: not UTF-8, which may lie in the working directory, or a URL without its slashes.
    """
    if str(path).startswith(("gs:", "s3:")) and not is_url(path):
        raise ValueError(f"{path} needs two slashes after the colon, as in gs://BUCKET/FOLDER")
    path = epath.Path(path if is_url(path) else Path(path).absolute())
    must_be_utf8("the run directory", str(path))
    return path


def writable(path: str, process: int) -> epath.Path:
    """Creates the run directory if necessary, and tests that it can be written.

    Args:
        path: of the directory.
        process: number of this one among those of the run, which try at the same time.

    Raises:
        OSError: it cannot.
    """
    run_dir = absolute(path)
    try:
        durable.try_to_write(run_dir, process)
    except OSError as error:
        raise type(error)(
            f"the run directory {run_dir} cannot be written ({error.strerror or error}); "
            "choose another with --config.workdir"
        ) from error
    return run_dir


def length_and_time(path: epath.Path) -> tuple[int, int]:
    """Size of a file and time of its last change; of a remote one a number that changes with it, and 0.

    (``Path.stat`` of epath also looks up the owner, which fails for unknown users.)
    """
    if object_store.is_remote(path):
        return object_store.version(path), 0
    local = Path(path).stat()
    return local.st_size, int(local.st_mtime)
