r"""XLM for 15 languages: hidden tokens of one language, then of a text with its translation (arXiv 1901.07291).

    scaling train --config=experiments/encoders/xlm.py:mlm --config.data.train='gs://bucket/wikipedias/*.jsonl.gz' \
        --config.data.tokenizer=TOKENIZER.model+mask --config.workdir=runs/xlm-mlm
    scaling train --config=experiments/encoders/xlm.py:tlm --config.data.train='gs://bucket/parallel/*.jsonl.gz' \
        --config.data.tokenizer=TOKENIZER.model+mask --config.start=runs/xlm-mlm

12 layers of 1,024 features, 95,000 tokens, 250M parameters. Rows of 256 tokens in batches of 64, here for each of 64
GPUs, dropout 0.1, Adam, lr 1e-4 of the 1e-4 to 5e-4 that the paper tries (section 5.1). It does not give the number of
steps; 500,000 and 100,000 are chosen here. The paper alternates between the two objectives; here the second follows
the first. It samples languages by a power of 0.7 of their share, as weights of ``config.data.mixture`` do. Types tell a
text from its translation here, and not each of the 15 languages from the others.

Machine: eight accelerators with 32 GB and --config.train.microbatch_sequences=256.
Time and loss: not measured here. The paper used 64 V100 GPUs.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(objective: str = "mlm") -> ConfigDict:
    steps = {"mlm": 500_000, "tlm": 100_000}[objective]
    config = recipes.encoder("XLM", "15", steps, beta2=0.999, weight_decay=0.0)
    config.data.objective = objective
    config.train.sequence_length = 256
    return config
