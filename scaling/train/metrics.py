"""Where numbers go: metrics.jsonl, evals.jsonl, TensorBoard, Weights & Biases, and the console."""

import contextlib
import importlib.util
import logging
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from etils import epath

from scaling import background
from scaling.config import schema as cfg
from scaling.object_store import is_remote
from scaling.output import clock
from scaling.runs.json_lines import JsonLines
from scaling.runs.paths import EVALS, METRICS
from scaling.train.run import Run

log = logging.getLogger(__name__)

_PUT_SECONDS = 60.0


class Log:
    """Where the numbers and messages of a run go: files, boards and the console of its first process.

    In the other processes, and before ``resume``, they go nowhere.
    """

    def __init__(self, run: Run):
        self._run = run
        self._writer: MetricWriter | None = None
        self._console: Console | None = None

    def resume(self, first_step: int) -> None:
        """Goes on after so many steps: what the files have of later ones is dropped."""
        self.close()
        if self._run.is_first:
            last = self._run.schedule.num_steps
            self._writer = MetricWriter(self._run.directory, self._run.config, first_step, finished=first_step == last)
            self._console = Console(last, first_step)

    def step(self, record: dict[str, Any]) -> None:
        """A line of ``metrics.jsonl``."""
        if self._writer:
            self._writer.train(record)

    def show(self, record: dict[str, Any], seconds_left: float | None) -> None:
        """The same line on the console; ``seconds_left`` None = not known yet."""
        if self._console:
            self._console.update(record, seconds_left)

    def evaluation(self, record: dict[str, Any]) -> None:
        """A validation, as a line of ``evals.jsonl``."""
        if self._writer:
            self._writer.evaluation(record)

    def task(self, record: dict[str, Any]) -> None:
        """The result of a task, as a line of ``evals.jsonl``."""
        if self._writer:
            self._writer.task(record)

    def note(self, text: str) -> None:
        """A line on the console."""
        if self._console:
            self._console.note(text)

    def close(self) -> None:
        for part in (self._writer, self._console):
            if part:
                part.close()
        self._writer = self._console = None


class MetricWriter:
    """Writes the records of training and evaluation to the run's files, and to what shows them beside."""

    def __init__(self, run_dir: epath.Path, config: cfg.Config, resume_step: int, finished: bool):
        """Opens the files; records after ``resume_step`` are dropped.

        A ``finished`` run is validated again, so its last validation is dropped; what tasks gave there stays, since
        `scaling evaluate` may have written it.
        """
        self._train = JsonLines(run_dir / METRICS, lambda record: record["step"] > resume_step)
        self._evals = JsonLines(
            run_dir / EVALS,
            lambda record: record["step"] > resume_step - (finished and "task" not in record),
        )
        self._boards: list[_Board] = []
        if config.log.tensorboard:
            self._boards.append(_Board("TensorBoard", lambda: _Tensorboard(run_dir, resume_step)))
        if config.log.wandb_project:
            if importlib.util.find_spec("wandb") is None:
                raise ValueError(
                    "config.log.wandb_project is set but wandb is not installed; pip install 'scaling[wandb]' or set "
                    "it to ''"
                )
            self._boards.append(_Board("Weights & Biases", lambda: _Wandb(run_dir, config)))

    def train(self, record: dict[str, Any]) -> None:
        """One logged step; ``record`` holds ``step`` and scalars."""
        self._train.write(record)
        self._scalars("train", record)

    def evaluation(self, record: dict[str, Any]) -> None:
        self._evals.write(record)
        self._evals.flush()  # by these lines a checkpoint may be chosen
        self._scalars("eval", record)

    def task(self, record: dict[str, Any]) -> None:
        """The result of a task, as a line of ``scaling.evaluate.scoring.records``, with its ``step``."""
        self._evals.write(record)
        name = f"{record['task']}/{record['shots']}_shots"
        self._scalars(
            "task", {"step": record["step"]} | {f"{name}/{k}": value for k, (value, _) in record["scores"].items()}
        )

    def _scalars(self, prefix: str, record: dict[str, Any]) -> None:
        values = {f"{prefix}/{k}": v for k, v in record.items() if k != "step" and isinstance(v, int | float)}
        for board in self._boards:
            board.log(values, record["step"])

    def close(self) -> None:
        self._train.close()
        self._evals.close()
        for board in self._boards:
            board.close()


