"""The verb ``train``: from a config to a finished run directory, resuming whatever is there."""

import contextlib
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

import scaling
from scaling import config as cfg
from scaling import exit_codes, flops
from scaling.data import loader, tokenizer
from scaling.parallel import distributed
from scaling.parallel.host_memory import keep_freed_memory
from scaling.parallel.mesh import make_mesh
from scaling.parallel.sharding import batch_sharding
from scaling.resolve import resolve
from scaling.train import state as train_state
from scaling.train import throughput
from scaling.train.checkpoint import Checkpoints
from scaling.train.lineage import refuse_other_run
from scaling.train.loop import Diverged, Loop
from scaling.train.metrics import Console, MetricWriter
from scaling.train.placement import local_rows, place, prefetched
from scaling.train.schedule import BatchSchedule
from scaling.train.signals import stop_request
from scaling.train.step import make_eval_step, make_train_step

log = logging.getLogger(__name__)


def train(config: cfg.Config, name: str = "default") -> int:
    """Trains what the config says in its run directory, from the newest whole checkpoint if there is one.

    Args:
        config: not necessarily resolved.
        name: of the experiment; the run directory is ``runs/<name>`` unless ``config.workdir`` says otherwise.

    Returns:
        An exit code of ``scaling.exit_codes``.

    Raises:
        ValueError: an impossible config, unusable data, a run directory of another model.
        OSError: the run directory cannot be written.
    """
    keep_freed_memory()
    distributed.initialize(config.distributed, config.mesh.cpu_devices)
    first = jax.process_index() == 0
    _configure_logging(first)
    _enable_compilation_cache()
    words = tokenizer.load(config.data.tokenizer)
    config = resolve(config, vocab_size=words.vocab_size, device_count=jax.device_count(), name=name)
    data = loader.training_set(config.data, words, config.train.sequence_length, config.seed)
    held_out = loader.validation_set(config.data, words, config.train.sequence_length)
    run_dir = open_run_directory(config.workdir)
    mesh = make_mesh(config.mesh)
    schedule = BatchSchedule.from_config(config.train)
    peak = throughput.peak(list(mesh.devices.flat))
    meta = {"config": cfg.to_dict(config), "data": data.fingerprint}

    checkpoints = Checkpoints(run_dir, config.checkpoint)
    saved = checkpoints.newest_whole()
    checkpoints.remove_partial()
    if saved:
        first_step, old = saved
        refuse_other_run(checkpoints.directory, old, config, data.fingerprint)
        state = checkpoints.read_state(first_step, train_state.abstract_state(config, mesh))
        if first_step == schedule.num_steps:
            log.info("%s is already finished; another run needs another config.workdir", run_dir)
        else:
            log.info("resuming %s from step %d", run_dir, first_step)
    else:
        state, first_step = train_state.create_state(config, mesh), 0

    sharding = batch_sharding(mesh)
    rows = local_rows(sharding, config.train.microbatch_sequences)
    batches = loader.batches(
        data,
        schedule.span,
        rows,
        config.train.microbatch_sequences,
        schedule.max_microbatches,
        first_step,
        schedule.num_steps,
        config.data.workers,
        config.data.prefetch,
    )
    if first:
        _write_run_json(run_dir, config, mesh, peak)
    # A finished run is validated again, so its last validation is dropped.
    finished = first_step == schedule.num_steps
    writer = MetricWriter(run_dir, config, first_step, first_step - finished) if first else None
    devices = f"{mesh.size} device{'s' * (mesh.size > 1)}"
    count = train_state.parameter_count(state["params"])
    log.info(f"{run_dir}: {count:,} parameters, {schedule.num_steps} steps, {devices}")
    console = Console(schedule.num_steps, first_step) if first else None
    with jax.set_mesh(mesh), _closing(writer, console, checkpoints), stop_request() as stop:
        run = Loop(
            config=config,
            schedule=schedule,
            train_step=make_train_step(config, mesh, words.eot),
            evaluate=_evaluator(config, mesh, words, held_out),
            batches=prefetched(batches, rows, config.train.microbatch_sequences, sharding),
            checkpoints=checkpoints,
            meta=meta,
            flops_per_token=flops.training_per_token(config.model, config.train.sequence_length),
            peak_flops=peak.flops,
            writer=writer,
            console=console,
        )
        try:
            state, code = run.run(state, first_step, stop)
        except Diverged as diverged:
            print(f"scaling train: error: {diverged}", file=sys.stderr)
            return exit_codes.DIVERGED
        if code:
            return code
        loss = run.validate(schedule.num_steps, state)
        if first:
            print(f"validation loss {loss:.4f} nats/token after {schedule.tokens(schedule.num_steps):,} tokens")
        _print_samples(config, state, words, first)
    if first:
        _plot(run_dir)
    return exit_codes.OK


