"""Answers that a person ranks, and the two files that remember them: the rankings, and what is not done yet."""

import dataclasses
import hashlib
import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from scaling import durable, json_text
from scaling.data import sources
from scaling.data.chat import dialogues
from scaling.generate.conversation import prompt_of
from scaling.generate.sampling import Sampling
from scaling.runs import json_lines
from scaling.serve.models import Model
from scaling.serve.refusals import Refusal
from scaling.serve.requests import Ask

FEWEST, MOST = 2, 9  # answers to a prompt; InstructGPT had 4 to 9
_TRIES = 4  # draws of an answer that is empty, which cannot be ranked


@dataclasses.dataclass(frozen=True)
class Plan:
    """How answers are made.

    Attributes:
        models: by name; the answers are theirs in turn.
        count: answers to a prompt.
        sampling: of each; its seed is that of all draws.
        system: message of prompts that have none; empty = none.
    """

    models: Mapping[str, Model]
    count: int
    sampling: Sampling
    system: str = ""

    def __post_init__(self) -> None:
        if not FEWEST <= self.count <= MOST:
            raise ValueError(f"--rank={self.count} must be {FEWEST} to {MOST} answers")
        if self.count < len(self.models):
            raise ValueError(f"--rank={self.count} answers are fewer than the {len(self.models)} models")
        for model in self.models.values():
            if model.chat is None:
                raise ValueError(model.without_chat)


