"""The command line ``scaling VERB``. A verb is imported when it runs, so that ``scaling --help`` is fast."""

import argparse
import importlib
import keyword
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from scaling import __version__, exit_codes, output, platforms
from scaling.commands.verb import Parser, add_verb, add_verbs
from scaling.output import Stdout
from scaling.paths import each_expanded, expanded, is_url, must_be_local, must_be_utf8, must_lead_somewhere

if TYPE_CHECKING:
    from scaling.config.kind import Kind

DEBUG_VARIABLE = "SCALING_TRACEBACK"  # if set to 1, a mistake shows Python's traceback and not one sentence
_LAST_SECONDS = 30.0  # that a process takes at most to end after it has failed
PACKAGE = Path(__file__).resolve().parent
_INTO_STORES = ("import", "report")  # verbs whose output may be a folder in an object store
# Options that are texts, in which a leading ~ is not expanded.
_TEXTS = ("prompt", "stop", "system", "control", "control_field", "text_key")

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


class _Verb(NamedTuple):
    help: str
    takes_config: bool = False
    stdout: Stdout = Stdout.RESULT


# Each verb is a module of ``scaling.commands`` with ``add_options(parser)`` and ``run(options) -> exit code``. A module
# without ``run`` adds verbs of its own.
_VERBS = {
    "train": _Verb("train the model of --config=FILE, or resume it", True, Stdout.LOG),
    "align": _Verb("train what comes after pre-training, sample answers, compare models"),
    "distill": _Verb("train a student that imitates the teacher of --config=FILE", True, Stdout.LOG),
    "sweep": _Verb("train all runs of the sweep in --config=FILE, or resume them", True, Stdout.LOG),
    "launch": _Verb(
        "start a run or a sweep on this machine or in a cloud, and restart it when needed", True, Stdout.LOG
    ),
    "status": _Verb("show the progress of launched runs"),
    "stop": _Verb("stop launched runs after they save, and release their machines", stdout=Stdout.LOG),
    "plan": _Verb("predict memory and step time of --config=FILE on TPUs or GPUs that are not here", True),
    "config": _Verb("print the resolved config as JSON", True),
    "sizes": _Verb("print the published sizes: parameters and FLOPs by each convention"),
    "data": _Verb("build a corpus: extract, filter, deduplicate, decontaminate, tokenize, mix"),
    "tokenizer": _Verb("make tokenizers"),
    "tokenize": _Verb("tokenize text files into ArrayRecord shards", stdout=Stdout.LOG),
    "generate": _Verb("continue prompts with a model"),
    "chat": _Verb("talk with a model in the terminal"),
    "serve": _Verb("serve a model by HTTP with a page to talk with it, or one to rank its answers", stdout=Stdout.LOG),
    "evaluate": _Verb("compute zero-, one- and few-shot scores of models", stdout=Stdout.COPY),
    "contamination": _Verb("find items of tasks in a training corpus", stdout=Stdout.COPY),
    "bias": _Verb("run GPT-3's probes of gender, race, religion and occupations", stdout=Stdout.COPY),
    "fill": _Verb("predict the hidden tokens of a text with an encoder"),
    "embed": _Verb("write vectors of texts", stdout=Stdout.LOG),
    "logits": _Verb("write float32 logits of a run directory or a Hugging Face folder", stdout=Stdout.LOG),
    "import": _Verb("make a run directory of a Hugging Face folder", stdout=Stdout.LOG),
    "export": _Verb("write a run's model and tokenizer as a Hugging Face folder", stdout=Stdout.LOG),
    "plot": _Verb(
        "draw the loss curve of a run directory, or rewards and divergence of one that learns from rewards",
        stdout=Stdout.LOG,
    ),
    "fit": _Verb("fit a scaling law to run directories or a table"),
    "predict": _Verb("predict optimal size, loss and the cost of smaller models from a fit"),
    "report": _Verb("write one page about runs: laws, figures, tables", stdout=Stdout.LOG),
    "bench": _Verb("measure the framework itself"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        argv: arguments after the program's name; None = this process's.

    Returns:
        An exit code of ``scaling.exit_codes``. A mistake prints one line, ``scaling VERB: error: sentence``, on stderr.
        Exceptions that are bugs are raised.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    verb = _first_word(argv)
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


def program() -> NoReturn:
    """The command ``scaling``: ``main``, and then the end of the process.

    After a failure, threads of libraries may still wait, as for an object store that refuses; the process has said why
    it ends, and ends whatever they do.
    """
    code = main()
    if code:
        last = threading.Timer(_LAST_SECONDS, os._exit, [code])
        last.daemon = True
        last.start()
    sys.exit(code)


def _run(argv: list[str]) -> int:
    from scaling.config.files import split_arguments

    config, overrides, rest = split_arguments(argv, _kind(_first_word(argv)))
    parser = _parser(_first_word(rest))
    options = parser.parse_args(rest)
    if not hasattr(options, "run"):
        parser.print_help()
        return exit_codes.USAGE
    if (config or overrides) and not options.takes_config:
        raise ValueError(f"{config or overrides[0]}: this verb takes no --config")
    options.config, options.overrides = config, overrides
    _at_home(options, verb=_first_word(rest))
    output.begin(options.stdout)
    platforms.leave_out_tpu(os.environ)
    code = options.run(options) or exit_codes.OK
    if (lost := output.lost()) and options.stdout is not Stdout.LOG:
        raise lost
    return code


def _kind(verb: str) -> "Kind[Any]":
    """Which knobs a verb's config has.

    Raises:
        ValueError: the verb's packages are not installed.
    """
    if verb == "data":
        try:
            from scaling.corpus.config import CORPUS
        except ModuleNotFoundError as error:
            if str(error.name).startswith("scaling"):
                raise
            raise ValueError(f"data needs the package {error.name}: pip install 'scaling[data]'") from None
        return CORPUS
    from scaling.config.kind import TRAINING

    return TRAINING


def _first_word(argv: Sequence[str]) -> str:
    return next((argument for argument in argv if not argument.startswith("-")), "")


def _at_home(options: argparse.Namespace, verb: str) -> None:
    """Expands ``~`` in all options except texts, and refuses folders that cannot be written to."""
    for name, value in vars(options).items():
        expand = each_expanded if name == "tasks" else expanded
        if name in _TEXTS or name in ("config", "overrides"):
            continue
        if isinstance(value, str):
            setattr(options, name, expand(value))
        elif isinstance(value, list):
            setattr(options, name, [expand(one) if isinstance(one, str) else one for one in value])
    for name in ("output", "out"):
        if getattr(options, name, None) is not None and verb not in _INTO_STORES:
            must_be_local(f"--{name}", getattr(options, name))
    if getattr(options, "output", None) is not None:
        must_lead_somewhere(options.output)
    for path in [getattr(options, "output", None), *getattr(options, "runs", []), *getattr(options, "models", [])]:
        if path is not None and not is_url(path):
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


def _parser(asked: str) -> Parser:
    """The parser of the command line. Only the verb that is asked for is imported and gets its options."""
    parser = Parser(
        prog="scaling",
        description="Train any GPT-3 size from one config, on any mesh.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"scaling {__version__}")
    verbs = add_verbs(parser)
    for name, verb in _VERBS.items():
        options = add_verb(verbs, name, verb.help, takes_config=verb.takes_config, stdout=verb.stdout)
        if name == asked:
            module = importlib.import_module(f"scaling.commands.{name}{'_' * keyword.iskeyword(name)}")
            options.set_defaults(run=getattr(module, "run", None))
            module.add_options(options)
    return parser
