"""Requests: nested seeded demonstrations, never the item itself, fitted to the context, the white-space rule."""

import dataclasses
import gzip
import json

import pytest

from scaling.data.tokenizer import load as load_tokenizer
from scaling.evaluate.tasks.catalogue import find_tasks
from scaling.evaluate.tasks.file import load
from scaling.evaluate.tasks.prompts import Room, build_requests
from scaling.evaluate.tasks.request import with_space

TASK = """
few_shot = 4
metrics = ["accuracy"]
metadata = ["topic"]
[prompt]
description = "Answer."
context = "Q: {question}\\nA:"
separator = "\\n\\n"
[scoring]
kind = "choices"
choices = "choices"
gold = "{answer}"
[[source]]
format = "jsonl"
test = "test.jsonl"
train = "train.jsonl"
[source.fields]
question = "q"
choices = "c"
answer = "a"
topic = "t"
"""


def records(count: int, word: str) -> str:
    lines = [{"q": f"{word} {i}?", "c": ["no", "yes"], "a": i % 2, "t": str(i % 3)} for i in range(count)]
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture
def task(tmp_path):
    (tmp_path / "own.toml").write_text(TASK)
    (tmp_path / "test.jsonl").write_text(records(6, "test"))
    (tmp_path / "train.jsonl").write_text(records(20, "train"))
    return load(tmp_path / "own.toml")[0]


def test_the_whole_prompt(task, tmp_path):
    zero = build_requests(task, 0, data=tmp_path).items[1]
    assert zero.context == "Answer.\n\nQ: test 1?\nA:"
    assert [option.completion for option in zero.options] == [" no", " yes"]
    assert zero.options[zero.gold].completion == " yes" == zero.target
    assert zero.metadata == {"topic": "1"} and zero.id == "test/1" and zero.shots == 0
    one = build_requests(task, 1, data=tmp_path).items[1]
    number = int(one.demonstrations[0].removeprefix("train/"))
    answer = ["no", "yes"][number % 2]
    assert one.context == f"Answer.\n\nQ: train {number}?\nA: {answer}\n\nQ: test 1?\nA:"
    assert all(option.context is one.context for option in one.options)


def test_demonstrations_are_nested_and_seeded(task, tmp_path):
    few = build_requests(task, "few", data=tmp_path).items
    two = build_requests(task, 2, data=tmp_path).items
    assert all(len(set(request.demonstrations)) == 4 for request in few)
    assert [request.demonstrations[:2] for request in few] == [request.demonstrations for request in two]
    assert few == build_requests(task, 4, seed=0, data=tmp_path).items
    assert few != build_requests(task, 4, seed=1, data=tmp_path).items
    assert len({request.demonstrations for request in few}) > 1  # anew for each item


def test_limit_does_not_change_the_items(task, tmp_path):
    everything = {request.id: request for request in build_requests(task, 2, data=tmp_path).items}
    some = build_requests(task, 2, data=tmp_path, limit=3).items
    assert len(some) == 3 and all(everything[request.id] == request for request in some)
    assert len(build_requests(task, data=tmp_path, limit=100).items) == 6


def test_never_the_item_itself(task, tmp_path):
    (tmp_path / "train.jsonl").unlink()
    built = build_requests(task, 10, data=tmp_path)
    for request in built.items:
        assert request.id not in request.demonstrations and len(request.demonstrations) == 5
    assert any("demonstrations come from the test items" in note for note in built.notes)
    assert any("6 of 6 items have 5 of 10 demonstrations, all that there are" in note for note in built.notes)
    # Nor its equal under another number: the training split repeats the test items here.
    (tmp_path / "train.jsonl").write_text(records(6, "test"))
    for request in build_requests(task, 10, data=tmp_path).items:
        assert len(request.demonstrations) == 5
        assert request.context.count(request.context.rpartition("Q:")[2]) == 1


