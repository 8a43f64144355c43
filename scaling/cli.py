"""``scaling VERB``: the command line. Each verb imports its code when it runs, so that ``--help`` is instant."""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from scaling import __version__, exit_codes, output, platforms
from scaling.output import Stdout
from scaling.paths import each_expanded, expanded, must_be_utf8, must_lead_somewhere

DEBUG_VARIABLE = "SCALING_TRACEBACK"  # set to 1, lets Python's traceback through instead of one sentence
PACKAGE = Path(__file__).resolve().parent
_TEXTS = ("prompt", "stop")  # options that are no paths, whatever they begin with

_EPILOG = f"""\
`scaling VERB --help` explains a verb. Verbs that take --config=FILE also take --config.section.knob=VALUE for any
knob; `scaling config --describe` lists them. FILE may also be the name of an experiment that ships, such as gpt3/125m;
`scaling config --list` prints them.

exit codes: {exit_codes.OK} done, {exit_codes.USAGE} mistake in options, files or values, {exit_codes.DIVERGED} loss \
diverged, {exit_codes.IO} disk or input/output failed,
{exit_codes.HUNG} no step ended in time or a process of the run is gone, {exit_codes.FAULTY} a step computed twice gave\
 two results,
{exit_codes.SIGINT} interrupted, {exit_codes.SIGTERM} terminated, {exit_codes.SIGHUP} hung up, {exit_codes.SIGUSR1}, \
{exit_codes.SIGUSR2} and {exit_codes.SIGXCPU} warned by a scheduler (all after saving a checkpoint),
{exit_codes.SIGPIPE} the reader of the output is gone, {exit_codes.BUG} a bug. {DEBUG_VARIABLE}=1 shows the traceback \
of a mistake.
"""


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose mistakes are exceptions, so that ``main`` words all of them alike."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        argv: arguments behind the program's name; None = this process's.

    Returns:
        An exit code of ``scaling.exit_codes``. Mistakes print one line, ``scaling VERB: error: sentence``, on stderr;
        exceptions that no mistake explains go through.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    verb = next((argument for argument in argv if not argument.startswith("-")), "")
    output.install()
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # here, where its errors are expected, and not at exit
    except KeyboardInterrupt:
        print(f"scaling {verb}: interrupted", file=sys.stderr)
        return exit_codes.SIGINT
    except output.ReaderGone:  # `scaling sizes | head`
        return exit_codes.SIGPIPE
    except (ValueError, OSError, RuntimeError, AssertionError) as error:
        if not isinstance(error, ValueError | OSError):
            if (refusal := platforms.refusal(error)) is None:
                raise
            error = refusal
        if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
            raise
        program = f"scaling {verb}" if verb in _VERBS else "scaling"
        print(f"{program}: error: {_sentence(error)}", file=sys.stderr)
        return exit_codes.of(error)


def _run(argv: list[str]) -> int:
    from scaling.config_file import split_arguments

    config, overrides, rest = split_arguments(argv)
    parser = _parser()
    options = parser.parse_args(rest)
    if not hasattr(options, "run"):
        parser.print_help()
        return exit_codes.USAGE
    if (config or overrides) and not options.takes_config:
        raise ValueError(f"{config or overrides[0]}: this verb takes no --config")
    options.config, options.overrides = config, overrides
    _at_home(options)
    output.begin(options.stdout)
    platforms.leave_out_tpu(os.environ)
    code = options.run(options) or exit_codes.OK
    if (lost := output.lost()) and options.stdout is not Stdout.LOG:
        raise lost
    return code


def _at_home(options: argparse.Namespace) -> None:
    """Expands ``~`` in all options but texts; refuses folders that could not be written to at the end."""
    for name, value in vars(options).items():
        expand = each_expanded if name == "tasks" else expanded
        if name in _TEXTS or name in ("config", "overrides"):
            continue
        if isinstance(value, str):
            setattr(options, name, expand(value))
        elif isinstance(value, list):
            setattr(options, name, [expand(one) if isinstance(one, str) else one for one in value])
    if getattr(options, "output", None) is not None:
        must_lead_somewhere(options.output)
    for path in [getattr(options, "output", None), *getattr(options, "runs", []), *getattr(options, "models", [])]:
        if path is not None and "://" not in path:
            must_be_utf8("the folder", str(Path(path).absolute()))


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    sentence = " ".join(str(error).split()) or type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    if frames and not any(
        Path(frames[-1].filename).is_relative_to(part) for part in (PACKAGE, PACKAGE.parent / "launch")
    ):
        sentence += f" ({DEBUG_VARIABLE}=1 shows where)"
    return sentence


