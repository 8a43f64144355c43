"""The verb ``bias``: runs the probes of section 6.2 of GPT-3's paper (arXiv 2005.14165) on models."""

import argparse
import json
import sys
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from etils import epath

from scaling.evaluate.bias import words as bias
from scaling.evaluate.tasks.task import nearest

if TYPE_CHECKING:
    from scaling.evaluate.bias.report import Breakdown, Group
    from scaling.interop.served import Served

PROBES = ("gender", "race", "religion", "occupations")
TASKS = {"winogender": (("gender",), ("gender", "answer")), "crows_pairs": (("bias_type",),)}  # -> breakdowns


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``bias`` reads."""
    add = parser.add_argument
    parser.epilog = (
        "Winogender and CrowS-Pairs are tasks: `scaling evaluate RUN --tasks=winogender,crows_pairs --shots=0 "
        "--data=DIR --save_samples` scores them; with the same --data=DIR, `bias` then shows them by gender and by "
        "type of bias too."
    )
    every = ",".join(PROBES)
    add("models", nargs="+", metavar="RUN", help="run directories, or Hugging Face folders")
    add("--probes", default=every, metavar="NAMES", help=f"probes, separated by commas (default: {every})")
    add(
        "--samples",
        type=int,
        default=bias.SAMPLES,
        metavar="N",
        help=f"samples of each prompt (default: {bias.SAMPLES})",
    )
    add(
        "--tokens",
        type=int,
        default=bias.SAMPLE_TOKENS,
        metavar="N",
        help=f"tokens in a sample (default: {bias.SAMPLE_TOKENS})",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of the samples (default: 0)")
    add("--vocabulary", metavar="FILE", help="words to count, such as adjectives (default: all except stop words)")
    add(
        "--lexicon", metavar="FILE", help="sentiment of words: lines of word<TAB>score, or the file of SentiWordNet 3.0"
    )
    add("--data", metavar="DIR", help="directory with the files of winogender and crows_pairs")
    add("--tokenizer", metavar="NAME", help="gpt2, bytes, books or a path (default: the run's, or the folder's files)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="type of the matrix products")
    add("--mesh", default="", metavar="AXES", help="devices to use, as in fsdp=2,tensor=4 (default: one device)")
    add("--json", action="store_true", help="print one JSON object for each RUN, equal to RUN/bias/report.json")


def run(options: argparse.Namespace) -> int:
    """Probes each model, prints the results, and writes samples, ``report.json`` and the figure to ``RUN/bias/``.

    Raises:
        FileNotFoundError: no model, or a file that is not there.
        ValueError: options, files or a model that cannot be used.
    """
    probes = _probes(options.probes)
    for name in ("samples", "tokens"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}={getattr(options, name)} must be 1 or more")
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed={options.seed} must be in [0, 2^32)")
    lexicon = None if options.lexicon is None else bias.read_lexicon(options.lexicon)
    vocabulary = None if options.vocabulary is None else bias.read_vocabulary(options.vocabulary)

    from scaling import durable
    from scaling.evaluate.bias.probes import check_occupations, encode_prompts, occupations
    from scaling.evaluate.bias.report import Report, table, to_json
    from scaling.interop.served import load_decoder
    from scaling.report.bias_figure import draw
    from scaling.runs.config_json import read_config_json
    from scaling.runs.own_files import without_own

    models = without_own(options.models)
    for model in models:
        read_config_json(model)
        for file in ("report.json", "bias.png", "bias.svg", *(f"samples-{probe}.jsonl" for probe in probes)):
            durable.check_writable(epath.Path(model) / "bias" / file)  # before the samples, which take long
    for model in models:
        served = load_decoder(model, options.tokenizer, options.mesh, options.dtype)
        length = served.network.model.context_length
        prompts = {p: encode_prompts(p, served.words, length, options.tokens) for p in probes if p != "occupations"}
        if "occupations" in probes:
            check_occupations(served.words, length)
        tasks = breakdowns(epath.Path(model), options.data)
        groups, samples = _sampled(served, prompts, options, vocabulary, lexicon)
        report = Report(
            model=model,
            step=served.step,
            tokens=served.tokens,
            settings={
                "samples": options.samples,
                "sample_tokens": options.tokens,
                "temperature": bias.TEMPERATURE,
                "top_p": bias.TOP_P,
                "seed": options.seed,
                "least": bias.LEAST,
                "vocabulary": options.vocabulary,
                "lexicon": options.lexicon,
            },
            probes=groups,
            occupations=occupations(served) if "occupations" in probes else {},
            tasks=tasks,
        )
        written, folder = json.dumps(to_json(report)), epath.Path(model) / "bias"
        print(written if options.json else table(report), flush=True)  # before the files: the disk may be full
        with durable.naming(folder):
            folder.mkdir(exist_ok=True)
            for probe, text in samples.items():
                (folder / f"samples-{probe}.jsonl").write_text(text)
            (folder / "report.json").write_text(written + "\n")
            draw(report).save(folder)
        if not options.json:
            print(f"  written: {folder}")
    return 0


def breakdowns(run: epath.Path, data: str | None) -> list["Breakdown"]:
    """Accuracy of ``TASKS`` by groups such as gender, from the samples that ``scaling evaluate`` saved in a run.

    Args:
        run: the run directory.
        data: directory of the tasks' files, which contain the group of each item; None = the tasks are skipped, with a
            message on stderr.

    Raises:
        FileNotFoundError: the files are not in ``data``.
        ValueError: samples of other items, or malformed ones.
    """
    from scaling.evaluate.bias.report import Breakdown
    from scaling.evaluate.scoring.saved_samples import read_samples
    from scaling.evaluate.tasks.catalogue import find_tasks
    from scaling.evaluate.tasks.prompts import build_requests

    found = []
    for name, breakdowns in TASKS.items():
        (task,), by_shots = find_tasks(name), read_samples(run, name)
        if by_shots and data is None:
            print(f"{run} has samples of {name}; give --data=DIR with its files to break them down", file=sys.stderr)
            continue
        requests = {r.id: r for r in build_requests(task, data=data).items} if by_shots else {}
        for shots, samples in by_shots.items():
            for sample in samples:
                request = requests.get(sample.id)
                if request is None or request.options[request.gold].completion.strip() != sample.expected.strip():
                    raise ValueError(
                        f"{sample.where}: {sample.id} is not the same item as in the files of {name} in {data}"
                    )
                if "accuracy" not in sample.scores:
                    raise ValueError(f"{sample.where} has no accuracy in its scores")
            chosen = [requests[sample.id] for sample in samples]
            scores = [sample.scores["accuracy"] for sample in samples]
            found += [Breakdown(name, shots, keys, bias.breakdown(chosen, scores, keys)) for keys in breakdowns]
    return found


def _probes(names: str) -> list[str]:
    """The probes that are asked for, in the order of ``PROBES``."""
    asked = [name.strip() for name in names.split(",") if name.strip()]
    if not asked:
        raise ValueError(f"--probes={names} must name some of {', '.join(PROBES)}")
    for name in asked:
        if name in TASKS:
            raise ValueError(f"--probes={names}: {name} is a task; `scaling evaluate RUN --tasks={name}` scores it")
        if name not in PROBES:
            raise ValueError(f"--probes={names}: {name!r} is not a probe; did you mean {nearest(name, PROBES)!r}?")
    return [probe for probe in PROBES if probe in asked]


def _sampled(
    served: "Served",
    prompts: Mapping[str, list[list[int]]],
    options: argparse.Namespace,
    vocabulary: Collection[str] | None,
    lexicon: Mapping[str, float] | None,
) -> tuple[dict[str, dict[str, "Group"]], dict[str, str]]:
    """Samples the prompts of each probe and counts words; returns the counts, and the samples as lines of JSON."""
    from scaling.evaluate.bias.probes import count_words, sample
    from scaling.evaluate.scoring.progress import bar
    from scaling.generate.generator import Generator

    found: dict[str, dict[str, Group]] = {}
    written: dict[str, str] = {}
    if not prompts:
        return found, written
    generator = Generator(served.network, served.params, served.words, served.mesh)
    for probe, ids in prompts.items():
        with bar(f"{probe}, {len(ids)} prompts", options.samples) as watch:
            texts = sample(generator, ids, options.samples, options.tokens, options.seed, watch)
        groups: dict[str, list[str]] = {}
        lines = []
        for prompt, its_texts in zip(bias.probe_prompts(probe), texts, strict=True):
            groups.setdefault(prompt.group, []).extend(its_texts)
            for number, text in enumerate(its_texts):
                lines.append({"group": prompt.group, "prompt": prompt.prompt, "sample": number, "text": text})
        written[probe] = "".join(json.dumps(line) + "\n" for line in lines)
        found[probe] = count_words(groups, vocabulary, lexicon)
    return found, written
