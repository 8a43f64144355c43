"""Dialogues as token ids, by a chat template: one renderer for training, generation, the terminal and the server.

A template is jinja2 as Hugging Face writes it; it runs in a sandbox. Only the template makes control tokens: text
that spells one stays text. The ids of a dialogue begin with those of the prompt that the model continues at each turn,
so what is trained on is what is generated after.
"""

import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from scaling.data import sources
from scaling.data.tokenizer_base import Tokenizer

Message = Mapping[str, str]  # "role" (system, user, assistant, ...) and "content"

ASSISTANT = "assistant"
_PROBE = ({"role": "user", "content": "q"}, {"role": ASSISTANT, "content": "a"})
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # no text in Unicode has these


class Chat:
    """A tokenizer's dialogues.

    Args:
        words: tokenizer.
        template: another template than the tokenizer's own; empty = its own.

    Attributes:
        end: the token that ends a turn of the assistant.

    Raises:
        ValueError: there is no template, it is not valid, or it ends no turn of the assistant by a control token.
    """

    def __init__(self, words: Tokenizer, template: str = "") -> None:
        source = template or words.chat_template
        if not source:
            raise ValueError(
                f"tokenizer {words.name!r} has no chat template; name the tokenizer {words.name}+chat, or give a "
                "template with config.chat.template=FILE"
            )
        self.words = words
        self._controls = words.controls
        longest_first = sorted(self._controls, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        self._template = _compiled(source, words.name)
        ids, trained = self.example(_PROBE)
        self.end = int(ids[np.flatnonzero(trained)[-1]])

    def prompt(self, messages: Sequence[Message]) -> np.ndarray:
        """Ids of a dialogue up to where the assistant answers, int32.

        Raises:
            ValueError: the template refuses the dialogue.
        """
        return self._ids(*self._text(messages, prompts=True))

    def example(self, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a whole dialogue, int32 [n], and which of them the assistant says, ends of turn included, bool [n].

        Raises:
            ValueError: the template refuses the dialogue, or does not render its turns one after the other.
        """
        parts: list[tuple[np.ndarray, bool]] = []
        whole, mark = self._text(messages, prompts=False)
        done = 0
        for i, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            before = self._text(messages[:i], prompts=True, mark=mark)[0]
            after = self._text(messages[: i + 1], prompts=False, mark=mark)[0]
            if not (after.startswith(before) and whole.startswith(after) and len(before) >= done):
                raise ValueError(
                    f"the chat template of {self.words.name!r} does not render turn {i + 1} as it would be generated; "
                    "give another with config.chat.template=FILE"
                )
            answer = after[len(before) :]
            ends = [found.end() for found in self._pattern.finditer(answer)]
            if not ends:
                raise ValueError(
                    f"the chat template of {self.words.name!r} ends the assistant's turn with no control token"
                )
            parts += [(self._ids(whole[done : len(before)], mark), False), (self._ids(answer[: ends[0]], mark), True)]
            done = len(before) + ends[0]
        parts.append((self._ids(whole[done:], mark), False))
        ids = np.concatenate([part for part, _ in parts])
        return ids, np.concatenate([np.full(len(part), said) for part, said in parts])

    def _text(self, messages: Sequence[Message], prompts: bool, mark: str = "") -> tuple[str, str]:
        """The rendered dialogue, and the mark that stands inside of what spells a control token in a message."""
        mark = mark or next(m for m in _MARKS if not any(m in message["content"] for message in messages))
        marked = [
            {**message, "content": self._pattern.sub(lambda found: mark.join(found[0]), message["content"])}
            for message in messages
        ]
        return _rendered(self._template, marked, prompts, self.words.named_tokens), mark

    def _ids(self, text: str, mark: str) -> np.ndarray:
        """Ids of a rendered text."""
        parts, done = list[Any](), 0
        for found in self._pattern.finditer(text):
            parts += [self._encoded(text[done : found.start()], mark), [self._controls[found[0]]]]
            done = found.end()
        parts.append(self._encoded(text[done:], mark))
        return np.concatenate([np.asarray(part, np.int32) for part in parts])

    def _encoded(self, text: str, mark: str) -> np.ndarray:
        return self.words.encode(text.replace(mark, "")) if text else np.zeros(0, np.int32)


def shortened(messages: Sequence[Message]) -> Iterator[tuple[list[Message], int]]:
    """A dialogue whole, then without its oldest turn, and so on to its last; with the number of messages left out.

    A turn is a message of the user with all that follows up to the next one. The system's message always stays.
    """
    system = list(messages[: messages[0]["role"] == "system"])
    rest = messages[len(system) :]
    begins = [i for i, message in enumerate(rest) if message["role"] == "user"]
    for first in (0, *begins[1:]):
        yield [*system, *rest[first:]], first


def _compiled(source: str, name: str) -> Any:
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the chat template of {name!r} is not valid: {error.message} (line {error.lineno})") from None


class _Refused(Exception):
    """What a template says of a dialogue that it does not render."""


def _refuse(message: str) -> None:
    raise _Refused(message)


def _rendered(template: Any, messages: Sequence[Message], prompts: bool, named: Mapping[str, str]) -> str:
    import jinja2

    try:
        text: str = template.render(messages=messages, add_generation_prompt=prompts, **named)
    except _Refused as error:
        raise ValueError(f"the chat template refuses the dialogue: {error}") from None
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise ValueError(f"the chat template cannot render the dialogue: {error}") from None
    return text


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def read_template(path: str) -> str:
    """The template in a file; nothing for an empty path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8.
    """
    if not path:
        return ""
    try:
        return sources.read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
