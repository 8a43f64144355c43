"""Requests to complete a text or a dialogue: from JSON to token ids and sampling, or a refusal."""

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

from scaling import json_text
from scaling.data import sources
from scaling.data.chat.template import ASSISTANT
from scaling.generate.conversation import prompt_of
from scaling.generate.sampling import Sampling
from scaling.serve.models import Model
from scaling.serve.refusals import Refusal

MOST_CHOICES = 16  # answers of one request: they are computed together
MOST_STOPS = 16
COMPLETION_TOKENS = 16  # as OpenAI's
REPLY_TOKENS = 256  # as of `scaling chat`
_ROLES = {"system": "system", "developer": "system", "user": "user", ASSISTANT: ASSISTANT}
_COMMON = {"model", "temperature", "top_p", "seed", "n", "stop", "stream", "stream_options", "max_tokens", "user"}
# Fields that change nothing at these values; null is taken for every field.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "metadata": ({},),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "suffix": ("",),
    "tools": ([],),
}


@dataclasses.dataclass(frozen=True)
class Ask:
    """A request that can be computed.

    Attributes:
        model: which answers.
        prompts: ids of each, int32 [n].
        sampling: of each prompt; ``num_samples`` answers.
        streams: whether the answers are sent as they grow.
        counts: whether a stream ends with the number of tokens.
        forgotten: messages that are left out because the context is full.
    """

    model: Model
    prompts: tuple[np.ndarray, ...]
    sampling: Sampling
    streams: bool
    counts: bool
    forgotten: int = 0


def parse(body: bytes) -> dict[str, Any]:
    """The object of a request.

    Raises:
        Refusal: it is not JSON, or no object.
    """
    try:
        found = json_text.parse(body, "the body of the request")
    except ValueError as error:
        raise Refusal(str(error)) from None
    if not isinstance(found, dict):
        raise Refusal("the body of the request must be a JSON object")
    return {name: value for name, value in found.items() if value is not None}


