"""The verb ``train``: from a config to a finished run directory, resuming whatever is there."""

import contextlib
import functools
import json
import logging
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
from etils import epath

import scaling
from scaling import cache, durable, exit_codes, flops
from scaling import config as cfg
from scaling.data import loader, run_tokenizer
from scaling.data.bad_records import BadRecords
from scaling.data.tokenizer import Tokenizer
from scaling.evaluate.in_loop import InLoopTasks
from scaling.generate.sample import continue_texts
from scaling.laws.curves import plot
from scaling.parallel import distributed
from scaling.parallel.host_memory import keep_freed_memory
from scaling.parallel.mesh import make_mesh
from scaling.parallel.sharding import batch_sharding
from scaling.paths import must_take_checkpoints
from scaling.resolve import resolve
from scaling.train import state as train_state
from scaling.train import throughput
from scaling.train.bad_steps import BadSteps, Diverged, RollBack
from scaling.train.batch_hash import BatchHashes, of_step
from scaling.train.checkpoint import Checkpoints, absolute
from scaling.train.goodput import Goodput
from scaling.train.lock import only_one
from scaling.train.loop import Loop
from scaling.train.metrics import Console, MetricWriter, optional
from scaling.train.placement import local_rows, place, prefetched
from scaling.train.recompute import Faulty, checked
from scaling.train.restore import Restorer
from scaling.train.rollbacks import Rollbacks
from scaling.train.schedule import BatchSchedule
from scaling.train.signals import stop_request
from scaling.train.skipped import remembered
from scaling.train.step import make_eval_step, make_train_step
from scaling.train.watchdog import Watchdog


def train(config: cfg.Config, name: str = "default", started: float | None = None) -> int:
    """Trains what the config says in its run directory, from the newest whole checkpoint if there is one.

    Args:
        config: not necessarily resolved.
        name: of the experiment; the run directory is ``runs/<name>`` unless ``config.workdir`` says otherwise.
        started: Unix time from which on goodput counts, if that was before now.

    Returns:
        An exit code of ``scaling.exit_codes``.

    Raises:
        ValueError: an impossible config, unusable data, a run directory of another model.
        OSError: the run directory cannot be written.
    """
    started = time.time() if started is None else started
    keep_freed_memory()
    distributed.initialize(config.distributed, config.mesh.cpu_devices)
    _configure(config)
    words = run_tokenizer.find(config.data.tokenizer, absolute(config.workdir or f"runs/{name}"))
    config = resolve(config, vocab_size=words.vocab_size, device_count=jax.device_count(), name=name)
    # A name that could not be written to is refused before the text is tokenized.
    must_take_checkpoints("the run directory", str(absolute(config.workdir)))
    bad_records = BadRecords() if config.data.bad_records == "skip" else None
    data = loader.training_set(config.data, words, config.train.sequence_length, config.seed, bad_records)
    held_out = loader.validation_set(config.data, words, config.train.sequence_length, bad_records)
    run_dir = open_run_directory(config.workdir)
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(only_one(run_dir))
        goodput = stack.enter_context(Goodput(run_dir if jax.process_index() == 0 else None, started))
        watchdog = stack.enter_context(Watchdog(config.guard.hang_seconds, run_dir, jax.process_index()))
        checkpoints = Checkpoints(run_dir, config.checkpoint)
        stack.callback(_close, checkpoints, watchdog)
        if bad_records:
            stack.enter_context(remembered(bad_records, run_dir))
        mesh = make_mesh(config.mesh)
        stack.enter_context(jax.set_mesh(mesh))
        tasks = InLoopTasks(config, words, mesh) if config.eval.tasks else None
        try:
            rollbacks = Rollbacks(run_dir, BatchSchedule.from_config(config.train))
            restorer = Restorer(config, checkpoints, mesh, data.fingerprint, goodput, rollbacks)
            state, first_step = restorer.restore_or_create()
            programs = make_train_step(config, mesh, words.eot), _evaluator(config, mesh, words, held_out)
            context = config, run_dir, words, checkpoints, mesh, data, bad_records, tasks, goodput, rollbacks, watchdog
            make = functools.partial(_loop, *context, programs)
            run = make(first_step)
            stack.callback(lambda: run.close())  # the one that is last
            if first_step < run.schedule.num_steps:
                goodput.begin(first_step)  # looking at a finished run is no attempt
            count = train_state.parameter_count(state["params"])
            devices = f"{mesh.size} device{'s' * (mesh.size > 1)}"
            run.note(f"{run_dir}: {count:,} parameters, {run.schedule.num_steps} steps, {devices}")
            for note in run.tasks.notes if run.tasks else ():
                run.note(note)
            with stop_request() as stop:
                while True:
                    try:
                        state, code = run.run(state, first_step, stop)
                        break
                    except RollBack as error:
                        bad = error.without_frames()
                    del state
                    try:
                        with watchdog.phase("going back"):
                            state, first_step = restorer.roll_back(bad)
                    except Diverged:
                        if run.writer:  # readers of the run see why it ended; resuming from before drops the line
                            run.writer.train(bad.line)
                        raise
                    run.close()
                    run = make(first_step)
            if code:
                goodput.exit_code = code
                return code
            # From here on everything is saved, so a signal may end the process at once.
            loss = run.validate(run.schedule.num_steps, state)
            run.evaluate_tasks(run.schedule.num_steps, state)
            texts: list[str] = []
            # The others would wait for a process that passes over that one is gone.
            lets_go = optional("no samples", unless=distributed.is_lost_peer)
            with goodput.during("validate"), watchdog.phase("the samples"), lets_go:
                texts = continue_texts(config, state["params"], words) if config.sample.prompts else []
        except (Diverged, Faulty) as error:
            print(f"scaling train: error: {error}", file=sys.stderr)
            goodput.exit_code = exit_codes.FAULTY if isinstance(error, Faulty) else exit_codes.DIVERGED
            return goodput.exit_code
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            if distributed.is_lost_peer(error):
                _leave(error, goodput)
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise ValueError(
                "a device ran out of memory; lower config.train.microbatch_sequences, choose another "
                "config.compute.remat, or shard further with config.mesh.fsdp or tensor "
                f"({str(error).splitlines()[0][:200]})"
            ) from error
    if jax.process_index() == 0:
        tokens = run.schedule.tokens(run.schedule.num_steps)
        print(f"validation loss {loss:.4f} nats/token after {tokens:,} tokens", *texts, sep="\n\n")
        with optional("no loss curve"):
            print(f"\nloss curve: {plot(run_dir)}")
    return exit_codes.OK


