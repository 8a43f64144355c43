r"""Multi30k, German to English, as data; and a Transformer of 2017 that learns it on two CPU cores.

    python experiments/seq2seq/translation.py multi30k_en_de.jsonl.gz multi30k     # writes the files to the folder
    scaling tokenizer train multi30k/text.jsonl --vocab_size=4000 --output=multi30k/tokenizer.model
    scaling train --config=experiments/seq2seq/translation.py
    scaling train --config=experiments/seq2seq/translation.py:alone
    scaling train --config=experiments/seq2seq/translation.py:prefix

The file has 31,014 pairs, a JSON object on each line with ``split`` (train, val, test), ``de`` and ``en``. The second
training is a decoder alone with as many parameters, which reads the German before the English. It has as many pairs
and steps, and needs 1.14 GFLOP a pair, the first 0.57: half of its steps are as much compute. The third is the second
with one difference: the German tokens see each other on both sides.

Machine: 2 CPU cores. Time: about 0.4 seconds a step with both cores free, 45 minutes in all; the decoder alone takes
twice that. The validation loss at the end, with shorter rows and half of the steps, is 1.677, 1.764 and 1.805 nats
(docs/results/translation).
"""

import gzip
import json
import sys
from pathlib import Path

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(kind: str = "encoder") -> ConfigDict:
    config = recipes.small_transformer(128, 3, kind in ("alone", "prefix"), 48)
    config.model.prefix_lm = kind == "prefix"
    config.data.train = "multi30k/train.jsonl"
    config.data.validation = "multi30k/val.jsonl"
    config.data.source_key, config.data.target_key = "de", "en"
    config.data.tokenizer = "multi30k/tokenizer.model+mask"  # with a separator, for a decoder alone
    config.data.bad_records = "skip"  # a few pairs are longer than a row
    config.model.dropout_embedding = config.model.dropout_residual = 0.1
    config.train.tokens = 6_800 * config.train.batch_tokens  # 15 epochs
    config.optimizer.peak_lr = 2e-3
    config.optimizer.warmup_tokens = 500 * config.train.batch_tokens
    config.eval.every_steps = 450
    return config


def main(file: str, folder: Path) -> None:
    """Writes a file for each split, and the training texts of both languages for the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[str]] = {}
    texts = []
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            splits.setdefault(record["split"], []).append(line)
            if record["split"] == "train":
                texts += [
                    f"{json.dumps({'text': record[language]}, ensure_ascii=False)}\n" for language in ("de", "en")
                ]
    for name, found in (splits | {"text": texts}).items():
        (folder / f"{name}.jsonl").write_text("".join(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
