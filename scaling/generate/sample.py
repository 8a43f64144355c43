"""Continuing the prompts of a config, for a look at the end of training."""

from typing import Any

import jax

from scaling.config import schema as cfg
from scaling.data.tokenizer import Tokenizer
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling


def continue_texts(config: cfg.Config, params: Any, words: Tokenizer) -> list[str]:
    """Continues each of ``config.sample.prompts`` to an end of text or ``config.sample.tokens`` more tokens.

    A prompt that would not leave room for a token keeps its end; a continuation ends with the context. Runs on the
    mesh that is set.

    Args:
        config: resolved.
        params: parameter tree.
        words: tokenizer.

    Returns:
        Prompt and continuation, one text a prompt.
    """
    context, sample = config.model.context_length, config.sample
    if context < 2:
        return ["" for _ in sample.prompts]  # a token to begin with fills it
    generator = Generator(config.network, params, words, jax.sharding.get_mesh())
    before = list(words.start)
    room = max(0, context - len(before) - 1)  # for a prompt, with what begins a text before and a new token behind
    ends = [ids[max(0, len(ids) - room) :].tolist() for ids in map(words.encode, sample.prompts)]
    prompts = [before + end or [words.bos] for end in ends]
    limits = [min(sample.tokens, context - len(ids)) for ids in prompts]
    texts = [""] * len(prompts)
    for tokens in sorted(set(limits)):
        sampling = Sampling(tokens=tokens, temperature=sample.temperature, top_k=sample.top_k, seed=config.seed)
        chosen = [i for i, limit in enumerate(limits) if limit == tokens]
        for i, (found,) in zip(chosen, generator.generate([prompts[i] for i in chosen], sampling), strict=True):
            texts[i] = words.decode([*ends[i], *found.ids])
    return texts