def _close(checkpoints: Checkpoints, watchdog: Watchdog) -> None:
    with watchdog.phase("finishing a save"):
        checkpoints.close()


def _leave(error: Exception, goodput: Goodput) -> None:
    """Ends this process at once, since another one is gone: whatever waits for it would wait for ever."""
    print(
        "scaling train: error: another process of this run has died or cannot be reached; the same command goes on "
        f"from the last checkpoint ({' '.join(str(error).split())[:300]})",
        file=sys.stderr,
        flush=True,
    )
    goodput.end(exit_codes.HUNG)
    os._exit(exit_codes.HUNG)


def _loop(
    config: cfg.Config,
    run_dir: epath.Path,
    words: Tokenizer,
    checkpoints: Checkpoints,
    mesh: jax.sharding.Mesh,
    data: loader.TrainingSet,
    bad_records: BadRecords | None,
    tasks: InLoopTasks | None,
    goodput: Goodput,
    rollbacks: Rollbacks,
    watchdog: Watchdog,
    programs: tuple[Any, Any],
    first_step: int,
) -> Loop:
    """Puts the loop together: compiled steps, batches from ``first_step`` on, and where numbers go."""
    schedule = BatchSchedule.from_config(config.train)
    peak = throughput.peak(list(mesh.devices.flat))
    sharding = batch_sharding(mesh)
    rows = local_rows(sharding, schedule.microbatch)
    batches = loader.batches(
        data,
        rollbacks.span,
        rows,
        schedule.microbatch,
        schedule.max_microbatches,
        first_step,
        schedule.num_steps,
        config.data.workers,
        config.data.prefetch,
    )
    hashes = BatchHashes(rows, schedule.microbatch) if config.log.batch_hash else None
    train_step, evaluate = programs

    def batch_hash(step: int) -> str | None:
        try:
            return of_step(data, *rollbacks.span(step), schedule.full)
        except (ValueError, OSError):
            return None

    writer = console = None
    if jax.process_index() == 0:
        run_tokenizer.keep(words, run_dir)
        _write_run_json(run_dir, config, words, mesh, peak)
        writer = MetricWriter(run_dir, config, first_step, finished=first_step == schedule.num_steps)
        console = Console(schedule.num_steps, first_step)
    return Loop(
        config=config,
        schedule=schedule,
        train_step=checked(train_step, config.guard.recompute_every_steps, first_step),
        evaluate=evaluate,
        tasks=tasks,
        batches=prefetched(hashes.watched(batches) if hashes else batches, rows, schedule.microbatch, sharding),
        checkpoints=checkpoints,
        meta={"config": cfg.to_dict(config), "data": data.fingerprint, "rollbacks": len(rollbacks)},
        flops_per_token=flops.training_per_token(config.model, config.train.sequence_length),
        peak_flops=peak.flops,
        writer=writer,
        console=console,
        goodput=goodput,
        bad_steps=BadSteps(
            config.guard, rollbacks, batch_hash, run_dir if jax.process_index() == 0 else None, first_step
        ),
        watchdog=watchdog,
        hashes=hashes,
        bad_records=bad_records,
    )


def open_run_directory(path: str) -> epath.Path:
    """Creates the run directory if need be and makes sure that it can be written.

    Raises:
        OSError: it cannot.
    """
    run_dir = absolute(path)
    try:
        durable.try_to_write(run_dir, jax.process_index())
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


def _write_run_json(
    run_dir: epath.Path, config: cfg.Config, words: Tokenizer, mesh: Any, peak: throughput.Peak
) -> None:
    """config.json: the resolved config, and all that is needed to understand the numbers beside it."""
    record = {
        "config": cfg.to_dict(config),
        run_tokenizer.KEY: words.fingerprint,
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
    durable.replace_text(run_dir / "config.json", json.dumps(record, indent=2))


def _git_commit() -> str:
    """Commit of the checkout this package lies in, with a + if it has been edited; empty outside a checkout."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _configure(config: cfg.Config) -> None:
    """Process-wide settings: messages, kept compilations, precision."""
    # Ours as plain lines on stderr, from the first process; the libraries' not at all: they raise.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    ours = logging.getLogger("scaling")
    ours.setLevel(logging.INFO if jax.process_index() == 0 else logging.ERROR)
    ours.handlers = [logging.StreamHandler()]  # anew each time: stderr may be another one than at the last call
    ours.propagate = False
    # Unless the user's JAX settings already say where.
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        compiled = cache.root() / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(compiled))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # float32 means float32 on accelerators too, not TensorFloat-32 or bfloat16 passes.
    precision = "highest" if config.compute.dtype == "float32" else None
    jax.config.update("jax_default_matmul_precision", precision)