def open_run_directory(path: str) -> epath.Path:
    """Creates the run directory if need be and makes sure that it can be written.

    Raises:
        OSError: it cannot.
    """
    # Orbax wants absolute paths.
    run_dir = epath.Path(path if "://" in path else Path(path).expanduser().absolute())
    probe = run_dir / f".writable-{jax.process_index()}"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise type(error)(
            f"the run directory {run_dir} cannot be written ({error.strerror or error}); "
            "choose another with --config.workdir"
        ) from error
    return run_dir


def _evaluator(config: cfg.Config, mesh: jax.sharding.Mesh, words: Any, data: Any) -> Any:
    """A function from parameters to {"loss": nats a token, "eval_tokens": targets counted}."""
    length, size = config.train.sequence_length, config.eval.batch_sequences
    count = min(len(data), max(1, config.eval.tokens // length))
    sharding = batch_sharding(mesh)
    rows = local_rows(sharding, size)
    step = make_eval_step(config, mesh, words.eot)

    def evaluate(params: Any) -> dict[str, float]:
        nll = targets = 0.0
        for batch in loader.evaluation_batches(data, count, size, rows):
            one = {name: values[None] for name, values in batch.items()}
            sums = step(params, place(one, rows, size, sharding))
            nll, targets = nll + float(sums.nll), targets + float(sums.targets)
        return {"loss": nll / targets, "eval_tokens": targets}

    return evaluate


def _write_run_json(run_dir: epath.Path, config: cfg.Config, mesh: Any, peak: throughput.Peak) -> None:
    """config.json: the resolved config, and all that is needed to understand the numbers beside it."""
    path = run_dir / "config.json"
    record = {
        "config": cfg.to_dict(config),
        "versions": {
            "scaling": scaling.__version__,
            "git": _git_commit(),
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
        "devices": {"kind": mesh.devices.flat[0].device_kind, "count": mesh.size, "processes": jax.process_count()},
        "mesh": dict(mesh.shape),
        "mfu": {"formula": throughput.FORMULA, "peak_flops": peak.flops, "peak_source": peak.source},
        "flops_per_token": flops.training_per_token(config.model, config.train.sequence_length),
    }
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(record, indent=2))
    partial.replace(path)


def _git_commit() -> str:
    """Commit of the checkout this package lies in, with a + if it has been edited; empty outside a checkout."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _print_samples(config: cfg.Config, state: Any, words: Any, first: bool) -> None:
    if not config.sample.prompts:
        return
    from scaling.generate.sample import continue_texts

    texts = continue_texts(config, state["params"], words, jnp.asarray(config.seed, np.uint32))
    if first:
        for text in texts:
            print(f"\n{text}")


def _plot(run_dir: epath.Path) -> None:
    from scaling.laws.curves import plot

    print(f"\nloss curve: {plot(run_dir)}")


@contextlib.contextmanager
def _closing(*parts: Any) -> Iterator[None]:
    """Closes what is open, checkpoints last, whatever happened; the first error is the one that counts."""
    with contextlib.ExitStack() as stack:
        for part in reversed([p for p in parts if p is not None]):
            stack.callback(part.close)
        yield


def _enable_compilation_cache() -> None:
    """Compiled programs are kept between runs, unless the user's JAX settings already say where."""
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        base = Path(os.environ.get("SCALING_CACHE", "~/.cache/scaling")).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(base / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _configure_logging(first: bool) -> None:
    """Our messages as plain lines on stderr, from the first process; the libraries' not at all: they raise."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    ours = logging.getLogger("scaling")
    ours.setLevel(logging.INFO if first else logging.ERROR)
    ours.handlers = [logging.StreamHandler()]  # anew each time: stderr may be another one than at the last call
    ours.propagate = False
