"""The verb ``chat``: a conversation in the terminal."""

import argparse
import sys
from typing import TYPE_CHECKING

from scaling import exit_codes
from scaling.commands.int8 import INT8, INT8_HELP

if TYPE_CHECKING:
    from scaling.generate.conversation import Conversation

_HELP = "/reset forgets the conversation, /exit or ctrl-D ends it, ctrl-C ends a reply"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``chat`` reads."""
    add = parser.add_argument
    add("model", metavar="RUN", help="run directory, or Hugging Face folder with a chat template")
    add("--system", default="", metavar="TEXT", help="system message")
    add("--template", default="", metavar="FILE", help="chat template (jinja2), if not the model's own")
    add("--tokens", type=int, default=256, metavar="N", help="maximum number of tokens of a reply (default: 256)")
    add("--temperature", type=float, default=0.7, metavar="X", help="0 = greedy (default: 0.7)")
    add("--top_p", type=float, default=1.0, metavar="P", help="sample from the smallest set with probability P")
    add("--repetition_penalty", type=float, default=1.0, metavar="X", help="as of generate (default: 1)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the sampling (default: 0)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="type of the matrix products")
    add("--int8", choices=INT8, default="none", help=INT8_HELP)
    add("--mesh", default="", metavar="AXES", help="devices to use, as in fsdp=2,tensor=4 (default: one device)")


def run(options: argparse.Namespace) -> int:
    """Reads messages from stdin, a line each, and prints the replies as they grow.

    Raises:
        FileNotFoundError: no model there.
        ValueError: options or a model that cannot be used.
    """
    conversation = _conversation(options)
    shows = sys.stdin.isatty()
    if shows:
        print(f"{options.model}: {_HELP}")
    while True:
        try:
            if shows:
                print("\n> ", end="", flush=True)
            line = sys.stdin.readline()
        except KeyboardInterrupt:  # of a line that is being typed
            continue
        text = line.strip()
        if not line or text == "/exit":
            return exit_codes.OK
        if text == "/reset":
            conversation.reset()
        elif text.startswith("/"):
            print(f"{text.split()[0]} is no command; {_HELP}")
        elif text:
            _answer(conversation, text)


def _conversation(options: argparse.Namespace) -> "Conversation":
    from scaling.data.chat.template import read_template
    from scaling.generate.conversation import Conversation
    from scaling.generate.generator import Generator
    from scaling.generate.sampling import Sampling
    from scaling.interop.served import load_decoder

    knobs = ("tokens", "temperature", "top_p", "repetition_penalty", "seed")
    sampling = Sampling(**{name: getattr(options, name) for name in knobs})
    served = load_decoder(options.model, None, options.mesh, options.dtype, int8=options.int8)
    chat = served.chat(read_template(options.template))
    generator = Generator(served.network, served.params, served.words, served.mesh)
    return Conversation(generator, chat, sampling, options.system)


def _answer(conversation: "Conversation", text: str) -> None:
    shown = 0
    try:
        for completion, forgotten in conversation.reply(text):
            if not shown and forgotten:
                print(f"(the first {forgotten} messages are forgotten: the context is full)")
            sys.stdout.write(completion.text[shown:])
            sys.stdout.flush()
            shown = max(shown, len(completion.text))
    except KeyboardInterrupt:
        sys.stdout.write(" ...")
    except ValueError as error:
        sys.stdout.write(f"({error})")
    sys.stdout.write("\n")
    sys.stdout.flush()
