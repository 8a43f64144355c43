"""Continuations: equal to Hugging Face's, whatever the batch, the mesh or the chunks; seeds, stops, refusals."""

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.data import tokenizer
from scaling.generate.generator import Generator, bucket
from scaling.generate.sampling import Sampling
from scaling.interop import huggingface
from scaling.model import decoder
from scaling.parallel.mesh import make_mesh, one_device
from tests import tiny

FIXTURES = Path(__file__).parents[1] / "fixtures"
WORDS = tokenizer.load("bytes")
PROMPTS = [[5, 17, 3, 40, 22], [8, 9], [1], [33, 2, 7, 11, 40, 6, 21]]
GREEDY = Sampling(tokens=8, temperature=0.0, end_ids=())
FREE = dataclasses.replace(GREEDY, temperature=1.0)


def tiny_generator(mesh=None, words=None, **changes):
    network = tiny.network(**changes)
    params = decoder.initialize(network.model, jax.random.key(0))
    params = jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, params)  # far from uniform
    return Generator(network, params, words, mesh)


@pytest.fixture(scope="module")
def generator():
    return tiny_generator()


def ids(found):
    return [[list(completion.ids) for completion in completions] for completions in found]


@pytest.mark.parametrize(
    ("name", "some"),
    [
        ("gpt2", True),
        pytest.param("gpt2", False, marks=pytest.mark.slow),
        pytest.param("gpt1", False, marks=pytest.mark.slow),
    ],
)
def test_greedy_and_beams_equal_hugging_face(name, some):
    """84 cases: 4 prompts, without end, with one and with 12 ending tokens; all beams and their scores."""
    model, params = huggingface.load(FIXTURES / name)
    generator = Generator(tiny.in_float32(model), params, None)
    record = json.loads((FIXTURES / name / "generate.json").read_text())
    ended = 0
    for case in record["cases"]:
        beams = case.get("num_beams", 1)
        if some and (beams == 2 or len(case["ends"]) != 1):  # two programs to compile and not nine
            continue
        sampling = Sampling(tokens=record["new_tokens"], temperature=1.0 if beams > 1 else 0.0)
        sampling = dataclasses.replace(sampling, end_ids=tuple(case["ends"]), beams=beams, num_samples=beams)
        if beams > 1:
            sampling = dataclasses.replace(
                sampling, length_penalty=case["length_penalty"], early_stopping=case["early_stopping"]
            )
        (found,) = generator.generate([case["prompt"]], sampling)
        assert [list(completion.ids) for completion in found] == case["new"], case
        if beams > 1:
            np.testing.assert_allclose([completion.score for completion in found], case["scores"], rtol=2e-5)
        ended += sum(completion.finish == "end" for completion in found)
    assert ended > 20


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3, "temperature": 1.0, "top_p": 0.8}, {"beams": 3}])
def test_a_batch_equals_its_single_prompts(generator, options):
    sampling = dataclasses.replace(GREEDY if not options else FREE, **options)
    together = generator.generate(PROMPTS, sampling)
    if "top_p" in options:  # draws depend on the number of a prompt: one at a time, but all of them
        assert ids(generator.generate(PROMPTS, sampling, batch_size=1)) == ids(together)
    else:
        assert ids([generator.generate([prompt], sampling)[0] for prompt in PROMPTS]) == ids(together)


@pytest.mark.slow
def test_draws_of_a_prompt_depend_on_its_number_and_not_on_its_place(generator):
    sampling = dataclasses.replace(FREE, num_samples=2)
    whole = ids(generator.generate(PROMPTS, sampling))
    assert ids(generator.generate([PROMPTS[3], PROMPTS[1]], sampling, numbers=[3, 1])) == [whole[3], whole[1]]
    assert ids(generator.generate([PROMPTS[3]], sampling)) != [whole[3]]


def test_greedy_is_the_argmax_of_the_whole_forward_pass():
    for changes in ({}, {"norm": "post", "tied_embedding": False, "attention_pattern": ("banded",), "band_width": 3}):
        generator = tiny_generator(**changes)
        network = generator.network
        params = jax.tree.map(
            lambda x: 8 * x if x.ndim > 1 else x, decoder.initialize(network.model, jax.random.key(0))
        )
        module = decoder.merge(network, params)
        forward = jax.jit(lambda tokens, module=module: module.logits(module(tokens)))
        for prompt, ((found),) in zip(PROMPTS[:2], generator.generate(PROMPTS[:2], GREEDY), strict=True):
            text = np.zeros((1, 16), np.int32)
            text[0, : len(prompt)] = prompt
            with jax.set_mesh(one_device()):
                for at in range(len(prompt), len(prompt) + 8):
                    text[0, at] = int(np.argmax(forward(text)[0, at - 1]))
            assert list(found.ids) == text[0, len(prompt) : len(prompt) + 8].tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "axes"),
    [
        (2, cfg.Mesh(fsdp=2)),
        (2, cfg.Mesh(tensor=2)),
        (4, cfg.Mesh(fsdp=2, tensor=2)),
        (4, cfg.Mesh(context=2, tensor=2)),
    ],
)
def test_same_tokens_on_every_mesh(generator, devices, axes):
    sharded = tiny_generator(make_mesh(axes, jax.devices()[:devices]))
    for sampling in (GREEDY, dataclasses.replace(FREE, top_k=10, seed=3), dataclasses.replace(FREE, beams=2)):
        assert ids(sharded.generate(PROMPTS, sampling)) == ids(generator.generate(PROMPTS, sampling))