class Rankings:
    """The prompts, the answers that wait for a ranking, and the rankings.

    A file beside the rankings, ``<output>.open.json``, has what is not done: answers that were made, with the ranks
    that were given so far, and the prompts that were skipped. The last of the open ones is shown.

    Args:
        plan: how answers are made.
        prompts: dialogues that end with the user.
        output: file of the rankings, to which lines are appended.

    Raises:
        ValueError, OSError: a file that cannot be used.
    """

    def __init__(self, plan: Plan, prompts: Sequence[list[dict[str, str]]], output: Path) -> None:
        durable.check_writable(output)
        self.plan, self._output = plan, output
        self._state = output.with_name(f"{output.name}.open.json")
        done = json_lines.read_lines(epath.Path(output))
        self._done = {record.get("id") for record in done}
        ranked = {_key(record["messages"]) for record in done if isinstance(record.get("messages"), list)}
        state = self._read()
        self._open: list[dict[str, Any]] = [item for item in state["open"] if item["id"] not in self._done]
        self._skipped: list[str] = state["skipped"]
        known = ranked | set(self._skipped) | {_key(item["messages"]) for item in self._open}
        self._left = [prompt for prompt in map(self._framed, prompts) if _key(prompt) not in known]
        self._left.reverse()

    def _read(self) -> dict[str, Any]:
        if not self._state.exists():
            return {"open": [], "skipped": []}
        state = json_text.parse(self._state.read_bytes(), str(self._state))
        if not isinstance(state, dict) or not all(isinstance(state.get(key), list) for key in ("open", "skipped")):
            raise ValueError(f"{self._state} is damaged; move it away to begin without it")
        return state

    def _save(self) -> None:
        durable.replace_text(
            self._state, json.dumps({"open": self._open, "skipped": self._skipped}) + "\n", synced=True
        )

    def _framed(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        return dialogues.with_system(messages, self.plan.system)

    def current(self) -> dict[str, Any] | None:
        """The item that is shown: "id", "messages", "answers" (empty until they are made) and "ranks"; None = none."""
        if not self._open and self._left:
            self._add(self._left.pop())
        return self._open[-1] if self._open else None

    def counts(self) -> dict[str, int]:
        """How many rankings are done, and how many prompts are left, the shown one with them."""
        return {"done": len(self._done), "left": len(self._left) + len(self._open)}

    def ask(self, text: str) -> None:
        """Puts a prompt of the person before the others.

        Raises:
            Refusal: an empty one, or one that does not fit.
        """
        if not text.strip():
            raise Refusal("the prompt is empty", param="prompt")
        messages = self._framed([{"role": "user", "content": text}])
        for name in self.plan.models:
            self._prompt(name, messages)
        self._add(messages)

    def _add(self, messages: list[dict[str, str]]) -> None:
        number = sum(_key(item["messages"]) == _key(messages) for item in self._open)
        made = f"{_key(messages)}-{time.time_ns():x}-{number}"
        self._open.append({"id": made, "messages": messages, "answers": [], "ranks": []})
        self._save()

    def asks(self, item: dict[str, Any], attempt: int) -> list[Ask]:
        """What must be computed for the answers of an item: a request for each model.

        Raises:
            Refusal: the prompt leaves no room for an answer.
        """
        found = []
        for number, name in enumerate(self.plan.models):
            prompt = self._prompt(name, item["messages"])
            model = self.plan.models[name]
            assert model.chat is not None and model.generator.words is not None
            sampling = dataclasses.replace(
                self.plan.sampling,
                tokens=prompt.room,
                end_ids=(model.chat.end, model.generator.words.eot),
                seed=_seed(item, self.plan.sampling.seed, attempt),
                num_samples=len(range(number, self.plan.count, len(self.plan.models))),
            )
            found.append(Ask(model, (prompt.ids,), sampling, False, False, prompt.forgotten))
        return found

    def _prompt(self, name: str, messages: list[dict[str, str]]) -> Any:
        model = self.plan.models[name]
        assert model.chat is not None
        tokens = min(self.plan.sampling.tokens, model.context // 2)
        try:
            return prompt_of(model.chat, messages, model.context, tokens)
        except ValueError as error:
            raise Refusal(f"{name}: {error}", param="prompt") from None

    def keep(self, item: dict[str, Any], answers: list[dict[str, Any]]) -> None:
        """Keeps the answers of an item, in the order in which they are shown from now on."""
        order = random.Random(_seed(item, self.plan.sampling.seed, -1))
        order.shuffle(answers)
        item["answers"], item["ranks"] = answers, [None] * len(answers)
        self._save()

    def draft(self, made: str, ranks: Any) -> None:
        """Keeps ranks that were given so far; None = not ranked yet.

        Raises:
            Refusal: another item is shown, or they are no ranks.
        """
        item = self._item(made)
        item["ranks"] = _checked(ranks, len(item["answers"]), partial=True)
        self._save()

    def rank(self, made: str, ranks: Any) -> None:
        """Appends the ranking of the item that is shown. The same one again, after a lost response, changes nothing.

        Raises:
            Refusal: another item is shown, or the ranks say nothing.
        """
        if made in self._done:
            return
        item = self._item(made)
        checked = _checked(ranks, len(item["answers"]), partial=False)
        made_by = [{key: answer[key] for key in answer if key != "text"} for answer in item["answers"]]
        record = {
            "messages": item["messages"],
            "completions": [answer["text"] for answer in item["answers"]],
            "ranks": checked,
            "made_by": made_by,
            "id": made,
            "time": round(time.time(), 3),
        }
        json_lines.append(self._output, [record])
        durable.sync([self._output])
        durable.sync_folders([self._output.absolute().parent])
        self._done.add(made)
        self._open.remove(item)
        self._save()

    def skip(self, made: str) -> None:
        """Leaves out the prompt that is shown, for good.

        Raises:
            Refusal: another item is shown.
        """
        item = self._item(made)
        self._open.remove(item)
        self._skipped.append(_key(item["messages"]))
        self._save()

    def _item(self, made: str) -> dict[str, Any]:
        if not self._open or self._open[-1]["id"] != made:
            raise Refusal("another prompt is shown now; load the page again", status=409, param="id")
        return self._open[-1]


def tries() -> range:
    """Numbers of the draws until each answer has text."""
    return range(_TRIES)


def _checked(ranks: Any, count: int, partial: bool) -> list[int | None]:
    """Ranks, 1 = best; equal ones are ties."""
    fine = isinstance(ranks, list) and len(ranks) == count
    if not fine or not all((partial and rank is None) or (type(rank) is int and 1 <= rank <= count) for rank in ranks):
        raise Refusal(f"ranks must be {count} whole numbers from 1 to {count}", param="ranks")
    if not partial and len(set(ranks)) == 1:
        raise Refusal("all answers are equally good: this teaches nothing, so skip the prompt", param="ranks")
    found: list[int | None] = ranks
    return found


def _key(messages: list[dict[str, str]]) -> str:
    """The name of a prompt, by which it is known again."""
    return hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()[:16]


def _seed(item: dict[str, Any], seed: int, attempt: int) -> int:
    digest = hashlib.sha256(f"{seed} {attempt} {_key(item['messages'])}".encode()).digest()
    return int.from_bytes(digest[:4])


def read_prompts(path: str) -> list[list[dict[str, str]]]:
    """Dialogues that end with the user: a line each of a text file, or records with "messages" or "prompt".

    Raises:
        FileNotFoundError: no such file.
        ValueError: one that cannot be used, with its line.
    """
    if not path.removesuffix(".gz").endswith(".jsonl"):
        text = sources.read_bytes(path).decode("utf-8-sig")
        found = [[{"role": "user", "content": line.strip()}] for line in text.splitlines() if line.strip()]
    else:
        found = [_asked(record, where) for where, record in sources.records(sources.find(path))]
    if not found:
        raise ValueError(f"{path} holds no prompts")
    return found


def _asked(record: dict[str, Any], where: str) -> list[dict[str, str]]:
    try:
        if "messages" in record or "conversations" in record:
            messages = dialogues.messages_of(record, where)
        else:
            messages = [{"role": "user", "content": dialogues.asked(record, where) or ""}]
    except dialogues.FaultyRecord as fault:
        raise ValueError(f"{where}: {fault}") from None
    if messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise ValueError(f"{where}: a prompt must have messages or prompt, and end with a text of the user")
    return messages