def test_demonstrations_are_left_off_until_they_fit(task, tmp_path):
    tokenizer = load_tokenizer("bytes")
    whole = build_requests(task, 4, data=tmp_path).items
    length = max(len(request.context) + len(" yes") for request in whole)
    fitted = build_requests(task, 4, data=tmp_path, room=Room(tokenizer, length))
    assert fitted.items == whole and not fitted.notes
    smaller = build_requests(task, 4, data=tmp_path, room=Room(tokenizer, length - 30))
    for request, before in zip(smaller.items, whole, strict=True):
        assert 0 < request.shots < 4 and request.fits
        assert request.demonstrations == before.demonstrations[: request.shots]
        assert len(request.context) + 4 <= length - 30
        assert len(build_requests(task, request.shots + 1, data=tmp_path).items[0].context) + 4 > length - 30
    assert smaller.notes == (f"own: 6 of 6 items have 2 of 4 demonstrations, so that they fit {length - 30} tokens",)
    tiny = build_requests(task, 4, data=tmp_path, room=Room(tokenizer, 10))
    assert all(request.shots == 0 and not request.fits for request in tiny.items)
    assert tiny.notes[1] == "own: 6 of 6 items are longer than 10 tokens even without demonstrations and are left out"


def test_room_for_the_generated_answer():
    (task,) = find_tasks("two_digit_addition")
    tokenizer = load_tokenizer("bytes")
    built = build_requests(task, "few", room=Room(tokenizer, 200), limit=20)
    for request in built.items:
        assert len(request.context) + task.scoring.max_tokens <= 200
        longer = build_requests(task, request.shots + 1, limit=20).items
        same = next(other for other in longer if other.id == request.id)
        assert len(same.context) + task.scoring.max_tokens > 200


@pytest.mark.parametrize(
    ("completion", "context", "expected"),
    [
        ("yes", "A:", " yes"),
        ("'s house.", "at Bob", "'s house."),
        (", too", "Bob", ", too"),
        ("'Yes,' he said.", "Then", " 'Yes,' he said."),
        ("The end.", "", "The end."),
    ],
)
def test_white_space_rule(completion: str, context: str, expected: str):
    assert with_space(completion, context) == expected


def test_zero_shot_form_of_lambada(tmp_path):
    (tmp_path / "lambada_openai.jsonl").write_text('{"context": "He saw a", "continuation": "dog"}\n' * 2)
    (task,) = find_tasks("lambada")
    request = build_requests(task, 0, data=tmp_path).items[0]
    assert request.context == "He saw a" and request.options[0].completion == " dog"


def test_running_text_has_no_demonstrations(tmp_path):
    (tmp_path / "own.toml").write_text(
        'metrics = ["bits_per_byte"]\nfew_shot = 3\n[prompt]\ncontext = "{page}"\n[scoring]\nkind = "text"\n'
        '[[source]]\nformat = "jsonl"\ntest = "p.jsonl"\n[source.fields]\npage = "text"\n'
    )
    (tmp_path / "p.jsonl").write_text('{"text": "One page."}\n{"text": "Another."}\n')
    built = build_requests(load(tmp_path / "own.toml")[0], "few", data=tmp_path)
    assert [request.context for request in built.items] == ["One page.", "Another."] and built.shots == 0
    long = build_requests(load(tmp_path / "own.toml")[0], data=tmp_path, room=Room(load_tokenizer("bytes"), 4))
    assert all(request.fits for request in long.items) and long.notes == ()


def test_empty_texts_are_skipped(tmp_path):
    (tmp_path / "own.toml").write_text(
        'metrics = ["bits_per_byte"]\n[prompt]\ncontext = "{page}"\n[scoring]\nkind = "text"\n'
        '[[source]]\nformat = "lines"\ntest = "p.txt"\n[source.fields]\npage = "line"\n'
    )
    (task,) = load(tmp_path / "own.toml")
    (tmp_path / "p.txt").write_text("\nOne line.\n  \nAnother.\n")
    built = build_requests(task, data=tmp_path)
    assert [(request.id, request.context) for request in built.items] == [
        ("test/1", "One line."),
        ("test/3", "Another."),
    ]
    assert built.notes == ("own: 2 of 4 texts are empty and are skipped",)
    assert len(build_requests(task, data=tmp_path, limit=2).items) == 2
    (tmp_path / "p.txt").write_text(" \n\n")
    with pytest.raises(ValueError, match=r"all of its 2 texts are empty, from .*p\.txt:1 on"):
        build_requests(task, data=tmp_path)