@pytest.mark.slow
def test_seeds(generator):
    def draw(prompts, **options):
        return ids(generator.generate(prompts, dataclasses.replace(FREE, **options)))

    first = draw(PROMPTS, num_samples=3)
    assert draw(PROMPTS, num_samples=3) == first
    assert draw(PROMPTS, num_samples=3, seed=1) != first
    assert len({tuple(sample) for sample in first[0]}) > 1
    # Neither the number of samples nor the prompts that come after matter.
    assert draw(PROMPTS[:1], num_samples=2) == [first[0][:2]]


def test_stop_strings_and_ends():
    generator = tiny_generator(words=WORDS, vocab_size=257)
    prompt = WORDS.encode("ab")
    sampling = Sampling(tokens=20, temperature=0.0, end_ids=())
    ((whole,),) = generator.generate([prompt], sampling)
    assert whole.finish == "length" and len(whole.ids) == 20
    end = whole.ids[6]
    ((ended,),) = generator.generate([prompt], dataclasses.replace(sampling, end_ids=(end,)))
    assert ended.finish == "end" and ended.ids == whole.ids[: whole.ids.index(end)]


class Letters(tokenizer.ByteTokenizer):
    """Every id spells a letter, so that texts of a random model can be compared."""

    def decode(self, ids):
        return "".join(chr(97 + i % 26) for i in np.asarray(ids).tolist())


def test_stop_strings_cut_and_are_found_in_any_chunk():
    generator = tiny_generator(words=Letters(), vocab_size=257)
    sampling = Sampling(tokens=20, temperature=0.0, end_ids=())
    ((whole,),) = generator.generate([[5, 6]], sampling)
    stop = whole.text[9:11]
    at = whole.text.index(stop)
    stopping = dataclasses.replace(sampling, stop=("?", stop))
    ((cut,),) = generator.generate([[5, 6]], stopping)
    assert cut.text == whole.text[:at] and cut.finish == "stop" and cut.ids == whole.ids[: at + 2]
    for every in (1, 3, 20):
        pieces = list(generator.stream([5, 6], stopping, every))
        assert pieces[-1] == cut
        for shorter, longer in itertools.pairwise(pieces):
            assert longer.text.startswith(shorter.text) and not shorter.finish


@pytest.mark.parametrize(
    ("prompts", "changes", "words"),
    [
        ([[1], []], {}, "prompt 2 is empty"),
        ([[1] * 32], {}, "32 tokens.* context of 32"),
        ([[1] * 20], {"tokens": 13}, " 13 .* 33.* context of 32.* 12"),
        ([[1, tiny.VOCAB]], {}, "token 50.* vocabulary of 50"),
        ([[-1]], {}, "token -1"),
        ([[0.5]], {}, "token ids"),
        ([[1]], {"stop": ("x",)}, "tokenizer"),
    ],
)  # fmt: skip
def test_wrong_prompts_are_refused(generator, prompts, changes, words):
    with pytest.raises(ValueError, match=words):
        generator.generate(prompts, dataclasses.replace(GREEDY, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": 0}, {"temperature": -0.1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0},
        {"top_p": 1.1}, {"repetition_penalty": 0.0}, {"stop": ("",)}, {"seed": -1}, {"num_samples": 0}, {"beams": 0},
        {"length_penalty": float("inf")}, {"beams": 2, "top_k": 3}, {"beams": 2, "num_samples": 3},
    ],
)  # fmt: skip
def test_wrong_sampling_is_refused(changes):
    with pytest.raises(ValueError, match=next(reversed(changes))):
        Sampling(**changes)


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"'bytes' .*257 .*50"):
        tiny_generator(words=WORDS)


def test_buckets():
    assert [bucket(n) for n in (1, 16, 17, 100)] == [16, 16, 32, 128]
    assert bucket(700, largest=1000) == 1000 and bucket(3, smallest=1) == 4 and bucket(1, smallest=1) == 1
