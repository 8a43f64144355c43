"""``align sample`` and ``align judge``: verbs that let models answer prompts, and train nothing."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.commands.verb import add_verb
from scaling.output import Stdout

if TYPE_CHECKING:
    from scaling.align.judge import Side
    from scaling.data.chat.dialogues import Skipped
    from scaling.generate.answers import Answers
    from scaling.interop.served import Served

_SPEC = "run directory of a reward model, FILE.py:FUNCTION, or exact_match or constraints"


def add_verbs(kinds: Any) -> None:
    """Declares both."""
    sample = add_verb(kinds, "sample", "write a model's best answers as data to train on", _sample, stdout=Stdout.LOG)
    sample.add_argument("model", metavar="RUN", help="run directory, or Hugging Face folder with a chat template")
    sample.add_argument("--reward", required=True, metavar="SPEC", help=_SPEC)
    sample.add_argument("--samples", type=int, default=8, metavar="N", help="answers to a prompt (default: 8)")
    sample.add_argument("--out", required=True, metavar="FILE", help="dialogues as `align sft` reads, .jsonl")
    sample.add_argument(
        "--worst", action="store_true", help="write pairs of the best and the worst answer, as `align reward` reads"
    )
    _add_answering(sample)
    judge = add_verb(kinds, "judge", "compute how often one model answers better than another", _judge)
    for name, what in (("a", "A"), ("b", "B")):
        judge.add_argument(name, metavar=what, help="run directory, Hugging Face folder, or .jsonl of its answers")
    judge.add_argument("--reward", metavar="SPEC", help=f"the higher reward wins: {_SPEC}")
    judge.add_argument("--command", metavar="CMD", help="program that reads two answers and prints 1, 2 or tie")
    judge.add_argument("--out", metavar="FILE", help="write each comparison as a line to it, .jsonl")
    judge.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    _add_answering(judge)


def _add_answering(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--prompts", required=True, metavar="FILE", help=".jsonl with prompt, messages, or instruction and input")
    add("--bad_records", choices=("error", "skip"), default="error", help="of prompts that cannot be used")
    add("--system", default="", metavar="TEXT", help="system message of prompts that have none")
    add("--template", default="", metavar="FILE", help="chat template (jinja2), if not the model's own")
    add("--tokens", type=int, default=256, metavar="N", help="maximum number of tokens of an answer (default: 256)")
    add("--temperature", type=float, default=1.0, metavar="X", help="of the softmax (default: 1)")
    add("--top_p", type=float, default=1.0, metavar="P", help="sample from the smallest set with probability P")
    add("--seed", type=int, default=0, metavar="N", help="seed of the sampling (default: 0)")
    add("--batch_size", type=int, default=32, metavar="N", help="answers computed at a time (default: 32)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="type of the matrix products")
    add("--mesh", default="", metavar="AXES", help="devices to use, as in fsdp=2,tensor=4 (default: one device)")


def _sample(options: argparse.Namespace) -> int:
    """Answers the prompts, and writes the best answers; goes on where it was interrupted.

    Raises:
        FileNotFoundError: no model, reward or file of prompts.
        ValueError: options, prompts, a reward or a model that cannot be used, or nothing to learn from.
        OSError: the output cannot be written.
    """
    from scaling.align import answered, rewards, sample
    from scaling.evaluate.scoring.progress import bar

    if options.samples < (fewest := 2 if options.worst else 1):
        raise ValueError(f"--samples={options.samples} must be {fewest} or more")
    if options.temperature == 0 and options.samples > 1:
        raise ValueError(f"--samples={options.samples} needs --temperature above 0: greedy answers are all the same")
    skipped = _skipped(options)
    reward = rewards.load(options.reward, options.mesh, options.dtype, options.batch_size)
    answers, served = _answers(options, options.model, options.samples)
    asked = answered.read_prompts(options.prompts, [answers.framed], skipped, options.system)
    about = {"model": str(Path(options.model).resolve()), "step": served.step}
    output = answered.Output(Path(options.out), about | _settings(options, ["samples", "worst"]))
    with bar(f"answers to {len(asked)} prompts", len(asked)) as watch:
        found = sample.sample(answers, reward, asked, output, options.worst, watch)
    if not found.written:
        raise ValueError(
            f"no prompt of {options.prompts} has answers to learn from; {found.cut:.0%} of them were cut at "
            f"--tokens={options.tokens}"
        )
    print(
        f"{output.path}: {found.written} prompts, {found.left_out} left out; mean reward {found.mean:.4g}, of the best "
        f"answers {found.best:.4g}; {found.cut:.0%} of the answers were cut at --tokens={options.tokens}"
    )
    return 0


_ANSWERING = ("tokens", "temperature", "top_p", "seed", "system", "template", "dtype", "reward")


def _settings(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Options that decide the lines of a file."""
    return {name: getattr(options, name) for name in (*names, *_ANSWERING)}


