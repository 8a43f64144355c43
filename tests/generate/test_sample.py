import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.data import tokenizer
from scaling.generate.sample import continue_texts
from scaling.model import decoder
from tests import tiny

pytestmark = pytest.mark.usefixtures("on_one_device")

WORDS = tokenizer.load("bytes")


def texts(prompts, vocab_size=257, context_length=32, **sample):
    model = tiny.model(vocab_size=vocab_size, context_length=context_length)
    config = cfg.Config(model=model, compute=tiny.COMPUTE, sample=cfg.Sample(prompts=prompts, **sample), seed=2**32 - 1)
    return continue_texts(config, decoder.initialize(model, jax.random.key(0)), WORDS)


@pytest.mark.slow
def test_each_prompt_is_continued_by_its_own_number_of_tokens():
    prompts = ("a", "a longer one")
    for prompt, text in zip(prompts, texts(prompts, tokens=4), strict=True):
        assert text.startswith(prompt)
        assert len(WORDS.encode(text)) <= len(prompt) + 12  # 4 tokens; a broken byte decodes to 3
    # the same prompt alone, greedily, says the same
    together = texts(prompts, tokens=4, temperature=0.0)
    assert texts(prompts[:1], tokens=4, temperature=0.0)[0] == together[0]


def test_rows_beyond_the_tokenizer_are_never_sampled():
    for text in texts(("x",), vocab_size=30_000, tokens=20, temperature=50.0, top_k=0):
        assert text.startswith("x")  # decoding an id of 257 or more would raise


@pytest.mark.parametrize("context_length", [1, 2, 3, 8])
def test_a_prompt_longer_than_the_context_keeps_its_end(context_length):
    (text,) = texts(("0123456789",), context_length=context_length, tokens=4, temperature=0.0)
    kept = max(0, context_length - 2)
    assert text.startswith("0123456789"[10 - kept :] if kept else "")


def test_greedy_is_the_argmax_of_the_logits():
    (text,) = texts(("ab",), tokens=1, temperature=0.0)
    network = tiny.network(vocab_size=257)
    module = decoder.merge(network, decoder.initialize(network.model, jax.random.key(0)))
    ids = np.asarray([[WORDS.eot, *WORDS.encode("ab")]])
    best = int(jnp.argmax(module.logits(module(ids))[0, -1]))
    assert text == WORDS.decode(np.asarray([*WORDS.encode("ab"), best])) if best != WORDS.eot else text == "ab"
