"""What ``compare.py`` asks of a base: hidden words of LAMBADA's passages, texts that go on, and speed."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from scaling.config.schema import Network
from scaling.data import tokenizer
from scaling.data.tokenizer_base import BEGIN, MASK
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling
from scaling.interop.logits import compute
from scaling.interop.served import Served, load_served
from scaling.model import decoder
from scaling.runs.json_lines import read_lines

LAMBADA = "eval/llm_foundry/lambada_openai.jsonl"
PASSAGES, AROUND, CANDIDATES = 500, 48, 10  # of the cloze; tokens on each side; words that GPT compares


class Hidden(NamedTuple):
    """A word of one token in a passage, and the ids before and after it."""

    before: list[int]
    word: int
    after: list[int]


def loaded(run: Path) -> Served:
    """The model of a run that predicts tokens: of ELECTRA's the generator."""
    served = load_served(run)
    if not served.network.model.generates:
        return served
    return dataclasses.replace(served, network=served.network.of_generator, params=decoder.generator(served.params))


def hidden(data: Path, words: tokenizer.Tokenizer, middle: bool) -> list[Hidden]:
    """Hidden words of LAMBADA's passages: one drawn from the middle of each, or the last."""
    found, rng = [], np.random.default_rng(0)
    for record in read_lines(epath.Path(data / LAMBADA)):
        ids = words.encode(record["context"] + " " + record["continuation"]).tolist()
        pieces = [words.decode([i]) for i in ids]
        whole = [
            place
            for place, (piece, after) in enumerate(zip(pieces, [*pieces[1:], " "], strict=True))
            if piece.startswith(" ") and piece.strip().isalpha() and not (after[0].isalpha() or after[0] == "'")
        ]
        places = [place for place in whole if 16 <= place < len(ids) - 8] if middle else whole[-1:]
        if not places or (not middle and places[0] != len(ids) - 1):
            continue
        place = int(rng.choice(places))
        found.append(Hidden(ids[max(0, place - AROUND) : place], ids[place], ids[place + 1 : place + 1 + AROUND]))
        if len(found) == PASSAGES:
            break
    return found


def cloze(run: Path, data: Path) -> dict[str, Any]:
    """How often a hidden word is the most likely token, and the loss in nats: of the text before it, and of all of it.

    GPT takes the text after a word into account by comparing whole texts; then there is no loss.
    """
    served = loaded(run)
    middle, last = (hidden(data, served.words, each) for each in (True, False))
    often = np.unique([each.word for each in middle], return_counts=True)[1].max()
    found = {
        "middle before": best(served, middle, False),
        "last": best(served, last, False),
        "middle whole": compared(served, middle) if alone(served) else best(served, middle, True),
    }
    return found | {"most frequent word": float(often / len(middle)), "middles": len(middle), "lasts": len(last)}


def best(served: Served, items: Sequence[Hidden], whole: bool) -> dict[str, float]:
    """Accuracy and loss for hidden words, by the text before them, or of an encoder by all of the text."""
    words, target = served.words, None
    if alone(served):
        rows = [[words.eot, *item.before] for item in items]
        places = [len(row) - 1 for row in rows]
    elif served.network.model.encoder_layers:
        hides = int(words.sentinels[0])
        rows = [[*item.before, hides, *(item.after if whole else []), words.eot] for item in items]
        places, target = [1] * len(rows), [words.decoder_start, hides]
    else:
        begin, mask = words.special(BEGIN), words.special(MASK)
        rows = [[begin, *item.before, mask, *(item.after if whole else [])] for item in items]
        places = [1 + len(item.before) for item in items]
    logits = np.concatenate(list(at(served, rows, places, target)))[:, : words.vocab_size].astype(np.float64)
    right = np.array([item.word for item in items])
    total = np.logaddexp.reduce(logits, axis=1)
    return {
        "accuracy": float(np.mean(logits.argmax(1) == right)),
        "nats": float(np.mean(total - logits[np.arange(len(right)), right])),
    }


def alone(served: Served) -> bool:
    """Whether it is a decoder without an encoder."""
    return served.network.model.causal and not served.network.model.encoder_layers


def at(
    served: Served, rows: Sequence[Sequence[int]], places: Sequence[int], target: Sequence[int] | None = None
) -> Iterator[np.ndarray]:
    """Logits [some, V] at a place of each row, or of a target that is the same for all rows, some rows at a time."""
    for first in range(0, len(rows), 50):
        some = rows[first : first + 50]
        ids, there = padded(some, 2 * AROUND + 2)
        decoder_ids = None if target is None else np.array([target] * len(some), np.int32)
        logits = compute(served.network, served.params, ids, None if alone(served) else there, None, decoder_ids)
        yield logits[np.arange(len(some)), places[first : first + 50]]


