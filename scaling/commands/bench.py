"""The verb ``bench``: measures the framework itself."""

import argparse
import contextlib
import os
from typing import TYPE_CHECKING, Any

from scaling.commands.verb import Run, add_verb, add_verbs

if TYPE_CHECKING:
    from scaling.bench.peer import Peer


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the benchmarks and what they read."""
    benches = add_verbs(parser, title="benchmarks", metavar="WHAT", required=True)

    def add(name: str, run: Run, help: str) -> argparse.ArgumentParser:
        return add_verb(benches, name, help, run)

    dispatch = add("dispatch", _dispatch, "host time to dispatch one training step")
    dispatch.add_argument("--num_layers", type=int, default=48, help="depth of the model (default: 48)")
    dispatch.add_argument("--steps", type=int, default=50, help="steps timed (default: 50)")

    train = add("train", _train, "speed of a training step: three small shapes on a CPU, four shapes of GPT-3 on a GPU")
    shapes = "16m, 11m, 124m (what a CPU runs), 125m, 350m, 1300m, 2700m (what a GPU or TPU runs)"
    train.add_argument("--shapes", nargs="+", metavar="SHAPE", help=shapes)
    policies = ("none", "dots", "projections", "full")
    train.add_argument("--remat", choices=policies, help="recomputation (default: the shape's)")
    train.add_argument(
        "--sequences", type=int, default=0, metavar="N", help="sequences in a step (default: the shape's)"
    )
    modes = "how the peer runs (default: eager on CPUs, compile on GPUs)"
    train.add_argument("--peer_mode", choices=("eager", "compile"), help=modes)
    precision = "type of the matrix products (default: float32 on CPUs, else bfloat16)"
    train.add_argument("--dtype", choices=("float32", "bfloat16"), help=precision)

    generate = add("generate", _generate, "decoding speed of GPT-2 small")
    generate.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="type of the matrix products"
    )
    generate.add_argument(
        "--batch", type=int, nargs="+", default=[1, 8], metavar="N", help="numbers of rows (default: 1 8)"
    )
    generate.add_argument("--model", metavar="RUN", help="with --draft: the model, a run directory or a folder")
    generate.add_argument("--draft", metavar="SMALL", help="speculative decoding with this draft beside plain decoding")
    generate.add_argument("--draft_tokens", type=int, default=4, metavar="K", help="proposed at a time (default: 4)")
    generate.add_argument("--prompts", metavar="FILE", help="with --draft: a text on each line")
    generate.add_argument("--new", type=int, default=64, metavar="N", help="with --draft: new tokens (default: 64)")
    int8 = add("int8", _int8, "loss, greedy texts and speed of a model with weights or cache in 8 bits, beside plain")
    int8.add_argument("model", metavar="RUN", help="run directory or Hugging Face folder")
    int8.add_argument("--text", required=True, metavar="FILE", help="text that is cut into windows, UTF-8")
    int8.add_argument("--windows", type=int, default=32, metavar="N", help="of text (default: 32)")
    int8.add_argument("--length", type=int, default=512, metavar="N", help="tokens of a window (default: 512)")
    int8.add_argument(
        "--prompt", type=int, default=32, metavar="N", help="tokens of it that are continued (default: 32)"
    )
    int8.add_argument("--new", type=int, default=64, metavar="N", help="new tokens (default: 64)")
    int8.add_argument("--batch", type=int, default=8, metavar="N", help="rows, a power of two (default: 8)")
    int8.add_argument("--repetitions", type=int, default=5, metavar="N", help="timed calls (default: 5)")
    int8.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="type of the matrix products")
    for parser in (train, generate):
        parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="timed calls (default: 5)")
        parser.add_argument(
            "--peer",
            nargs="?",
            const="",
            metavar="PYTHON",
            help="measure PyTorch too, in turns; PYTHON is an interpreter that has torch (default: this one)",
        )

    corpus = add("corpus", _corpus, "speed of fuzzy deduplication on one core; with --peer, beside datatrove's")
    corpus.add_argument("files", metavar="FILE", nargs="+", help="JSON Lines with a field text, also .gz")
    corpus.add_argument(
        "--documents", type=int, default=20_000, metavar="N", help="cut from the files (default: 20000)"
    )
    corpus.add_argument("--words", type=int, default=400, metavar="N", help="of a document, at most (default: 400)")
    corpus.add_argument("--repetitions", type=int, default=3, metavar="N", help="timed runs of each side (default: 3)")
    corpus.add_argument(
        "--peer", default="", metavar="PYTHON", help="an interpreter with datatrove, orjson, spacy, xxhash"
    )
    rollout = add("rollout", _rollout, "speed of answers in learning from rewards, beside that of generate")
    rollout.add_argument("run_dir", metavar="RUN", help="run directory of the model")
    rollout.add_argument("--batch", type=int, default=32, metavar="N", help="number of rows (default: 32)")
    rollout.add_argument("--prompt", type=int, default=64, metavar="N", help="tokens of a prompt (default: 64)")
    rollout.add_argument("--new", type=int, default=64, metavar="N", help="tokens of an answer (default: 64)")
    rollout.add_argument("--repetitions", type=int, default=5, metavar="N", help="timed calls (default: 5)")

    serve = add("serve", _serve, "speed of a server's answers with several clients, with and without batching")
    serve.add_argument(
        "--clients", type=int, nargs="+", default=[1, 4, 8], metavar="N", help="numbers of clients (default: 1 4 8)"
    )
    serve.add_argument("--requests", type=int, default=3, metavar="N", help="of each client (default: 3)")
    serve.add_argument("--repetitions", type=int, default=3, metavar="N", help="of each measurement (default: 3)")
    serve.add_argument("--num_layers", type=int, default=6, help="depth of the model (default: 6)")
    serve.add_argument("--width", type=int, default=512, help="d_model, a multiple of 64 (default: 512)")

    tpu = add("tpu", _tpu, "our train step compiled for a TPU slice that is not here, compared with MaxText's")
    tpu.add_argument(
        "--sizes",
        nargs="+",
        metavar="SIZE",
        help="a GPT-3 size, llama2-7b or mixtral-8x7b (default: 1300m)",
    )
    tpu.add_argument(
        "--table",
        action="store_true",
        help="the rows of docs/benchmarks.md, or those of --sizes",
    )
    tpu.add_argument("--topology", metavar="NAME", help="slice, such as v5e:4x4 (default: one that holds the size)")
    tpu.add_argument("--sequences", type=int, metavar="N", help="sequences per chip (default: by size)")
    tpu.add_argument(
        "--ours",
        nargs="+",
        metavar="KNOBS",
        help="settings to try, each like 'compute.remat=full mesh.tensor=2' (default: the best known)",
    )
    tpu.add_argument(
        "--theirs", nargs="+", metavar="KNOBS", help="settings of MaxText to try (default: the best known)"
    )
    tpu.add_argument("--peer", metavar="PYTHON", help="a Python interpreter that has maxtext[tpu]")

    startup = add("startup", _startup, "seconds from the command to the first step of a training")
    startup.add_argument("--experiment", default="cpu/demo", metavar="FILE", help="an experiment (default: cpu/demo)")
    startup.add_argument("--repetitions", type=int, default=2, metavar="N", help="number of warm starts (default: 2)")

    overhead = add("overhead", _overhead, "what a training costs beside its steps, by piece, and beside a bare loop")
    overhead.add_argument(
        "--turns", type=int, default=15, metavar="N", help="turns of 20 steps of each loop (default: 15)"
    )

    data = add("data", _data, "speed of the loader, without a model")
    data.add_argument("--experiment", default="cpu/demo", metavar="FILE", help="an experiment (default: cpu/demo)")
    data.add_argument("--steps", type=int, default=200, metavar="N", help="number of batches to read (default: 200)")

    convert = add("convert", _convert, "memory that import and export take for a large synthetic model (Linux)")
    convert.add_argument("folder", metavar="DIR", help="new or empty; on a disk that holds twice the model")
    convert.add_argument(
        "--gb", type=float, default=20.0, help="size of the model in float32, in 1e9 bytes (default: 20)"
    )
    convert.add_argument("--width", type=int, default=4096, help="d_model of the model (default: 4096)")


def _dispatch(options: argparse.Namespace) -> int:
    from scaling.bench import dispatch

    period = len(dispatch.PATTERN)
    if options.num_layers < period or options.num_layers % period:
        raise ValueError(f"--num_layers={options.num_layers} must be a positive multiple of {period}")
    if options.steps < 2:
        raise ValueError(f"--steps={options.steps} must be at least 2")
    print(dispatch.dispatch(num_layers=options.num_layers, steps=options.steps))
    return 0


def _train(options: argparse.Namespace) -> int:
    from scaling.bench import train
    from scaling.parallel.host_memory import keep_freed_memory

    if unknown := [shape for shape in options.shapes or () if shape not in train.SHAPES]:
        raise ValueError(f"--shapes: {unknown[0]!r} is none of {', '.join(train.SHAPES)}")
    _at_least_one(options, "repetitions")
    if options.sequences < 0:
        raise ValueError(f"--sequences={options.sequences} must be 1 or more, or 0 for the shape's")
    keep_freed_memory()
    setting = train.Setting(options.dtype, options.remat, options.sequences, options.peer_mode)
    with _peer(options) as peer:
        for line in train.bench(options.shapes or train.shapes(), options.repetitions, setting, peer):
            print(line, flush=True)
    return 0


def _generate(options: argparse.Namespace) -> int:
    from scaling.bench.generate import bench

    _at_least_one(options, "repetitions", "batch", "new")
    given = [getattr(options, name) is not None for name in ("model", "draft", "prompts")]
    if any(given):
        from scaling.bench import speculative

        if not all(given) or options.peer is not None:
            raise ValueError("--model, --draft and --prompts belong together, and have no --peer")
        case = speculative.Case(options.model, options.draft, options.prompts, options.draft_tokens, options.new)
        for line in speculative.bench(case, options.batch, options.repetitions, options.dtype):
            print(line, flush=True)
        return 0
    with _peer(options) as peer:
        for batch in options.batch:
            for line in bench(batch, options.repetitions, options.dtype, peer):
                print(line, flush=True)
    return 0


def _int8(options: argparse.Namespace) -> int:
    from scaling.bench.int8 import Case, bench

    _at_least_one(options, "windows", "prompt", "new", "batch", "repetitions")
    if options.length <= options.prompt:
        raise ValueError(f"--length={options.length} must be more than --prompt={options.prompt}")
    case = Case(options.model, options.text, options.windows, options.length, options.prompt, options.new)
    for line in bench(case, options.batch, options.repetitions, options.dtype):
        print(line, flush=True)
    return 0


def _corpus(options: argparse.Namespace) -> int:
    from pathlib import Path

    from scaling.bench.corpus import corpus

    _at_least_one(options, "documents", "words", "repetitions")
    files = [Path(file) for file in options.files]
    for line in corpus(files, options.documents, options.words, options.repetitions, options.peer):
        print(line, flush=True)
    return 0


def _rollout(options: argparse.Namespace) -> int:
    from scaling.bench.rollout import bench

    _at_least_one(options, "repetitions", "batch", "prompt", "new")
    for line in bench(options.run_dir, options.batch, options.prompt, options.new, options.repetitions):
        print(line, flush=True)
    return 0


def _serve(options: argparse.Namespace) -> int:
    from scaling.bench.serve import bench

    _at_least_one(options, "clients", "requests", "repetitions", "num_layers", "width")
    if options.width % 64:
        raise ValueError(f"--width={options.width} must be a multiple of 64")
    for line in bench(options.clients, options.requests, options.repetitions, options.num_layers, options.width):
        print(line, flush=True)
    return 0


def _tpu(options: argparse.Namespace) -> int:
    import dataclasses

    from scaling.bench import tpu, tpu_table

    known = list(dict.fromkeys(row.size for row in tpu_table.ROWS) if options.table else tpu.CASES)
    for size in options.sizes or ():
        if size not in known:
            raise ValueError(f"--sizes: {size!r} is none of {', '.join(known)}")
    if options.sequences is not None:
        _at_least_one(options, "sequences")
    given = {name: getattr(options, name) for name in ("topology", "sequences", "ours", "theirs")}
    if options.table:
        if named := [name for name, value in given.items() if value]:
            raise ValueError(f"--table has settings of its own: leave out --{named[0]}")
        for line in tpu_table.table(options.peer, tuple(options.sizes or ())):
            print(line, flush=True)
        return 0
    for size in options.sizes or ("1300m",):
        case = dataclasses.replace(tpu.CASES[size], **{name: value for name, value in given.items() if value})
        for line in tpu.bench(size, case, options.peer):
            print(line, flush=True)
    return 0


def _startup(options: argparse.Namespace) -> int:
    from scaling.bench.startup import startup

    _at_least_one(options, "repetitions")
    for line in startup(options.experiment, options.repetitions):
        print(line, flush=True)
    return 0


def _overhead(options: argparse.Namespace) -> int:
    from scaling.bench.overhead import bench
    from scaling.parallel.host_memory import keep_freed_memory

    _at_least_one(options, "turns")
    keep_freed_memory()
    for line in bench(options.turns):
        print(line, flush=True)
    return 0


def _data(options: argparse.Namespace) -> int:
    from scaling.bench.data import data
    from scaling.config.files import load

    if options.steps < 2:
        raise ValueError(f"--steps={options.steps} must be at least 2")
    for line in data(load(options.experiment, []), options.steps):
        print(line, flush=True)
    return 0


def _convert(options: argparse.Namespace) -> int:
    from pathlib import Path

    from scaling.bench.convert import bench

    _at_least_one(options, "width")
    for line in bench(options.gb, options.width, Path(options.folder)):
        print(line, flush=True)
    return 0


def _at_least_one(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        value: Any = getattr(options, name)
        if min(value if isinstance(value, list) else [value]) < 1:
            raise ValueError(f"--{name} must be 1 or more")


def _peer(options: argparse.Namespace) -> "contextlib.AbstractContextManager[Peer | None]":
    if options.peer is None:
        return contextlib.nullcontext()
    from scaling.bench.peer import Peer

    # JAX would allocate three quarters of a GPU's memory at its start, which the peer needs.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return Peer(options.peer)
