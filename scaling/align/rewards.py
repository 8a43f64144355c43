"""What scores answers to prompts, given as one text: a reward model's run, a Python function, or one that ships."""

import decimal
import numbers
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from scaling.align.reward import ending
from scaling.align.score import Scorer
from scaling.align.score import load as load_scorer
from scaling.config import schema as cfg
from scaling.config.files import mistake, opened
from scaling.config.refusal import shown
from scaling.data.chat.dialogues import Skipped, with_system
from scaling.data.chat.prompts import Prompt
from scaling.data.chat.template import ASSISTANT, Chat, read_template, shortened
from scaling.data.tokenizer import Tokenizer
from scaling.generate.generator import batch_shape
from scaling.runs.config_json import read_config_json
from scaling.runs.paths import TEMPLATE

Reward = Callable[[Sequence[Prompt], Sequence[str]], np.ndarray]
"""Takes prompts and as many answers, one for each; returns float32 [n], all of them finite; more is better."""

_NUMBER = re.compile(r"(?:(?<!\d)-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")  # "3-4" holds 3 and 4
_MARK = "####"  # GSM8K's, before the answer


def load(spec: str, axes: str = "", dtype: str = "float32", batch_size: int = 8) -> Reward:
    """The reward that a text names.

    Args:
        spec: a name of ``SHIPPED``, or ``FILE.py:FUNCTION``, or the run directory of a reward model. A folder that has
            the name of a shipped one is written ``./NAME``.
        axes: devices of a reward model, as in ``fsdp=2,tensor=4``; empty = one device.
        dtype: of its matrix products.
        batch_size: texts that it reads at a time.

    Raises:
        FileNotFoundError: no such file or run.
        ValueError: no such function, a file that raises, or a run that is no reward model.
    """
    if (function := of_texts(spec)) is not None:
        return function
    scorer, words = load_scorer(spec, axes, dtype)
    chat = cfg.freeze(read_config_json(spec)["config"]).chat
    return ByModel(scorer, words, template_of(spec, chat), chat.system, batch_size)


def template_of(run: str, chat: cfg.Chat) -> str:
    """The chat template of a run's training, of the run's copy if there is one; empty = the tokenizer's own.

    Raises:
        FileNotFoundError, ValueError: as ``read_template``.
    """
    kept = epath.Path(run) / TEMPLATE
    return read_template(str(kept) if kept.exists() else chat.template)


def of_texts(spec: str) -> Reward | None:
    """The function that a text names; None if it names a run.

    Raises:
        FileNotFoundError, ValueError: as ``load``.
    """
    if spec in SHIPPED:
        return _each(SHIPPED[spec])
    path, _, function = spec.rpartition(":")
    if path.endswith(".py"):
        return _Function(path, function)
    if spec.endswith(".py"):
        raise ValueError(f"the reward {spec} names no function; write {spec}:FUNCTION")
    try:
        read_config_json(spec)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"there is no reward {spec}: it must be the run directory of a reward model, FILE.py:FUNCTION, or one that "
            f"ships, {' or '.join(SHIPPED)} ({error})"
        ) from None
    return None


