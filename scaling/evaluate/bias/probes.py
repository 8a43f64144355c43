"""Runs the bias probes of GPT-3's section 6.2 on a model: samples and counts, and likelihoods of occupations."""

import hashlib
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from scaling.config import schema as cfg
from scaling.data.tokenizer import Tokenizer
from scaling.evaluate.bias import words as bias
from scaling.evaluate.bias.report import Group
from scaling.evaluate.bias.words import OccupationBias
from scaling.evaluate.scoring.encoding import encode_group
from scaling.evaluate.scoring.likelihoods import Scorer
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling
from scaling.interop.served import Served

VARIANTS = ("neutral", "competent", "incompetent")

_CHUNK = 32  # samples of each prompt between two steps of the progress bar; 800 is a multiple
_BATCH = 64  # texts at a time, at most
_CACHE_BYTES = 1 << 28  # of a batch's keys and values, on each device
_ITEM_BYTES = {"float32": 4, "bfloat16": 2}


def encode_prompts(probe: str, words: Tokenizer, context_length: int, tokens: int) -> list[list[int]]:
    """Token ids of a probe's prompts, each after what begins a text (``Tokenizer.start``).

    Args:
        probe: gender, race or religion.
        words: tokenizer.
        context_length: the model's, in tokens.
        tokens: number of new tokens.

    Raises:
        ValueError: a prompt and the new tokens do not fit the context.
    """
    prompts = bias.probe_prompts(probe)
    found = [[*words.start, *map(int, words.encode(prompt.prompt))] for prompt in prompts]
    size, text = max((len(ids), prompt.prompt) for ids, prompt in zip(found, prompts, strict=True))
    if size + tokens > context_length:
        room = context_length - size
        advice = f"ask for at most --tokens={room}" if room > 0 else f"leave {probe} out of --probes"
        raise ValueError(
            f"the prompt {text!r} has {size} tokens, and {tokens} new ones make {size + tokens}, more than the model's "
            f"context of {context_length}; {advice}"
        )
    return found


def check_occupations(words: Tokenizer, context_length: int) -> None:
    """Refuses a model that cannot read the occupation probe.

    Raises:
        ValueError: a prompt does not fit the context.
    """
    requests = [request for variant in VARIANTS for request in bias.occupation_requests(variant)]
    texts = [option.context + option.completion for request in requests for option in request.options]
    size, text = max((len(words.encode(text)), text) for text in texts)
    if size > context_length:
        raise ValueError(
            f"the prompt {text!r} has {size} tokens, more than the model's context of {context_length}; leave "
            "occupations out of --probes"
        )


def sample(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    samples: int,
    tokens: int,
    seed: int,
    watch: Callable[[int], Any] = lambda done: None,
) -> list[list[str]]:
    """Continuations of each prompt, without the prompt. They end at an end-of-text token.

    Sample i of a prompt depends only on the seed, the number of the prompt and i.

    Args:
        generator: the model.
        prompts: token ids.
        samples: number for each prompt.
        tokens: at most so many for each sample.
        seed: from 0 to 2**32 - 1.
        watch: is told how many samples of each prompt are done.
    """
    batch = _batch_size(generator.network, generator.mesh, max(map(len, prompts)) + tokens)
    size = min(_CHUNK, samples)
    texts: list[list[str]] = [[] for _ in prompts]
    for first in range(0, samples, size):
        # The generator numbers samples from 0, so each chunk has a seed of its own. All chunks have one size, so that
        # only one program is compiled; the samples of the last that are too many are dropped.
        chunk_seed = int.from_bytes(hashlib.blake2b(f"{seed} {first}".encode(), digest_size=4).digest())
        sampling = Sampling(
            tokens=tokens, temperature=bias.TEMPERATURE, top_p=bias.TOP_P, seed=chunk_seed, num_samples=size
        )
        found = generator.generate(prompts, sampling, batch)
        for its_texts, completions in zip(texts, found, strict=True):
            its_texts += [completion.text for completion in completions]
        watch(min(samples, first + size))
    return [its_texts[:samples] for its_texts in texts]


def count_words(
    samples: Mapping[str, Sequence[str]], vocabulary: Collection[str] | None, lexicon: Mapping[str, float] | None
) -> dict[str, Group]:
    """Favoured words of each group, and the sentiment of all of them (section 6.2.2).

    Args:
        samples: group -> continuations.
        vocabulary: words that count; None = all but stop words.
        lexicon: sentiment of words; None = not measured.
    """
    favoured = bias.favoured_words(samples, vocabulary, top=sys.maxsize)
    feelings = bias.sentiment(favoured, lexicon or {})
    return {
        group: Group(len(samples[group]), tuple(words[: bias.TOP]), feelings[group])
        for group, words in favoured.items()
    }


def occupations(served: Served) -> dict[str, OccupationBias]:
    """Section 6.2.1: the log ratio of words for women and men after each occupation, for each variant of the prompt."""
    scorer = Scorer(served.network, served.params, served.mesh)
    found = {}
    for variant in VARIANTS:
        requests = bias.occupation_requests(variant)
        groups = [
            encode_group(served.words, request.context, [o.completion for o in request.options], served.words.start)
            for request in requests
        ]
        scores = scorer.score(groups)
        found[variant] = bias.occupation_bias(requests, [[score.logprob for score in row] for row in scores])
    return found


def _batch_size(network: cfg.Network, mesh: Mesh, length: int) -> int:
    """The largest power of two with which a batch's keys and values stay below ``_CACHE_BYTES``; at most ``_BATCH``."""
    model, size = network.model, _ITEM_BYTES[network.compute.dtype]
    row = 2 * model.num_layers * model.kv_heads * model.d_head * length * size
    fitting = _CACHE_BYTES * mesh.size // row
    return min(_BATCH, 1 << max(0, fitting.bit_length() - 1))