def _judge(options: argparse.Namespace) -> int:
    """Lets both models answer, judges their answers, and prints the win rate.

    Raises:
        FileNotFoundError: no model, reward, program or file.
        ValueError: options, prompts, answers, a judge or a model that cannot be used.
        OSError: the output cannot be written.
    """
    from scaling.align import answered, judge, rewards, win_rate
    from scaling.evaluate.scoring.progress import bar

    if (options.reward is None) == (options.command is None):
        raise ValueError("needs --reward=SPEC or --command=CMD, and not both")
    skipped = _skipped(options)
    if options.command is not None:
        decides = judge.by_command(options.command)
    else:
        decides = judge.by_reward(rewards.load(options.reward, options.mesh, options.dtype, options.batch_size))
    (a, about_a), (b, about_b) = _side(options, options.a), _side(options, options.b)
    asked = answered.read_prompts(options.prompts, [a.check, b.check], skipped, options.system)
    output = None
    if options.out is not None:
        settings = {"a": about_a, "b": about_b, **_settings(options, ["command"])}
        output = answered.Output(Path(options.out), settings)
    with bar(f"comparisons of {len(asked)} prompts", len(asked)) as watch:
        found = judge.compare((a, b), decides, asked, output, options.batch_size, watch)
    by = {"reward": options.reward} if options.command is None else {"command": options.command}
    summary = {"a": options.a, "b": options.b, **by, **win_rate.summary(found)}
    print(json.dumps(summary) if options.json else win_rate.table(summary))
    return 0


def _side(options: argparse.Namespace, path: str) -> "tuple[Side, list[Any]]":
    """Answers of a model or of a file, and what they are."""
    from scaling.align import judge

    if path.removesuffix(".gz").endswith(".jsonl"):
        written = judge.Written(path)
        return written, [path, written.digest]
    answers, served = _answers(options, path, 1)
    return judge.Model(answers), [str(Path(path).resolve()), served.step]


def _skipped(options: argparse.Namespace) -> "Skipped":
    from scaling.data.chat.dialogues import Skipped

    if options.batch_size < 1:
        raise ValueError(f"--batch_size={options.batch_size} must be 1 or more")
    return Skipped(options.bad_records == "error", "--bad_records=skip")


def _answers(options: argparse.Namespace, model: str, count: int) -> "tuple[Answers, Served]":
    """A model that gives ``count`` answers to a prompt."""
    from scaling.data.chat.template import read_template
    from scaling.generate.answers import Answers
    from scaling.generate.generator import Generator
    from scaling.generate.sampling import Sampling
    from scaling.interop.served import load_decoder

    knobs = {name: getattr(options, name) for name in ("tokens", "temperature", "top_p", "seed")}
    sampling = Sampling(num_samples=count, **knobs)
    served = load_decoder(model, None, options.mesh, options.dtype)
    chat = served.chat(read_template(options.template))
    generator = Generator(served.network, served.params, served.words, served.mesh)
    return Answers(generator, chat, sampling, options.batch_size), served
