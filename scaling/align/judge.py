"""Which of two models answers better: by a reward, or by a program that reads both answers."""

import hashlib
import json
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from scaling import durable
from scaling.align.answered import Asked, Output
from scaling.align.rewards import Reward
from scaling.align.win_rate import Comparison
from scaling.data import sources
from scaling.data.chat.dialogues import FaultyRecord, messages_of
from scaling.data.chat.prompts import Prompt, messages_asked
from scaling.data.chat.template import ASSISTANT
from scaling.generate.answers import Answers

Judge = Callable[[Sequence[Prompt], Sequence[str], Sequence[str]], list[dict[str, Any]]]
"""Takes prompts, and the answers of A and of B. Returns for each prompt "won", what A won (1, 0, or 0.5 of a tie), and
why: "rewards" of both answers, or "verdicts", what A won when it was read first, and when it was read second."""

_VERDICTS = {"1": 1.0, "2": 0.0, "tie": 0.5}  # what the answer that is read first wins


class Side(Protocol):
    """Answers to prompts."""

    def check(self, prompt: Prompt) -> Any:
        """Raises a ValueError for a prompt that has no answer."""

    def texts(self, asked: Sequence[Asked]) -> list[str]:
        """An answer to each prompt."""


class Model:
    """The answers that a model gives, one to a prompt.

    Args:
        answers: the model.
    """

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def check(self, prompt: Prompt) -> None:
        """See ``Answers.framed``."""
        self._answers.framed(prompt)

    def texts(self, asked: Sequence[Asked]) -> list[str]:
        """See ``Side``."""
        found = self._answers([each.prompt for each in asked], [each.number for each in asked])
        return [completion.text for (completion,) in found]


class Written:
    """Answers that exist already.

    A record is a dialogue as ``dialogues.read`` takes it, or a prompt with "text", as ``scaling generate --json``
    prints it. An answer belongs to the prompts that have the same messages, but for the system's.

    Args:
        pattern: a path or glob of JSON Lines files.

    Attributes:
        digest: hash of the answers.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a record without an answer, or two that answer the same prompt.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._texts: dict[str, tuple[str, str]] = {}  # by the prompt: the answer, and where it is
        for where, record in sources.records(sources.find(pattern)):
            if record.get("best") is False:  # of `generate --best_of --json`
                continue
            try:
                messages, text = _answered(record, where)
            except FaultyRecord as fault:
                raise ValueError(f"{where}: {fault}") from None
            if (before := self._texts.get(_key(messages))) is not None:
                raise ValueError(f"{where} answers the same prompt as {before[1]}; leave one of them out")
            self._texts[_key(messages)] = text, where
        self.digest = hashlib.sha256(json.dumps(sorted(self._texts.items())).encode()).hexdigest()

    def check(self, prompt: Prompt) -> None:
        """See ``Side``."""
        if _key(prompt.messages) not in self._texts:
            raise ValueError(f"{self._pattern} has no answer to it")

    def texts(self, asked: Sequence[Asked]) -> list[str]:
        """See ``Side``."""
        return [self._texts[_key(each.prompt.messages)][0] for each in asked]


def _answered(record: dict[str, Any], where: str) -> tuple[list[dict[str, str]], str]:
    if "text" in record:
        return messages_asked(record, where), sources.text_of(record["text"], "text", where)
    *before, last = messages_of(record, where)
    if last["role"] != ASSISTANT or not before:
        raise FaultyRecord("the last message is not the assistant's answer to a prompt")
    return before, last["content"]


def _key(messages: Sequence[dict[str, str]]) -> str:
    return json.dumps([(message["role"], message["content"]) for message in messages if message["role"] != "system"])


def by_reward(reward: Reward) -> Judge:
    """The answer of the higher reward wins; equal rewards, and equal answers despite rounding, are a tie."""

    def judge(prompts: Sequence[Prompt], of_a: Sequence[str], of_b: Sequence[str]) -> list[dict[str, Any]]:
        found = reward([*prompts, *prompts], [*of_a, *of_b]).tolist()
        pairs = zip(found[: len(prompts)], found[len(prompts) :], of_a, of_b, strict=True)
        return [{"won": 0.5 if a == b or x == y else float(a > b), "rewards": [a, b]} for a, b, x, y in pairs]

    return judge


def by_command(command: str) -> Judge:
    """A program is asked in both orders; a verdict that changes with the order is a tie.

    The program gets JSON objects on its standard input, one a line until the end, with "prompt" (the user's last
    message), "messages", "record", "answer_1" and "answer_2". For each it prints a line: 1, 2 or tie.

    Args:
        command: the program and its arguments; no shell reads it.

    Raises:
        ValueError, FileNotFoundError: there is no such program. The judge raises a ValueError where the program fails.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"--command={command}: {error}") from None
    if not words:
        raise ValueError("--command is empty; name the program that judges")
    if shutil.which(words[0]) is None:
        raise FileNotFoundError(f"--command={command}: there is no program {words[0]}")

    def judge(prompts: Sequence[Prompt], of_a: Sequence[str], of_b: Sequence[str]) -> list[dict[str, Any]]:
        triples = list(zip(prompts, of_a, of_b, strict=True))
        orders = [(prompt, *texts) for prompt, a, b in triples for texts in ((a, b), (b, a))]
        verdicts = _asked(words, command, orders)
        found = []
        for first, second in zip(verdicts[::2], verdicts[1::2], strict=True):
            of_both = [first, 1 - second]
            found.append({"won": first if first == 1 - second else 0.5, "verdicts": of_both})
        return found

    return judge