def _train(options: argparse.Namespace) -> int:
    started = time.time()
    from scaling.config_file import is_sweep, load, run_name
    from scaling.evaluate.knobs import check_tasks
    from scaling.resolve import resolve

    if options.config is None:
        from scaling.shipped import experiments

        found = ", ".join(name for name in experiments() if not is_sweep(name))
        raise ValueError(f"needs --config=FILE, your own experiment or one that ships: {found}")
    config, name = load(options.config, options.overrides), run_name(options.config)
    check_tasks(resolve(config, name=name))  # refuses what can be refused before JAX is imported
    from scaling.commands.train import train

    return train(config, name, started)


def _config(options: argparse.Namespace) -> int:
    from scaling.config import to_json
    from scaling.config_file import load, run_name
    from scaling.evaluate.knobs import check_tasks
    from scaling.resolve import resolve

    if options.describe:
        from scaling.describe import to_markdown

        print(to_markdown(), end="")
        return exit_codes.OK
    if options.list:
        from scaling.shipped import to_text

        print(to_text())
        return exit_codes.OK
    name = run_name(options.config) if options.config else None
    config = resolve(load(options.config, options.overrides), device_count=options.devices, name=name)
    check_tasks(config)
    print(to_json(config))
    return exit_codes.OK


def _sizes(options: argparse.Namespace) -> int:
    from scaling import size_report

    print(size_report.to_json() if options.json else size_report.to_text(), end="\n" if options.json else "")
    return exit_codes.OK


def _tokenizer_train(options: argparse.Namespace) -> int:
    from scaling.data.tokenizer_training import train_tokenizer

    print(train_tokenizer(options.input, options.vocab_size, options.output, text_key=options.text_key))
    return exit_codes.OK


def _tokenize(options: argparse.Namespace) -> int:
    from scaling.data.prepare import prepare

    print(prepare(options.input, options.tokenizer, options.output, text_key=options.text_key))
    return exit_codes.OK


