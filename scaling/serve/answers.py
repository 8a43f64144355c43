"""Answers in OpenAI's shapes: whole, or as a stream of server-sent events."""

import asyncio
import functools
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from scaling.generate.continuous import Text
from scaling.generate.generator import Completion
from scaling.serve.refusals import Refusal
from scaling.serve.requests import Ask
from scaling.serve.turns import Busy, Job, Turns

log = logging.getLogger(__name__)

EVERY = 4  # tokens of a piece
_FINISH = {"end": "stop", "stop": "stop", "length": "length"}


class Answering:
    """A request that is being computed.

    Args:
        ask: the request.
        turns: the device's queue.

    Raises:
        Refusal: the queue is full.
    """

    def __init__(self, ask: Ask, turns: Turns) -> None:
        self._loop = asyncio.get_running_loop()
        self._found: asyncio.Queue[Any] = asyncio.Queue()
        self._job: Job | None = None
        self._texts: list[Text] = []
        engine = ask.model.engine
        try:
            if engine is not None and engine.takes(ask.sampling):
                every = [(prompt, sample) for prompt in ask.prompts for sample in range(ask.sampling.num_samples)]
                self._open = set(range(len(every)))
                self._texts = [
                    Text(prompt, ask.sampling, sample, functools.partial(self._grown, index))
                    for index, (prompt, sample) in enumerate(every)
                ]
                turns.join(engine, self._texts)
            else:
                self._job = Job(_pieces(ask), self._deliver)
                turns.submit(self._job)
        except Busy as error:
            raise Refusal(str(error), status=429, code="overloaded", kind="server_error") from None
        except ValueError as error:
            raise Refusal(str(error)) from None

    def stop(self) -> None:
        """Nobody waits for it any more."""
        for text in self._texts:
            text.stopped.set()
        if self._job is not None:
            self._job.stop()

    def _deliver(self, piece: Any) -> None:
        self._loop.call_soon_threadsafe(self._found.put_nowait, piece)

    def _grown(self, index: int, found: Completion | Exception) -> None:
        """A text of the engine has grown; the end of the last one is the end of all."""
        if isinstance(found, Exception):
            self._deliver(found)
            self.stop()
            return
        self._deliver([(index, found)])
        if found.finish:
            self._open.discard(index)
            if not self._open:
                self._deliver(None)

    async def pieces(self) -> AsyncIterator[list[tuple[int, Completion]]]:
        """Numbers of answers, and how far they are.

        Raises:
            Refusal: the computation failed.
        """
        while (piece := await self._found.get()) is not None:
            if isinstance(piece, Exception):
                log.error("a request failed", exc_info=piece)
                raise Refusal(f"the computation failed: {piece}", status=500, kind="server_error")
            yield piece

    async def whole(self) -> list[Completion]:
        """The answers when they are complete.

        Raises:
            Refusal: the computation failed.
        """
        found: dict[int, Completion] = {}
        async for piece in self.pieces():
            found.update(piece)
        return [found[number] for number in sorted(found)]


def _pieces(ask: Ask) -> Iterator[list[tuple[int, Completion]]]:
    for number, prompt in enumerate(ask.prompts):
        first = number * ask.sampling.num_samples
        for completions in ask.model.generator.streams(prompt, ask.sampling, EVERY):
            yield list(enumerate(completions, first))


class Shape:
    """The objects of one answer.

    Args:
        ask: the request.
        chats: whether it continues a dialogue, and not a text.
    """

    def __init__(self, ask: Ask, chats: bool) -> None:
        self._ask, self._chats = ask, chats
        self._head = {
            "id": f"{'chatcmpl' if chats else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": ask.model.name,
        }

    def whole(self, completions: list[Completion]) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        choices = []
        for index, found in enumerate(completions):
            said = {"message": {"role": "assistant", "content": found.text}} if self._chats else {"text": found.text}
            choices.append({"index": index, **said, "logprobs": None, "finish_reason": _FINISH[found.finish]})
        return {
            **self._head,
            "object": "chat.completion" if self._chats else "text_completion",
            "choices": choices,
            "usage": self._usage({index: len(found.ids) for index, found in enumerate(completions)}),
            **self._forgotten(),
        }

    async def events(self, pieces: AsyncIterator[list[tuple[int, Completion]]]) -> AsyncIterator[bytes]:
        """The stream, with its end; an error in the middle of it is an event, too."""
        count = len(self._ask.prompts) * self._ask.sampling.num_samples
        sent, tokens, ended = dict.fromkeys(range(count), 0), dict.fromkeys(range(count), 0), set[int]()
        if self._chats:
            for index in range(count):
                yield self._event([self._choice(index, {"role": "assistant", "content": ""})], self._forgotten())
        try:
            async for piece in pieces:
                for index, found in piece:
                    if index in ended:
                        continue
                    new, sent[index] = found.text[sent[index] :], max(sent[index], len(found.text))
                    tokens[index] = len(found.ids)
                    if new:
                        yield self._event([self._choice(index, {"content": new})])
                    if found.finish:
                        ended.add(index)
                        yield self._event([self._choice(index, {}, _FINISH[found.finish])])
        except Refusal as refusal:
            yield _data(refusal.body)
        else:
            if self._ask.counts:
                yield self._event([], {"usage": self._usage(tokens)})
        yield b"data: [DONE]\n\n"

    def _choice(self, index: int, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        said = {"delta": delta} if self._chats else {"text": delta.get("content", "")}
        return {"index": index, **said, "logprobs": None, "finish_reason": finish}

    def _event(self, choices: list[dict[str, Any]], more: dict[str, Any] | None = None) -> bytes:
        kind = "chat.completion.chunk" if self._chats else "text_completion"
        return _data({**self._head, "object": kind, "choices": choices, **(more or {})})

    def _usage(self, tokens: dict[int, int]) -> dict[str, int]:
        prompt, new = sum(map(len, self._ask.prompts)), sum(tokens.values())
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def _forgotten(self) -> dict[str, int]:
        return {"forgotten_messages": self._ask.forgotten} if self._ask.forgotten else {}


def _data(record: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(record, ensure_ascii=False).encode() + b"\n\n"
