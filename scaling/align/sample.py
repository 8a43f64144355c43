"""A model's own answers as data: the best of N as dialogues (rejection sampling), or best and worst as pairs."""

import collections
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from scaling import durable, json_text
from scaling.align.rewards import Reward
from scaling.data.chat import prompts as chat_prompts
from scaling.data.chat.dialogues import Skipped
from scaling.data.chat.prompts import Prompt
from scaling.data.chat.template import ASSISTANT
from scaling.generate.answers import Answers
from scaling.generate.conversation import NoRoom
from scaling.generate.generator import Completion
from scaling.runs import json_lines

log = logging.getLogger(__name__)

_BATCHES = 4  # of answers, between two writes


class Asked(NamedTuple):
    """A prompt and its number in the file."""

    number: int
    prompt: Prompt


class Summary(NamedTuple):
    """What a file of answers has.

    Attributes:
        written: prompts in the file.
        left_out: prompts that are not in it.
        mean: reward of an answer.
        best: reward of the best answer of a prompt, in the mean.
        cut: share of this time's answers that reached the limit of tokens.
    """

    written: int
    left_out: int
    mean: float
    best: float
    cut: float


def read_prompts(pattern: str, answers: Answers, skipped: Skipped, system: str = "") -> list[Asked]:
    """The prompts of a file that the model can answer.

    Args:
        pattern: as of ``prompts.read``.
        answers: the model.
        skipped: where the others go.
        system: system message of prompts that have none; empty = none.

    Raises:
        FileNotFoundError, ValueError: as ``prompts.read``.
    """
    found = []
    for number, prompt in enumerate(chat_prompts.read(pattern, skipped, system)):
        try:
            answers.framed(prompt)
        except NoRoom:
            context = answers.generator.config.context_length
            skipped.skip(prompt.where, f"it leaves no room for an answer in the model's context of {context} tokens")
        except ValueError as error:
            skipped.skip(prompt.where, str(error))
        else:
            found.append(Asked(number, prompt))
    skipped.summary()
    if not found:
        raise ValueError(f"{pattern}: no prompt in it can be answered")
    return found


class Output:
    """The file of answers, a line for a prompt, in the order of the prompts; it goes on where it ended.

    A file beside it, ``<file>.settings.json``, has what the answers were made with.

    Args:
        path: of the file, ``.jsonl``.
        settings: what decides the answers.

    Attributes:
        records: the lines that it has already.

    Raises:
        ValueError: it was made with other settings, or is damaged.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        if path.suffix != ".jsonl":
            raise ValueError(f"--out={path} must be a local file whose name ends in .jsonl")
        durable.check_writable(path)
        self.path, self._settings = path, dict(settings)
        self._beside = path.with_name(f"{path.name}.settings.json")
        self.records = json_lines.read_lines(epath.Path(path))
        if path.exists() and not self._beside.exists():
            raise ValueError(f"{path} exists, and `scaling align sample` did not make it; give another --out")
        if self._beside.exists():
            self._check(json_text.parse(self._beside.read_bytes(), str(self._beside)))

    def _check(self, made_with: Any) -> None:
        for key, value in self._settings.items():
            before = made_with.get(key) if isinstance(made_with, dict) else None
            if before != value:
                raise ValueError(
                    f"{self.path} was made with {key}={before!r}, and now it is {value!r}; give another --out, or "
                    f"delete the file and {self._beside.name}"
                )

    def left(self, asked: Sequence[Asked]) -> list[Asked]:
        """The prompts after the last one in the file.

        Raises:
            ValueError: the file has other prompts at the same places.
        """
        by_number = {each.number: each.prompt for each in asked}
        last = -1
        for line, record in enumerate(self.records, start=1):
            number, messages = record.get("number"), record.get("messages")
            if type(number) is not int or not isinstance(messages, list) or "rewards" not in record:
                raise ValueError(f"{self.path}:{line} is no line of `scaling align sample`; give another --out")
            prompt = by_number.get(number)
            if prompt is None or list(prompt.messages) != messages[: len(messages) - ("chosen" not in record)]:
                raise ValueError(f"{self.path}:{line} answers a prompt that is not among these; give another --out")
            last = max(last, number)
        return [each for each in asked if each.number > last]

    def open(self) -> json_lines.JsonLines:
        """Opens the file for writing, without a line that was cut by a kill."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        durable.replace_text(self._beside, json.dumps(self._settings, indent=2) + "\n", synced=True)
        return json_lines.JsonLines(epath.Path(self.path), lambda record: False)


