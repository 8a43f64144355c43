"""Files of answers to prompts: which prompts they answer, and how such a file goes on where it was interrupted."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from scaling import durable, json_text
from scaling.data.chat import prompts as chat_prompts
from scaling.data.chat.dialogues import Skipped
from scaling.data.chat.prompts import Prompt
from scaling.generate.conversation import NoRoom
from scaling.runs import json_lines


class Asked(NamedTuple):
    """A prompt and its number in the file."""

    number: int
    prompt: Prompt


def read_prompts(
    pattern: str, checks: Sequence[Callable[[Prompt], Any]], skipped: Skipped, system: str = ""
) -> list[Asked]:
    """The prompts of a file that can be answered.

    Args:
        pattern: as of ``prompts.read``.
        checks: each raises a ValueError for a prompt that it cannot answer, as ``Answers.framed``.
        skipped: where the others go.
        system: system message of prompts that have none; empty = none.

    Raises:
        FileNotFoundError, ValueError: as ``prompts.read``.
    """
    found = []
    for number, prompt in enumerate(chat_prompts.read(pattern, skipped, system)):
        try:
            for check in checks:
                check(prompt)
        except NoRoom:
            skipped.skip(prompt.where, "it leaves no room for an answer in the context of the model")
        except ValueError as error:
            skipped.skip(prompt.where, str(error))
        else:
            found.append(Asked(number, prompt))
    skipped.summary()
    if not found:
        raise ValueError(f"{pattern}: no prompt in it can be answered")
    return found


class Output:
    """A file of answers, a line for a prompt, in the order of the prompts; it goes on where it ended.

    A line has at least "number", that of the prompt, and "messages", which begin with those of the prompt. A file
    beside it, ``<file>.settings.json``, has what the answers were made with.

    Args:
        path: of the file, ``.jsonl``.
        settings: what decides the lines.

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
            raise ValueError(f"{path} exists, and no verb that reads prompts made it; give another --out")
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
            if type(number) is not int or not isinstance(messages, list):
                raise ValueError(f"{self.path}:{line} has no number and messages of a prompt; give another --out")
            prompt = by_number.get(number)
            if prompt is None or list(prompt.messages) != messages[: len(prompt.messages)]:
                raise ValueError(f"{self.path}:{line} answers a prompt that is not among these; give another --out")
            last = max(last, number)
        return [each for each in asked if each.number > last]

    def open(self) -> json_lines.JsonLines:
        """Opens the file for writing, without a line that was cut by a kill."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        durable.replace_text(self._beside, json.dumps(self._settings, indent=2) + "\n", synced=True)
        return json_lines.JsonLines(epath.Path(self.path), lambda record: False)
