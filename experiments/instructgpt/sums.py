r"""Sums of two numbers of two digits, as data for GRPO; and the small model that learns them.

    python experiments/instructgpt/sums.py sums       # writes the three files to the folder
    scaling train --config=experiments/instructgpt/sums.py

The 8,100 sums are divided at random: a fifth, ``held_out.jsonl``, is in no other file. ``train.jsonl`` has the others
with right answers, and ``careless.jsonl`` the same with wrong ones in six records of ten. The model has 0.8M parameters
and reads bytes. It is trained on the embedded books for some steps, then on the right sums, and then for a short time
on the careless ones: so it can add, and says a wrong number about as often as they do. GRPO then has something to mend.
The commands are in docs/results/sums.

Machine: 2 CPU cores. Time: a minute; the validation loss of the bytes is of no importance here.
"""

import json
import random
import sys
from pathlib import Path

from ml_collections import ConfigDict

from scaling.config import default_config

CARELESS, WRONG = 0.6, (-10, -2, -1, 1, 2, 10)  # share of wrong answers, and their errors


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
    held_out, rest = sums[: len(sums) // 5], sums[len(sums) // 5 :]
    folder.mkdir(parents=True, exist_ok=True)
    dice = random.Random(1)
    careless = [(a, b, dice.choice(WRONG) if dice.random() < CARELESS else 0) for a, b in rest]
    right = {"held_out": held_out, "train": rest}
    files = {name: [(a, b, 0) for a, b in part] for name, part in right.items()} | {"careless": careless}
    for name, part in files.items():
        (folder / f"{name}.jsonl").write_text("".join(_line(*each) for each in part))


def _line(a: int, b: int, error: int) -> str:
    return json.dumps({"prompt": f"{a}+{b}=", "response": str(a + b + error), "answer": str(a + b)}) + "\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
