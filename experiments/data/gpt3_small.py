"""GPT-3's corpus (arXiv 2005.14165, section 2.2 and appendices A and C), from files in a folder of four data sets.

    scaling data build --config=data/gpt3_small:FOLDER --config.decontaminate.tasks=lambada,piqa \
        --config.decontaminate.data=TASKS
    scaling train --config=gpt3/125m --config.data.train=runs/gpt3_small-FOLDER

FOLDER holds ``crawl`` (Common Crawl's .warc.gz or .wet.gz), ``webtext`` (JSON Lines with ``text`` and ``karma``),
``books`` (text files) and ``wikipedia`` (JSON Lines). The crawl is filtered by a classifier of the three others and by
language, links need 3 karma, near-duplicates are removed within and across data sets, where WebText's copy stays, and
weights are those of Table 2.2 with both corpora of books as one.

Machine: 2 CPU cores read and filter about 1 GB of text an hour, most of it in extraction and language; a cluster by
``--config.engine=ray``. The paper's 45 TB are not measured here.
"""

from ml_collections import ConfigDict

from scaling.corpus.config import default_config


def get_corpus(folder: str = "corpus") -> ConfigDict:
    config = default_config()
    config.sources = (
        ("crawl", f"{folder}/crawl/**/*.w*[!a][ct].gz"),  # .warc.gz and .wet.gz, but not .wat.gz
        ("webtext", f"{folder}/webtext/**/*.jsonl.gz", "votes=karma"),
        ("books", f"{folder}/books/**/*.txt*"),
        ("wikipedia", f"{folder}/wikipedia/**/*.jsonl.gz"),
    )
    config.heuristics.presets = ()  # GPT-3 had no such rules
    config.only = (("votes", "webtext"), ("language", "crawl,webtext"), ("quality", "crawl"))
    config.votes.least = 3.0
    config.quality.positives = ("webtext", "books", "wikipedia")
    config.quality.negatives = ("crawl",)
    config.exact.order = ("webtext", "books", "wikipedia")
    config.fuzzy.preset = "gpt3"
    config.fuzzy.order = config.exact.order
    config.tokens.tokenizer = "gpt2"
    config.mixture.weights = (("crawl", 0.60), ("webtext", 0.22), ("books", 0.16), ("wikipedia", 0.03))
    return config
