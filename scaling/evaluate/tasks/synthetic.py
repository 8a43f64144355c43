"""Arithmetic and word scrambling to GPT-3's specification, any number of items from any seed.

Sections 3.9.1 and 3.9.2 of arXiv 2005.14165, compared with the files that OpenAI released. Where the paper and the
files differ, the files are followed: the composite task has digits 1 to 9 and brackets around the first two (the paper
says 0 to 9 and the last two), and the words have 6 to 15 letters, 5 to 15 for the first kind of anagram (the paper says
5 to 14).
"""

import dataclasses
import random
from collections.abc import Callable, Collection, Sequence

from scaling.evaluate.tasks.words import frequent_words

Item = dict[str, str]

TOP_WORDS = 10_000
INSERTED = " .!/"  # what random insertion puts between letters

_VERBS = {"addition": "plus", "subtraction": "minus", "multiplication": "times"}
_DIGITS = {"two": 2, "three": 3, "four": 4, "five": 5}

ARITHMETIC = (
    *(f"{digits}_digit_{operation}" for digits in _DIGITS for operation in ("addition", "subtraction")),
    "two_digit_multiplication",
    "single_digit_three_ops",
)
SCRAMBLING = (
    "cycle_letters_in_word",
    "mid_word_1_anagrams",
    "mid_word_2_anagrams",
    "random_insertion_in_word",
    "reversed_words",
)


@dataclasses.dataclass(frozen=True)
class GeneratorInfo:
    kinds: tuple[str, ...]
    fields: tuple[str, ...]  # of its items
    key: str  # the field by which items are told apart


GENERATORS = {
    "arithmetic": GeneratorInfo(ARITHMETIC, ("expression", "answer"), "expression"),
    "scrambling": GeneratorInfo(SCRAMBLING, ("scrambled", "word"), "word"),
}


def generate(
    name: str,
    kind: str,
    count: int,
    seed: int,
    exclude: Collection[str] = (),
    words: Sequence[str] | None = None,
) -> list[Item]:
    """Different items, as many as asked for.

    Args:
        name: arithmetic or scrambling.
        kind: one of ``GENERATORS[name].kinds``.
        count: how many.
        seed: equal seeds give equal items.
        exclude: expressions (arithmetic) or words (scrambling) that must not occur.
        words: scrambling: the words to draw from; None = the ``TOP_WORDS`` most frequent of the embedded corpus.

    Returns:
        Items with the keys ``expression, answer`` or ``scrambled, word``.

    Raises:
        ValueError: there are not so many different items.
    """
    assert kind in GENERATORS[name].kinds, (name, kind)
    rng = random.Random(f"{name}/{kind}/{seed}")
    if name == "arithmetic":
        return _arithmetic(kind, count, rng, set(exclude))
    if words is None:
        ranked = frequent_words(5 if kind == "mid_word_1_anagrams" else 6)
        words = [word for word in ranked if _can_change(kind, word)][:TOP_WORDS]
    return _scrambling(kind, count, rng, set(exclude), words)


def _arithmetic(kind: str, count: int, rng: random.Random, seen: set[str]) -> list[Item]:
    draw, different = (_composite, 9**3 * 9) if kind == "single_digit_three_ops" else _operation(kind)
    if count > (different - len(seen)) // 2:  # drawing with rejection would take too long for more than half
        raise ValueError(
            f"{kind} has {different:,} different items; with {len(seen):,} excluded, {count:,} more are too many"
        )
    items: list[Item] = []
    while len(items) < count:
        item = draw(rng)
        if item["expression"] not in seen:
            seen.add(item["expression"])
            items.append(item)
    return items


def _operation(kind: str) -> tuple[Callable[[random.Random], Item], int]:
    digits, _, operation = kind.partition("_digit_")
    limit = 10 ** _DIGITS[digits]  # uniform in [0, limit), so numbers may have fewer digits

    def draw(rng: random.Random) -> Item:
        a, b = rng.randrange(limit), rng.randrange(limit)
        answer = {"addition": a + b, "subtraction": a - b, "multiplication": a * b}[operation]
        return {"expression": f"{a} {_VERBS[operation]} {b}", "answer": str(answer)}

    return draw, limit**2


def _composite(rng: random.Random) -> Item:
    a, b, c = (rng.randint(1, 9) for _ in range(3))
    first, second = rng.choice("+-*"), rng.choice("+-*")
    inner = {"+": a + b, "-": a - b, "*": a * b}[first]
    answer = {"+": inner + c, "-": inner - c, "*": inner * c}[second]
    return {"expression": f"({a} {first} {b}) {second} {c}", "answer": str(answer)}


def _scrambling(kind: str, count: int, rng: random.Random, exclude: set[str], words: Sequence[str]) -> list[Item]:
    fitting = [word for word in words if word not in exclude and _can_change(kind, word)]
    if count > len(fitting):
        raise ValueError(
            f"{kind}: {count:,} items were asked for, and there are {len(fitting):,} words to make them of"
        )
    return [{"scrambled": scramble(kind, word, rng), "word": word} for word in rng.sample(fitting, count)]


def _can_change(kind: str, word: str) -> bool:
    if kind == "cycle_letters_in_word":
        return len(set(word)) > 1
    if kind in ("mid_word_1_anagrams", "mid_word_2_anagrams"):
        edge = int(kind[9])
        return len(set(word[edge:-edge])) > 1
    return True  # a reversed palindrome is unchanged, also in OpenAI's file


def scramble(kind: str, word: str, rng: random.Random) -> str:
    """One word, scrambled; differs from it, except palindromes that are reversed."""
    if kind == "reversed_words":
        return word[::-1]
    if kind == "random_insertion_in_word":
        return "".join(letter + rng.choice(INSERTED) for letter in word[:-1]) + word[-1]
    while True:
        if kind == "cycle_letters_in_word":
            start = rng.randrange(1, len(word))
            scrambled = word[start:] + word[:start]
        else:
            edge = int(kind[9])
            middle = list(word[edge:-edge])
            rng.shuffle(middle)
            scrambled = word[:edge] + "".join(middle) + word[-edge:]
        if scrambled != word:
            return scrambled
