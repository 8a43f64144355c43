"""The pages in Chromium: what a person sees and does."""

import json
import re

import pytest

from scaling.data.chat import comparisons
from scaling.data.chat.dialogues import Skipped
from scaling.generate.sampling import Sampling
from scaling.serve.ranking import Plan, Rankings
from tests.serve.browser import ENTER, ESCAPE, chromium, needs_chromium
from tests.serve.live import Scripted, serving, tiny_model, until

pytestmark = [needs_chromium, pytest.mark.slow]


@pytest.fixture(scope="module")
def model():
    return tiny_model("scripted", Scripted, context=512)


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def script(model):
    generator = model.generator
    generator.says, generator.pause, generator.pieces = lambda prompt, sample: "yes", 0.0, 0
    return generator


@pytest.fixture
def page(window, model, script):
    with serving([model]) as address:
        window.size(1000, 760)
        window.open(address)
        window.run("sessionStorage.clear()")
        window.reload()
        until(lambda: window.texts("h1") == ["scripted"])
        yield window


def replies(page):
    return page.texts("article.assistant p")


def say(page, text, waits=True):
    count = len(replies(page))
    page.type("#text", text + ENTER)
    if waits:
        until(lambda: len(replies(page)) > count and page.shown("#send"))


def test_text_grows(page, script):
    script.says, script.pause = lambda prompt, sample: "one two three four five six seven eight", 0.1
    say(page, "count", waits=False)
    seen = set()

    def done():
        seen.update(replies(page))
        return page.shown("#send") and replies(page) == ["one two three four five six seven eight"]

    until(done)
    lengths = sorted(map(len, seen))
    assert len([text for text in seen if text]) > 4 and all(
        "one two three four five six seven eight".startswith(text) for text in seen
    ), lengths


@pytest.mark.parametrize("how", ["button", "key"])
def test_stop_ends_the_reply_and_its_decoding(page, script, how):
    script.says, script.pause = lambda prompt, sample: "word " * 20, 0.1
    say(page, "go on", waits=False)
    until(lambda: replies(page) and len(replies(page)[0]) > 4)
    page.picture(f"streaming-{how}")
    if how == "button":
        page.click("#stop")
    else:
        page.press(ESCAPE)
    until(lambda: page.shown("#send"))
    (said,) = replies(page)
    assert said and len(said) < 90
    assert page.texts("article small") == ["(stopped)"]
    pieces = script.pieces
    script.says, script.pause = lambda prompt, sample: prompt, 0.0
    say(page, "next")
    assert script.pieces < pieces + 40  # of the next reply
    assert said.strip()[:12] in replies(page)[1] or "forgotten" in page.texts("#log")[0]


def test_a_second_turn_sees_the_first_and_the_system_prompt(page, script):
    read = []
    script.says = lambda prompt, sample: read.append(prompt) or "noted"
    page.click("#opens")
    page.type("#system", "be kind")
    page.type("#text", "")
    say(page, "I am Ada")
    say(page, "who am I?")
    first, second = (re.sub(r"<\|endoftext\|>", "", prompt) for prompt in read)
    assert first == "<|system|>be kind<|end|><|user|>I am Ada<|end|><|assistant|>"
    assert second == f"{first}noted<|end|><|user|>who am I?<|end|><|assistant|>"


def test_settings_reach_the_model(page, script, monkeypatch):
    seen = []
    real = script.streams
    monkeypatch.setattr(script, "streams", lambda ids, sampling, *more: seen.append(sampling) or real(ids, sampling))
    page.click("#opens")
    page.run("(document.querySelector('#temperature').value = '0.2', document.querySelector('#tokens').value = '7')")
    page.picture("settings")
    say(page, "x")
    assert (seen[0].temperature, seen[0].tokens) == (0.2, 7)


def test_html_stays_text(page, script):
    evil = "<img src=x onerror=\"document.title='owned'\"><b>bold</b><script>document.title='owned'</script>"
    script.says = lambda prompt, sample: evil
    say(page, "<i>me</i>")
    assert replies(page) == [evil] and page.texts("article.user p") == ["<i>me</i>"]
    page.reload()
    until(lambda: replies(page) == [evil])
    assert page.run("document.title") == "scripted" and page.run("document.querySelectorAll('article p *').length") == 0


def test_emoji_stay_whole(page, script):
    """Each token is a byte. No state of the page that can be seen has a part of a character."""
    text = "🦜🏽 👩‍👩‍👧 é 漢字 🇫🇷"
    script.says, script.pause = lambda prompt, sample: text, 0.02
    page.run(
        "(window.seen = [], new MutationObserver(() => window.seen.push(document.querySelector('#log').innerText))"
        ".observe(document.querySelector('#log'), {subtree: true, childList: true, characterData: true}), 1)"
    )
    say(page, "parrot")
    seen = page.run("window.seen")
    assert replies(page) == [text] and len(set(seen)) > 5
    assert not any("\ufffd" in each for each in seen)


def test_the_conversation_survives_a_reload_also_in_the_middle(page, script):
    say(page, "first")
    script.says, script.pause = lambda prompt, sample: "word " * 20, 0.1
    say(page, "second", waits=False)
    until(lambda: len(replies(page)) > 1 and len(replies(page)[1]) > 8)
    page.reload()
    until(lambda: page.texts("h1") == ["scripted"])
    kept = replies(page)
    assert page.texts("article.user p") == ["first", "second"] and kept[0] == "yes" and kept[1].startswith("word")
    pieces = script.pieces
    script.pause = 0.0
    page.click("#reset")
    assert replies(page) == [] and script.pieces <= pieces + 1
    page.reload()
    until(lambda: page.texts("h1") == ["scripted"])
    assert replies(page) == []


