"""Runs tasks on a model: requests to likelihoods and texts, these to scores with standard errors."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from scaling.config import schema as cfg
from scaling.data.tokenizer import Tokenizer
from scaling.evaluate.scoring import metrics
from scaling.evaluate.scoring.likelihoods import Group, Score, Scorer, Work, encode_options
from scaling.evaluate.tasks.prompts import Request, Requests
from scaling.evaluate.tasks.task import Scoring
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling
from scaling.model import decoder

BATCH_SIZE = 32  # beams at a time, of free-form answers


@dataclasses.dataclass(frozen=True)
class Sample:
    """One item as it was asked and answered."""

    id: str
    prompt: str
    answer: str  # the completion chosen, or the text generated
    expected: str
    scores: Mapping[str, float]  # metric -> score of this item, where the metric has one
    log_likelihoods: tuple[float, ...]  # of the options, as compared


@dataclasses.dataclass(frozen=True)
class Result:
    """A task at a number of shots.

    Attributes:
        group: the file of the task; the variants in it share it.
        shots: demonstrations asked for.
        scores: metric -> (value, standard error; NaN for a single item).
        count: items that were scored.
        chance: accuracy of guessing, where there are choices.
        shots_used: mean number of demonstrations that the prompts had; fewer than asked for where they did not fit.
        left_out: further items, too long for the model's context.
        sampled: of the task: the error of a mean over its group is that of a sample of tasks.
        measures: of the task: "ability" or "bias".
    """

    task: str
    group: str
    shots: int
    scores: Mapping[str, tuple[float, float]]
    count: int
    chance: float | None
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]
    shots_used: float
    left_out: int = 0
    sampled: bool = False
    measures: str = "ability"


class Evaluator:
    """One model and its tokenizer, for any number of tasks.

    Args:
        network: resolved.
        params: as training holds them, on the mesh if there is one.
        words: tokenizer of the model.
        mesh: devices; None = one.
        prefix: whether texts begin after an end-of-text token, as documents do in training;
            lm-evaluation-harness does without for GPT-2.
    """

    def __init__(
        self,
        network: cfg.Network,
        params: decoder.Params,
        words: Tokenizer,
        mesh: Mesh | None = None,
        prefix: bool = True,
    ):
        self._network, self._params, self._words, self._mesh = network, params, words, mesh
        self._prefix = (words.eot,) if prefix else ()
        self._scorer = Scorer(network, params, mesh)

    @property
    def room(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self._network.model.context_length - len(self._prefix)

    @property
    def work(self) -> Work:
        """Tokens that the likelihoods took, and the padding among them."""
        return self._scorer.work

    def evaluate(self, requests: Requests, watch: Callable[[int], Any] = lambda done: None) -> Result:
        """Scores the requests of a task.

        Args:
            requests: from ``build_requests``.
            watch: told how many items are done.

        Raises:
            ValueError: an item that the model cannot read, or a metric whose library is missing.
        """
        task = requests.task
        kind = task.scoring.kind
        items = requests.usable()
        notes = requests.notes
        if kind == "free_form":
            samples = self._free_form(items, task.scoring, watch)
            values = self._text_scores(task.metrics, items, task.scoring, samples)
        elif kind == "text":
            samples = self._running_text(items, watch)
            values = {metric: self._mean_nats(metric, samples) for metric in task.metrics}
        else:
            samples, early = self._likelihoods(items, task.scoring, watch)
            if early:
                notes += (
                    f"{task.name}: {early:,} of {len(items):,} items are scored from a token before the completion on, "
                    "since the tokenizer joins its beginning with what stands before",
                )
            values = self._choice_scores(task.metrics, items, samples)
        watch(len(items))
        chance = None
        if kind in ("choices", "partial"):
            chance = sum(1 / len(item.options) for item in items) / len(items)
        return Result(
            task=task.name,
            group=task.group,
            shots=requests.shots,
            scores=values,
            count=len(items),
            chance=chance,
            samples=tuple(samples),
            notes=notes,
            shots_used=sum(item.shots for item in items) / len(items),
            left_out=len(requests.items) - len(items),
            sampled=task.sampled,
            measures=task.measures,
        )

    def _likelihoods(
        self, items: Sequence[Request], scoring: Scoring, watch: Callable[[int], Any]
    ) -> tuple[list[Sample], int]:
        """The items as answered, and how many are scored from before the completion on (``encode_options``)."""
        scores, early = self._options(items, watch)
        return [self._chosen(item, its, scoring) for item, its in zip(items, scores, strict=True)], early

    def _options(
        self, items: Sequence[Request], watch: Callable[[int], Any]
    ) -> tuple[list[list[tuple[Score, Score | None]]], int]:
        """The score of each option of each item, and that after the answer context where it is divided out."""
        where: dict[tuple[int, int, bool], tuple[int, int]] = {}
        owners: list[int] = []  # the items of the groups
        early: set[int] = set()  # items

        def groups() -> Iterator[Group]:
            for number, item in enumerate(items):
                contexts = [(False, [(option.context, option.completion) for option in item.options])]
                if item.answer_context:
                    contexts.append((True, [(item.answer_context, option.completion) for option in item.options]))
                for unconditional, pairs in contexts:
                    try:
                        encoded, joined = encode_options(self._words, pairs, self._prefix)
                    except ValueError as error:
                        raise ValueError(f"{item.where}: {error}") from None
                    if joined:
                        early.add(number)
                    for group, options in encoded:
                        for place, option in enumerate(options):
                            where[number, option, unconditional] = len(owners), place
                        owners.append(number)
                        yield group

        scores = self._scorer.score(groups(), lambda done: watch(done * len(items) // len(owners)))

        def score(*key: Any) -> Score | None:
            return scores[where[key][0]][where[key][1]] if key in where else None

        found = []
        for number, item in enumerate(items):
            pairs = []
            for option in range(len(item.options)):
                conditional = score(number, option, False)
                assert conditional is not None
                pairs.append((conditional, score(number, option, True)))
            found.append(pairs)
        return found, len(early)

    def _chosen(self, item: Request, scores: list[tuple[Score, Score | None]], scoring: Scoring) -> Sample:
        compared = tuple(_compared(*pair, scoring) for pair in scores)
        if scoring.kind == "completion":
            (score, _), (only,) = scores[0], item.options
            found = {"accuracy": float(score.greedy), "log_likelihood": score.logprob, "tokens": float(score.tokens)}
            answer = only.completion if score.greedy else ""
            return Sample(item.id, item.context, answer, only.completion, found, (score.logprob,))
        best = max(range(len(compared)), key=compared.__getitem__)
        return Sample(
            item.id,
            item.options[best].context,
            item.options[best].completion,
            item.options[item.gold].completion,
            {"accuracy": float(best == item.gold), "choice": float(best)},
            compared,
        )

    def _choice_scores(
        self, names: Sequence[str], items: Sequence[Request], samples: Sequence[Sample]
    ) -> dict[str, tuple[float, float]]:
        found = {}
        for name in names:
            if name == "perplexity":
                found[name] = self._mean_nats(name, samples, per_item=True)
            elif name == "macro_f1":
                golds, choices = [item.gold for item in items], [int(s.scores["choice"]) for s in samples]

                def f1(places: Sequence[int], golds: Any = golds, choices: Any = choices) -> float:
                    return metrics.macro_f1([golds[p] for p in places], [choices[p] for p in places])

                found[name] = f1(range(len(golds))), metrics.bootstrap_error(f1, len(golds))
            else:
                found[name] = metrics.mean_with_error([sample.scores[name] for sample in samples])
        return found

    def _mean_nats(self, name: str, samples: Sequence[Sample], per_item: bool = False) -> tuple[float, float]:
        """Perplexity, per token or per item, or bits per byte: sums over items, with a bootstrap over them.

        Of the last words of LAMBADA it is per item, exp(-mean log P(word)), as published (Paperno et al. 2016; GPT-2).
        """
        unit = "tokens" if name == "perplexity" else "bytes"
        nats = [-sample.scores["log_likelihood"] for sample in samples]
        sizes = [1.0 if per_item else sample.scores[unit] for sample in samples]

        def value(places: Sequence[int]) -> float:
            mean = sum(nats[p] for p in places) / sum(sizes[p] for p in places)
            return math.exp(min(mean, 700.0)) if name == "perplexity" else mean / math.log(2)

        return value(range(len(samples))), metrics.bootstrap_error(value, len(samples))

    @functools.cached_property
    def _generator(self) -> Generator:
        return Generator(self._network, self._params, self._words, self._mesh)

    def _free_form(self, items: Sequence[Request], scoring: Scoring, watch: Callable[[int], Any]) -> list[Sample]:
        """Beam search with GPT-3's width and length penalty (section 2.4), cut at the task's stop strings."""
        sampling = Sampling(
            tokens=scoring.max_tokens,
            beams=scoring.beams,
            temperature=1.0 if scoring.beams > 1 else 0.0,
            length_penalty=scoring.length_penalty if scoring.beams > 1 else 1.0,
            stop=tuple(scoring.stop),
        )
        samples: list[Sample] = []
        step = max(1, BATCH_SIZE // scoring.beams) * 8
        for first in range(0, len(items), step):
            part = items[first : first + step]
            prompts = [[*self._prefix, *self._words.encode(item.context)] for item in part]
            for item, (best, *_) in zip(
                part, self._generator.generate(prompts, sampling, batch_size=BATCH_SIZE), strict=True
            ):
                answer = metrics.extract(best.text, scoring.extract, scoring.remove)
                samples.append(Sample(item.id, item.context, answer, item.target.strip(), {}, ()))
            watch(len(samples))
        return samples

    def _text_scores(
        self, names: Sequence[str], items: Sequence[Request], scoring: Scoring, samples: list[Sample]
    ) -> dict[str, tuple[float, float]]:
        """Scores of generated answers; puts each item's own into its sample."""
        rule = scoring.normalisation or "squad"
        single: dict[str, Callable[[str, Sequence[str]], float]] = {
            "exact": metrics.exact,
            "exact_number": metrics.exact_number,
            "exact_match": functools.partial(metrics.exact_match, rule=rule),
            "f1": functools.partial(metrics.f1, rule=rule),
        }
        found = {}
        for i, (item, sample) in enumerate(zip(items, samples, strict=True)):
            scores = {name: single[name](sample.answer, item.references) for name in names if name in single}
            samples[i] = dataclasses.replace(sample, scores=scores)
        for name in names:
            if name == "bleu":
                found[name] = metrics.bleu_with_error([s.answer for s in samples], [i.references for i in items])
            else:
                found[name] = metrics.mean_with_error([sample.scores[name] for sample in samples])
        return found

    def _running_text(self, items: Sequence[Request], watch: Callable[[int], Any]) -> list[Sample]:
        """Log-likelihoods of whole texts, by windows (``_windows``)."""
        owners: list[int] = []  # the items of the windows
        sizes: list[int] = []

        def groups() -> Iterator[Group]:
            for number, item in enumerate(items):
                ids = tuple(map(int, self._words.encode(item.context)))
                sizes.append(len(ids))
                for window in self._windows(ids):
                    owners.append(number)
                    yield window

        totals = [0.0] * len(items)
        scores = self._scorer.score(groups(), lambda done: watch(done * len(items) // len(owners)))
        for number, (score,) in zip(owners, scores, strict=True):
            totals[number] += score.logprob
        samples = []
        for item, total, size in zip(items, totals, sizes, strict=True):
            found = {"log_likelihood": total, "tokens": float(size), "bytes": float(len(item.context.encode()))}
            samples.append(Sample(item.id, item.context[:200], "", "", found, (total,)))
        return samples

    def _windows(self, ids: tuple[int, ...]) -> Iterator[Group]:
        """Windows of the context length that move by half of it, after an end-of-text token.

        Each token is predicted once, from at least half a window where the text has it.
        """
        length = self._network.model.context_length
        stride = max(1, length // 2)
        yield Group((self._words.eot,), (ids[:length],))
        for start in range(length, len(ids), stride):
            new = ids[start : start + stride]
            yield Group(ids[start - (length - len(new) + 1) : start], (new,))


def _compared(score: Score, unconditional: Score | None, scoring: Scoring) -> float:
    """What options are compared by (arXiv 2005.14165, section 2.4): per token, as a sum, or P(completion | context) /
    P(completion | answer context).
    """
    if scoring.kind != "choices" or scoring.normalisation == "sum":
        return score.logprob
    if scoring.normalisation == "unconditional":
        assert unconditional is not None
        return score.logprob - unconditional.logprob
    return score.logprob / score.tokens
