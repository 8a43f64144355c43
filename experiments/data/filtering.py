"""The same text filtered more and less: corpora for comparing what models learn from them.

    scaling data build --config=data/filtering:FOLDER,classifier
    scaling data build --config=data/filtering:FOLDER,raw
    scaling data build --config=data/filtering:FOLDER,built
    scaling data build --config=data/filtering:FOLDER,best25
    scaling data build --config=data/filtering:FOLDER,part25
    scaling sweep --config=experiments/sweeps/filtering.py:FOLDER

FOLDER holds documents as JSON Lines (.jsonl.gz): ``books`` and ``wikipedia`` are curated, ``crawl`` is not and is cut
into files 00 to 15 of about equal size, ``crawl_sample`` is another sample of the same crawl, and ``held_out.jsonl.gz``
is what models are validated on. docs/results/filtering makes such a folder of about 3 MB, and has the results.

- ``classifier`` trains the classifier of curated against raw documents, on a sample of the crawl that no other corpus
  holds: of so little text it would know each document of the crawl again.
- ``raw`` is everything as it is, by size. ``built`` is GPT-3's recipe: English, the Pareto rule on the crawl,
  deduplication, and more of the curated sets than their size.
- ``best25`` is the best 25 % of the crawl by the classifier, ``part25`` a random quarter, both without copies. Their
  tokens are in ``tokens/crawl`` of the build; no curated text is among them.

Machine: 2 CPU cores, a minute for each. No loss is trained here.
"""

from ml_collections import ConfigDict

from scaling.config.files import run_name
from scaling.corpus.config import default_config

CURATED = ("books", "wikipedia")
FILES = 16  # of the crawl


def get_corpus(arguments: str = "corpus,built") -> ConfigDict:
    folder, _, variant = arguments.partition(",")
    kind, percent = variant.rstrip("0123456789."), variant[len(variant.rstrip("0123456789.")) :]
    if kind not in ("classifier", "raw", "built") and not (kind in ("best", "part") and percent):
        raise ValueError(f"{variant!r} must be classifier, raw, built, or best or part with a percentage")
    config = default_config()
    config.tokens.tokenizer = "bytes"
    config.sources = tuple((name, f"{folder}/{name}/*.jsonl.gz") for name in (*CURATED, "crawl"))
    trained = run_name(f"filtering:{folder},classifier")
    config.quality.classifier = f"runs/{trained}/stages/03-quality/classifier.npz"
    if kind == "classifier":
        config.sources = tuple((name, f"{folder}/{name}/*.jsonl.gz") for name in (*CURATED, "crawl_sample"))
        config.stages = ("read", "extract", "quality")
        config.quality.classifier, config.quality.positives = "", CURATED
        return config
    if kind == "raw":
        config.stages = ("read", "extract", "tokens", "mixture")
        return config
    if kind == "built":
        config.stages = ("read", "extract", "language", "quality", "exact", "fuzzy", "tokens", "mixture")
        config.only = (("language", "crawl"), ("quality", "crawl"))
        config.exact.order = config.fuzzy.order = CURATED
        config.fuzzy.preset = "gpt3"
        # The paper's 9 is for a crawl of 45 TB with little good text. Of the small one of docs/results/filtering, of
        # which a fifth is books and Wikipedia, it keeps 4 %, and the trainings there would see that 12 times.
        config.quality.alpha = 3.0
        # Table 2.2 has 60 % of the crawl; links, books and Wikipedia share the rest.
        config.mixture.weights = (("crawl", 0.6), ("books", 0.2), ("wikipedia", 0.2))
        return config
    config.stages = ("read", "extract", "exact", "fuzzy", "quality", "tokens", "mixture")
    config.quality.best = float(percent) / 100
    files = range(FILES)
    if kind == "part":
        config.stages = tuple(stage for stage in config.stages if stage != "quality")
        files = range(round(FILES * float(percent) / 100))
    config.sources = tuple(("crawl", f"{folder}/crawl/{number:02d}.jsonl.gz") for number in files)
    return config
