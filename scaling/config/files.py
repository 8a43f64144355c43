"""Reads experiment files and ``--config.a.b=value`` overrides, and reports every mistake in one sentence."""

import dataclasses
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from scaling import json_text
from scaling.config.kind import TRAINING, Kind
from scaling.config.refusal import cut, shown
from scaling.config.refusal import kind as kind_of
from scaling.config.schema import Config, built, default_config, freeze, to_dict
from scaling.config.shipped import located
from scaling.object_store import is_remote
from scaling.paths import each_expanded, expanded

C = TypeVar("C")

_VERB_OF = {"get_config": "train", "get_sweep": "sweep", "get_corpus": "data build"}
_OVERRIDE = re.compile(r"--?(?P<no>no)?(?P<name>config\.[^=]*)(=(?P<value>.*))?", re.DOTALL)


def split_arguments(argv: Sequence[str], kind: Kind[Any] = TRAINING) -> tuple[str | None, list[str], list[str]]:
    """Takes ``--config`` and ``--config.a.b``, knobs of a kind of experiment, out of a command line.

    Returns:
        (value of ``--config`` or None, overrides as ``--config.a.b=value``, everything else in order).

    Raises:
        ValueError: an unknown knob, or a knob without a value.
    """
    spec, overrides, rest = None, [], []
    arguments = iter(argv)
    for argument in arguments:
        match = _OVERRIDE.fullmatch(argument)
        if argument in ("--config", "-config"):
            spec = expanded(_next(arguments, "--config", "an experiment file"))
        elif argument.startswith(("--config=", "-config=")):
            spec = expanded(argument.split("=", 1)[1])
        elif match:
            name, value = match["name"], match["value"]
            kind.check(name)
            if isinstance(kind.defaults[name], bool):
                value = "false" if match["no"] else "true" if value is None else value
            elif match["no"]:
                raise ValueError(f"--no{name}: only a true-or-false knob can be switched off with 'no'")
            elif value is None:
                value = _next(arguments, f"--{name}", kind.expected(name))
            overrides.append(f"--{name}={kind.normal(name, value)}")
        else:
            rest.append(argument)
    return spec, overrides, rest


def load(spec: str | None, overrides: Sequence[str] = ()) -> Config:
    """Runs ``get_config`` of an experiment file, or reads the config of a run, and applies the overrides.

    Args:
        spec: ``FILE`` or ``FILE:argument`` (the argument is passed to ``get_config``), where FILE may be the name of an
            experiment that ships (``scaling.config.shipped``), or the ``config.json`` of a run, whose folder is then
            the run directory; None = all defaults.
        overrides: ``--config.a.b=value``, as ``split_arguments`` returns them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file raises, has no ``get_config``, sets an unknown knob or a wrong type (with file
            and line), or an override has a wrong type.
    """
    if spec is not None and spec.endswith(".json"):
        return _load_json(spec, overrides)
    return apply_overrides(default_config() if spec is None else from_file(TRAINING, spec), overrides)


def edited(kind: Kind[C], config: ConfigDict, overrides: Sequence[str]) -> C:
    """Freezes a config after ``--config.a.b=value`` overrides.

    Raises:
        ValueError: an override of a wrong type, or a key that is no knob.
    """
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=list(overrides))
    try:
        values(["scaling", *overrides])
    except flags.Error as error:
        raise _wrong_override(error, kind) from error
    except ValueError as error:  # the tuple parser's own
        raise ValueError(f"command line: {' '.join(str(error).split())}") from error
    return built(type(kind.root), holder.value.to_dict(), "config")


def apply_overrides(config: ConfigDict, overrides: Sequence[str]) -> Config:
    """The config of a training after ``--config.a.b=value`` overrides, with ``~`` in paths expanded.

    Raises:
        ValueError: an override of a wrong type.
    """
    return _at_home(edited(TRAINING, config, overrides))


def _at_home(config: Config) -> Config:
    """The config with ``~`` expanded in all knobs that are or may be paths."""
    data, evaluation, rl = config.data, config.eval, config.rl
    mixture = tuple((expanded(one[0]), *one[1:]) if _is_named(one) else one for one in data.mixture)
    return dataclasses.replace(
        config,
        workdir=expanded(config.workdir),
        start=expanded(config.start),
        align=dataclasses.replace(config.align, demonstrations=expanded(config.align.demonstrations)),
        chat=dataclasses.replace(config.chat, template=expanded(config.chat.template)),
        rl=dataclasses.replace(
            rl, reward=expanded(rl.reward), gold=expanded(rl.gold), pretraining=expanded(rl.pretraining)
        ),
        distill=dataclasses.replace(config.distill, teacher=expanded(config.distill.teacher)),
        data=dataclasses.replace(
            data,
            train=expanded(data.train),
            validation=expanded(data.validation),
            mixture=mixture,
            tokenizer=expanded(data.tokenizer),
            cache_dir=expanded(data.cache_dir),
        ),
        eval=dataclasses.replace(
            evaluation, tasks=each_expanded(evaluation.tasks), tasks_data=expanded(evaluation.tasks_data)
        ),
    )


def _is_named(source: Any) -> bool:
    """Whether an entry of the mixture begins with a text. ``resolve`` refuses entries that are wrong otherwise."""
    return isinstance(source, tuple) and bool(source) and isinstance(source[0], str)


