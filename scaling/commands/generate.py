"""The verb ``generate``: continues prompts with a model. Imports JAX only when it runs."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling import json_text
from scaling.commands.int8 import INT8, INT8_HELP

if TYPE_CHECKING:
    from scaling.align.rewards import Reward
    from scaling.data.chat.prompts import Prompt
    from scaling.generate.draft import Draft
    from scaling.generate.generator import Completion, Generator
    from scaling.generate.sampling import Sampling
    from scaling.interop.served import Served

_STREAMED = 4  # tokens in each piece of text that is printed while the text grows
_OPTIONAL = ("score", "passes")  # of a completion


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``generate`` reads."""
    add = parser.add_argument
    add("model", metavar="RUN", help="run directory, or Hugging Face folder with config.json, model.safetensors")
    add("--prompt", action="append", default=[], metavar="TEXT", help="text to continue; may be repeated")
    add("--prompts", metavar="FILE", help="file with a text on each line, or .jsonl with a field 'prompt'")
    add(
        "--source",
        action="append",
        default=[],
        metavar="TEXT",
        help="text that the encoder of a model reads; the answer begins with --prompt, if any; may be repeated",
    )
    add("--sources", metavar="FILE", help="file with a source on each line, or .jsonl with a field 'source'")
    add("--chat", action="store_true", help="answer the prompts as messages of a user, by the model's chat template")
    add("--system", default="", metavar="TEXT", help="with --chat: system message")
    add("--template", default="", metavar="FILE", help="with --chat: template (jinja2), if not the model's own")
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
    add("--best_of", type=int, metavar="N", help="draw N continuations of each prompt, and print the best by --reward")
    add(
        "--reward",
        metavar="SPEC",
        help="of --best_of: run directory of a reward model, FILE.py:FUNCTION, or exact_match or constraints",
    )
    add("--draft", metavar="SMALL", help="small model that proposes tokens, with the model's tokenizer or a part of it")
    add("--draft_tokens", type=int, metavar="K", help="with --draft: tokens proposed at a time (default: 4)")
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
    add("--int8", choices=INT8, default="none", help=INT8_HELP)
    add("--mesh", default="", metavar="AXES", help="devices to use, as in fsdp=2,tensor=4 (default: one device)")
    add("--json", action="store_true", help="print one JSON object for each continuation, for programs")


