r"""CTRL: 1.6B parameters; the first token says which kind of text follows (arXiv 1909.05858).

    scaling train --config=experiments/families/ctrl.py:1600m --config.data.train='gs://bucket/corpus/*.jsonl.gz' \
        --config.data.tokenizer=FILE --config.data.control_field=domain

Machine: 16 accelerators with 32 GB, with --config.mesh.fsdp=16.
Time and loss: not measured here. The paper trains for two weeks on 256 TPU v3
cores with Adagrad; Adafactor stands in, and the length is chosen here.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "1600m") -> ConfigDict:
    return recipes.family("CTRL", size, 200e9, name="adafactor", peak_lr=5e-2, clip_norm=0.25, weight_decay=0.0)
