"""Composes a training, from a config to a finished run directory; resumes the run if the directory has one."""

import contextlib
import dataclasses
import functools
import logging
import sys
import time
from typing import NamedTuple

import jax

from scaling import cache, durable, exit_codes, object_store
from scaling.commands import recomputation
from scaling.config import schema as cfg
from scaling.config.refusal import refused
from scaling.config.resolve import must_be_wide, resolve
from scaling.data.chat.template import read_template
from scaling.data.loader import TrainingSet
from scaling.evaluate.scoring import records
from scaling.evaluate.scoring.in_loop import InLoopTasks
from scaling.evaluate.tasks.knobs import check_tasks
from scaling.generate.sample import continue_texts
from scaling.model import lora
from scaling.parallel import distributed
from scaling.parallel.host_memory import keep_freed_memory
from scaling.parallel.mesh import make_mesh
from scaling.paths import must_take_checkpoints
from scaling.report.curves import plot
from scaling.runs import choice, config_json
from scaling.runs import tokenizer as run_tokenizer
from scaling.runs.bad_records import remembered
from scaling.runs.checkpoint import Checkpoints
from scaling.runs.lock import only_one
from scaling.runs.paths import LOSS_CURVE, TEMPLATE, absolute, writable
from scaling.runs.start import Start
from scaling.train import optimizer, throughput
from scaling.train.loop import Hook, Loop
from scaling.train.metrics import Log, optional
from scaling.train.recipe import PRETRAINING, Recipe
from scaling.train.reliability import going_back
from scaling.train.reliability.bad_steps import Diverged
from scaling.train.reliability.failures import explained
from scaling.train.reliability.goodput import Goodput
from scaling.train.reliability.recompute import Faulty
from scaling.train.reliability.restore import restore_or_create
from scaling.train.reliability.rollbacks import Rollbacks
from scaling.train.reliability.watch import Watch
from scaling.train.reliability.watchdog import Watchdog
from scaling.train.run import Run
from scaling.train.signals import stop_request
from scaling.train.speed import Speed
from scaling.train.state import TrainState, parameter_count
from scaling.train.step import make_train_step
from scaling.train.validation import Validation


def train(config: cfg.Config, name: str = "default", started: float | None = None, recipe: Recipe = PRETRAINING) -> int:
    """Trains the model of a config in its run directory, from the newest whole checkpoint if there is one.

    Args:
        config: not necessarily resolved.
        name: of the experiment; the run directory is ``runs/<name>`` unless ``config.workdir`` is set.
        started: Unix time from which goodput counts; None = now.
        recipe: the kind of training.

    Returns:
        An exit code of ``scaling.exit_codes``.

    Raises:
        ValueError: an impossible config, unusable data, a run directory of another model.
        OSError: the run directory cannot be written.
    """
    started = time.time() if started is None else started
    run = _prepared(config, name, recipe)
    process = jax.process_index()
    with contextlib.ExitStack() as stack:
        if run.is_first:
            stack.enter_context(only_one(run.directory))
        goodput = stack.enter_context(Goodput(run.directory if run.is_first else None, started))
        watchdog = stack.enter_context(Watchdog(run.config.guard.hang_seconds, run.directory, process))
        checkpoints = Checkpoints(run.directory, run.config.checkpoint)
        stack.callback(_close, checkpoints, watchdog)
        if run.data.bad_records:
            stack.enter_context(remembered(run.data.bad_records, run.directory))
        stack.enter_context(jax.set_mesh(run.mesh))
        tasks = InLoopTasks(run.config, run.words, run.mesh) if run.config.eval.tasks else None
        log = stack.enter_context(contextlib.closing(Log(run)))
        try:
            with explained(goodput):
                watch = Watch(run, goodput, watchdog, checkpoints, Rollbacks(run.directory, run.schedule))
                stack.callback(watch.close)
                result = _train(run, watch, log, tasks, recipe)
        except (Diverged, Faulty) as error:
            print(f"scaling {recipe.verb}: error: {error}", file=sys.stderr)
            goodput.exit_code = exit_codes.FAULTY if isinstance(error, Faulty) else exit_codes.DIVERGED
            return goodput.exit_code
        if result.code:
            goodput.exit_code = result.code
            return result.code
    if run.is_first:
        tokens = run.schedule.tokens(run.schedule.num_steps)
        print(f"validation loss {result.loss:.4f} {recipe.unit} after {tokens:,} tokens", *result.texts, sep="\n\n")
        if result.choice:
            print(f"\n{result.choice}")
        with optional("no loss curve"):
            curve = plot(run.directory)
            print(f"\n{'loss curve' if curve.name == LOSS_CURVE else 'rewards'}: {curve}")
    return exit_codes.OK


