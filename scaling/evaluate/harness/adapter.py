"""EleutherAI's lm-evaluation-harness (lm_eval, an extra) on our models: an adapter, and its results as ours."""

import contextlib
import importlib
import logging
import math
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scaling.evaluate.harness.requests import Answers
from scaling.evaluate.scoring import metrics
from scaling.evaluate.scoring.records import Result, Sample
from scaling.evaluate.tasks.task import nearest
from scaling.interop.served import Served

if TYPE_CHECKING:
    from lm_eval.api.model import LM

GROUP = "harness"  # of results
SEED = 1234  # lm_eval's own
_NO_FILTER = "none"


def adapter(served: Served, seed: int = 0) -> "LM":
    """The model in the form that lm_eval's functions take, for instance
    ``lm_eval.simple_evaluate(model=adapter(served))``.

    Raises:
        ValueError: lm_eval is not installed.
    """
    _require()
    from lm_eval.api.model import LM

    answers = Answers(served, seed)

    class Adapter(LM):
        @property
        def tokenizer_name(self) -> str:
            return served.words.name.replace("/", "__")

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return answers.loglikelihoods([request.args for request in requests])

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            return answers.rolling([request.args[0] for request in requests])

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return answers.continuations([request.args for request in requests])

    return Adapter()


class Tasks:
    """Tasks of lm_eval by name, found before any model is loaded.

    Args:
        names: with commas: of tasks, groups or tags, patterns with ``*``, or paths of task files (``.yaml``).
        shots: numbers with commas; None = what each task's file says.
        data: directory of further task files (lm_eval's ``include_path``).
        limit: the first so many items of each task; None = all.
        seed: of demonstrations and of sampled answers.

    Raises:
        FileNotFoundError: no such directory.
        ValueError: lm_eval is not installed, no or an unknown task (the nearest is named), shots or limit that make
            no sense.
    """

    def __init__(
        self,
        names: str,
        shots: str | None = None,
        data: str | None = None,
        limit: int | None = None,
        seed: int | None = None,
    ):
        wanted = [name.strip() for name in names.split(",") if name.strip()]
        if not wanted:
            raise ValueError("no task is named; --tasks takes names of lm-evaluation-harness, with commas")
        self._shots = _shots(shots)
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        if data is not None and not Path(data).is_dir():
            raise FileNotFoundError(f"--data={data}: no such directory")
        self._limit, self._seed = limit, SEED if seed is None else seed
        _require()
        from lm_eval.tasks import TaskManager

        # Reading the thousands of files that lm_eval ships takes seconds; local tasks do without.
        self._manager = TaskManager(include_path=data, include_defaults=False)
        if not set(wanted) <= set(self._manager.all_subtasks):
            self._manager = TaskManager(include_path=data)
        self._names = list(dict.fromkeys(found for name in wanted for found in self._found(name)))

    def evaluate(self, served: Served) -> Iterator[Result]:
        """The results of every task at every number of shots, one named task after the other.

        A group of lm_eval with a score of its own is a result too; our group for its tasks has its name.

        Raises:
            OSError: data that cannot be read or downloaded.
            ValueError: a task that needs a package that is not installed, or something that the model cannot do.
        """
        model = adapter(served, self._seed)
        seen = set()
        for name in self._names:
            for shots in self._shots:
                for result in self._one(model, name, shots):
                    if (result.task, result.shots) not in seen:  # a task that fixes its number of shots comes once
                        seen.add((result.task, result.shots))
                        yield result

    def _found(self, name: str) -> list[str]:
        if "*" in name and (found := self._manager.match_tasks([name])):
            return list(found)
        if name in self._manager.task_index or (name.endswith(".yaml") and Path(name).is_file()):
            return [name]
        near = nearest(name, self._manager.all_tasks)
        raise ValueError(f"{name} is no task of lm-evaluation-harness; did you mean {near}? --data adds local ones")

    def _one(self, model: "LM", name: str, shots: int | None) -> list[Result]:
        from lm_eval import evaluate

        # Some tasks shuffle when they are loaded; lm_eval.simple_evaluate sets these seeds before.
        random.seed(0)
        np.random.seed(SEED)
        with _contained():
            loaded = self._load(name)
            notes = {task: _set_shots(loaded["tasks"][task], shots, self._seed) for task in loaded["tasks"]}
            found = evaluate(model, loaded, limit=self._limit, bootstrap_iters=metrics.RESAMPLES, log_samples=True)
        return list(_results(found, loaded, notes))

    def _load(self, name: str) -> dict[str, Any]:
        try:
            return self._manager.load([name])
        except ImportError as error:
            raise ValueError(f"task {name} needs a package that is not installed: {error}") from error
        except OSError as error:  # those of datasets and huggingface_hub are among them
            sentence = (
                f"task {name}: its data cannot be loaded ({' '.join(str(error).split())[:200]}); offline, a task file "
                "under --data can read local files with dataset_path: json"
            )
            raise (FileNotFoundError if isinstance(error, FileNotFoundError) else OSError)(sentence) from error