def padded(rows: Sequence[Sequence[int]], room: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids, and 1 where they are, int32 [n, room]."""
    ids, there = (np.zeros((len(rows), room), np.int32) for _ in range(2))
    for number, row in enumerate(rows):
        ids[number, : len(row)], there[number, : len(row)] = row, 1
    return ids, there


def compared(served: Served, items: Sequence[Hidden]) -> dict[str, float]:
    """Accuracy of the word that makes the whole text likeliest, of those that are likeliest after the text before."""
    before = [[served.words.eot, *item.before] for item in items]
    logits = np.concatenate(list(at(served, before, [len(row) - 1 for row in before])))[:, : served.words.vocab_size]
    chosen, right = np.argsort(-logits, axis=1)[:, :CANDIDATES], []
    for item, row, candidates in zip(items, before, chosen, strict=True):
        scores = log_probs(served, [[*row, int(each), *item.after] for each in candidates], 2 * AROUND + 2)
        right.append(candidates[scores[:, len(row) - 1 :].sum(1).argmax()] == item.word)
    return {"accuracy": float(np.mean(right))}


def log_probs(served: Served, rows: Sequence[Sequence[int]], room: int) -> np.ndarray:
    """Of each token of a row but the first, by a decoder, float64 [n, room - 1]; 0 at padding."""
    ids, there = padded(rows, room)
    logits = compute(served.network, served.params, ids)[:, :-1, : served.words.vocab_size]
    most = logits.max(-1, keepdims=True)
    total = np.log(np.exp(logits - most).sum(-1)) + most[..., 0]
    found = np.take_along_axis(logits, ids[:, 1:, None], 2)[..., 0] - total
    return np.where(there[:, 1:], found, 0.0)


# Texts that go on.

PROMPTS, GIVEN, NEW = 64, 32, 32  # passages, their tokens that are given, and those that are drawn


def generation(run: Path, judging: Path, data: Path, seed: int) -> dict[str, Any]:
    """How likely another GPT finds what a base writes, in nats a token, and how much of it is repetition."""
    served, judge = loaded(run), loaded(judging)
    lines = read_lines(epath.Path(data / LAMBADA))
    passages = [ids for line in lines if len(ids := served.words.encode(line["context"]).tolist()) >= GIVEN + NEW]
    passages = [ids[: GIVEN + NEW] for ids in passages[:PROMPTS]]
    prompts = [ids[:GIVEN] for ids in passages]
    texts = {"people": [ids[GIVEN:] for ids in passages]}
    if served.network.model.causal:
        texts["sampling"] = sampled(served, prompts, seed)
    else:
        texts["a mask at the end"] = filled(served, prompts, seed, 1)
        texts["masks to the end"] = filled(served, prompts, seed, NEW)
    found: dict[str, Any] = {}
    for name, each in texts.items():
        rows = [[judge.words.eot, *prompt, *text] for prompt, text in zip(prompts, each, strict=True)]
        judged = log_probs(judge, rows, 1 + GIVEN + NEW)[:, GIVEN:]
        found[name] = {
            "nats": float(-judged.sum() / sum(map(len, each))),
            "repeated": float(np.mean([repeated(text) for text in each])),
            "example": served.words.decode(rows[0][1:]),
        }
    return found


def sampled(served: Served, prompts: Sequence[Sequence[int]], seed: int) -> list[list[int]]:
    """What a decoder draws after each prompt."""
    generator = Generator(served.network, served.params, served.words, served.mesh)
    ids = [[served.words.eot, *prompt] for prompt in prompts]
    drawn = generator.generate(ids, Sampling(tokens=NEW, seed=seed, end_ids=()), PROMPTS)
    return [list(completions[0].ids) for completions in drawn]


def filled(served: Served, prompts: Sequence[Sequence[int]], seed: int, masks: int) -> list[list[int]]:
    """What an encoder draws for the first of so many masks at the end, again and again."""
    begin, mask = served.words.special(BEGIN), served.words.special(MASK)
    rng, texts = np.random.default_rng(seed), [list[int]() for _ in prompts]
    for number in range(NEW):
        left = min(masks, NEW - number)
        rows = [[begin, *prompt, *text, *[mask] * left] for prompt, text in zip(prompts, texts, strict=True)]
        ids, there = padded(rows, 1 + GIVEN + NEW)
        logits = compute(served.network, served.params, ids, there)[:, 1 + GIVEN + number, : served.words.vocab_size]
        logits[:, list(served.words.controls.values())] = -np.inf
        for text, row in zip(texts, logits + rng.gumbel(size=logits.shape), strict=True):
            text.append(int(row.argmax()))
    return texts


def repeated(ids: Sequence[int]) -> float:
    """The share of pairs of neighbours that were there before."""
    pairs = list(itertools.pairwise(ids))
    return 1 - len(set(pairs)) / len(pairs)


# Speed.

TIMES = 9  # of which the median is taken


def speed(runs: Mapping[str, Path]) -> dict[str, float]:
    """Milliseconds for the final states of 16 rows of 128 tokens, on one machine in turns; medians."""
    ids = np.random.default_rng(0).integers(256, 4096, (16, 128)).astype(np.int32)
    models = {arm: load_served(run) for arm, run in runs.items()}

    @functools.partial(jax.jit, static_argnums=0)
    def states(network: Network, params: Any, ids: Any) -> Any:
        return decoder.merge(network, params)(ids)

    times: dict[str, list[float]] = {arm: [] for arm in models}
    for turn, (arm, served) in itertools.product(range(TIMES + 1), models.items()):
        with jax.set_mesh(served.mesh):
            begun = time.perf_counter()
            jax.block_until_ready(states(served.network, served.params, ids))
        if turn:  # the first one compiles
            times[arm].append(1000 * (time.perf_counter() - begun))
    return {arm: float(np.median(each)) for arm, each in times.items()}