class _Result(NamedTuple):
    """The end of a training: the exit code, and unless it was stopped the validation loss, samples and the choice."""

    code: int
    loss: float
    texts: list[str]
    choice: str


def _train(run: Run, watch: Watch, log: Log, tasks: InLoopTasks | None, recipe: Recipe) -> _Result:
    """Restores or creates the state, makes the hooks of the loop, and trains."""
    state, first_step = restore_or_create(watch)
    peak = throughput.peak(list(run.mesh.devices.flat))
    config, objective, texts = run.config, recipe.objective(run.config), list[str]()
    frozen = recipe.frozen(run) if recipe.frozen else None
    if recipe.validation:
        validation = recipe.validation(run, frozen, log)
    else:
        validation = Validation(run, objective, log, recipe.derived, frozen)
    hooks = [Hook("a validation", validation, config.eval.every_steps, when_stopped=True)]
    if tasks:
        evaluate = functools.partial(_evaluate, run, log, tasks)
        hooks.append(Hook("the tasks", evaluate, config.eval.tasks_every_steps))
    if config.sample.prompts:
        hooks.append(Hook("the samples", functools.partial(_sample, run, texts)))
    if recipe.finish:
        hooks.append(Hook("the end of its recipe", functools.partial(_finish, run, recipe, watch.checkpoints)))
    train_step = recipe.step(run, frozen) if recipe.step else make_train_step(config, run.mesh, objective)
    fixed = {name: tree for name, tree in (("frozen", frozen), ("base", run.base)) if tree is not None}
    if fixed and not recipe.step:
        train_step = functools.partial(train_step, **fixed)
    loop = Loop(run, train_step, hooks, log, watch, Speed(run, peak.flops), waits=recipe.step is not None)
    if run.is_first:
        run_tokenizer.keep(run.words, run.directory)
        if run.config.chat.template:
            durable.replace_text(run.directory / TEMPLATE, read_template(run.config.chat.template))
        if run.start:
            run.start.note(run.directory)
        for name, text in recipe.files.items():
            durable.replace_text(run.directory / name, text)
        stream = run.data.training
        unique = stream.unique(config.train.tokens) if isinstance(stream, TrainingSet) else None
        config_json.write(run.directory, config, run.words, run.mesh, throughput.mfu(peak), unique, recipe.verb)
    loop.begin(first_step)
    if first_step < run.schedule.num_steps:
        watch.goodput.begin(first_step)  # a run that is already finished gets no new attempt
    devices = f"{run.mesh.size} device{'s' * (run.mesh.size > 1)}"
    count = f"{parameter_count(state['params']):,} parameters"
    if run.base is not None:
        count += f" beside the {parameter_count(run.base):,} of {config.start}"
    log.note(f"{run.directory}: {count}, {run.schedule.num_steps} steps, {devices}")
    for note in tasks.notes if tasks else ():
        log.note(note)
    with stop_request() as stop:
        state, code = going_back.train(loop, state, stop)
    if not code:
        # Everything is saved now, so a signal may end the process at once.
        loop.finish(state)
    return _Result(code, validation.loss, texts, "" if code else _choice(run, watch.checkpoints))


def _evaluate(run: Run, log: Log, tasks: InLoopTasks, step: int, state: TrainState) -> None:
    """Evaluates ``config.eval.tasks`` at a step, and writes the results to ``evals.jsonl``."""
    start = time.monotonic()
    results = tasks.run(run.whole(state["params"]))
    seconds = time.monotonic() - start
    for result in results:
        log.task({"step": step, "tokens": run.schedule.tokens(step)} | records.record(result))
    log.note(f"step {step}  tasks ({seconds:.1f} s)\n{records.table(results)}")


def _sample(run: Run, texts: list[str], step: int, state: TrainState) -> None:
    """Continues ``config.sample.prompts``; the texts are printed at the end."""
    # If another process is lost, this one must not continue, because the remaining processes would wait for it.
    with optional("no samples", unless=distributed.is_lost_peer):
        texts[:] = continue_texts(run.config, run.whole(state["params"]), run.words)


def _finish(run: Run, recipe: Recipe, checkpoints: Checkpoints, step: int, state: TrainState) -> None:
    """Ends by the recipe, with the parameters that readers of the run take."""
    assert recipe.finish
    saved = checkpoints.chosen(run.config.checkpoint.choose) if run.config.checkpoint.choose else None
    if saved and saved[0] != step:
        params = checkpoints.read_params(saved[0], run.abstract_state()["params"])
        state = TrainState(**{**state, "params": params})
    recipe.finish(run, state)


def _choice(run: Run, checkpoints: Checkpoints) -> str:
    """What is said of the checkpoint that is chosen, on every process; nothing if none is."""
    by = run.config.checkpoint.choose
    saved = checkpoints.chosen(by) if by else None
    return choice.sentence(run.directory, by, saved[0]) if saved and run.is_first else ""


