"""A server in a thread, and models for it: one that computes, and one that says what a test wants."""

import contextlib
import threading
import time

import jax
import numpy as np
import uvicorn

from scaling.data import tokenizer
from scaling.data.chat.template import Chat
from scaling.generate.continuous import Engine
from scaling.generate.generator import Generator
from scaling.model import decoder
from scaling.serve.app import make_app
from scaling.serve.models import Model
from tests import tiny


def tiny_model(name="tiny", kind=Generator, vocab=261, words="bytes+chat", context=128, continuous=False):
    network = tiny.network(vocab_size=vocab, context_length=context, num_layers=1, attention_pattern=("dense",))
    params = decoder.initialize(network.model, jax.random.key(0))
    params = jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, params)  # far from uniform
    found = tokenizer.load(words)
    generator = kind(network, params, found)
    chat = Chat(found) if found.chat_template else None
    return Model(name, generator, chat, "it has no chat template", Engine(generator) if continuous else None)


class Scripted(Generator):
    """Says a text, token by token, and computes nothing. Whatever else becomes of tokens is the generator's.

    Attributes:
        says: from the text of a prompt and the number of a sample to the text that follows.
        pause: seconds for a piece.
        pieces: that were made.
    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.says, self.pause, self.pieces = lambda prompt, sample: prompt, 0.0, 0

    def _sample(self, rows, sampling, every):
        _, dials = self._rules(sampling)
        end = [sampling.end_ids[0] if sampling.end_ids else self.words.eot]
        ids = [
            np.asarray(
                [*self.words.encode(self.says(self.words.decode(row.ids), row.sample)), *end][: sampling.tokens],
                np.int32,
            )
            for row in rows
        ]
        for until in range(every, sampling.tokens + every, every):
            time.sleep(self.pause)
            self.pieces += 1
            found = [self._completion(row, x[:until], dials, sampling) for row, x in zip(rows, ids, strict=True)]
            yield found
            if all(completion.finish for completion in found):
                return


@contextlib.contextmanager
def serving(models, **options):
    """The address of a server of these models."""
    app = make_app({model.name: model for model in models}, **options)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
            assert thread.is_alive()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def until(true, seconds=20.0):
    """Waits until something is true, and returns it."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return found