def run(options: argparse.Namespace) -> int:
    """Continues the prompts and prints the texts.

    Raises:
        FileNotFoundError: no model, tokenizer, reward or file of prompts.
        ValueError: options, prompts, a reward or a model that cannot be used.
    """
    from scaling.generate.generator import Generator
    from scaling.generate.sampling import Sampling

    _check(options)
    code, prompts = options.control, _prompts(options)
    knobs = {field.name: getattr(options, field.name, None) for field in dataclasses.fields(Sampling)}
    penalty = 0.6 if options.length_penalty is None else options.length_penalty
    sampling = Sampling(**knobs | {"stop": tuple(options.stop), "end_ids": None, "length_penalty": penalty})
    reward = None
    if options.best_of is not None:
        from scaling.align import rewards

        sampling = dataclasses.replace(sampling, num_samples=options.best_of)
        reward = rewards.load(options.reward, options.mesh, options.dtype, options.batch_size)
    if code is not None:
        _check_codes(options.model)
    served = _served(options)
    generator = Generator(served.network, served.params, served.words, served.mesh, _draft(options, served))
    ids, sampling, answer = _read(options, prompts, generator, served, sampling)
    alone = len(prompts) == sampling.num_samples == sampling.beams == 1
    if alone and reward is None and not options.json and not _has_sources(options):
        _stream(generator, _shown(options, prompts[0]), ids[0], sampling)
        return 0
    found = answer()
    scores = None if reward is None else _rewards(reward, prompts, found)
    for number, (prompt, completions) in enumerate(zip(prompts, found, strict=True)):
        best = None if scores is None else max(range(len(completions)), key=scores[number].__getitem__)
        for sample, completion in enumerate(completions):
            if options.json:
                name = "source" if _has_sources(options) else "prompt"
                said = {"messages": list(prompt.messages)} if options.chat else {name: _text(prompt)}
                record = {**said, "number": number, "sample": sample} | ({} if code is None else {"control": code})
                record |= {} if scores is None else {"reward": scores[number][sample], "best": sample == best}
                print(_json(record, completion))
            elif best in (None, sample):
                print(f"{_shown(options, prompt)}{completion.text}\n")
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuses options that exclude each other."""
    if options.batch_size < 1:
        raise ValueError(f"--batch_size={options.batch_size} must be 1 or more")
    if options.beams == 1 and (options.length_penalty is not None or options.early_stopping):
        raise ValueError("--length_penalty and --early_stopping belong to a beam search; give --beams=N")
    if options.draft is None and options.draft_tokens is not None:
        raise ValueError("--draft_tokens belongs to --draft=SMALL")
    if options.draft is not None and options.beams > 1:
        raise ValueError(f"--draft and --beams={options.beams} exclude each other: a draft proposes tokens of one text")
    if options.draft is not None and _has_sources(options):
        raise ValueError("--draft is for decoders alone; leave it out where there is a --source")
    code = options.control
    if code is not None and (not code or any("\ud800" <= character <= "\udfff" for character in code)):
        raise ValueError("--control must be valid Unicode text of at least one character")
    if not options.chat and (options.system or options.template):
        raise ValueError("--system and --template belong to a dialogue; give --chat")
    if options.chat and code is not None:
        raise ValueError("--chat and --control exclude each other: a dialogue begins as its template says")
    if _has_sources(options) and (options.chat or code is not None or options.prompts or len(options.prompt) > 1):
        raise ValueError("--source takes one --prompt at most, and neither --prompts nor --chat nor --control")
    if (options.best_of is None) != (options.reward is None):
        raise ValueError("--best_of=N and --reward=SPEC belong together: the best of N texts by the reward")
    if options.best_of is None:
        return
    if options.best_of < 1:
        raise ValueError(f"--best_of={options.best_of} must be 1 or more")
    if options.num_samples != 1 or options.beams != 1:
        raise ValueError("--best_of draws its texts itself; leave out --num_samples and --beams")
    if options.temperature == 0 and options.best_of > 1:
        raise ValueError(f"--best_of={options.best_of} needs --temperature above 0: greedy texts are all the same")


def _read(
    options: argparse.Namespace,
    prompts: "list[Prompt]",
    generator: "Generator",
    served: "Served",
    sampling: "Sampling",
) -> "tuple[list[Any], Sampling, Callable[[], list[list[Completion]]]]":
    """What the model reads of each prompt, the sampling of the first one, and what continues all."""
    if options.chat:
        from scaling.data.chat.template import read_template
        from scaling.generate.answers import Answers

        chat = served.chat(read_template(options.template))
        answers = Answers(generator, chat, sampling, options.batch_size)
        framed = answers.read(prompts)
        first = dataclasses.replace(answers.sampling, tokens=framed[0].room)
        return [each.ids for each in framed], first, lambda: answers(prompts)
    code, words = options.control, served.words
    if _has_sources(options):
        from scaling.data import pairs

        sources = [pairs.framed(words.encode(_text(prompt)), words) for prompt in prompts]
        # Targets of training begin so, too.
        start = words.decoder_opening
        start += words.encode(options.prompt[0]).tolist() if options.prompt else []
        ids = [start] * len(sources)
        return ids, sampling, lambda: generator.generate(ids, sampling, options.batch_size, sources=sources)
    # Sequences of a training with control codes begin with a code, where others follow an end of text.
    before = words.start if code is None else words.encode(code).tolist()
    if code is not None and not before:
        raise ValueError(f"--control={code!r} has no token in the tokenizer {words.name!r}")
    ids = [[*before, *words.encode(_text(prompt)).tolist()] for prompt in prompts]
    return ids, sampling, lambda: generator.generate(ids, sampling, options.batch_size)


def _rewards(reward: "Reward", prompts: "list[Prompt]", found: "list[list[Completion]]") -> list[list[float]]:
    asked = [prompt for prompt, completions in zip(prompts, found, strict=True) for _ in completions]
    scores = iter(reward(asked, [completion.text for completions in found for completion in completions]).tolist())
    return [[next(scores) for _ in completions] for completions in found]


def _text(prompt: "Prompt") -> str:
    return prompt.messages[-1]["content"]


def _has_sources(options: argparse.Namespace) -> bool:
    return bool(options.source or options.sources)


def _shown(options: argparse.Namespace, prompt: "Prompt") -> str:
    """What is printed before a continuation; an answer stands alone."""
    if _has_sources(options):
        return options.prompt[0] if options.prompt else ""
    return "" if options.chat else _text(prompt)


def _check_codes(model: str) -> None:
    """Refuses a control code for a run that was trained here and without codes; of others nothing is known."""
    from scaling.runs.config_json import read_config_json

    values = read_config_json(model)
    if "config" not in values or "imported" in values:
        return
    if not values["config"]["data"].get("control_field"):
        raise ValueError(f"--control: {model} was trained without control codes (config.data.control_field is empty)")


def _prompts(options: argparse.Namespace) -> "list[Prompt]":
    """The prompts of ``--prompt`` and ``--prompts``, after checks; a text is the message of a user.

    Where there are sources, these, in the same way.
    """
    from scaling.data.chat import prompts as chat_prompts
    from scaling.data.chat.dialogues import Skipped, with_system

    def prompt(text: str, where: str, record: dict[str, Any] | None = None) -> "Prompt":
        messages = with_system([{"role": "user", "content": text}], options.system)
        return chat_prompts.Prompt(tuple(messages), record or {"prompt": text}, where)

    kind = "source" if _has_sources(options) else "prompt"
    given, file = getattr(options, kind), getattr(options, f"{kind}s")
    found = [prompt(text, f"--{kind}") for text in given]
    if file is not None and options.chat and file.removesuffix(".gz").endswith(".jsonl"):
        found += chat_prompts.read(file, Skipped(True, ""), options.system)
    elif file is not None:
        path = Path(file)
        for number, line in enumerate(_lines(path), start=1):
            where = f"{path}:{number}"
            if path.suffix != ".jsonl":
                found.append(prompt(line, where))
            elif line.strip():
                record = _record(line, where, kind)
                found.append(prompt(record[kind], where, record))
    if file is not None and len(found) == len(given):
        raise ValueError(f"{file} holds no {kind}s")
    if not found and options.control:
        return [prompt("", "--control")]
    if not found:
        raise ValueError(
            "needs --prompt=TEXT or --prompts=FILE with at least one prompt, or --control=CODE, or for a model with an "
            "encoder --source=TEXT"
        )
    for each in found:
        text = _text(each)
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"{each.where}: the {kind} is not valid Unicode text")
        if not text:
            raise ValueError(f"{each.where}: the {kind} is empty; give at least one character")
    return found


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig").removesuffix("\n")
        return text.split("\n") if text else []
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _record(line: str, where: str, key: str) -> dict[str, Any]:
    record = json_text.parse(line, where)
    if not isinstance(record, dict) or not isinstance(record.get(key), str):
        raise ValueError(f"{where}: must be an object with a text in its field {key!r}")
    return record


def _served(options: argparse.Namespace) -> "Served":
    from scaling.interop.served import load_decoder

    found = (options.tokenizer, options.mesh, options.dtype)
    return load_decoder(options.model, *found, _has_sources(options), options.int8)


def _draft(options: argparse.Namespace, served: "Served") -> "Draft | None":
    if options.draft is None:
        return None
    from scaling.generate.draft import load_draft

    tokens = 4 if options.draft_tokens is None else options.draft_tokens
    return load_draft(options.draft, served, tokens, options.tokenizer, options.mesh, options.dtype, options.int8)


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
    return json.dumps({name: value for name, value in record.items() if name not in _OPTIONAL or value is not None})