def test_a_text_file_is_one_record(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_text("Second.")
    (tmp_path / "one.txt").write_bytes("First,\r\n\n  of several lines:\u2028 \u00e9.\n".encode())
    with gzip.open(tmp_path / "b" / "three.txt.gz", "wt") as file:
        file.write("Third\nand last.\n")
    (tmp_path / "notes.md").write_text("Not this.")
    (task,) = find_tasks("text")
    built = build_requests(task, "few", data=tmp_path)
    assert [request.context for request in built.items] == [
        "First,\r\n\n  of several lines:\u2028 \u00e9.",
        "Third\nand last.",
        "Second.",
    ]
    (tmp_path / "b" / "two.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"two\.txt is not UTF-8"):
        build_requests(task, data=tmp_path)


def test_links_to_folders_are_followed_but_not_round_in_circles_and_hidden_files_are_left_out(tmp_path):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "a.txt").write_text("Behind a link.")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "deep" / "round").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "back").symlink_to(tmp_path / "data")
    for hidden in (".hidden", "link/.ipynb_checkpoints"):
        (tmp_path / "data" / hidden).mkdir()
        (tmp_path / "data" / hidden / "b.txt").write_text("Hidden.")
    (tmp_path / "data" / "._a.txt").write_bytes(b"\xff")
    built = build_requests(find_tasks("text")[0], data=tmp_path / "data")
    assert [request.context for request in built.items] == ["Behind a link."]


def test_no_demonstration_asks_the_question_of_the_item(task, tmp_path):
    (tmp_path / "train.jsonl").unlink()
    # PIQA and ARC have questions that come several times, with other answers.
    items = [{"q": f"test {i // 2}?", "c": [f"no {i}", f"yes {i}"], "a": i % 2, "t": ""} for i in range(6)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    for request in build_requests(task, 10, data=tmp_path).items:
        assert len(request.demonstrations) == 4
        assert request.context.count(request.context.rpartition("Q:")[2]) == 1
    # Where the context says nothing of the item, its answers tell it apart.
    for context in ("", "Which is right?"):
        bare = dataclasses.replace(task, prompt=dataclasses.replace(task.prompt, context=context))
        assert all(len(request.demonstrations) == 5 for request in build_requests(bare, 10, data=tmp_path).items)


def test_contexts_of_partial_evaluation_may_be_alike(tmp_path):
    (tmp_path / "own.toml").write_text(
        TASK.replace("Q: {question}\\nA:", "{question}").replace(
            'kind = "choices"\nchoices = "choices"', 'kind = "partial"\ncontexts = "choices"\ncompletion = "{topic}"'
        )
    )
    items = [{"q": "He", "c": ["no", "yes"], "a": 1, "t": f"end {i % 3}"} for i in range(6)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    for request in build_requests(load(tmp_path / "own.toml")[0], 10, data=tmp_path).items:
        assert len(request.demonstrations) == 4  # all but the item and its equal


def test_the_two_causes_of_fewer_demonstrations_are_counted_apart(task, tmp_path):
    (tmp_path / "train.jsonl").write_text(records(3, "train"))
    items = [json.loads(line) for line in records(6, "test").splitlines()]
    items[2]["q"] = items[4]["q"] = "w" * 40
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    tokenizer = load_tokenizer("bytes")
    all_fit = max(len(r.context) for r in build_requests(task, 5, data=tmp_path).items if "ww" not in r.context) + 4
    built = build_requests(task, 5, data=tmp_path, room=Room(tokenizer, all_fit))
    assert built.notes == (
        "own: 4 of 6 items have 3 of 5 demonstrations, all that there are",
        f"own: 2 of 6 items have 1 of 5 demonstrations, so that they fit {all_fit} tokens",
    )


@pytest.mark.parametrize("shots", ["many", -1, 1.5, "-2"])
def test_shots_that_make_no_sense(shots, task, tmp_path):
    with pytest.raises(ValueError, match="shots must be"):
        build_requests(task, shots, data=tmp_path)


def test_a_limit_that_makes_no_sense(task, tmp_path):
    with pytest.raises(ValueError, match="limit must be at least 1"):
        build_requests(task, data=tmp_path, limit=0)


def test_scoring_can_be_changed_by_the_caller():
    (task,) = find_tasks("two_digit_addition")
    greedy = dataclasses.replace(task, scoring=dataclasses.replace(task.scoring, beams=1))
    assert build_requests(greedy, limit=1).task.scoring.beams == 1
