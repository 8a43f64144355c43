"""Rankings without a browser: what is kept, what is made again, what is refused."""

import json

import httpx
import pytest

from scaling.data.chat import comparisons
from scaling.data.chat.dialogues import Skipped
from scaling.generate.sampling import Sampling
from scaling.serve.ranking import Plan, Rankings, read_prompts
from scaling.serve.refusals import Refusal
from tests.serve.live import Scripted, serving, tiny_model

PROMPTS = [[{"role": "user", "content": text}] for text in ("a?", "b?")]


@pytest.fixture(scope="module")
def models():
    return {name: tiny_model(name, Scripted) for name in ("one", "two")}


@pytest.fixture
def output(tmp_path):
    return tmp_path / "rankings.jsonl"


@pytest.fixture
def rankings(models, output):
    return lambda prompts=PROMPTS, count=3, **more: Rankings(
        Plan(models, count, Sampling(tokens=20, **more)), prompts, output
    )


def made(found):
    """The item that is shown, with three answers."""
    item = found.current()
    if not item["answers"]:
        answers = [{"text": f"{item['messages'][-1]['content']} {i}", "model": "one", "sample": i} for i in range(3)]
        found.keep(item, answers)
    return item


def lines(output):
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_each_ranking_is_a_line_that_the_reward_model_reads(rankings, output):
    found = rankings()
    for ranks in ([1, 2, 2], [3, 1, 2]):
        found.rank(made(found)["id"], ranks)
    assert found.current() is None and found.counts() == {"done": 2, "left": 0}
    read = list(comparisons.read(str(output), Skipped(refuses=True), 3))
    assert [comparison.ranks for comparison in read] == [(1, 2, 2), (3, 1, 2)]
    assert [comparison.answers[0][0]["content"] for comparison in read] == ["a?", "b?"]


def test_after_a_kill_at_any_write_nothing_is_lost_and_nothing_is_twice(rankings, output, monkeypatch):
    """The process ends after the ranking is written and before the state is, or in the middle of either."""
    found = rankings()
    item = made(found)
    found.draft(item["id"], [2, None, 1])
    state = found._state.read_text()
    found.rank(item["id"], [2, 3, 1])
    found._state.write_text(state)  # as if killed between the two files
    again = rankings()
    assert again.counts() == {"done": 1, "left": 1} and again.current()["messages"] == PROMPTS[1]
    output.write_text(output.read_text() + '{"messages": [')  # a line that was torn
    torn = rankings()
    torn.rank(made(torn)["id"], [1, 2, 3])
    assert [line["ranks"] for line in lines(output)] == [[2, 3, 1], [1, 2, 3]]


def test_handing_in_twice_is_once(rankings, output):
    found = rankings()
    item = made(found)
    for _ in range(2):
        found.rank(item["id"], [1, 2, 3])
    assert len(lines(output)) == 1
    assert found.current()["messages"] == PROMPTS[1]


def test_what_is_half_done_waits_while_the_person_asks(rankings):
    found = rankings()
    item = made(found)
    found.draft(item["id"], [1, None, None])
    found.ask("mine?")
    later = rankings()
    own = made(later)
    assert own["messages"][-1]["content"] == "mine?"
    later.rank(own["id"], [1, 1, 2])
    assert later.current()["ranks"] == [1, None, None] and later.current()["answers"] == item["answers"]


def test_skipped_prompts_do_not_come_again(rankings):
    found = rankings()
    found.skip(found.current()["id"])
    assert [item["messages"] for item in [rankings().current()]] == [PROMPTS[1]]


@pytest.mark.parametrize(
    "ranks", [None, [1, 2], [1, 2, 3, 4], [0, 1, 2], [1, 2, 4], [1, True, 2], [1, None, 2], [2] * 3]
)
def test_ranks_that_say_nothing_are_refused(rankings, output, ranks):
    found = rankings()
    item = made(found)
    with pytest.raises(Refusal):
        found.rank(item["id"], ranks)
    assert not output.exists()


