"""Whole builds: stages in their order, the same bytes for any workers and engine, restarts, and bad input."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaling.corpus.build import build
from scaling.corpus.config import CORPUS, checked
from scaling.data.shards import TokenDataset, read_index
from tests.programs import environment

WORDS = "the of and to in river house under light seven winter garden stone they had been with a long road".split()
PAGE = "<html><body><nav>home news</nav><article><h1>Title</h1>{}</article><footer>legal</footer></body></html>"


def sentences(seed, count=12):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=14)).capitalize() + "." for _ in range(count)]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Two data sets: curated texts with votes, and a crawl of pages, of which one is also curated, one occurs twice."""
    folder = tmp_path_factory.mktemp("raw")
    curated = [{"text": "\n".join(sentences(number)), "karma": number % 5, "id": f"c{number}"} for number in range(20)]
    for part in range(2):
        lines = [json.dumps(one) for one in curated[part::2]]
        (folder / f"web{part}.jsonl").write_text("\n".join(lines) + "\n")
    pages = [f"<p>{'</p><p>'.join(sentences(100 + number))}</p>" for number in range(12)]
    pages += [pages[0], f"<p>{'</p><p>'.join(sentences(4))}</p>"]
    with gzip.open(folder / "crawl.jsonl.gz", "wt") as file:
        for number, page in enumerate(pages):
            file.write(json.dumps({"text": PAGE.format(page), "url": f"http://site/{number}"}) + "\n")
        file.write("{broken\n")
    return folder


def config(raw, workdir, **changes):
    values = CORPUS.default()
    values.workdir = str(workdir)
    values.workers = 1
    values.sources = (
        ("web", f"{raw}/web*.jsonl", "votes=karma"),
        ("crawl", f"{raw}/crawl.jsonl.gz"),
    )
    values.only = (("votes", "web"), ("quality", "crawl"))
    values.votes.least = 1.0
    values.read.html = False
    values.language.keep = ()
    values.heuristics.presets = ()
    values.quality.positives = ("web",)
    values.quality.alpha = 0.0
    values.exact.order = values.fuzzy.order = ("web",)
    values.tokens.tokenizer = "bytes"
    values.mixture.weights = (("web", 0.7), ("crawl", 0.3))
    for name, value in changes.items():
        *sections, knob = name.split("__")
        target = values
        for section in sections:
            target = target[section]
        target[knob] = value
    return checked(CORPUS.freeze(values))


def content(folder):
    """All bytes of a build, but for what tells its time or place."""
    own = {"report.html", "config.json", "manifest.json"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in own
    }


@pytest.fixture(scope="module")
def built(raw, tmp_path_factory):
    return build(config(raw, tmp_path_factory.mktemp("built")))
