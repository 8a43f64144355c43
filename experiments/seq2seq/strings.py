r"""Copies and reversals of random strings, as data for the Transformer of 2017; and a small one that learns them.

    python experiments/seq2seq/strings.py strings       # writes the files to the folder
    scaling train --config=experiments/seq2seq/strings.py:copy --config.data.train=strings/copy.jsonl
    scaling train --config=experiments/seq2seq/strings.py:reverse --config.data.train=strings/reverse.jsonl

A record has a source of 1 to 20 small letters and a target, which is the source, or the source from its end. No source
is in two records. ``strings.py:copy,alone`` is a decoder alone with as many parameters. Held out are 500 records.

Machine: 2 CPU cores. Time: about three minutes with both free. Validation loss: copy 0.105, reverse 0.109 nats a token,
where about 0.105 is what a label smoothing of 0.1 leaves; with the tokens before it given, every token of all held-out
copies is the most likely one, and of 99.6 % of the reversals.
"""

import json
import random
import sys
from pathlib import Path

from ml_collections import ConfigDict

from scaling.catalog import recipes

RECORDS, LONGEST = 50_000, 20
TASKS = {"copy": lambda text: text, "reverse": lambda text: text[::-1]}


def get_config(task: str = "copy") -> ConfigDict:
    name, _, alone = task.partition(",")
    config = recipes.small_transformer(64, 2, alone == "alone", 24)
    config.data.train = f"strings/{name}.jsonl"
    config.data.validation_fraction = 0.01
    config.data.tokenizer = "bytes+mask"  # with a separator, for a decoder alone
    config.train.tokens = 4_000 * config.train.batch_tokens
    config.optimizer.peak_lr = 4e-3
    config.optimizer.warmup_tokens = 200 * config.train.batch_tokens
    config.eval.every_steps = 500
    return config


def main(folder: Path) -> None:
    """Writes the files."""
    rng, sources = random.Random(0), dict[str, None]()
    while len(sources) < RECORDS:
        length = rng.randint(1, LONGEST)
        sources["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=length))] = None
    folder.mkdir(parents=True, exist_ok=True)
    for task, target in TASKS.items():
        records = ({"source": text, "target": target(text)} for text in sources)
        (folder / f"{task}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
