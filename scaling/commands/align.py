"""The verb ``align``: what comes after pre-training. Most of its verbs train as ``train`` does, with another recipe."""

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from scaling.commands import answering
from scaling.commands.verb import Run, add_verb, add_verbs
from scaling.output import Stdout

if TYPE_CHECKING:
    from scaling.config.schema import Config
    from scaling.train.recipe import Recipe


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the kinds of training."""
    kinds = add_verbs(parser, title="kinds of training", metavar="WHAT", required=True)

    def add(name: str, run: Run, help: str) -> argparse.ArgumentParser:
        return add_verb(kinds, name, help, run, takes_config=True, stdout=Stdout.LOG)

    add("sft", _sft, "fine-tune the model of config.start on dialogues")
    add("reward", _reward, "train a reward model on comparisons of completions")
    add("ppo", _ppo, "train the model of config.start by rewards of its answers, with a value function (PPO, PPO-ptx)")
    add("grpo", _grpo, "train the model of config.start by rewards of its answers, each compared with its group")
    add("dpo", _dpo, "optimise the model of config.start directly on comparisons of completions")
    finetune = add(
        "finetune",
        _finetune,
        "fine-tune the model of config.start to classify texts, find answers in them, or tag their words",
    )
    finetune.add_argument("--task", help="sets config.align.task: sst2, rte, stsb, ..., or the path of a task file")
    classify = add_verb(kinds, "classify", "what a run of `align finetune` says of the texts of a file", _classify)
    classify.add_argument("run_dir", metavar="RUN", help="run directory")
    classify.add_argument(
        "file", metavar="FILE", help=".txt with a text a line, .jsonl, .csv or .tsv with fields, or a file of the task"
    )
    classify.add_argument("--batch", type=int, default=16, help="examples at a time (default 16)")
    classify.add_argument("--mesh", default="", help="devices, as in fsdp=2,tensor=4; default one")
    answering.add_verbs(kinds)


def _reward(options: argparse.Namespace) -> int:
    from scaling.align.reward import RECIPE

    return _train(options, RECIPE)


def _ppo(options: argparse.Namespace) -> int:
    from scaling.align.rl.recipes import ppo

    return _train(options, ppo)


def _grpo(options: argparse.Namespace) -> int:
    from scaling.align.rl.recipes import grpo

    return _train(options, grpo)


def _dpo(options: argparse.Namespace) -> int:
    from scaling.align.dpo import RECIPE

    return _train(options, RECIPE)


def _finetune(options: argparse.Namespace) -> int:
    from scaling.align.finetune import recipe

    return _train(options, recipe)


def _classify(options: argparse.Namespace) -> int:
    from pathlib import Path

    from scaling.align import classify

    if options.batch < 1:
        raise ValueError(f"--batch={options.batch} must be at least 1")
    model = classify.load_any(options.run_dir, options.mesh)
    for line in classify.said(model, Path(options.file), options.batch):
        print(line)
    return 0


def _sft(options: argparse.Namespace) -> int:
    from scaling.align.rated import recipe

    return _train(options, recipe)


def _train(options: argparse.Namespace, recipe: "Recipe | Callable[[Config], Recipe]") -> int:
    """Trains by a recipe, or by the one that a config has, or resumes its run.

    Raises:
        ValueError: no config, one that cannot work, or one without a start.
    """
    started = time.time()
    from scaling.commands.training import train
    from scaling.config.files import load, run_name

    if options.config is None:
        raise ValueError("needs --config=FILE, your own experiment or one that ships, such as instructgpt/sft")
    config = load(options.config, options.overrides)
    if not config.start:
        raise ValueError("needs --config.start=RUN, the run directory of the model that is to be aligned")
    if getattr(options, "task", None):
        config = dataclasses.replace(config, align=dataclasses.replace(config.align, task=options.task))
    made = recipe(config) if callable(recipe) else recipe
    return train(config, run_name(options.config), started, made)
