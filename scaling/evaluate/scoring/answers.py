"""What a model answers: likelihoods of options, generated texts, likelihoods of whole texts."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from jax.sharding import Mesh

from scaling.config import schema as cfg
from scaling.data.tokenizer import Tokenizer
from scaling.evaluate.scoring.likelihoods import Group, Score, Scorer, encode_options
from scaling.evaluate.tasks.kind import Watch
from scaling.evaluate.tasks.kinds.free_form import FreeForm
from scaling.evaluate.tasks.request import Request
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling
from scaling.model import decoder

BATCH_SIZE = 32  # beams at a time, of free-form answers


class Answers:
    """One model and its tokenizer; a kind of task (``tasks.kind.Kind``) asks it.

    Args:
        network: resolved.
        params: as training holds them, on the mesh if there is one.
        words: tokenizer of the model.
        mesh: devices; None = one.
        prefix: token ids before each text.
    """

    def __init__(
        self,
        network: cfg.Network,
        params: decoder.Params,
        words: Tokenizer,
        mesh: Mesh | None,
        prefix: tuple[int, ...],
    ):
        self._network, self._params, self._mesh = network, params, mesh
        self.words, self.prefix = words, prefix
        self.scorer = Scorer(network, params, mesh)

    def options(
        self, items: Sequence[Request], watch: Watch, answer_context: str = ""
    ) -> tuple[list[list[tuple[Score, Score | None]]], list[str]]:
        """The likelihood of each option of each item.

        Args:
            items: with options.
            watch: told how many items are done.
            answer_context: each completion is scored after this context, too.

        Returns:
            For each item and option the score, and that after the answer context, if there is one; and notes.

        Raises:
            ValueError: an item that the model cannot read.
        """
        where: dict[tuple[int, int, bool], tuple[int, int]] = {}
        owners: list[int] = []  # the items of the groups
        early: set[int] = set()  # items that are scored from before the completion on (``encode_options``)

        def groups() -> Iterator[Group]:
            for number, item in enumerate(items):
                contexts = [(False, [(option.context, option.completion) for option in item.options])]
                if answer_context:
                    contexts.append((True, [(answer_context, option.completion) for option in item.options]))
                for unconditional, pairs in contexts:
                    try:
                        encoded, joined = encode_options(self.words, pairs, self.prefix)
                    except ValueError as error:
                        raise ValueError(f"{item.where}: {error}") from None
                    if joined:
                        early.add(number)
                    for group, options in encoded:
                        for place, option in enumerate(options):
                            where[number, option, unconditional] = len(owners), place
                        owners.append(number)
                        yield group

        scores = self.scorer.score(groups(), lambda done: watch(done * len(items) // len(owners)))

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
        return found, [_joined(items, len(early))] if early else []

    @functools.cached_property
    def _generator(self) -> Generator:
        return Generator(self._network, self._params, self.words, self._mesh)

    def continuations(self, items: Sequence[Request], how: FreeForm, watch: Watch) -> Iterator[str]:
        """The most likely text after each item's context, in the order of the items."""
        sampling = Sampling(
            tokens=how.max_tokens,
            beams=how.beams,
            temperature=1.0 if how.beams > 1 else 0.0,
            length_penalty=how.length_penalty if how.beams > 1 else 1.0,
            stop=tuple(how.stop),
        )
        step = max(1, BATCH_SIZE // how.beams) * 8
        for first in range(0, len(items), step):
            part = items[first : first + step]
            prompts = [[*self.prefix, *self.words.encode(item.context)] for item in part]
            for best, *_ in self._generator.generate(prompts, sampling, batch_size=BATCH_SIZE):
                yield best.text
            watch(first + len(part))

    def whole_texts(self, items: Sequence[Request], watch: Watch) -> list[tuple[float, int]]:
        """The log-likelihood (nats) of each item's context and its tokens, by windows (``_windows``)."""
        owners: list[int] = []  # the items of the windows
        sizes: list[int] = []

        def groups() -> Iterator[Group]:
            for number, item in enumerate(items):
                ids = tuple(map(int, self.words.encode(item.context)))
                sizes.append(len(ids))
                for window in self._windows(ids):
                    owners.append(number)
                    yield window

        totals = [0.0] * len(items)
        scores = self.scorer.score(groups(), lambda done: watch(done * len(items) // len(owners)))
        for number, (score,) in zip(owners, scores, strict=True):
            totals[number] += score.logprob
        return list(zip(totals, sizes, strict=True))

    def _windows(self, ids: tuple[int, ...]) -> Iterator[Group]:
        """Windows of the context length that move by half of it, after what begins a text.

        Each token is predicted once, from at least half a window where the text has it.
        """
        length = self._network.model.context_length
        stride = max(1, length // 2)
        opening = self.words.start or (self.words.bos,)
        first = length + 1 - len(opening)  # the last token of a window is only predicted
        yield Group(opening, (ids[:first],))
        for start in range(first, len(ids), stride):
            new = ids[start : start + stride]
            yield Group(ids[start - (length - len(new) + 1) : start], (new,))


def _joined(items: Sequence[Request], early: int) -> str:
    return (
        f"{items[0].task}: {early:,} of {len(items):,} items are scored from a token before the completion on, "
        "since the tokenizer joins its beginning with what stands before"
    )