def call(spec: str, function: str, kind: Kind[Any] = TRAINING) -> Any:
    """What ``function`` of an experiment file returns.

    Args:
        spec: ``FILE`` or ``FILE:argument``, where the argument is passed to the function; FILE may be the name of an
            experiment that ships.
        function: one of ``_VERB_OF``.
        kind: whose knobs the file edits; the message of a mistyped one names the nearest of these.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file has no such function, or raises (with file and line).
    """
    path, colon, argument = spec.partition(":")
    path = located(path)
    module = opened(path)
    if not callable(getattr(module, function, None)):
        others = [other for other in _VERB_OF if hasattr(module, other)]
        hint = f", but {others[0]}(): use the verb {_VERB_OF[others[0]]}" if others else ""
        raise ValueError(f"{path} has no function {function}(){hint}")
    try:
        return getattr(module, function)(*([argument] if colon else []))
    except Exception as error:
        raise mistake(path, error, kind) from error


def opened(path: str) -> ModuleType:
    """The module that a user's Python file makes.

    Args:
        path: of a file that exists.

    Raises:
        ValueError: the file raises (with file and line), or is no Python file.
    """
    try:
        return _import(path)
    except SyntaxError as error:
        raise ValueError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        raise mistake(path, error) from error


def is_sweep(spec: str) -> bool:
    """Whether an experiment file describes a sweep and not a single run. False for a file that cannot be read."""
    path = spec.partition(":")[0]
    if path.endswith(".json"):
        return False
    try:
        module = _import(located(path))
    except Exception:
        return False
    return hasattr(module, "get_sweep") and not hasattr(module, "get_config")


def run_name(spec: str) -> str:
    """Name of an experiment's runs: ``experiments/gpt3/125m.py``, ``gpt3/125m`` -> ``125m``; ``f.py:x`` -> ``f-x``."""
    path, _, argument = spec.partition(":")
    name = Path(path).name.removesuffix(".py").removesuffix(".json")
    return name + (f"-{re.sub(r'[^A-Za-z0-9_.=-]+', '-', argument)}" if argument else "")


def _next(arguments: Iterator[str], name: str, expected: str) -> str:
    value = next(arguments, None)
    if value is None or value.startswith("--"):
        raise ValueError(f"{name} needs a value: {expected}")
    return value


def _wrong_override(error: flags.Error, kind: Kind[Any]) -> ValueError:
    match = re.match(r"flag --(?P<name>[\w.]+)=(?P<value>.*?): ", str(error), re.DOTALL)
    if match is None or match["name"] not in kind.defaults:
        return ValueError(" ".join(str(error).split()))
    return kind.wrong_type(match["name"], match["value"])


def from_file(kind: Kind[Any], spec: str) -> ConfigDict:
    """The edited ConfigDict of an experiment file, ``FILE`` or ``FILE:argument``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file raises, has no such function, sets an unknown knob or a wrong type (with file and line).
    """
    config = call(spec, kind.function, kind)
    if not isinstance(config, ConfigDict):
        path = spec.partition(":")[0]
        made = f"{kind.function}() must return the ConfigDict of default_config()"
        raise ValueError(f"{path}: {made}, not {kind_of(config)}")
    return config


def _load_json(path: str, overrides: Sequence[str]) -> Config:
    """The config of a ``config.json`` or ``plan.json``, with the folder of the file as the run directory.

    So a run that was moved or copied is resumed where it lies now, whatever path its file contains. Only the
    ``plan.json`` of a run in an object store may lie elsewhere, on the machine that launched the run.
    """
    file = epath.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"config file {path} does not exist")
    values = json_text.parse(file.read_bytes(), path)
    written = isinstance(values, dict) and "config" in values  # a training wrote it, with versions and devices
    if isinstance(values, dict):
        values = values.get("config", values)
    if not isinstance(values, dict) or not values:
        raise ValueError(f"{path} is not a JSON object of knobs, such as the config.json of a run")
    try:
        config = to_dict(freeze(values))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    beside = is_remote(path) or not is_remote(config["workdir"])
    if (file.name == "config.json" and written) or (file.name == "plan.json" and config["workdir"] and beside):
        config["workdir"] = str(file.parent)
    return apply_overrides(ConfigDict(config).lock(), overrides)


def _import(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("experiment", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
    return module


def mistake(path: str, error: Exception, kind: Kind[Any] = TRAINING) -> ValueError:
    """One sentence for any exception of an experiment file, with the file and, where it is known, the line."""
    here = str(Path(path).absolute())  # as the import names it
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in (path, here)]
    where = f"{path}:{frames[-1].lineno}" if frames else path
    access = _config_access(error, kind)
    if access is not None:
        section, key, value = access
        name = ".".join(part for part in ("config", section, key) if part)
        if isinstance(error, AttributeError | KeyError):
            sections = [] if section else [f"config.{other}" for other in kind.sections.values() if other]
            return ValueError(f"{where}: {name} is not a knob; did you mean {kind.nearest(name, sections)}?")
        if name in kind.defaults:
            return ValueError(f"{where}: {kind.wrong_type(name, value)}")
        return ValueError(f"{where}: {name} is a section of knobs, not a value; got {shown(value)}")
    raised = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return ValueError(f"{where}: {raised}{cut(' '.join(str(error).split()), 500)}")


def _config_access(error: Exception, kind: Kind[Any]) -> tuple[str, str, Any] | None:
    """(section, key, value) of the ConfigDict access that raised, from the arguments of its dunder method."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        code, names = frame.f_code, frame.f_code.co_varnames
        owner = frame.f_locals.get("self")
        methods = ("__setattr__", "__setitem__", "__getattr__", "__getitem__")
        if isinstance(owner, ConfigDict) and code.co_name in methods and code.co_argcount >= 2:
            section = kind.sections.get(tuple(sorted(owner.keys())))
            if section is not None:
                found = (section, str(frame.f_locals[names[1]]), frame.f_locals.get(names[2]))
    return found
