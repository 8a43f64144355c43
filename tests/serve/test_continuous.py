"""Continuous batching behind the interface: same texts as without, in company, with clients that go away or err."""

import threading
import time

import httpx
import openai
import pytest

from scaling.generate import continuous
from tests.serve.live import serving, tiny_model, until

ASKED = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def model():
    return tiny_model(continuous=True)


@pytest.fixture(scope="module")
def client(model):
    with serving([model]) as address:
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0, timeout=120)


def chat(client, **options):
    return client.chat.completions.create(model="tiny", messages=ASKED, **options)


def streamed(events):
    return "".join(event.choices[0].delta.content or "" for event in events if event.choices)


@pytest.mark.slow
def test_many_at_once_say_what_each_says_without_batching(client, model):
    """Eleven requests on eight rows; a bad one between them and one whose client goes away."""
    requests = [
        dict(max_tokens=4 + 5 * i, seed=i, temperature=(0, 1, 0.7)[i % 3], top_p=1 - 0.1 * (i % 2)) for i in range(11)
    ]
    plain = tiny_model()
    with serving([plain]) as address:
        other = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0, timeout=120)
        expected = [chat(other, **request).choices[0].message.content for request in requests]
    found = [None] * len(requests)

    def read(i):
        found[i] = streamed(chat(client, stream=True, **requests[i]))

    threads = [threading.Thread(target=read, args=(i,)) for i in range(len(requests))]
    gone = chat(client, stream=True, max_tokens=100)
    next(iter(gone))
    for thread in threads:
        thread.start()
    gone.close()
    with pytest.raises(openai.BadRequestError, match="temperature"):
        chat(client, temperature=-1)
    for thread in threads:
        thread.join()
    assert found == expected
    until(lambda: not model.engine.busy)


def test_answers_of_one_request_and_their_count(client):
    asked = dict(model="tiny", prompt=["ab", "c"], max_tokens=9, seed=5, n=3)
    whole = client.completions.create(**asked)
    assert [choice.index for choice in whole.choices] == list(range(6))
    assert whole.usage.completion_tokens <= 54 and all(c.finish_reason in ("stop", "length") for c in whole.choices)
    alone = client.completions.create(**asked | {"prompt": "c", "n": 1})
    assert whole.choices[3].text == alone.choices[0].text
    *texts, last = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert last.usage == whole.usage
    for choice in whole.choices:
        said = "".join(e.choices[0].text for e in texts if e.choices and e.choices[0].index == choice.index)
        assert said == choice.text


def test_decoding_ends_with_the_connection(client, model, monkeypatch):
    real, calls = continuous._advance, []

    def slow(*given):
        calls.append(1)
        time.sleep(0.05)
        return real(*given)

    monkeypatch.setattr(continuous, "_advance", slow)
    stream = chat(client, stream=True, max_tokens=100, seed=3)
    next(iter(stream))
    until(lambda: len(calls) >= 2)
    stream.close()
    until(lambda: not model.engine.busy)
    assert len(calls) < 20  # of 25


def test_a_failure_is_told_and_the_server_lives_on(client, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(continuous, "_advance", lambda *_: 1 / 0)
        with pytest.raises(openai.InternalServerError, match="division"):
            chat(client, max_tokens=20, temperature=0)
        with pytest.raises(openai.APIError, match="division"):
            streamed(chat(client, max_tokens=20, temperature=0, stream=True))
    assert chat(client, max_tokens=3).usage.completion_tokens <= 3


def test_more_texts_than_may_wait_are_refused(client, monkeypatch):
    monkeypatch.setattr("scaling.serve.turns.WAITING", 0)
    address = str(client.base_url)
    body = {"model": "tiny", "messages": ASKED, "max_tokens": 2}
    assert httpx.post(f"{address}chat/completions", json=body).status_code == 429