def test_answers_are_in_turn_of_the_models_and_drawn_by_the_seed(rankings):
    def asked(**more):
        found = rankings(count=5, **more)
        return [(ask.model.name, ask.sampling.num_samples, ask.sampling.seed) for ask in found.asks(found.current(), 0)]

    first = asked(seed=1)
    assert [(name, samples) for name, samples, _ in first] == [("one", 3), ("two", 2)]
    assert asked(seed=1) == first != asked(seed=2)


def test_the_order_is_random_and_hides_the_model(rankings):
    orders = set()
    for seed in range(8):
        found = rankings([[{"role": "user", "content": f"{seed}?"}]])
        orders.add(tuple(answer["sample"] for answer in made(found)["answers"]))
        found.skip(found.current()["id"])
    assert len(orders) > 3


def test_empty_answers_are_drawn_again_and_a_prompt_without_answers_can_be_skipped(models, output, rankings):
    """An empty completion would make the whole ranking unusable for a reward model."""
    drawn = []

    def says(prompt, sample):
        drawn.append(sample)
        return " " if "b?" in prompt or len(drawn) == 1 else f"text {len(drawn)}"

    for model in models.values():
        model.generator.says = says
    with serving(models.values(), rankings=rankings()) as address:
        found = httpx.get(f"{address}/rank").json()
        assert found["item"].keys() == {"id", "messages", "answers", "ranks"}
        assert len(found["item"]["answers"]) == 3 and all(map(str.strip, found["item"]["answers"]))
        assert not any("one" in json.dumps(value) for value in found.values())
        httpx.post(f"{address}/rank/skip", json={"id": found["item"]["id"]})
        found = httpx.get(f"{address}/rank").json()
        assert found["problem"] and not found["item"]["answers"]
        assert httpx.post(f"{address}/rank/skip", json={"id": found["item"]["id"]}).json()["left"] == 0
        for path, fields, status in (
            ("skip", {"id": "other"}, 409),
            ("done", {}, 409),
            ("prompt", {"prompt": " "}, 400),
            ("prompt", {"prompt": "x" * 300}, 400),
            ("prompt", {"prompt": 1}, 400),
            ("other", {}, 404),
        ):
            response = httpx.post(f"{address}/rank/{path}", json=fields)
            assert response.status_code == status and response.json()["error"]["message"]
        assert httpx.get(f"{address}/rank").json()["item"] is None


def test_files_of_prompts(tmp_path):
    (tmp_path / "p.txt").write_text("one\n\ntwo\n")
    assert [prompt[0]["content"] for prompt in read_prompts(str(tmp_path / "p.txt"))] == ["one", "two"]
    records = [
        {"prompt": "a"},
        {"instruction": "b", "input": "c"},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "d"}]},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [prompt[-1]["content"] for prompt in read_prompts(str(tmp_path / "p.jsonl"))] == ["a", "b\n\nc", "d"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"text": "x"}', "p.jsonl:1"),
        ('{"prompt": " "}', "p.jsonl:1"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "p.jsonl:1"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "p.jsonl:1: the role 'robot'"),
        ("", "is empty"),
    ],
)
def test_prompts_that_cannot_be_used(tmp_path, line, sentence):
    (tmp_path / "p.jsonl").write_text(line)
    with pytest.raises(ValueError, match=sentence):
        read_prompts(str(tmp_path / "p.jsonl"))


def test_plans_that_cannot_be(models):
    for count in (1, 10):
        with pytest.raises(ValueError, match=f"--rank={count} must be 2 to 9"):
            Plan(models, count, Sampling())
    with pytest.raises(ValueError, match="fewer than the 3 models"):
        Plan({**models, "three": models["one"]}, 2, Sampling())
    base = tiny_model("base", Scripted, vocab=257, words="bytes")
    with pytest.raises(ValueError, match="no chat template"):
        Plan({"base": base}, 2, Sampling())


def test_a_damaged_state_is_named(rankings, output):
    output.with_name("rankings.jsonl.open.json").write_text("{")
    with pytest.raises(ValueError, match=r"open\.json"):
        rankings()
