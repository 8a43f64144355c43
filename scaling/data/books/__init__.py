"""The embedded corpus: public-domain English prose as package data (see README.md beside this file)."""

from pathlib import Path

HERE = Path(__file__).parent
TRAIN = HERE / "train.jsonl.gz"
VALIDATION = HERE / "validation.jsonl.gz"
TOKENIZER = HERE / "tokenizer.model"
