"""The verb ``serve``: a model behind HTTP."""

import argparse
import contextlib
import logging
import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from scaling import exit_codes
from scaling.commands.int8 import INT8, INT8_HELP

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scaling.serve.models import Model
    from scaling.serve.ranking import Rankings

KEY_VARIABLE = "SCALING_API_KEY"
_LOCAL = ("127.0.0.1", "localhost", "::1")
_GOODBYE_SECONDS = 3  # that open connections have when the server is stopped


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``serve`` reads."""
    add = parser.add_argument
    add("models", nargs="+", metavar="RUN", help="run directories or Hugging Face folders")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="0.0.0.0 = for all machines (default: 127.0.0.1)")
    add("--port", type=int, default=8000, metavar="N", help="0 = one that is free (default: 8000)")
    add("--api_key", metavar="KEY", help=f"that requests must have (default: the environment's {KEY_VARIABLE}, if set)")
    add("--template", default="", metavar="FILE", help="chat template (jinja2), if not the model's own")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="type of the matrix products")
    add("--int8", choices=INT8, default="none", help=INT8_HELP)
    add("--mesh", default="", metavar="AXES", help="devices to use, as in fsdp=2,tensor=4 (default: one device)")
    add("--draft", metavar="SMALL", help="small model that proposes tokens, with the model's tokenizer or a part of it")
    add("--draft_tokens", type=int, metavar="K", help="with --draft: tokens proposed at a time (default: 4)")
    add("--rank", type=int, metavar="K", help="show the page on which a person ranks K answers (2 to 9)")
    add("--prompts", metavar="FILE", help="--rank: a prompt a line, or .jsonl with prompt or messages")
    add("--output", metavar="FILE", help="--rank: where rankings are appended (default: rankings.jsonl)")
    add("--system", metavar="TEXT", help="--rank: system message of prompts that have none")
    add("--tokens", type=int, metavar="N", help="--rank: maximum number of tokens of an answer (default: 256)")
    add("--temperature", type=float, metavar="X", help="--rank: temperature of the answers (default: 1)")
    add("--top_p", type=float, metavar="P", help="--rank: as of generate (default: 1)")
    add("--seed", type=int, metavar="N", help="--rank: seed of the answers and of their order (default: 0)")


def run(options: argparse.Namespace) -> int:
    """Serves until it is stopped.

    Raises:
        FileNotFoundError: no model or file there.
        ValueError: options or a model that cannot be used.
    """
    try:
        import uvicorn

        from scaling.serve.app import make_app
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "anyio"):
            raise
        raise ValueError("serve needs Starlette and Uvicorn; pip install 'scaling[serve]'") from None
    from scaling.data.chat.template import read_template
    from scaling.serve.models import load

    key = os.environ.get(KEY_VARIABLE) if options.api_key is None else options.api_key
    if key is not None and not re.fullmatch("[!-~]+", key):
        raise ValueError("the API key must have ASCII characters only, no blanks, and at least one")
    if options.draft is None and options.draft_tokens is not None:
        raise ValueError("--draft_tokens belongs to --draft=SMALL")
    _check_ranking_options(options)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with _listening(options.host, options.port) as listener, contextlib.ExitStack() as held:
        template = read_template(options.template)
        tokens = 4 if options.draft_tokens is None else options.draft_tokens
        models = load(options.models, template, options.dtype, options.mesh, options.draft, tokens, options.int8)
        rankings = _rankings(options, models, held) if options.rank is not None else None
        local = options.host in _LOCAL
        app = make_app(models, key, local, rankings)
        host = f"[{options.host}]" if ":" in options.host else options.host
        print(f"http://{host}:{listener.getsockname()[1]}/ serves {', '.join(models)}; ctrl-C ends it", flush=True)
        if not local and key is None:
            logging.getLogger(__name__).warning("everybody who reaches this machine may use it: no API key is set")
        config = uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=_GOODBYE_SECONDS, timeout_keep_alive=30
        )
        uvicorn.Server(config).run(sockets=[listener])
    return exit_codes.OK


def _check_ranking_options(options: argparse.Namespace) -> None:
    for name in ("prompts", "output", "system", "tokens", "temperature", "top_p", "seed"):
        if options.rank is None and getattr(options, name) is not None:
            raise ValueError(f"--{name} belongs to --rank=K; a client sends its own with each request")


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens. It is bound before the model is loaded, so that a taken port is found at once."""
    if not 0 <= port < 2**16:
        raise ValueError(f"--port={port} must be 0 to {2**16 - 1}")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(f"--host={host} --port={port}: {error.strerror}; give another") from None


def _rankings(options: argparse.Namespace, models: "Mapping[str, Model]", held: contextlib.ExitStack) -> "Rankings":
    from etils import epath

    from scaling.generate.sampling import Sampling
    from scaling.runs import lock
    from scaling.serve.ranking import Plan, Rankings, read_prompts

    given = {name: getattr(options, name) for name in ("tokens", "temperature", "top_p", "seed")}
    sampling = Sampling(**{"tokens": 256} | {name: value for name, value in given.items() if value is not None})
    prompts = read_prompts(options.prompts) if options.prompts else []
    plan = Plan(models, options.rank, sampling, options.system or "")
    output = Path(options.output or "rankings.jsonl")
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"{output.absolute().parent}, the folder of --output, does not exist")
    busy = f"another server writes {output}; stop it, or give another --output"
    held.enter_context(lock.held(epath.Path(f"{output}.lock"), busy))
    return Rankings(plan, prompts, output)