def chat(fields: dict[str, Any], models: Mapping[str, Model]) -> Ask:
    """A request of ``/v1/chat/completions``.

    Raises:
        Refusal: one that cannot be computed.
    """
    _known(fields, _COMMON | {"messages", "max_completion_tokens"})
    model = _model(fields, models)
    if model.chat is None:
        raise Refusal(model.without_chat, param="model", code="no_chat_template")
    said = messages(fields.get("messages"))
    name = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
    tokens = _whole(fields, name, min(REPLY_TOKENS, model.context // 2), most=10**9)
    if tokens >= model.context:
        raise _too_long(f"{name}={tokens} must be less than the model's context of {model.context} tokens", name)
    try:
        prompt = prompt_of(model.chat, said, model.context, tokens)
    except ValueError as error:
        longest = "reads at most" in str(error)
        raise (_too_long(str(error), "messages") if longest else Refusal(str(error), param="messages")) from None
    words = model.generator.words
    assert words is not None
    sampling = _sampling(fields, prompt.room, (model.chat.end, words.eot))
    return Ask(model, (prompt.ids,), sampling, *_stream(fields), forgotten=prompt.forgotten)


def completion(fields: dict[str, Any], models: Mapping[str, Model]) -> Ask:
    """A request of ``/v1/completions``.

    Raises:
        Refusal: one that cannot be computed.
    """
    _known(fields, _COMMON | {"prompt"})
    model = _model(fields, models)
    prompts = _prompts(fields.get("prompt"), model)
    tokens = _whole(fields, "max_tokens", COMPLETION_TOKENS, most=10**9)
    longest = max(map(len, prompts))
    if longest + tokens > model.context:
        raise _too_long(
            f"the prompt has {longest} tokens, and with max_tokens={tokens} more than the model's context of "
            f"{model.context}",
            "prompt",
        )
    sampling = _sampling(fields, tokens, None)
    if len(prompts) * sampling.num_samples > MOST_CHOICES:
        raise Refusal(f"prompts times n must be at most {MOST_CHOICES}", param="n")
    return Ask(model, tuple(prompts), sampling, *_stream(fields))


def messages(value: Any) -> list[dict[str, str]]:
    """The messages of a request; a content may be text, or a list of texts.

    Raises:
        Refusal: they are none.
    """
    if not isinstance(value, list) or not value:
        raise Refusal("messages must be a list with at least one message", param="messages")
    found = []
    for number, message in enumerate(value):
        where = f"messages[{number}]"
        if not isinstance(message, dict):
            raise Refusal(f"{where} must be an object with role and content", param=where)
        role = message.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise Refusal(f"the role {role!r} of {where} is none of {', '.join(_ROLES)}", param=f"{where}.role")
        if _ROLES[role] == "system" and number:
            raise Refusal(f"{where}: only the first message may be the system's", param=f"{where}.role")
        found.append({"role": _ROLES[role], "content": _content(message.get("content"), f"{where}.content")})
    if found[-1]["role"] != "user":
        raise Refusal("the last message must be the user's", param="messages")
    return found


def _content(value: Any, where: str) -> str:
    if isinstance(value, list):
        parts = [part for part in value if isinstance(part, dict) and part.get("type") == "text"]
        if len(parts) != len(value):
            raise Refusal(f"{where} may have parts of the type text only", param=where)
        return "".join(_text(part.get("text"), where) for part in parts)
    return _text(value, where)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise Refusal(f"{where} must be text", param=where)
    return sources.text_of(value, where, "request")  # without halves of surrogate pairs


def _prompts(value: Any, model: Model) -> list[np.ndarray]:
    """Ids of a text or of a list of ids, or of several."""
    several = isinstance(value, list) and value and all(isinstance(each, str | list) for each in value)
    given = value if several else [value]
    if len(given) > MOST_CHOICES:
        raise Refusal(f"there may be at most {MOST_CHOICES} prompts", param="prompt")
    words = model.generator.words
    assert words is not None
    found = []
    for each in given:
        if isinstance(each, str):
            ids = [*words.start, *words.encode(_text(each, "prompt")).tolist()]
        elif isinstance(each, list) and each and all(type(token) is int for token in each):
            ids = each
        else:
            raise Refusal("prompt must be a text, a list of token ids, or a list of these", param="prompt")
        if not ids or not all(0 <= token < words.vocab_size for token in ids):
            raise Refusal(f"a prompt needs tokens, with ids in [0, {words.vocab_size})", param="prompt")
        found.append(np.asarray(ids, np.int32))
    return found


def _known(fields: dict[str, Any], known: set[str]) -> None:
    for name, value in fields.items():
        if name not in known and not any(value == neutral for neutral in _NEUTRAL.get(name, ())):
            raise Refusal(f"{name} is not supported", param=name, code="unsupported_parameter")


def _model(fields: dict[str, Any], models: Mapping[str, Model]) -> Model:
    name = fields.get("model")
    if not isinstance(name, str):
        raise Refusal("model must be the name of a model; /v1/models lists them", param="model")
    if name not in models:
        sentence = f"there is no model {name!r}; there is {', '.join(models)}"
        raise Refusal(sentence, status=404, param="model", code="model_not_found")
    return models[name]


def _sampling(fields: dict[str, Any], tokens: int, end_ids: tuple[int, ...] | None) -> Sampling:
    try:
        return Sampling(
            tokens=tokens,
            temperature=_number(fields, "temperature"),
            top_p=_number(fields, "top_p"),
            stop=_stops(fields.get("stop", [])),
            end_ids=end_ids,
            seed=_whole(fields, "seed", secrets.randbelow(2**32), least=0, most=2**32 - 1),
            num_samples=_whole(fields, "n", 1, most=MOST_CHOICES),
        )
    except ValueError as error:
        raise Refusal(str(error), param=str(error).partition("=")[0]) from None


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise Refusal(f"stop must be a text that is not empty, or a list of at most {MOST_STOPS}", param="stop")
    return tuple(stops)


def _number(fields: dict[str, Any], name: str) -> float:
    value = fields.get(name, 1)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
        raise Refusal(f"{name} must be a number", param=name)
    return float(value)


def _whole(fields: dict[str, Any], name: str, default: int, least: int = 1, most: int = 1) -> int:
    value = fields.get(name, default)
    if type(value) is not int or not least <= value <= most:
        raise Refusal(f"{name} must be a whole number from {least} to {most}", param=name)
    return value


def _stream(fields: dict[str, Any]) -> tuple[bool, bool]:
    streams, options = fields.get("stream", False), fields.get("stream_options", {})
    if not isinstance(streams, bool):
        raise Refusal("stream must be true or false", param="stream")
    if not isinstance(options, dict) or options.keys() - {"include_usage", "include_obfuscation"}:
        raise Refusal("stream_options may have include_usage only", param="stream_options")
    return streams, options.get("include_usage") is True


def _too_long(message: str, param: str) -> Refusal:
    return Refusal(message, param=param, code="context_length_exceeded")