def sample(
    answers: Answers,
    reward: Reward,
    asked: Sequence[Asked],
    output: Output,
    worst: bool,
    watch: Callable[[int], None] = lambda done: None,
) -> Summary:
    """Answers the prompts that are left, and writes what can be learned from.

    An answer that is empty, or that was cut at the limit of tokens, is no candidate: to train on it is to learn to say
    nothing, or to end in the middle. What a prompt is answered with depends on its number and the seed alone, so a
    file that was interrupted becomes the same.

    Args:
        answers: the model, with the number of answers to a prompt.
        reward: of answers.
        asked: all prompts.
        output: the file.
        worst: write pairs of the best and the worst answer in the place of dialogues with the best.
        watch: is told how many prompts are done.

    Raises:
        ValueError: as ``Output.left`` and ``Reward``; what was written before stays.
    """
    left = output.left(asked)
    noted, finishes = Skipped(refuses=False), collections.Counter[str]()
    step = max(1, _BATCHES * answers.batch_size // answers.sampling.num_samples)
    written = list(output.records)
    lines = output.open()
    try:
        for first in range(0, len(left), step):
            watch(len(asked) - len(left) + first)
            chunk = left[first : first + step]
            found = answers([each.prompt for each in chunk], [each.number for each in chunk])
            finishes.update(completion.finish for completions in found for completion in completions)
            for record in _records(chunk, found, reward, worst, noted):
                lines.write(record)
                written.append(record)
    finally:
        lines.close()
    durable.sync([output.path])
    noted.summary()
    rewards = [record["rewards"] for record in written]
    every = [value for values in rewards for value in values]
    return Summary(
        len(written),
        len(asked) - len(written),
        sum(every) / max(1, len(every)),
        sum(map(max, rewards)) / max(1, len(rewards)),
        finishes["length"] / max(1, finishes.total()),
    )


def _records(
    chunk: Sequence[Asked], found: Sequence[Sequence[Completion]], reward: Reward, worst: bool, noted: Skipped
) -> list[dict[str, Any]]:
    """Lines of the prompts that have something to learn from."""
    texts = [
        [completion.text for completion in completions if completion.text.strip() and completion.finish != "length"]
        for completions in found
    ]
    prompts = [each.prompt for each, mine in zip(chunk, texts, strict=True) for _ in mine]
    values = iter(reward(prompts, [text for mine in texts for text in mine]).tolist()) if prompts else iter([])
    records = []
    for (number, prompt), mine in zip(chunk, texts, strict=True):
        rewards = [next(values) for _ in mine]
        messages = list(prompt.messages)
        if len(mine) < 1 + worst:
            few = "fewer than two answers have" if worst else "no answer has"
            noted.note(prompt.where, f"left out: {few} text and an end")
        elif not worst:
            best = mine[rewards.index(max(rewards))]
            said = {"messages": [*messages, {"role": ASSISTANT, "content": best}]}
            records.append({**said, "rewards": rewards, "number": number})
        elif min(rewards) == max(rewards):
            noted.note(prompt.where, "left out: all answers have the same reward")
        else:
            pair = {"chosen": mine[rewards.index(max(rewards))], "rejected": mine[rewards.index(min(rewards))]}
            records.append({"messages": messages, **pair, "rewards": rewards, "number": number})
    return records
