"""The verb ``generate``: continues prompts with a model. Imports JAX only when it runs."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from scaling import json_text

if TYPE_CHECKING:
    from scaling.data.tokenizer import Tokenizer
    from scaling.generate.generator import Completion, Generator
    from scaling.generate.sampling import Sampling

_STREAMED = 4  # tokens in each piece of text that is printed while the text grows


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``generate`` reads."""
    add = parser.add_argument
    add("model", metavar="RUN", help="run directory, or Hugging Face folder with config.json, model.safetensors")
    add("--prompt", action="append", default=[], metavar="TEXT", help="text to continue; may be repeated")
    add("--prompts", metavar="FILE", help="file with a text on each line, or .jsonl with a field 'prompt'")
    add("--control", metavar="CODE", help="control code before each prompt, as in training by control_field")
    add("--tokenizer", metavar="NAME", help="gpt2, bytes, books or a path (default: the run's, or the folder's files)")
    add("--tokens", type=int, default=100, metavar="N", help="maximum number of new tokens (default: 100)")
    add(
        "--temperature",
        type=float,
        default=1.0,
        metavar="X",
        help="temperature of the softmax; 0 = greedy (default: 1)",
    )
    add(
        "--top_k", type=int, default=0, metavar="K", help="sample from the K most likely tokens; 0 = from all (default)"
    )
    add(
        "--top_p",
        type=float,
        default=1.0,
        metavar="P",
        help="sample from the smallest set of tokens with probability P (default: 1)",
    )
    add(
        "--repetition_penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="divisor of the logits of tokens that occurred (default: 1)",
    )
    add("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated")
    add("--seed", type=int, default=0, metavar="N", help="seed of the sampling (default: 0)")
    add("--num_samples", type=int, default=1, metavar="N", help="continuations of each prompt (default: 1)")
    add("--beams", type=int, default=1, metavar="N", help="width of a beam search instead of sampling (default: 1)")
    add("--length_penalty", type=float, metavar="X", help="beam search: length penalty (default: 0.6, as in GPT-3)")
    add(
        "--early_stopping",
        action="store_true",
        help="beam search: end as soon as there are as many complete texts as beams",
    )
    add(
        "--batch_size", type=int, default=8, metavar="N", help="number of continuations computed at a time (default: 8)"
    )
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="type of the matrix products")
    add("--mesh", default="", metavar="AXES", help="devices to use, as in fsdp=2,tensor=4 (default: one device)")
    add("--json", action="store_true", help="print one JSON object for each continuation, for programs")


def run(options: argparse.Namespace) -> int:
    """Continues the prompts and prints the texts.

    Raises:
        FileNotFoundError: no model, tokenizer or file of prompts.
        ValueError: options, prompts or a model that cannot be used.
    """
    from scaling.generate.sampling import Sampling

    if options.batch_size < 1:
        raise ValueError(f"--batch_size={options.batch_size} must be 1 or more")
    if options.beams == 1 and (options.length_penalty is not None or options.early_stopping):
        raise ValueError("--length_penalty and --early_stopping belong to a beam search; give --beams=N")
    code = options.control
    if code is not None and (not code or any("\ud800" <= character <= "\udfff" for character in code)):
        raise ValueError("--control must be valid Unicode text of at least one character")
    texts = _texts(options)
    knobs = {field.name: getattr(options, field.name, None) for field in dataclasses.fields(Sampling)}
    penalty = 0.6 if options.length_penalty is None else options.length_penalty
    sampling = Sampling(**knobs | {"stop": tuple(options.stop), "end_ids": None, "length_penalty": penalty})
    if code is not None:
        _check_codes(options.model)
    generator, words = _generator(options)
    # Sequences of a training with control codes begin with a code, where others follow an end of text.
    first = words.start if code is None else words.encode(code).tolist()
    if code is not None and not first:
        raise ValueError(f"--control={code!r} has no token in the tokenizer {words.name!r}")
    prompts = [[*first, *words.encode(text).tolist()] for text in texts]
    if len(prompts) == 1 and sampling.num_samples == sampling.beams == 1 and not options.json:
        _stream(generator, texts[0], prompts[0], sampling)
        return 0
    found = generator.generate(prompts, sampling, options.batch_size)
    for number, (text, completions) in enumerate(zip(texts, found, strict=True)):
        for sample, completion in enumerate(completions):
            record = {"prompt": text, "number": number, "sample": sample}
            record |= {} if code is None else {"control": code}
            print(_json(record, completion) if options.json else f"{text}{completion.text}\n")
    return 0


def _check_codes(model: str) -> None:
    """Refuses a control code for a run that was trained here and without codes; of others nothing is known."""
    from scaling.runs.config_json import read_config_json

    values = read_config_json(model)
    if "config" not in values or "imported" in values:
        return
    if not values["config"]["data"].get("control_field"):
        raise ValueError(f"--control: {model} was trained without control codes (config.data.control_field is empty)")


def _texts(options: argparse.Namespace) -> list[str]:
    """The prompts of ``--prompt`` and ``--prompts``, after checks."""
    texts = [(text, "--prompt") for text in options.prompt]
    if options.prompts is not None:
        path = Path(options.prompts)
        for number, line in enumerate(_lines(path), start=1):
            where = f"{path}:{number}"
            if path.suffix != ".jsonl":
                texts.append((line, where))
            elif line.strip():
                texts.append((_field(line, where), where))
    if options.prompts is not None and len(texts) == len(options.prompt):
        raise ValueError(f"{options.prompts} holds no prompts")
    if not texts and options.control:
        return [""]
    if not texts:
        raise ValueError("needs --prompt=TEXT or --prompts=FILE with at least one prompt, or --control=CODE")
    for text, where in texts:
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"{where}: the prompt is not valid Unicode text")
        if not text:
            raise ValueError(f"{where}: the prompt is empty; give at least one character")
    return [text for text, _ in texts]


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig").removesuffix("\n")
        return text.split("\n") if text else []
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _field(line: str, where: str) -> str:
    record = json_text.parse(line, where)
    text = record.get("prompt") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"{where}: must be an object with a text in its field 'prompt'")
    return text


def _generator(options: argparse.Namespace) -> "tuple[Generator, Tokenizer]":
    from scaling.generate.generator import Generator
    from scaling.interop.served import load_served

    served = load_served(options.model, options.tokenizer, options.mesh, options.dtype)
    return Generator(served.network, served.params, served.words, served.mesh), served.words


def _stream(generator: "Generator", text: str, prompt: list[int], sampling: "Sampling") -> None:
    """Prints the prompt, and its continuation while it is computed."""
    pieces = generator.stream(prompt, sampling, _STREAMED)
    shown = 0
    for number, completion in enumerate(pieces):
        if not number:
            sys.stdout.write(text)
        sys.stdout.write(completion.text[shown:])
        sys.stdout.flush()
        shown = len(completion.text)
    sys.stdout.write("\n")


def _json(record: dict[str, object], completion: "Completion") -> str:
    record = record | dataclasses.asdict(completion)
    if completion.score is None:
        del record["score"]
    return json.dumps(record)