def _require() -> None:
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # before the import: no progress bars in files
    try:
        importlib.import_module("lm_eval")
    except ImportError:
        raise ValueError("--harness needs lm-evaluation-harness; pip install 'scaling[harness]'") from None


def _shots(text: str | None) -> list[int | None]:
    if text is None:
        return [None]
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--shots={text} must be numbers with commas, such as 0,5; with --harness there is no 'few'")
    return list(dict.fromkeys(map(int, parts)))


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """Keeps lm_eval in one process (its bootstrap would fork one that runs JAX), off stdout, and silent but for errors.

    Among its warnings is one that the number of shots was set, which we did ourselves.
    """
    os.environ["DISABLE_MULTIPROC"] = "1"
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)


def _set_shots(task: Any, shots: int | None, seed: int) -> tuple[str, ...]:
    """Sets the number of demonstrations as lm_eval.simple_evaluate does; a note if the task does not allow it."""
    own = task.get_config("num_fewshot")
    task.set_fewshot_seed(seed=seed)
    if own == 0 and shots:
        return (f"{task.task_name}: its file fixes the number of shots at 0",)
    if own is None or shots is not None:
        task.set_config(key="num_fewshot", value=shots or 0)
    return ()


def _results(
    found: Mapping[str, Any], loaded: Mapping[str, Any], notes: Mapping[str, tuple[str, ...]]
) -> Iterator[Result]:
    parents = {
        task.task_name: f"{GROUP}/{name}"
        for name, group in loaded.get("groups", {}).items()
        if group.has_aggregation
        for task in group.get_all_tasks()
    }
    for name, task in loaded["tasks"].items():
        samples = found["samples"][name]
        shots = int(found["n-shot"][name])
        yield Result(
            task=name,
            group=parents.get(name, GROUP),
            shots=shots,
            shots_used=float(shots),  # prompts that do not fit lose tokens at the front, so the number is not known
            scores=_scores(found["results"][name], samples, task.aggregation()),
            count=int(found["n-samples"][name]["effective"]),
            chance=None,
            samples=tuple(map(_sample, samples)),
            notes=notes[name],
        )
    for name, values in found.get("groups", {}).items():
        shots = int(found["n-shot"].get(name, 0))
        scores = _scores(values, [], {})
        yield Result(name, GROUP, shots, scores, int(values["sample_len"]), None, (), (), shots_used=float(shots))


def _scores(
    values: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], aggregation: Mapping[str, Callable[[list], float]]
) -> dict[str, tuple[float, float]]:
    """Metrics with standard errors: lm_eval's, or by a bootstrap over the items where it has none; else NaN."""
    scores = {}
    for key, value in values.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, Real):
            continue
        error = values.get(f"{metric}_stderr,{filtered}")
        if not isinstance(error, Real):
            items = [sample[metric] for sample in samples if sample["filter"] == filtered and metric in sample]
            error = _bootstrap(aggregation[metric], items) if items and metric in aggregation else math.nan
        scores[_clean(metric, filtered)] = (float(value), float(error))
    return scores


def _bootstrap(aggregate: Callable[[list], float], items: Sequence[Any]) -> float:
    return metrics.bootstrap_error(lambda places: float(aggregate([items[place] for place in places])), len(items))


def _clean(metric: str, filtered: str) -> str:
    """``acc`` for lm_eval's ``acc,none``; the name of any other filter is kept."""
    return metric if filtered == _NO_FILTER else f"{metric},{filtered}"


def _sample(logged: Mapping[str, Any]) -> Sample:
    """One item from lm_eval's log. The answer to choices is the likeliest one."""
    arguments, responses = logged["arguments"], logged["filtered_resps"]
    expected, answer = str(logged["target"]), ""
    likelihoods: tuple[float, ...] = ()
    if isinstance(arguments[0][-1], Mapping):
        answer = str(responses[0])
    elif len(arguments[0]) == 1:
        likelihoods = (float(responses[0]),)
    else:
        likelihoods = tuple(float(logprob) for logprob, _ in responses)
        best = max(range(len(likelihoods)), key=likelihoods.__getitem__)
        answer = arguments[best][1] if len(responses) > 1 or responses[0][1] else ""
        if isinstance(logged["target"], int) and 0 <= logged["target"] < len(arguments):
            expected = arguments[logged["target"]][1]
    scores = {name: float(logged[name]) for name in logged["metrics"] if isinstance(logged[name], Real)}
    suffix = "" if logged["filter"] == _NO_FILTER else f"/{logged['filter']}"
    return Sample(f"{logged['doc_id']}{suffix}", str(arguments[0][0]), answer, expected, scores, likelihoods)
