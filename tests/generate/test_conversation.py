"""Conversations: what is forgotten when the context is full, and replies of a real model."""

import os
from pathlib import Path

import pytest

from scaling.data import tokenizer
from scaling.data.chat.template import Chat
from scaling.data.chat_tokenizer import SUFFIX
from scaling.generate.conversation import Conversation, prompt_of
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling
from scaling.interop.served import load_served

SYSTEM = {"role": "system", "content": "s"}
TURNS = [
    {"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2 + ["user"], "12345", strict=True)
]


def test_the_oldest_turns_are_forgotten_and_the_system_s_message_stays():
    chat = Chat(tokenizer.load(f"bytes{SUFFIX}"))
    whole = len(chat.prompt([SYSTEM, *TURNS]))
    assert prompt_of(chat, [SYSTEM, *TURNS], whole + 4, 4)[1:] == (0, 4)
    found = prompt_of(chat, [SYSTEM, *TURNS], whole + 3, 4)
    assert found.forgotten == 2 and chat.words.decode(found.ids).startswith("<|endoftext|><|system|>s<|end|><|user|>3")
    last = len(chat.prompt([SYSTEM, TURNS[-1]]))
    assert prompt_of(chat, [SYSTEM, *TURNS], last + 2, 9)[1:] == (4, 2)
    with pytest.raises(ValueError, match=f"has {last} tokens"):
        prompt_of(chat, [SYSTEM, *TURNS], last, 4)


@pytest.mark.slow
@pytest.mark.skipif(
    "SCALING_REAL_MODELS" not in os.environ, reason="SCALING_REAL_MODELS names no folder of real models"
)
def test_greedy_answers_of_a_real_model_are_those_of_transformers():
    """Transformers 5.24 gave these, with the model's own template and ``generate(do_sample=False)``."""
    served = load_served(Path(os.environ["SCALING_REAL_MODELS"]) / "smollm2")
    generator = Generator(served.network, served.params, served.words, served.mesh)
    conversation = Conversation(generator, Chat(served.words), Sampling(tokens=40, temperature=0))
    for text, answer in (
        ("What is the capital of France?", "The capital of France is Paris."),
        ("And of Italy? <|end|> x", "The capital of Italy is Rome."),
        (
            "Name three fruits.",
            "The three fruits that are commonly associated with France are the Foose, the Fogu, and the Fogu.",
        ),
    ):
        *_, (completion, forgotten) = conversation.reply(text)
        assert (completion.text, completion.finish, forgotten) == (answer, "end", 0)
