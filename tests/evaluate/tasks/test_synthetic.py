"""Generated tasks against OpenAI's released files: form, distribution, and the same prompt for the same operands."""

import collections
import gzip
import json
import random
import re

import pytest

from scaling.evaluate.tasks.catalogue import find_tasks
from scaling.evaluate.tasks.items import render_item
from scaling.evaluate.tasks.prompts import build_requests
from scaling.evaluate.tasks.request import Item
from scaling.evaluate.tasks.synthetic import ARITHMETIC, INSERTED, SCRAMBLING, generate, scramble
from scaling.evaluate.tasks.words import frequent_words
from tests.shared import SHARED, needs_shared

RELEASED = SHARED / "data" / "eval" / "gpt3_synthetic"
RELEASED_SCRAMBLING = [kind for kind in SCRAMBLING if kind != "mid_word_2_anagrams"]  # which was not released
OPERATION = r"Q: What is (\d+) (plus|minus|times) (\d+)\?\n\nA:"
COMPOSITE = r"Q: What is \(([1-9]) ([-+*]) ([1-9])\) ([-+*]) ([1-9])\?\n\nA:"


def released(kind: str) -> list[dict[str, str]]:
    path = RELEASED / f"{kind}.jsonl"
    if path.exists():
        return [json.loads(line) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in gzip.open(RELEASED / f"{kind}.jsonl.gz", "rt")]


def ours(kind: str) -> list[dict[str, str]]:
    """Our items in the form of the released files."""
    (task,) = find_tasks(kind)
    separator = task.prompt.separator
    built = build_requests(task, shots=1)
    assert all(separator in request.context for request in built.items)
    # The released context begins with the separator; what stands before it are description and demonstration.
    contexts = [
        separator + request.context.split(separator, request.context.count(separator))[-1] for request in built.items
    ]
    if task.group == "arithmetic":  # its prompt holds the separator itself
        contexts = ["\n\nQ:" + request.context.rpartition("\n\nQ:")[2] for request in built.items]
    return [{"context": c, "completion": r.target} for c, r in zip(contexts, built.items, strict=True)]


@needs_shared("data/eval/gpt3_synthetic")
@pytest.mark.parametrize("kind", ARITHMETIC)
def test_arithmetic_is_of_the_released_form(kind: str):
    theirs, made = released(kind), ours(kind)
    assert len(made) == len(theirs) == 2000
    pattern = re.compile(r"\n\n" + (COMPOSITE if kind == "single_digit_three_ops" else OPERATION))
    for items in (theirs, made):
        assert len({item["context"] for item in items}) == 2000
        for item in items:
            assert pattern.fullmatch(item["context"]) and re.fullmatch(r" -?\d+", item["completion"])

    def properties(items: list[dict[str, str]]) -> dict[str, float]:
        found = [re.findall(r"\d+", item["context"]) for item in items]
        numbers = [int(n) for ns in found for n in ns]
        lengths = collections.Counter(len(n) for ns in found for n in ns)
        operators = collections.Counter(re.sub(r"\d+", "", item["context"]) for item in items)
        return {
            "negative": sum(item["completion"].startswith(" -") for item in items) / 2000,
            "mean": sum(numbers) / len(numbers) / max(numbers),
            "longest": lengths[max(lengths)] / len(numbers),
            "second": lengths[max(lengths) - 1] / len(numbers),
            "first is smaller": sum(int(ns[0]) < int(ns[1]) for ns in found) / 2000,
            "digits": max(lengths),
            **{form: count / 2000 for form, count in operators.items()},
        }

    mine, wanted = properties(made), properties(theirs)
    assert mine.keys() == wanted.keys()
    for name, value in wanted.items():  # four standard errors of the difference of two fractions
        if name != "digits":
            count = 4000 if name in ("mean", "longest", "second") else 2000
            assert mine[name] == pytest.approx(value, abs=4 * (2 * value * (1 - value) / count) ** 0.5), name
    assert mine["digits"] == wanted["digits"]


@needs_shared("data/eval/gpt3_synthetic")
@pytest.mark.parametrize("kind", ARITHMETIC)
def test_same_operands_give_the_released_prompt_and_answer(kind: str):
    (task,) = find_tasks(kind)
    for record in released(kind):
        expression = re.fullmatch(r"\n\nQ: What is (.*)\?\n\nA:", record["context"])[1]
        value = eval(re.sub("plus", "+", expression.replace("minus", "-").replace("times", "*")))
        rendered = render_item(task, task.prompt, Item("test/0", "", {"expression": expression, "answer": str(value)}))
        assert task.prompt.separator + rendered.context == record["context"]
        assert rendered.target == record["completion"]


