"""The requests of lm-evaluation-harness, answered by our models; nothing of lm_eval is imported here.

They are read by the rules of lm_eval's Hugging Face backend, so that likelihoods agree on the same weights. Docstrings
and comments name the function of lm_eval that a rule comes from.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from scaling.evaluate.scoring.answers import BATCH_SIZE
from scaling.evaluate.scoring.encoding import encode_apart, encode_group
from scaling.evaluate.scoring.likelihoods import Group, Score, Scorer, read_by_encoder
from scaling.evaluate.scoring.progress import bar
from scaling.evaluate.tasks.task import nearest
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling
from scaling.interop.served import Served

_NEW_TOKENS = 256  # the default, as in lm_eval
# Names of one setting; the first that is given counts.
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_GENERATION = (*_LENGTHS, "until", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
_BEAMS = ("num_beams", "length_penalty", "early_stopping")


class Answers:
    """What lm_eval asks of a model, without lm_eval's types.

    Before a text stands what the tokenizer's own files put there (``Tokenizer.template``). Ours put nothing there, nor
    do GPT-2's. ``Tokenizer.bos`` replaces an empty context, and begins running text.

    Args:
        served: the model.
        seed: of the answers of tasks that sample.
    """

    def __init__(self, served: Served, seed: int = 0):
        self._served, self._words, self._seed = served, served.words, seed
        self._length = served.network.model.context_length
        self._scorer = Scorer(served.network, served.params, served.mesh, words=served.words)
        self._reads = bool(served.network.model.encoder_layers)  # contexts are an encoder's

    @functools.cached_property
    def _generator(self) -> Generator:
        served = self._served
        return Generator(served.network, served.params, served.words, served.mesh)

    def loglikelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of each (context, continuation): log-likelihood, and whether greedy decoding gives the continuation.

        A request that is too long loses tokens at the front. Requests with the same context are computed together.

        Raises:
            ValueError: a continuation that adds no token, or is longer than the model's context.
        """
        places = []
        contexts: dict[str, dict[str, int]] = {}
        for context, continuation in pairs:
            # White space at the end of a context belongs to the continuation (lm_eval's TemplateLM._encode_pair).
            stripped = context.rstrip()
            continuation = context[len(stripped) :] + continuation
            known = contexts.setdefault(stripped, {})
            places.append((stripped, known.setdefault(continuation, len(known))))
        groups = [self._group(context, list(known)) for context, known in contexts.items()]
        found = dict(zip(contexts, self._scored(groups), strict=True))
        scores = [found[context][place] for context, place in places]
        return [(score.logprob, score.greedy) for score in scores]

    def _group(self, context: str, continuations: Sequence[str]) -> Group:
        """Tokens of a context and its continuations; those for an encoder and its decoder are apart."""
        if self._reads:
            return encode_apart(self._words, [(context, each) for each in continuations])[0][0]
        return encode_group(self._words, context, continuations, self._words.template if context else ())

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """The log-likelihood of each whole text, by windows of the context length (``rolling_windows``)."""
        if self._reads:
            raise ValueError("the task asks for likelihoods of running text; a model with an encoder has none")
        groups, owners = [], []
        for number, text in enumerate(texts):
            # The template, too, is predicted: HFLM.loglikelihood_rolling puts the token before it once more.
            ids = (*self._words.template, *map(int, self._words.encode(text)))
            for context, window in rolling_windows(ids, self._words.bos, self._length):
                groups.append(Group(context, (window,)))
                owners.append(number)
        totals = [0.0] * len(texts)
        for number, (score,) in zip(owners, self._scored(groups), strict=True):
            totals[number] += score.logprob
        return totals

    def continuations(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """The text that follows each context, by the ``generation_kwargs`` of its task (``sampling``).

        Contexts lose tokens at the front until they fit together with the new ones.

        Raises:
            ValueError: generation_kwargs that cannot be obeyed.
        """
        alike: dict[str, list[int]] = {}
        for place, (_, knobs) in enumerate(requests):
            alike.setdefault(json.dumps(knobs, sort_keys=True, default=str), []).append(place)
        texts = [""] * len(requests)
        with bar("generation", len(requests)) as watch:
            done = 0
            for places in alike.values():
                wanted = sampling(requests[places[0]][1], self._length, self._seed)
                step = max(1, BATCH_SIZE // wanted.beams) * 8
                for first in range(0, len(places), step):
                    part = places[first : first + step]
                    prompts = [self._prompt(requests[place][0], wanted.tokens) for place in part]
                    sources = None
                    if self._reads:
                        sources = [self._source(requests[place][0]) for place in part]
                        prompts = [self._words.decoder_opening] * len(part)
                    # A draw depends on the prompt's number in the call, so each call has a seed of its own.
                    own = dataclasses.replace(wanted, seed=wanted.seed + first)
                    made = self._generator.generate(prompts, own, batch_size=BATCH_SIZE, sources=sources)
                    for place, (best, *_) in zip(part, made, strict=True):
                        texts[place] = best.text
                    done += len(part)
                    watch(done)
        return texts

    def _prompt(self, text: str, new: int) -> list[int]:
        ids = [*self._words.template, *map(int, self._words.encode(text))]
        return ids[-(self._length - new) :] or [self._words.bos]

    def _source(self, text: str) -> np.ndarray:
        ids = list(map(int, self._words.encode(text))) if text else []
        return read_by_encoder(self._words, ids, self._length)

    def _scored(self, groups: list[Group]) -> list[list[Score]]:
        with bar("likelihoods", len(groups)) as watch:
            return self._scorer.score(groups, watch)


def rolling_windows(ids: tuple[int, ...], first: int, length: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Pieces of a text as (context, tokens to predict); each token is predicted once, in a window of ``length``.

    The first window follows ``first``; the last one is filled up at its front with tokens that were already predicted.
    Source: lm_eval.utils.get_rolling_token_windows with context_len=1, and make_disjoint_window.
    """
    if ids:
        yield (first,), ids[:length]
    for start in range(length, len(ids), length):
        end = min(start + length, len(ids))
        yield ids[end - length - 1 : start], ids[start:end]


def sampling(knobs: Mapping[str, Any], context_length: int, seed: int = 0) -> Sampling:
    """A task's ``generation_kwargs`` as ours, by the rules of lm_eval.models.utils.normalize_gen_kwargs.

    ``do_sample=False`` is greedy whatever the temperature; without ``do_sample`` a temperature above 0 samples. With
    ``do_sample=True`` the default temperature is 1, as in transformers. The default number of new tokens is 256, as in
    lm_eval, or half of the context if that has 256 tokens or fewer.

    Raises:
        ValueError: an unknown key, or more new tokens than the context holds.
    """
    for name in knobs:
        if name not in (*_GENERATION, *_BEAMS):
            near = nearest(name, (*_GENERATION, *_BEAMS))
            raise ValueError(f"generation_kwargs.{name} of the task is not known here; did its author mean {near}?")
    given = {name: value for name, value in knobs.items() if value is not None}
    until = given.get("until", ())
    default = _NEW_TOKENS if context_length > _NEW_TOKENS else max(1, context_length // 2)
    tokens = int(next((given[name] for name in _LENGTHS if name in given), default))
    if tokens >= context_length:
        raise ValueError(
            f"the task asks for {tokens} new tokens, which leaves no room for a prompt in the model's context of "
            f"{context_length}; it must ask for at most {context_length - 1}"
        )
    temperature = float(given.get("temperature", 1.0 if given.get("do_sample") else 0.0))
    if not given.get("do_sample", temperature > 0):
        temperature = 0.0
    beams = int(given.get("num_beams", 1))
    if beams > 1 and temperature > 0:
        raise ValueError(f"generation_kwargs: num_beams={beams} and sampling exclude each other")
    return Sampling(
        tokens=tokens,
        temperature=temperature if beams == 1 else 1.0,
        top_k=int(given.get("top_k", 0)),
        top_p=float(given.get("top_p", 1.0)),
        repetition_penalty=float(given.get("repetition_penalty", 1.0)),
        stop=tuple(filter(None, [until] if isinstance(until, str) else until)),
        seed=seed,
        beams=beams,
        length_penalty=float(given.get("length_penalty", 1.0)),
        early_stopping=bool(given.get("early_stopping", False)),
    )