class _Board:
    """Where numbers are shown beside the run's own files; what goes wrong there is a warning, and the run goes on."""

    def __init__(self, name: str, start: Callable[[], Any]):
        """Args: for the warning; makes what is written to, with ``log(values, step)`` and ``close()``."""
        self._name, self._target = name, None
        with self._guarded():
            self._target = start()

    def log(self, values: dict[str, float], step: int) -> None:
        if self._target is not None:
            target, self._target = self._target, None  # no more, should it fail
            with self._guarded():
                target.log(values, step)
                self._target = target

    def close(self) -> None:
        if self._target is not None:
            with self._guarded():
                self._target.close()

    def _guarded(self) -> contextlib.AbstractContextManager[None]:
        return optional(f"{self._name} failed and gets no more numbers")


@contextlib.contextmanager
def optional(failure: str, unless: Callable[[Exception], bool] = lambda error: False) -> Iterator[None]:
    """Makes an exception inside a warning, for what is wanted but no reason to end a run.

    Args:
        failure: the begin of the warning.
        unless: which exceptions are raised all the same.
    """
    try:
        yield
    except Exception as error:
        if unless(error):
            raise
        log.warning("%s (%s: %s)", failure, type(error).__name__, " ".join(str(error).split())[:300])


class _Tensorboard:
    """Its files; of a run in an object store they lie in a temporary folder and are put once a minute."""

    def __init__(self, run_dir: epath.Path, resume_step: int):
        from tensorboardX import SummaryWriter
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.summary import scalar

        self._summary, self._scalar = Summary, scalar
        self._run_dir, self._here = run_dir, None
        if is_remote(run_dir):
            self._here = tempfile.TemporaryDirectory(prefix="tensorboard-")
        self._writer = SummaryWriter(self._here.name if self._here else str(run_dir), purge_step=resume_step + 1)

    def log(self, values: dict[str, float], step: int) -> None:
        # Its thread ends where it cannot write, and then, some numbers later, whoever gives it more waits for ever.
        if not self._writer.file_writer.event_writer._worker.is_alive():
            raise OSError("its thread has ended")
        # One event for all: the thread that writes takes time of this one for each event.
        parts = [self._scalar(name, value) for name, value in values.items()]
        self._writer.file_writer.add_summary(self._summary(value=[part.value[0] for part in parts]), step)
        if self._here:
            background.later(f"{self._run_dir}/events", self._put, within=_PUT_SECONDS)

    def close(self) -> None:
        self._writer.close()
        if self._here:
            self._put()
            self._here.cleanup()

    def _put(self) -> None:
        assert self._here
        with contextlib.suppress(OSError):  # if the store is gone, the files of the run say so
            for path in Path(self._here.name).iterdir():
                (self._run_dir / path.name).write_bytes(path.read_bytes())


class _Wandb:
    def __init__(self, run_dir: epath.Path, config: cfg.Config):
        import wandb

        identity = run_dir / "wandb_id"  # a resumed run goes on in the same W&B run
        if not identity.exists():
            identity.write_text(uuid.uuid4().hex[:12])
        self._run = wandb.init(
            project=config.log.wandb_project,
            name=run_dir.name,
            id=identity.read_text(),
            resume="allow",
            config=cfg.to_dict(config),
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class Console:
    """A progress bar on a terminal, plain lines elsewhere; notes go between."""

    _PLAIN_SECONDS = 5.0

    def __init__(self, total_steps: int, first_step: int):
        self._total = total_steps
        self._last_line = -float("inf")
        self._bar: Any = None
        self._task: Any = None
        if sys.stderr.isatty():
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("{task.description}"),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=RichConsole(stderr=True),
                refresh_per_second=1,  # a refresh takes about a millisecond of the thread that dispatches steps
            )
            self._task = self._bar.add_task("compiling", total=total_steps, completed=first_step)
            self._bar.start()

    def update(self, record: dict[str, Any], seconds_left: float | None) -> None:
        """Shows a logged step; ``seconds_left`` None = not known yet."""
        text = (
            f"loss {record['loss']:.4f}  {record['tokens_per_second']:,.0f} tok/s  MFU {100 * record['mfu']:.1f} %  "
            f"lr {record['lr']:.2e}"
        )
        if self._bar:
            self._bar.update(self._task, completed=record["step"], description=text)
        elif time.monotonic() - self._last_line > self._PLAIN_SECONDS or record["step"] == self._total:
            self._last_line = time.monotonic()
            print(
                f"step {record['step']}/{self._total}  {text}  left {clock(seconds_left)}", file=sys.stderr, flush=True
            )

    def note(self, text: str) -> None:
        if self._bar:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
