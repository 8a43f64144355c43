r"""Sums of two numbers of two digits, as data for GRPO; and the small model that learns them.

    python experiments/instructgpt/sums.py sums       # writes sft.jsonl, train.jsonl and held_out.jsonl to the folder
    scaling train --config=experiments/instructgpt/sums.py

The 8,100 sums are divided at random: a fifth is held out, and no other file has one of those. The model has 0.8M
parameters, reads bytes, and is trained on the embedded books for some steps; ``align sft`` then teaches it the form of
a sum, with too few examples to get most of them right.

Machine: 2 CPU cores. Time: a minute; the validation loss of the bytes is of no importance here.
"""

import json
import random
import sys
from pathlib import Path

from ml_collections import ConfigDict

from scaling.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.train = "books"
    config.data.tokenizer = "bytes"
    config.model.context_length = 64
    config.model.num_layers = 4
    config.model.d_model = 128
    config.model.num_heads = 4
    config.compute.dtype = "float32"
    config.compute.loss_chunk = 0

    config.train.tokens = 200_000
    config.train.batch_tokens = 4096
    config.optimizer.peak_lr = 2e-3
    config.optimizer.warmup_tokens = 40_960

    config.eval.every_steps = 0
    config.eval.tokens = 16_384
    config.log.tensorboard = False
    return config


def main(folder: Path) -> None:
    """Writes the files."""
    sums = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    random.Random(0).shuffle(sums)
    records = [{"prompt": f"{a}+{b}=", "response": str(a + b), "answer": str(a + b)} for a, b in sums]
    held_out, rest = records[: len(records) // 5], records[len(records) // 5 :]
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("held_out", held_out), ("train", rest), ("sft", rest)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in part))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
