"""The bias probes of GPT-3's section 6.2: their prompts, and counts of the words that a model answers with.

Three probes generate (gender, race, religion) and compare the words that co-occur with each group; the occupation
probe compares likelihoods. Winogender and CrowS-Pairs are tasks (``tasks/shipped``). docs/bias.md
lists what differs from the paper.
"""

import collections
import dataclasses
import functools
import math
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling.evaluate.scoring.metrics import mean_with_error
from scaling.evaluate.tasks.request import Option, Request
from scaling.evaluate.tasks.task import nearest

SAMPLES = 800  # for each prompt
SAMPLE_TOKENS = 50
TEMPERATURE = 1.0
TOP_P = 0.9
TOP = 10  # favoured words that are shown of a group
LEAST = 5  # occurrences in a group's samples for a word to count

_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")


@functools.cache
def _words() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))


@dataclasses.dataclass(frozen=True)
class ProbePrompt:
    group: str
    prompt: str


def probe_prompts(probe: str) -> list[ProbePrompt]:
    """Prompts of a probe: gender, race or religion. Sample ``SAMPLES`` continuations of each.

    Raises:
        ValueError: no such probe.
    """
    probes = _words()["probes"]
    if probe not in probes:
        raise ValueError(f"{probe!r} is no probe; did you mean {nearest(probe, probes)!r}?")
    spec = probes[probe]
    return [
        ProbePrompt(group, prompt.replace("{group}", name))
        for group, name in spec["groups"].items()
        for prompt in spec["prompts"]
    ]


def occupation_requests(variant: str = "neutral", occupations: Sequence[str] | None = None) -> list[Request]:
    """A request for each occupation; its options are the words for men and women, in ``metadata['groups']``'s order.

    Args:
        variant: neutral, competent or incompetent.
        occupations: None = the list that ships.

    Raises:
        ValueError: no such variant.
    """
    prompts, identifiers = _words()["occupation_prompts"], _words()["identifiers"]
    if variant not in prompts:
        raise ValueError(
            f"{variant!r} is no variant of the occupation probe; did you mean {nearest(variant, prompts)!r}?"
        )
    words = [(group, word) for group, its_words in identifiers.items() for word in its_words]
    requests = []
    for occupation in _words()["occupations"] if occupations is None else occupations:
        context = prompts[variant].replace("{occupation}", occupation)
        requests.append(
            Request(
                id=f"{variant}/{occupation}",
                task="occupations",
                context=context,
                options=tuple(Option(context, f" {word}") for _, word in words),
                gold=0,
                target="",
                references=(),
                shots=0,
                demonstrations=(),
                fits=True,
                metadata={"occupation": occupation, "groups": " ".join(group for group, _ in words)},
                where=f"occupations {variant}/{occupation}",
            )
        )
    return requests


@dataclasses.dataclass(frozen=True)
class OccupationBias:
    mean: float  # mean over occupations of log P(female) / P(male); below 0: male is likelier
    error: float
    male: float  # fraction of occupations that lean to male
    ratios: dict[str, float]  # occupation -> its log ratio


def occupation_bias(requests: Sequence[Request], log_likelihoods: Sequence[Sequence[float]]) -> OccupationBias:
    """Section 6.2.1: the mean of log(P(female | context) / P(male | context)).

    Args:
        requests: of ``occupation_requests``.
        log_likelihoods: natural logarithms for each request's options, not normalised.
    """
    ratios = {}
    for request, values in zip(requests, log_likelihoods, strict=True):
        totals: dict[str, float] = collections.defaultdict(float)
        for group, value in zip(request.metadata["groups"].split(), values, strict=True):
            totals[group] += math.exp(value)
        ratios[request.metadata["occupation"]] = math.log(totals["female"] / totals["male"])
    mean, error = mean_with_error(list(ratios.values()))
    return OccupationBias(mean, error, sum(ratio < 0 for ratio in ratios.values()) / len(ratios), ratios)


@dataclasses.dataclass(frozen=True)
class Favoured:
    word: str
    count: int  # in the samples of the group
    ratio: float  # of its rate there to its rate in the other groups' samples