def test_enter_with_shift_is_a_new_line(page, script):
    page.type("#text", "a\ue008" + ENTER + "\ue008b")
    assert page.run("document.querySelector('#text').value") == "a\nb" and not replies(page)
    page.press(ENTER)
    until(lambda: replies(page))
    assert page.texts("article.user p") == ["a\nb"]


def test_a_refused_message_can_be_mended(page):
    say(page, "x" * 600)
    assert "reads at most" in page.texts("article small.bad")[0]
    assert page.run("document.querySelector('#text').value") == "x" * 600
    page.reload()
    until(lambda: page.texts("h1") == ["scripted"])
    assert len(page.texts("article")) == 0


def test_a_narrow_screen(page, script):
    page.size(360, 640)
    script.says = lambda prompt, sample: "a" * 60 + " and some words that follow it"
    say(page, "What is the answer, in a sentence that needs more than a line?")
    page.picture("narrow")
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.run("document.querySelector('#send').getBoundingClientRect().right <= innerWidth")


def test_a_key_is_asked_for(window, model, script):
    with serving([model], key="secret") as address:
        window.open(address)
        window.run("sessionStorage.clear()")
        window.reload()
        until(lambda: window.shown("#key"))
        window.type("#key", "secret" + "\ue004")
        until(lambda: window.texts("h1") == ["scripted"])
        say(window, "hello")
        assert replies(window) == ["yes"]


# The page for rankings.


@pytest.fixture
def others(model):
    other = tiny_model("other", Scripted, context=512)
    for each in (model, other):
        each.generator.pause = 0.0
        each.generator.says = lambda prompt, sample, name=each.name: f"{name} says <b>{sample}</b>"
    return [model, other]


PROMPTS = [[{"role": "user", "content": text}] for text in ("Name a bird.", "Name a fish.")]


def ranking(models, output):
    plan = Plan({model.name: model for model in models}, 4, Sampling(tokens=40))
    return serving(models, rankings=Rankings(plan, PROMPTS, output))


def ready(window):
    until(lambda: len(window.texts("fieldset p")) == 4 and window.shown("#done"))
    return window.texts("fieldset p")


def give(window, answer, rank):
    window.run(f"document.querySelectorAll('fieldset')[{answer}].querySelectorAll('input')[{rank - 1}].click()")


def ranks(window):
    return window.run(
        "[...document.querySelectorAll('fieldset')].map(f => [...f.querySelectorAll('input')]"
        ".findIndex(i => i.checked) + 1)"
    )


def test_a_ranking_survives_a_reload_and_the_end_of_the_server(window, others, tmp_path):
    output = tmp_path / "rankings.jsonl"
    with ranking(others, output) as address:
        window.size(1000, 760)
        window.open(address)
        shown = ready(window)
        assert sorted(shown) == sorted(f"{name} says <b>{i}</b>" for name in ("scripted", "other") for i in (0, 1))
        give(window, 0, 2)
        give(window, 1, 1)
        until(lambda: [2, 1, None, None] in [item["ranks"] for item in state(output)["open"]])
        window.picture("ranking")
        window.reload()
        assert ready(window) == shown and ranks(window) == [2, 1, 0, 0]
    with ranking(others, output) as address:  # another server, at another address
        window.open(address)
        assert ready(window) == shown and ranks(window) == [2, 1, 0, 0]
        give(window, 2, 2)
        assert window.run("document.querySelector('#done').disabled")
        give(window, 3, 4)
        window.click("#done")
        until(lambda: window.texts("#prompt p") == ["Name a fish."])
        ready(window)
        assert "1 done, 1 left" in window.texts("#count")
    (record,) = map(json.loads, output.read_text().splitlines())
    assert record["completions"] == shown and record["ranks"] == [2, 1, 2, 4]
    assert [f"{each['model']} says <b>{each['sample']}</b>" for each in record["made_by"]] == shown
    (found,) = comparisons.read(str(output), Skipped(refuses=True), 4)
    assert found.ranks == (2, 1, 2, 4) and found.answers[0][0] == PROMPTS[0][0]


def state(output):
    return json.loads(output.with_name("rankings.jsonl.open.json").read_text())


def test_an_own_prompt_skipping_and_ranking_by_keys(window, others, tmp_path):
    output = tmp_path / "rankings.jsonl"
    with ranking(others, output) as address:
        window.open(address)
        ready(window)
        give(window, 0, 3)
        window.click("summary")
        window.type("#text", "My own question?")
        window.click("#form button")
        until(lambda: window.texts("#prompt p") == ["My own question?"])
        ready(window)
        for answer, key in enumerate("1111"):
            window.run(f"document.querySelectorAll('fieldset')[{answer}].querySelector('input').focus()")
            window.press(key)
        until(lambda: "teaches nothing" in window.texts("#says")[0])
        assert window.run("document.querySelector('#done').disabled")
        window.press("2")
        window.click("#done")
        until(lambda: window.texts("#prompt p") == ["Name a bird."])
        ready(window)
        assert ranks(window)[0] == 3  # what was half done waits
        window.click("#skip")
        until(lambda: window.texts("#prompt p") == ["Name a fish."])
        window.size(360, 740)
        ready(window)
        window.picture("ranking-narrow")
        assert window.run("document.documentElement.scrollWidth <= innerWidth")
        window.click("#skip")
        until(lambda: "No prompt is left" in window.texts("#says")[0])
    (record,) = map(json.loads, output.read_text().splitlines())
    assert record["messages"] == [{"role": "user", "content": "My own question?"}] and record["ranks"] == [1, 1, 1, 2]
    with ranking(others, output) as address:
        window.open(address)
        until(lambda: "No prompt is left" in window.texts("#says")[0])
        assert window.texts("#count") == ["1 done, 0 left"]
