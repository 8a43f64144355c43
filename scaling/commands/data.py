"""The verb ``data``: builds a corpus for pre-training, as GPT-3's was built (arXiv 2005.14165, appendix A)."""

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING

from scaling.commands.verb import add_verb, add_verbs
from scaling.output import Stdout

if TYPE_CHECKING:
    from scaling.corpus.config import Corpus

# The stages that can be run alone, and what the help says of them.
_ALONE = {
    "extract": "read files, and take the main text out of HTML",
    "votes": "keep documents with enough votes, such as links with karma",
    "language": "identify languages, and keep some",
    "heuristics": "apply the rules of Gopher and of C4",
    "quality": "train a classifier of curated against raw text, and filter by it as GPT-3 did",
    "exact": "remove equal documents",
    "fuzzy": "remove documents that are nearly equal (MinHash)",
    "toxicity": "remove documents that a classifier run finds toxic",
    "decontaminate": "cut items of evaluation tasks out",
    "demonstrations": "count demonstrations of tasks that occur by themselves",
    "tokens": "write token directories",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares ``build`` and the stages."""
    kinds = add_verbs(parser, title="what to do", metavar="WHAT", required=True)
    build = add_verb(kinds, "build", "run all stages of --config=FILE, or go on with them", _build, takes_config=True)
    build.set_defaults(stdout=Stdout.COPY, stage="")
    build.add_argument("--describe", action="store_true", help="print all knobs of such a config, as Markdown")
    for name, help in _ALONE.items():
        one = add_verb(kinds, name, f"{help}; only this stage", _stage, takes_config=True)
        one.set_defaults(stdout=Stdout.COPY, stage=name)


def _build(options: argparse.Namespace) -> int:
    from scaling.config.describe import to_markdown
    from scaling.corpus.config import CORPUS, load

    if options.describe:
        print(to_markdown(CORPUS.root, "scaling/corpus/config.py"), end="")
        return 0
    if options.config is None and not options.overrides:
        raise ValueError("needs --config=FILE, your own file with get_corpus() or one that ships: data/gpt3_small")
    return _run(options, load(options.config, options.overrides))


def _stage(options: argparse.Namespace) -> int:
    """Runs one stage on the sources, in a folder of its own."""
    from scaling.corpus.config import NEEDED, checked, load

    config = load(options.config, options.overrides)
    before = ("votes",) if options.stage == "votes" else ()
    after = () if options.stage in (*NEEDED, "votes") else (options.stage,)
    config = dataclasses.replace(config, stages=("read", *before, "extract", *after))
    return _run(options, checked(config))


def _run(options: argparse.Namespace, config: "Corpus") -> int:
    from scaling.config.files import run_name
    from scaling.corpus import build
    from scaling.corpus.config import STAGES
    from scaling.corpus.output import mixture
    from scaling.corpus.page import notes

    names = [run_name(options.config) if options.config else "", options.stage]
    if not config.workdir:
        config = dataclasses.replace(config, workdir=f"runs/{'-'.join(filter(None, names)) or 'corpus'}")
    built = build.build(config)
    for stage, by_set in built.tallies.items():
        for data_set, tally in by_set.items():
            faults = f", {len(tally.faults):,} faults" if tally.faults else ""
            print(
                f"{stage:15}{data_set:16}{tally.documents_in:>10,} -> {tally.documents_out:>9,} documents, "
                f"{tally.bytes_in:>13,} -> {tally.bytes_out:>13,} bytes{faults}"
            )
        for name, note in {name: note for tally in by_set.values() for name, note in notes(tally).items()}.items():
            print(f"{stage:15}{name}: {note}")
    for stage in STAGES if "mixture" in config.stages else ():  # of a whole build
        if stage not in config.stages and (lacking := config.lacking(stage)):
            print(f"{stage:15}is left out: {lacking}")
    if built.manifest:
        print(f"\n{mixture.table(built.manifest)}")
        for sentence in mixture.warnings(config.mixture, built.manifest, config.names):
            print(f"scaling data: {sentence}", file=sys.stderr)
    print(f"\nreport: {built.folder / build.REPORT}")
    return 0