def _logits(options: argparse.Namespace) -> int:
    import numpy as np

    if Path(options.output).suffix != ".npy":
        raise ValueError(f"--output={options.output} must end in .npy")
    try:
        ids = np.load(options.ids, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{options.ids} is not a NumPy .npy file: {error}") from error
    if not isinstance(ids, np.ndarray) or ids.ndim not in (1, 2) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{options.ids} must hold token ids, an integer array of shape [batch, time] or [time]")
    from scaling.durable import check_writable, naming
    from scaling.interop.logits import logits

    check_writable(options.output)
    found = logits(options.model, ids)
    with naming(options.output):
        np.save(options.output, found)
    print(options.output)
    return exit_codes.OK


def _export(options: argparse.Namespace) -> int:
    from scaling.interop.huggingface import export

    export(options.run_directory, options.output)
    print(options.output)
    return exit_codes.OK


def _plot(options: argparse.Namespace) -> int:
    from scaling.laws.curves import plot

    print(plot(options.directory))
    return exit_codes.OK


_VERBS = (
    "train",
    "sweep",
    "launch",
    "status",
    "stop",
    "plan",
    "config",
    "sizes",
    "tokenizer",
    "tokenize",
    "generate",
    "evaluate",
    "contamination",
    "bias",
    "logits",
    "export",
    "plot",
    "fit",
    "report",
    "predict",
    "bench",
)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="scaling",
        description="Train any GPT-3 size from one config, on any mesh.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"scaling {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", parser_class=_Parser)

    _add(verbs, "train", _train, "train the model of --config=FILE, or resume it", takes_config=True, stdout=Stdout.LOG)

    from launch import command as launch
    from launch import status_command, stop_command
    from scaling.bench import command as bench_command
    from scaling.evaluate import bias_command, contamination_command
    from scaling.evaluate import command as evaluate
    from scaling.generate import command as generate
    from scaling.laws import command as laws
    from scaling.laws.report import command as report
    from scaling.plan import command as plan
    from scaling.sweep import command as sweep

    _add(
        verbs,
        "sweep",
        sweep,
        "train all runs of the sweep in --config=FILE, or resume them",
        takes_config=True,
        stdout=Stdout.LOG,
    )

    _add(
        verbs,
        "launch",
        launch,
        "start a run or a sweep on an engine, and keep it going",
        takes_config=True,
        stdout=Stdout.LOG,
    )
    _add(verbs, "status", status_command, "where launched runs stand, wherever they are")
    _add(verbs, "stop", stop_command, "stop launched runs, which save, and release what they hold", stdout=Stdout.LOG)

    _add(
        verbs,
        "plan",
        plan,
        "memory and step time of --config=FILE on TPUs or GPUs that are not here",
        takes_config=True,
    )

    config = _add(verbs, "config", _config, "print the resolved config as JSON", takes_config=True)
    instead = config.add_mutually_exclusive_group()
    instead.add_argument("--describe", action="store_true", help="print a Markdown table of all knobs instead")
    instead.add_argument("--list", action="store_true", help="print the experiments that ship, by name, instead")
    config.add_argument("--devices", type=int, metavar="N", help="resolve the mesh for N devices")

    sizes = _add(verbs, "sizes", _sizes, "print the published sizes: parameters and FLOPs by every convention")
    sizes.add_argument("--json", action="store_true", help="for programs")

    tokenizer = verbs.add_parser("tokenizer", help="make tokenizers", allow_abbrev=False)
    actions = tokenizer.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=_Parser)
    train = _add(actions, "train", _tokenizer_train, "train a sentencepiece tokenizer on text files", stdout=Stdout.LOG)
    train.add_argument("input", metavar="INPUT", help="text files: a path or glob of .txt, .jsonl(.gz), .parquet")
    train.add_argument("--vocab_size", type=int, required=True, metavar="N", help="tokens in the vocabulary")
    train.add_argument("--output", required=True, metavar="FILE.model", help="where the tokenizer goes")
    train.add_argument("--text_key", default="text", help="field of the text in records (default: text)")

    tokenize = _add(
        verbs, "tokenize", _tokenize, "tokenize text files into ArrayRecord shards, once", stdout=Stdout.LOG
    )
    tokenize.add_argument("input", metavar="INPUT", help="text files: a path or glob of .txt, .jsonl(.gz), .parquet")
    tokenize.add_argument("--tokenizer", required=True, metavar="NAME", help="gpt2, bytes, books or a tokenizer file")
    tokenize.add_argument("--output", required=True, metavar="DIR", help="where the shards go")
    tokenize.add_argument("--text_key", default="text", help="field of the text in records (default: text)")

    _add(verbs, "generate", generate, "continue prompts with a model")
    _add(verbs, "evaluate", evaluate, "zero-, one- and few-shot scores of models", stdout=Stdout.COPY)
    _add(
        verbs,
        "contamination",
        contamination_command,
        "items of tasks that stand in a training corpus",
        stdout=Stdout.COPY,
    )
    _add(verbs, "bias", bias_command, "GPT-3's probes of gender, race, religion and occupations", stdout=Stdout.COPY)

    logits = _add(
        verbs, "logits", _logits, "float32 logits of a run directory or a Hugging Face folder", stdout=Stdout.LOG
    )
    logits.add_argument("model", metavar="MODEL", help="run directory, or folder with config.json, model.safetensors")
    logits.add_argument("--ids", required=True, metavar="IDS.npy", help="token ids, integers [batch, time]")
    logits.add_argument("--output", required=True, metavar="LOGITS.npy", help="float32 [batch, time, vocabulary]")

    export = _add(verbs, "export", _export, "write a run's model as a Hugging Face folder", stdout=Stdout.LOG)
    export.add_argument("run_directory", metavar="RUN", help="run directory")
    export.add_argument("--output", required=True, metavar="DIR", help="a new or empty folder")

    plot = _add(verbs, "plot", _plot, "draw the loss curve of a run directory", stdout=Stdout.LOG)
    plot.add_argument("directory", metavar="RUN", help="run directory")

    fit = _add(verbs, "fit", laws.fit, "fit a scaling law to run directories or a table")
    laws.add_fit_options(fit)
    predict = _add(verbs, "predict", laws.predict, "predict from a fit: optimal size, loss, price")
    laws.add_predict_options(predict)
    _add(verbs, "report", report, "one page about runs: laws, figures, tables", stdout=Stdout.LOG)

    bench = verbs.add_parser("bench", help="measure the framework itself", allow_abbrev=False)
    benches = bench.add_subparsers(title="benchmarks", metavar="WHAT", required=True, parser_class=_Parser)
    bench_command.add_options(lambda name, run, help: _add(benches, name, run, help))
    return parser


def _add(
    verbs: "argparse._SubParsersAction[_Parser]",
    name: str,
    run: Callable[[argparse.Namespace], int] | ModuleType,
    help: str,
    takes_config: bool = False,
    stdout: Stdout = Stdout.RESULT,
) -> argparse.ArgumentParser:
    """Adds a verb: what a function runs, or a module with ``add_options(parser)`` and ``run(options)``."""
    description = f"{help[0].upper()}{help[1:]}."
    if takes_config:
        description += " Takes --config=FILE[:argument] and --config.section.knob=VALUE. FILE may be the name of an"
        description += " experiment that ships, such as gpt3/125m; `scaling config --list` prints them."
    parser = verbs.add_parser(name, help=help, description=description, allow_abbrev=False)
    if isinstance(run, ModuleType):
        run.add_options(parser)
        run = run.run
    parser.set_defaults(run=run, takes_config=takes_config, stdout=stdout)
    return parser
