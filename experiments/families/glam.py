r"""GLaM: 64 experts in every second layer, 1700m64e to 64b64e (arXiv 2112.06905).

    scaling train --config=experiments/families/glam.py:1700m64e --config.data.train='gs://bucket/corpus/*.jsonl.gz' \
        --config.data.tokenizer=FILE

Machine: for 1700m64e 64 accelerators with 32 GB, with --config.mesh.expert=64.
Time and loss: not measured here. The paper: 456 MWh on 1,024 TPU v4 for 64b64e.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "1700m64e") -> ConfigDict:
    return recipes.family("GLaM", size, 600e9, name="adafactor", schedule="inverse_sqrt", peak_lr=1e-2)
