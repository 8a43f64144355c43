"""The interface by OpenAI's own client, and by requests that are wrong."""

import itertools
import json
import socket
import threading
import time

import httpx
import numpy as np
import openai
import pytest

from scaling.generate import decode
from scaling.generate.conversation import Conversation
from scaling.generate.sampling import Sampling
from scaling.serve import answers
from tests.serve.live import Scripted, serving, tiny_model, until

ASKED = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def scripted():
    return tiny_model("scripted", Scripted)


@pytest.fixture
def script(scripted):
    """The scripted generator, with nothing left of other tests."""
    generator = scripted.generator
    generator.says, generator.pause, generator.pieces = lambda prompt, sample: f"<{prompt}>", 0.0, 0
    return generator


@pytest.fixture(scope="module")
def address(model, scripted):
    with serving([model, scripted]) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0, timeout=60)


def chat(client, model="tiny", **options):
    return client.chat.completions.create(model=model, messages=options.pop("messages", ASKED), **options)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny", "scripted"]
    assert client.models.retrieve("tiny").context_length == 128
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_reply_is_the_terminals(client, model):
    """Streamed or not: the same ids of the prompt, tokens and end as of ``scaling chat``."""
    talk = Conversation(model.generator, model.chat, Sampling(tokens=12, temperature=0))
    *_, (last, _) = talk.reply("hello")
    whole = chat(client, temperature=0, max_tokens=12)
    assert whole.choices[0].message.content == last.text and last.text
    assert whole.choices[0].finish_reason == {"end": "stop", "length": "length"}[last.finish]
    assert whole.usage.prompt_tokens == len(model.chat.prompt(ASKED))
    assert whole.usage.completion_tokens == len(last.ids)
    events = list(chat(client, temperature=0, max_tokens=12, stream=True, stream_options={"include_usage": True}))
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == last.text
    assert [e.choices[0].finish_reason for e in events if e.choices][-1] == whole.choices[0].finish_reason
    assert events[0].choices[0].delta.role == "assistant" and events[-1].usage == whole.usage


def test_a_completion_is_the_generators(client, model):
    words = model.generator.words
    sampling = Sampling(tokens=12, seed=5, top_p=0.9, num_samples=2)
    expected = model.generator.generate([[*words.start, *words.encode("ab")]], sampling)[0]
    asked = dict(model="tiny", prompt="ab", max_tokens=12, seed=5, top_p=0.9, n=2)
    whole = client.completions.create(**asked)
    assert [choice.text for choice in whole.choices] == [completion.text for completion in expected]
    assert whole.usage.completion_tokens == sum(len(completion.ids) for completion in expected)
    streamed = ["", ""]
    for event in client.completions.create(**asked, stream=True):
        streamed[event.choices[0].index] += event.choices[0].text
    assert streamed == [completion.text for completion in expected]
    by_ids = client.completions.create(**asked | {"prompt": [[*words.start, *words.encode("ab").tolist()]] * 2})
    assert [choice.text for choice in by_ids.choices] == [completion.text for completion in expected] * 2


def test_a_seed_repeats_a_reply_and_no_seed_does_not(client):
    said = [
        chat(client, max_tokens=12, **seed).choices[0].message.content for seed in ({"seed": 1}, {"seed": 1}, {}, {})
    ]
    assert said[0] == said[1] and len(set(said)) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(client, script, stream):
    script.says = lambda prompt, sample: "one two STO three STOP four"
    found = chat(client, "scripted", stop=["four", "STOP"], stream=stream)
    if stream:
        events = list(found)
        text, finish = "".join(e.choices[0].delta.content or "" for e in events), events[-1].choices[0].finish_reason
    else:
        text, finish = found.choices[0].message.content, found.choices[0].finish_reason
    assert (text, finish) == ("one two STO three ", "stop")


def test_the_wire_ends_with_done_and_has_whole_characters(address, script):
    """Each token is a byte, so that an emoji comes in four."""
    script.says = lambda prompt, sample: "a 🦜🏽 é 👩‍👩‍👧 z"
    body = {"model": "scripted", "messages": ASKED, "stream": True}
    lines = httpx.post(f"{address}/v1/chat/completions", json=body).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    deltas = [json.loads(line[6:])["choices"][0]["delta"].get("content", "") for line in lines[:-2]]
    assert "".join(deltas) == "a 🦜🏽 é 👩‍👩‍👧 z" and not any("\ufffd" in delta for delta in deltas) and len(deltas) > 5


def test_old_turns_are_forgotten_and_it_is_said(client, script):
    messages = [{"role": "system", "content": "be brief"}]
    for i in range(8):
        messages += [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i}"}]
    read = []
    script.says = lambda prompt, sample: read.append(prompt) or "ok"
    found = chat(client, "scripted", messages=[*messages, *ASKED], max_tokens=40)
    (text,) = read
    assert "be brief" in text and "question 0" not in text and "question 7" in text and "hello" in text
    assert found.forgotten_messages % 2 == 0 and found.forgotten_messages > 0