@needs_shared("data/eval/gpt3_synthetic")
@pytest.mark.parametrize("kind", RELEASED_SCRAMBLING)
def test_scrambling_is_of_the_released_form(kind: str):
    theirs, made = released(kind), ours(kind)
    assert len(made) == len(theirs) == 10_000
    for items in (theirs, made):
        lengths = collections.Counter()
        for item in items:
            scrambled, word = item["context"].removeprefix("\n").removesuffix(" ="), item["completion"][1:]
            assert item["context"] == f"\n{scrambled} =" and item["completion"] == f" {word}"
            assert re.fullmatch("[a-z]{5,15}", word)
            lengths[len(word)] += 1
            check_scrambled(kind, scrambled, word)
        assert min(lengths) == (5 if kind == "mid_word_1_anagrams" else 6) and max(lengths) == 15
        assert len({item["completion"] for item in items}) == 10_000
    (task,) = find_tasks(kind)
    record = theirs[0]
    fields = {"scrambled": record["context"][1:-2], "word": record["completion"][1:]}
    rendered = render_item(task, task.prompt, Item("test/0", "", fields))
    assert task.prompt.separator + rendered.context == record["context"] and rendered.target == record["completion"]


def check_scrambled(kind: str, scrambled: str, word: str) -> None:
    if kind == "reversed_words":
        assert scrambled == word[::-1]
    elif kind == "random_insertion_in_word":
        assert scrambled[::2] == word and len(scrambled) == 2 * len(word) - 1
        assert set(scrambled[1::2]) <= set(INSERTED)
    elif kind == "cycle_letters_in_word":
        assert scrambled != word and scrambled in word * 2 and len(scrambled) == len(word)
    else:
        edge = int(kind[9])
        assert scrambled != word and sorted(scrambled) == sorted(word)
        assert scrambled[:edge] == word[:edge] and scrambled[-edge:] == word[-edge:]


@pytest.mark.parametrize("kind", SCRAMBLING)
def test_scrambled_words(kind: str):
    items = generate("scrambling", kind, 300, seed=3)
    for item in items:
        check_scrambled(kind, item["scrambled"], item["word"])
    assert len({item["word"] for item in items}) == 300
    assert items == generate("scrambling", kind, 300, seed=3)
    assert items != generate("scrambling", kind, 300, seed=4)
    others = generate("scrambling", kind, 200, seed=3, exclude={item["word"] for item in items})
    assert not {item["word"] for item in others} & {item["word"] for item in items}


def test_symbols_and_cycles_are_uniform():
    rng = random.Random(0)
    symbols = collections.Counter(
        "".join(scramble("random_insertion_in_word", "banana", rng)[1::2] for _ in range(800))
    )
    assert set(symbols) == set(INSERTED) and min(symbols.values()) > 900  # of 1,000 expected
    starts = collections.Counter(scramble("cycle_letters_in_word", "abcdef", rng) for _ in range(1000))
    assert len(starts) == 5 and min(starts.values()) > 150


@pytest.mark.parametrize("kind", ARITHMETIC)
def test_answers_are_right(kind: str):
    for item in generate("arithmetic", kind, 200, seed=1):
        expression = item["expression"].replace("plus", "+").replace("minus", "-").replace("times", "*")
        assert eval(expression) == int(item["answer"])


def test_demonstrations_are_other_questions():
    (task,) = find_tasks("single_digit_three_ops")
    built = build_requests(task, shots="few", limit=50)
    questions = {request.context.rpartition("Q:")[2] for request in build_requests(task).items}
    for request in built.items:
        *demonstrations, _ = request.context.split("\n\nQ:")
        assert len(request.demonstrations) == 50
        assert not {f" {d.partition('A:')[0]}A:" for d in demonstrations} & questions


def test_too_many_items():
    with pytest.raises(ValueError, match="6,561 different items"):
        generate("arithmetic", "single_digit_three_ops", 4000, seed=0)
    with pytest.raises(ValueError, match="there are 3 words"):
        generate("scrambling", "reversed_words", 4, seed=0, words=["wordy", "letter", "banana"])


def test_words_are_frequent_ones():
    words = frequent_words(5)
    assert words[:3] == tuple(sorted(words[:3], key=words.index)) and "there" in words[:20]
    assert len(words) > 15_000 and all(5 <= len(word) <= 15 for word in words)