def _close(checkpoints: Checkpoints, watchdog: Watchdog) -> None:
    with watchdog.phase("finishing a save"):
        checkpoints.close()


def _prepared(config: cfg.Config, name: str, recipe: Recipe) -> Run:
    """Prepares everything that is needed before the run directory is locked: devices, tokenizer, config, data."""
    keep_freed_memory()
    object_store.set_patience(config.guard.store_seconds)
    distributed.initialize(config.distributed, config.mesh.cpu_devices)
    _configure(config)
    workdir = absolute(config.workdir or f"runs/{name}")
    config_json.check_verb(workdir, recipe.verb)
    start = Start.of(config, workdir) if config.start else None
    if start:
        config = dataclasses.replace(config, chat=start.chat_for(config))
        suffix = recipe.suffix if start.model.causal else recipe.encoder_suffix
        if suffix is None:
            raise refused("start", config.start, f"is an encoder, which `scaling {recipe.verb}` cannot train")
        named = dataclasses.replace(config.data, tokenizer=start.tokenizer(config, suffix))
        config = dataclasses.replace(config, data=named)
    words = run_tokenizer.find(config.data.tokenizer, workdir)
    model = start.model_for(config, words) if start else config.model
    if model.encoder_layers and recipe.verb not in ("train", "distill"):
        right = f"must be 0: `scaling {recipe.verb}` trains no model with an encoder beside its decoder"
        raise refused("model.encoder_layers", model.encoder_layers, right)
    if model.prefix_lm and recipe.verb != "train":
        right = f"which `scaling {recipe.verb}` does not train: its prompt sees itself on both sides"
        if start:
            raise refused("start", config.start, f"has config.model.prefix_lm=True, {right}")
        raise refused("model.prefix_lm", True, f"is of a model {right}; must be False")
    config = dataclasses.replace(config, model=dataclasses.replace(model, outputs=recipe.outputs))
    if start:
        config = dataclasses.replace(config, lora=start.adapters_for(config, words))
    given, count = config, jax.device_count()
    by_epochs = recipe.counts_epochs and config.align.epochs
    if by_epochs:  # the data, which decide the length, are not read yet
        config = _of_steps(config, 1)
    config = resolve(config, words.vocab_size, count, name)
    if config.checkpoint.choose not in ("", *recipe.figures):
        right = (
            f"is nothing that `scaling {recipe.verb}` validates; must be '' or {' or '.join(map(repr, recipe.figures))}"
        )
        raise refused("checkpoint.choose", config.checkpoint.choose, right)
    must_be_wide(config, f"`scaling {recipe.verb}`")
    config = recomputation.settled(config, absolute(config.workdir), recipe.verb)
    check_tasks(config)
    optimizer.check(config.optimizer, config.model)
    lora.check(config)
    # Tokenizing takes long, so a folder that could not be written to is refused before.
    must_take_checkpoints("the run directory", str(absolute(config.workdir)))
    data = recipe.data(config, words)
    if by_epochs:
        steps = round(config.align.epochs * data.training.tokens / config.train.batch_tokens)
        config = resolve(_of_steps(given, max(1, steps)), words.vocab_size, count, name)
    directory = writable(config.workdir, jax.process_index())
    run = Run(config, directory, words, data, make_mesh(config.mesh), start)
    return dataclasses.replace(run, beside=recipe.beside(run)) if recipe.beside else run


def _of_steps(config: cfg.Config, steps: int) -> cfg.Config:
    """The config with a length of so many whole batches, of which ``config.align.warmup`` are the warm-up."""
    train = dataclasses.replace(config.train, tokens=steps * config.train.batch_tokens)
    warmup = round(config.align.warmup * train.tokens) or config.optimizer.warmup_tokens
    optimizer = dataclasses.replace(config.optimizer, warmup_tokens=warmup)
    return dataclasses.replace(config, train=train, optimizer=optimizer)


def _configure(config: cfg.Config) -> None:
    """Sets what holds for the whole process: log messages, the cache of compilations, precision."""
    # The first process prints our messages on stderr. Those of libraries are not printed: their errors are exceptions.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    ours = logging.getLogger("scaling")
    ours.setLevel(logging.INFO if jax.process_index() == 0 else logging.ERROR)
    ours.handlers = [logging.StreamHandler()]  # replaced at each call: sys.stderr may be another stream now
    ours.propagate = False
    # A folder from the user's JAX settings is kept.
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        compiled = cache.root() / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(compiled))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # float32 means full precision on accelerators too: no TensorFloat-32, no passes in bfloat16.
    precision = "highest" if config.compute.dtype == "float32" else None
    jax.config.update("jax_default_matmul_precision", precision)