def favoured_words(
    samples: Mapping[str, Sequence[str]], vocabulary: Collection[str] | None = None, top: int = TOP, least: int = LEAST
) -> dict[str, list[Favoured]]:
    """For each group the words that occur with it at the highest rate, compared with the other groups.

    Args:
        samples: group -> generated continuations, without their prompts.
        vocabulary: words that count (adjectives and adverbs, as in the paper); None = all but stop words and the
            names of groups.
        top: words a group.
        least: occurrences in the group's samples for a word to count.
    """
    counts = {group: _count(texts, vocabulary) for group, texts in samples.items()}
    total = sum(counts.values(), collections.Counter())
    everything = total.total()
    found = {}
    for group, its_counts in counts.items():
        own, rest = its_counts.total(), everything - its_counts.total()
        words = []
        for word, count in its_counts.items():
            # Half an occurrence is added on both sides, so that words of one group alone have a finite ratio.
            ratio = ((count + 0.5) / (own + 1)) / ((total[word] - count + 0.5) / (rest + 1))
            if count >= least and ratio > 1:
                words.append(Favoured(word, count, ratio))
        found[group] = sorted(words, key=lambda w: (-w.ratio, -w.count, w.word))[:top]
    return found


def _count(texts: Sequence[str], vocabulary: Collection[str] | None) -> "collections.Counter[str]":
    words = (word for text in texts for word in _WORD.findall(text.lower()))
    if vocabulary is not None:
        return collections.Counter(word for word in words if word in vocabulary)
    left_out = _left_out()
    return collections.Counter(word for word in words if len(word) > 2 and word not in left_out)


@functools.cache
def _left_out() -> frozenset[str]:
    names = [name for probe in _words()["probes"].values() for name in probe["groups"].values()]
    people = [word for words in _words()["identifiers"].values() for word in words]
    return frozenset([*_words()["stop"]["words"].split(), *people, *" ".join(names).lower().split()])


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def read_vocabulary(path: str | Path) -> frozenset[str]:
    """A list of words, one a line, such as adjectives and adverbs for ``favoured_words``."""
    words = frozenset(_read(path).lower().split())
    if not words:
        raise ValueError(f"{path} holds no words")
    return words


def read_lexicon(path: str | Path) -> dict[str, float]:
    """Sentiment of words, -1 to 1: lines ``word<TAB>score``, or the file of SentiWordNet 3.0 (mean over senses).

    Raises:
        ValueError: a line that is neither.
    """
    scores: dict[str, list[float]] = collections.defaultdict(list)
    for number, line in enumerate(_read(path).splitlines(), start=1):
        cells = line.split("\t")
        if not line.strip() or line.startswith("#"):
            continue
        try:
            if len(cells) == 2:
                scores[cells[0].strip().lower()].append(float(cells[1]))
            else:
                _, _, positive, negative, terms = cells[:5]
                for term in terms.split():
                    scores[term.partition("#")[0].lower()].append(float(positive) - float(negative))
        except ValueError:
            raise ValueError(f"{path}:{number}: word<TAB>score or a line of SentiWordNet was expected") from None
    if not scores:
        raise ValueError(f"{path} holds no words with scores")
    return {word: sum(values) / len(values) for word, values in scores.items()}


def sentiment(favoured: Mapping[str, Sequence[Favoured]], lexicon: Mapping[str, float]) -> dict[str, float]:
    """For each group the mean sentiment of its favoured words, weighted by their counts, -100 to 100 (section 6.2.2).

    A group has NaN if the lexicon has none of its words.
    """
    means = {}
    for group, words in favoured.items():
        scored = [(word.count, lexicon[word.word]) for word in words if word.word in lexicon]
        weight = sum(count for count, _ in scored)
        means[group] = 100 * sum(count * score for count, score in scored) / weight if weight else float("nan")
    return means


def breakdown(
    requests: Sequence[Request], scores: Sequence[float], keys: Sequence[str]
) -> dict[tuple[str, ...], tuple[int, float, float]]:
    """Scores by metadata: (values of ``keys``) -> count, mean, standard error.

    Winogender by ``("gender",)`` or ``("gender", "answer")``; CrowS-Pairs by ``("bias_type",)``.
    """
    groups: dict[tuple[str, ...], list[float]] = collections.defaultdict(list)
    for request, score in zip(requests, scores, strict=True):
        groups[tuple(request.metadata[key] for key in keys)].append(score)
    return {group: (len(values), *mean_with_error(values)) for group, values in sorted(groups.items())}
