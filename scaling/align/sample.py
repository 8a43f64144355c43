"""A model's own answers as data: the best of N as dialogues (rejection sampling), or best and worst as pairs."""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from scaling import durable
from scaling.align.answered import Asked, Output
from scaling.align.rewards import Reward
from scaling.data.chat.dialogues import Skipped
from scaling.data.chat.template import ASSISTANT
from scaling.generate.answers import Answers
from scaling.generate.generator import Completion

_BATCHES = 4  # of answers, between two writes


class Summary(NamedTuple):
    """What a file of answers has.

    Attributes:
        written: prompts in the file.
        left_out: prompts that are not in it.
        mean: reward of an answer.
        best: reward of the best answer of a prompt, in the mean.
        cut: share of this time's answers that reached the limit of tokens.
    """

    written: int
    left_out: int
    mean: float
    best: float
    cut: float


def sample(
    answers: Answers,
    reward: Reward,
    asked: Sequence[Asked],
    output: Output,
    worst: bool,
    watch: Callable[[int], None] = lambda done: None,
) -> Summary:
    """Answers the prompts that are left, and writes what can be learned from.

    An answer that is empty, or that was cut at the limit of tokens, is no candidate: to train on it is to learn to say
    nothing, or to end in the middle. What a prompt is answered with depends on its number and the seed alone, so a
    file that was interrupted becomes the same.

    Args:
        answers: the model, with the number of answers to a prompt.
        reward: of answers.
        asked: all prompts.
        output: the file.
        worst: write pairs of the best and the worst answer in the place of dialogues with the best.
        watch: is told how many prompts are done.

    Raises:
        ValueError: as ``Output.left`` and ``Reward``; what was written before stays.
    """
    left = output.left(asked)
    noted, finishes = Skipped(refuses=False), collections.Counter[str]()
    step = max(1, _BATCHES * answers.batch_size // answers.sampling.num_samples)
    written = list(output.records)
    lines = output.open()
    try:
        for first in range(0, len(left), step):
            watch(len(asked) - len(left) + first)
            chunk = left[first : first + step]
            found = answers([each.prompt for each in chunk], [each.number for each in chunk])
            finishes.update(completion.finish for completions in found for completion in completions)
            for record in _records(chunk, found, reward, worst, noted):
                lines.write(record)
                written.append(record)
    finally:
        lines.close()
    durable.sync([output.path])
    noted.summary()
    rewards = [record["rewards"] for record in written]
    every = [value for values in rewards for value in values]
    return Summary(
        len(written),
        len(asked) - len(written),
        sum(every) / max(1, len(every)),
        sum(map(max, rewards)) / max(1, len(rewards)),
        finishes["length"] / max(1, finishes.total()),
    )


def _records(
    chunk: Sequence[Asked], found: Sequence[Sequence[Completion]], reward: Reward, worst: bool, noted: Skipped
) -> list[dict[str, Any]]:
    """Lines of the prompts that have something to learn from."""
    texts = [
        [completion.text for completion in completions if completion.text.strip() and completion.finish != "length"]
        for completions in found
    ]
    # Equal answers are rated once: rewards of a text in two batches differ by rounding, which would make a pair of it.
    different = [list(dict.fromkeys(mine)) for mine in texts]
    prompts = [each.prompt for each, mine in zip(chunk, different, strict=True) for _ in mine]
    values = iter(reward(prompts, [text for mine in different for text in mine]).tolist()) if prompts else iter([])
    records = []
    for (number, prompt), mine, once in zip(chunk, texts, different, strict=True):
        rated = {text: next(values) for text in once}
        rewards = [rated[text] for text in mine]
        messages = list(prompt.messages)
        if len(mine) < 1 + worst:
            few = "fewer than two answers have" if worst else "no answer has"
            noted.note(prompt.where, f"left out: {few} text and an end")
        elif not worst:
            best = mine[rewards.index(max(rewards))]
            said = {"messages": [*messages, {"role": ASSISTANT, "content": best}]}
            records.append({**said, "rewards": rewards, "number": number})
        elif min(rewards) == max(rewards):
            noted.note(prompt.where, "left out: all answers have the same reward")
        else:
            pair = {"chosen": mine[rewards.index(max(rewards))], "rejected": mine[rewards.index(min(rewards))]}
            records.append({"messages": messages, **pair, "rewards": rewards, "number": number})
    return records
