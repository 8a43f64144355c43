"""What a model answers: likelihoods of options, generated texts, likelihoods of whole texts."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from scaling.config import schema as cfg
from scaling.data.chat.template import ASSISTANT, Chat
from scaling.data.tokenizer import Tokenizer
from scaling.evaluate.scoring.encoding import encode_apart, encode_options
from scaling.evaluate.scoring.likelihoods import Group, Score, Scorer, read_by_encoder
from scaling.evaluate.tasks.kind import Rate, Watch, Writing
from scaling.evaluate.tasks.prompts import Room
from scaling.evaluate.tasks.request import Request
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling
from scaling.model import decoder

BATCH_SIZE = 32  # texts at a time, of generated answers; beams and samples count


@dataclasses.dataclass(frozen=True)
class Asking:
    """How a model is asked.

    Attributes:
        prefix: whether texts follow what begins a text for the tokenizer (``Tokenizer.start``);
            lm-evaluation-harness does without for GPT-2.
        chat: frames prompts as a dialogue, which has its own beginning; None = prompts are running text.
        raters: of answers, by the class whose probability they give (``Kind.rated_by``).
        seed: of sampled answers.
    """

    prefix: bool = True
    chat: Chat | None = None
    raters: Mapping[str, Rate] = dataclasses.field(default_factory=dict)
    seed: int = 0


class Answers:
    """One model and its tokenizer; a kind of task (``tasks.kind.Kind``) asks it.

    Args:
        network: resolved.
        params: as training holds them, on the mesh if there is one.
        words: tokenizer of the model.
        mesh: devices; None = one.
        asking: how prompts are framed and answers rated.
    """

    def __init__(
        self,
        network: cfg.Network,
        params: decoder.Params,
        words: Tokenizer,
        mesh: Mesh | None,
        asking: Asking,
    ):
        self._network, self._params, self._mesh = network, params, mesh
        self.words, self.asking = words, asking
        self._reads = bool(network.model.encoder_layers)  # contexts are an encoder's
        self._prefix = words.start if asking.prefix and asking.chat is None and not self._reads else ()
        self.scorer = Scorer(network, params, mesh, words=words)

    @property
    def room(self) -> Room:
        """What prompt and answer may have together."""
        tokens = self._network.model.context_length - len(self._prefix)
        return Room(self.words, tokens, None if self.asking.chat is None else self._dialogue)

    def _dialogue(self, turns: Sequence[str]) -> np.ndarray:
        """Ids of a dialogue up to where the assistant answers; user and assistant speak by turns."""
        assert self.asking.chat is not None
        said = zip(itertools.cycle(("user", ASSISTANT)), turns, strict=False)
        return self.asking.chat.prompt([{"role": role, "content": text} for role, text in said])

    def _groups(self, item: Request, answer_context: str = "") -> tuple[list[tuple[Group, list[int]]], bool]:
        """As ``encode_options``: an item's options after its context, or after another one.

        Raises:
            ValueError: as ``encode_options``; or the template refuses the dialogue.
        """
        if not item.turns:
            pairs = [(answer_context or option.context, option.completion) for option in item.options]
            if self._reads:
                return encode_apart(self.words, pairs), False
            return encode_options(self.words, pairs, self._prefix)
        context = tuple(map(int, self._dialogue((answer_context,) if answer_context else item.turns)))
        said = [option.completion.lstrip(" ") for option in item.options]  # a turn begins without a space
        ids = tuple(tuple(map(int, self.words.encode(text))) for text in said)
        return [(Group(context, ids), list(range(len(ids))))], False

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
                for unconditional in (False, True) if answer_context else (False,):
                    try:
                        encoded, joined = self._groups(item, answer_context if unconditional else "")
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

    def continuations(self, items: Sequence[Request], how: Writing, watch: Watch) -> Iterator[list[str]]:
        """Texts after each item's context, in the order of the items: the most likely one, or ``how.samples``."""
        chat = self.asking.chat
        sampling = Sampling(
            tokens=self.room.answer(how.tokens),
            beams=how.beams,
            temperature=how.temperature,
            top_p=how.top_p,
            length_penalty=how.length_penalty,
            stop=tuple(how.stop),
            num_samples=how.samples,
            end_ids=None if chat is None else (chat.end, self.words.eot),
        )
        step = max(1, BATCH_SIZE // (how.beams * how.samples)) * 8
        for first in range(0, len(items), step):
            part = items[first : first + step]
            prompts = [
                self._dialogue(item.turns) if item.turns else [*self._prefix, *self.words.encode(item.context)]
                for item in part
            ]
            sources = None
            if self._reads:
                sources = [self._source(prompt) for prompt in prompts]
                prompts = [self.words.decoder_opening] * len(prompts)
            # Draws depend on the seed and on a prompt's number in its part, so parts have different seeds.
            drawn = dataclasses.replace(sampling, seed=(self.asking.seed * len(items) + first) % 2**32)
            for found in self._generator.generate(prompts, drawn, batch_size=BATCH_SIZE, sources=sources):
                yield [completion.text for completion in found]
            watch(first + len(part))

    def _source(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """What an encoder reads of a prompt; it loses tokens at its front where it does not fit."""
        return read_by_encoder(self.words, ids, self._network.model.context_length)

    def rate(self, label: str, texts: Sequence[str]) -> list[float]:
        """What a classifier says of texts: the probability of a class; of an empty text 0.

        Raises:
            ValueError: there is no classifier for the class, or it cannot read a text.
        """
        if label not in self.asking.raters:
            raise ValueError(f"answers must be rated, and no classifier knows the class {label!r}")
        found = iter(self.asking.raters[label]([text for text in texts if text]))
        return [float(next(found)) if text else 0.0 for text in texts]

    def whole_texts(self, items: Sequence[Request], watch: Watch) -> list[tuple[float, int]]:
        """The log-likelihood (nats) of each item's context and its tokens, by windows (``_windows``)."""
        if self._reads:
            raise ValueError(f"{items[0].where}: a decoder beside an encoder has no likelihood of running text")
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