def _asked(words: list[str], command: str, orders: Sequence[tuple[Prompt, str, str]]) -> list[float]:
    """What the first answer wins in each, by a program."""
    objects = [
        {
            "prompt": prompt.messages[-1]["content"],
            "messages": list(prompt.messages),
            "record": prompt.record,
            "answer_1": first,
            "answer_2": second,
        }
        for prompt, first, second in orders
    ]
    text = "".join(json.dumps(each) + "\n" for each in objects)
    done = subprocess.run(words, input=text.encode(), stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise ValueError(f"--command={command}: the program ended with exit code {done.returncode}")
    lines = [line.strip() for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
    if len(lines) != len(orders):
        raise ValueError(
            f"--command={command}: the program printed {len(lines)} lines for {len(orders)} comparisons; it must print "
            "1, 2 or tie for each"
        )
    for (prompt, _, _), line in zip(orders, lines, strict=True):
        if line.lower() not in _VERDICTS:
            raise ValueError(f"{prompt.where}: --command={command} printed {line[:40]!r}; it must print 1, 2 or tie")
    return [_VERDICTS[line.lower()] for line in lines]


def compare(
    sides: tuple[Side, Side],
    judge: Judge,
    asked: Sequence[Asked],
    output: Output | None,
    batch_size: int,
    watch: Callable[[int], None] = lambda done: None,
) -> list[Comparison]:
    """Judges the answers of A and B to each prompt.

    Args:
        sides: A and B.
        judge: of their answers.
        asked: prompts.
        output: where each comparison becomes a line ("messages", "answers", "won", "rewards" or "verdicts", "number"),
            and those that it has are not made again; None = nowhere.
        batch_size: prompts between two writes.
        watch: is told how many prompts are done.

    Raises:
        ValueError: as ``Judge``, or a file of other prompts; what was written before stays.
    """
    left = list(asked) if output is None else output.left(asked)
    records = [] if output is None else list(output.records)
    lines = None if output is None else output.open()
    try:
        for first in range(0, len(left), batch_size):
            watch(len(asked) - len(left) + first)
            chunk = left[first : first + batch_size]
            prompts = [each.prompt for each in chunk]
            of_a, of_b = (side.texts(chunk) for side in sides)
            for (number, prompt), a, b, found in zip(chunk, of_a, of_b, judge(prompts, of_a, of_b), strict=True):
                record = {"messages": list(prompt.messages), "answers": [a, b], **found, "number": number}
                records.append(record)
                if lines is not None:
                    lines.write(record)
    finally:
        if lines is not None:
            lines.close()
    if output is not None:
        durable.sync([output.path])
    return [_comparison(record) for record in records]


def _comparison(record: dict[str, Any]) -> Comparison:
    of_a, of_b = record["answers"]
    return Comparison(record["won"], (len(of_a), len(of_b)), tuple(record.get("verdicts", ())))