class ByModel:
    """A reward model, which reads each dialogue by its own chat template.

    A dialogue that is longer than its context loses its oldest turns, aloud.

    Args:
        scorer: the model.
        words: its tokenizer.
        template: its chat template; empty = the tokenizer's own.
        system: system message of dialogues that have none, as in its training; empty = none.
        batch_size: texts at a time, rounded up to what the model's devices share equally.
    """

    def __init__(
        self, scorer: Scorer, words: Tokenizer, template: str = "", system: str = "", batch_size: int = 8
    ) -> None:
        self._scorer, self._chat, self._system = scorer, Chat(words, template), system
        self._batch_size, _ = batch_shape(batch_size, 1, 1, scorer.mesh)
        self._noted = Skipped(refuses=False)

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> np.ndarray:
        """See ``Reward``.

        Raises:
            ValueError: a dialogue whose last turn alone is too long, or which the template refuses, or a reward that is
                not finite; the message names the prompt.
        """
        texts = [self._ids(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        return _checked(list(self._scorer(texts, self._batch_size)), prompts, "the reward model")

    def _ids(self, prompt: Prompt, answer: str) -> np.ndarray:
        most = self._scorer.network.model.context_length
        messages = [*with_system(list(prompt.messages), self._system), {"role": ASSISTANT, "content": answer}]
        for kept, forgotten in shortened(messages):
            try:
                ids = ending(self._chat, tuple(dict(message) for message in kept))
            except ValueError as error:
                raise ValueError(f"{prompt.where}: {error}") from None
            if len(ids) <= most:
                if forgotten:
                    self._noted.note(prompt.where, "the reward model reads it without its oldest turns, to fit")
                return ids
        raise ValueError(
            f"{prompt.where}: prompt and answer have {len(ids)} tokens, and the reward model reads at most {most}; "
            "answers must be shorter, or the prompt left out"
        )


class _Function:
    """A function of a user's Python file; it takes the records and the answers, and returns a number for each."""

    def __init__(self, path: str, name: str) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path} with the reward {name}")
        self._path, self._name = path, f"{path}:{name}"
        self._function: Any = getattr(opened(path), name, None)
        if not callable(self._function):
            raise ValueError(f"{path} has no function {name}()")

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> np.ndarray:
        """See ``Reward``.

        Raises:
            ValueError: the function raises, or does not return a finite number for each answer.
        """
        assert len(prompts) == len(answers)
        try:
            found = self._function([dict(prompt.record) for prompt in prompts], list(answers))
        except Exception as error:
            raise mistake(self._path, error) from error
        if hasattr(found, "__array__"):
            found = list(np.atleast_1d(np.asarray(found)))
        if not isinstance(found, list | tuple):
            raise ValueError(f"{self._name} must return a list of numbers, and returned {shown(found)}")
        return _checked(found, prompts, self._name)


def _each(score: Callable[[dict[str, Any], str], float]) -> Reward:
    """A reward of a function of one record and one answer."""

    def reward(prompts: Sequence[Prompt], answers: Sequence[str]) -> np.ndarray:
        found = []
        for prompt, answer in zip(prompts, answers, strict=True):
            try:
                found.append(score(prompt.record, answer))
            except ValueError as error:
                raise ValueError(f"{prompt.where}: {error}") from None
        return np.asarray(found, np.float32)

    return reward


def _checked(found: Sequence[Any], prompts: Sequence[Prompt], name: str) -> np.ndarray:
    """Rewards as float32 [n].

    Raises:
        ValueError: too few or too many, or one that is no finite number.
    """
    if len(found) != len(prompts):
        raise ValueError(f"{name} must return a number for each of {len(prompts)} answers, and returned {len(found)}")
    rewards = np.zeros(len(found), np.float32)
    for i, (each, prompt) in enumerate(zip(found, prompts, strict=True)):
        value = each.item() if isinstance(each, np.generic) else each
        if not isinstance(value, numbers.Real):
            raise ValueError(f"{prompt.where}: the reward of an answer by {name} is {shown(value)}, which is no number")
        with np.errstate(over="ignore"):
            try:
                rewards[i] = float(value)
            except OverflowError:  # a whole number that is larger than any float
                rewards[i] = np.inf
        if not np.isfinite(rewards[i]):
            raise ValueError(f"{prompt.where}: the reward of an answer by {name} is {shown(value)}; it must be finite")
    return rewards


def exact_match(record: dict[str, Any], answer: str) -> float:
    """1 if the answer is that of the record's field "answer", and else 0.

    Of either text only what follows the last ``####`` counts, if there is one (GSM8K, arXiv 2110.14168, ends its
    solutions so). If the record's answer is a number, the last number of the text must have the same value; commas
    between thousands are left out. Otherwise the two must be equal but for blanks at their ends.

    Raises:
        ValueError: the record has no such field, or it is neither a text nor a number, or empty.
    """
    wanted = record.get("answer")
    if isinstance(wanted, bool) or not isinstance(wanted, str | int | float):
        raise ValueError('the reward exact_match needs a text or a number in the field "answer"')
    expected, said = (text.rpartition(_MARK)[2].strip() for text in (str(wanted), answer))
    if not expected:
        raise ValueError('the field "answer" is empty, which the reward exact_match cannot compare with')
    if _NUMBER.fullmatch(expected):
        numbers_said = _NUMBER.findall(said)
        return float(bool(numbers_said) and _value(numbers_said[-1]) == _value(expected))
    return float(said == expected)


def _value(number: str) -> decimal.Decimal:
    return decimal.Decimal(number.replace(",", ""))


def constraints(record: dict[str, Any], answer: str) -> float:
    """The share of the record's constraints that the answer follows (IFEval, arXiv 2311.07911: the strict reading).

    The record has ``instruction_id_list``, and ``kwargs`` with an object for each.

    Raises:
        ValueError: a record without them, or with an unknown constraint.
    """
    from scaling.evaluate.constraints import follows

    names, arguments = record.get("instruction_id_list", []), record.get("kwargs", [])
    fine = isinstance(names, list) and isinstance(arguments, list) and 0 < len(names) == len(arguments)
    if not fine or not all(isinstance(name, str) for name in names) or not all(isinstance(a, dict) for a in arguments):
        raise ValueError(
            "the reward constraints needs the fields instruction_id_list, and kwargs with an object for each"
        )
    followed = [follows(name, each, answer) for name, each in zip(names, arguments, strict=True)]
    return sum(followed) / len(followed)


SHIPPED = {"exact_match": exact_match, "constraints": constraints}