def test_two_at_once_both_go_on(client, script):
    """Requests are computed in turns: neither waits for the end of the other."""
    script.says, script.pause = lambda prompt, sample: "x" * 40, 0.02
    order = []

    def read(name):
        order.extend(name for _ in chat(client, "scripted", stream=True))

    threads = [threading.Thread(target=read, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    changes = sum(one != other for one, other in itertools.pairwise(order))
    assert set(order) == {"a", "b"} and changes > 6


def test_two_at_once_say_what_each_says_alone(client):
    alone = [chat(client, max_tokens=30, seed=seed).choices[0].message.content for seed in (1, 2)]
    found = [None, None]

    def read(i):
        stream = chat(client, max_tokens=30, seed=i + 1, stream=True)
        found[i] = "".join(event.choices[0].delta.content or "" for event in stream)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


@pytest.mark.parametrize("stream", [False, True])
def test_decoding_ends_with_the_connection(address, script, stream):
    script.says, script.pause = lambda prompt, sample: "x" * 100, 0.05
    body = json.dumps({"model": "scripted", "messages": ASKED, "stream": stream, "max_tokens": 100}).encode()
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        until(lambda: script.pieces >= 3)
    time.sleep(0.3)
    stopped = script.pieces
    time.sleep(0.3)
    assert script.pieces == stopped < 12  # of 25


def test_decoding_ends_with_the_connection_on_the_device(client, monkeypatch):
    """Counted in tokens: the program of the device is asked for no more than two pieces after the client has gone."""
    asked = []

    def proceed(*arguments):
        asked.append(int(arguments[-1]))
        time.sleep(0.05)
        return real(*arguments)

    real = decode.proceed
    monkeypatch.setattr(decode, "proceed", proceed)
    monkeypatch.setattr(answers, "EVERY", 2)
    stream = chat(client, stream=True, max_tokens=100, seed=3)
    next(iter(stream))
    until(lambda: len(asked) >= 2)
    stream.close()
    time.sleep(0.4)
    count = len(asked)
    time.sleep(0.3)
    assert len(asked) == count and max(asked) < 40


def test_a_failure_is_told_in_the_stream_and_the_server_lives_on(client, script):
    script.says = lambda prompt, sample: 1 / 0
    with pytest.raises(openai.InternalServerError, match="division"):
        chat(client, "scripted")
    with pytest.raises(openai.APIError, match="division"):
        list(chat(client, "scripted", stream=True))
    script.says = lambda prompt, sample: "fine"
    assert chat(client, "scripted").choices[0].message.content == "fine"


GOOD = {"model": "scripted", "messages": ASKED}
MISTAKES = [
    (b"{", "not JSON", None),
    (b"[" * 100_000, "nested", None),
    (b"\xff", "UTF-8", None),
    (b"[]", "must be a JSON object", None),
    ({"messages": ASKED}, "/v1/models lists them", "model"),
    (GOOD | {"messages": []}, "at least one message", "messages"),
    (GOOD | {"messages": "hello"}, "at least one message", "messages"),
    (GOOD | {"messages": ["hello"]}, "must be an object", "messages[0]"),
    (GOOD | {"messages": [{"role": "robot", "content": "x"}]}, "'robot'", "messages[0].role"),
    (GOOD | {"messages": [{"role": ["user"], "content": "x"}]}, "none of system", "messages[0].role"),
    (GOOD | {"messages": [*ASKED, {"role": "system", "content": "x"}]}, "only the first", "messages[1].role"),
    (GOOD | {"messages": [{"role": "user", "content": 3}]}, "must be text", "messages[0].content"),
    (GOOD | {"messages": [*ASKED, {"role": "assistant", "content": "x"}]}, "must be the user's", "messages"),
    (
        GOOD | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "type text only",
        "messages[0].content",
    ),
    (GOOD | {"messages": [{"role": "user", "content": "x" * 200}]}, "at most 127", "messages"),
    (GOOD | {"max_tokens": 128}, "less than the model's context of 128", "max_tokens"),
    (GOOD | {"max_tokens": 0}, "whole number", "max_tokens"),
    (GOOD | {"max_tokens": 10.5}, "whole number", "max_tokens"),
    (GOOD | {"temperature": "hot"}, "must be a number", "temperature"),
    (GOOD | {"temperature": -1}, "temperature=-1.0", "temperature"),
    (b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "number", None),
    (GOOD | {"top_p": 0}, "top_p=0.0", "top_p"),
    (GOOD | {"seed": -1}, "whole number from 0", "seed"),
    (GOOD | {"n": 17}, "from 1 to 16", "n"),
    (GOOD | {"stop": [""]}, "not empty", "stop"),
    (GOOD | {"stream": "yes"}, "true or false", "stream"),
    (GOOD | {"tools": [{"type": "function"}]}, "tools is not supported", "tools"),
    (GOOD | {"logprobs": True}, "logprobs is not supported", "logprobs"),
    (GOOD | {"temprature": 0}, "temprature is not supported", "temprature"),
]


@pytest.mark.parametrize(("body", "sentence", "param"), MISTAKES)
def test_mistakes_are_told_in_openais_style(address, body, sentence, param):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    found = httpx.post(f"{address}/v1/chat/completions", content=content, headers=headers)
    assert found.status_code == 400
    error = found.json()["error"]
    assert sentence in error["message"] and error.keys() == {"message", "type", "param", "code"}
    assert param in (None, error["param"])
    assert httpx.post(f"{address}/v1/chat/completions", json=GOOD | {"max_tokens": 2}).status_code == 200


@pytest.mark.parametrize("prompt", [None, "", [], [1, "a"], [[]], [-1], [10**9], ["a"] * 17, "x" * 200, {"a": 1}])
def test_prompts_that_cannot_be_continued(address, prompt):
    body = {"model": "scripted", "prompt": prompt, "max_tokens": 4}
    found = httpx.post(f"{address}/v1/completions", json=body)
    # An empty text is the beginning of a text, which follows an end of text.
    assert found.status_code == (200 if prompt == "" else 400)


def test_other_errors_have_the_same_style(address):
    for path, more, status in (
        ("/v1/chat/completions", {"json": GOOD | {"model": "gpt-4"}}, 404),
        ("/v1/embeddings", {"json": {}}, 404),
        ("/v1/chat/completions", {"content": b"{}", "headers": {"Content-Type": "text/plain"}}, 415),
        ("/v1/models", {"json": {}}, 405),
        ("/v1/chat/completions", {"content": b" " * 2**21, "headers": {"Content-Type": "application/json"}}, 413),
    ):
        found = httpx.post(f"{address}{path}", **more)
        assert found.status_code == status and found.json()["error"]["message"]


def test_another_name_of_this_machine_is_refused(address):
    """A page of another site cannot reach the server by a name of its own."""
    assert httpx.get(f"{address}/v1/models", headers={"Host": "evil.example"}).status_code == 403


def test_a_model_without_a_template_completes_texts_only():
    base = tiny_model("base", Scripted, vocab=257, words="bytes")
    with serving([base]) as address:
        found = httpx.post(f"{address}/v1/chat/completions", json=GOOD | {"model": "base"})
        assert found.status_code == 400 and found.json()["error"]["code"] == "no_chat_template"
        body = {"model": "base", "prompt": "ab", "max_tokens": 4}
        assert httpx.post(f"{address}/v1/completions", json=body).status_code == 200


def test_a_key(scripted, script):
    with serving([scripted], key="secret") as address:
        for key, status in (("wrong", 401), ("sec", 401), ("ü", 401), ("secret", 200)):
            headers = {"Authorization": f"Bearer {key}".encode()}
            assert httpx.get(f"{address}/v1/models", headers=headers).status_code == status
        assert httpx.get(f"{address}/v1/models").json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{address}/").status_code == 200
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0).models.list()


def test_more_requests_than_may_wait_are_refused(scripted, script, monkeypatch):
    monkeypatch.setattr("scaling.serve.turns.WAITING", 1)
    monkeypatch.setattr("scaling.serve.turns.TOGETHER", 1)
    script.says, script.pause = lambda prompt, sample: "x" * 60, 0.05
    with serving([scripted]) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
        first = chat(client, "scripted", stream=True)
        until(lambda: script.pieces)
        second = chat(client, "scripted", stream=True)
        with pytest.raises(openai.RateLimitError, match="wait already"):
            chat(client, "scripted", stream=True)
        first.close()
        assert len(list(second)) > 3  # it waited, and then was computed


def test_the_page_loads_nothing_from_elsewhere(address):
    found = httpx.get(address)
    assert "default-src 'none'" in found.headers["content-security-policy"]
    for word in ("http://", "https://", "//cdn", "@import", "innerHTML", "src="):
        assert word not in found.text


def test_half_a_surrogate_pair_is_replaced(client, address, script):
    body = b'{"model": "scripted", "messages": [{"role": "user", "content": "a\\ud800b"}]}'
    found = httpx.post(f"{address}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert "a\ufffdb" in found.json()["choices"][0]["message"]["content"]


def test_ids_of_a_prompt_are_the_renderers(client, script, scripted, monkeypatch):
    seen = []
    script.says = lambda prompt, sample: "ok"
    real = script.streams
    monkeypatch.setattr(script, "streams", lambda ids, *more: seen.append(np.asarray(ids)) or real(ids, *more))
    messages = [{"role": "system", "content": "<|user|>"}, *ASKED]
    chat(client, "scripted", messages=messages)
    np.testing.assert_array_equal(seen[0], scripted.chat.prompt(messages))
