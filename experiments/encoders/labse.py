r"""LaBSE: vectors of sentences that are near those of their translations (arXiv 2007.01852, sections 2 and 3).

    scaling train --config=experiments/encoders/labse.py:mlm --config.data.train='gs://bucket/texts/*.jsonl.gz' \
        --config.data.tokenizer=TOKENIZER.model+mask --config.workdir=runs/labse-mlm
    scaling train --config=experiments/encoders/labse.py:tlm --config.data.train='gs://bucket/parallel/*.jsonl.gz' \
        --config.data.tokenizer=TOKENIZER.model+mask --config.start=runs/labse-mlm --config.workdir=runs/labse-tlm
    scaling train --config=experiments/encoders/labse.py:translations --config.start=runs/labse-tlm \
        --config.data.train='gs://bucket/parallel/*.jsonl.gz' --config.data.tokenizer=TOKENIZER.model+mask \
        --config.workdir=runs/labse
    scaling embed runs/labse --pool=first --texts=sentences.txt --output=vectors.npy

BERT base with 501,153 tokens, 471M parameters. A fifth of the tokens is hidden, in batches of 8,192 rows; then
translations are ranked among the 4,096 pairs of a batch, with a margin of 0.3, for 50,000 steps at lr 1e-3. The paper
mixes the first two objectives in 1.8M steps and begins with fewer layers; here they follow each other, with all layers.
The scale of cosines and the lengths of rows of parallel text are chosen here. With microbatches
(config.train.microbatch_sequences) there are fewer translations to choose from.

Machine: for the last step 32 accelerators with 16 GB.
Time and loss: not measured here. The paper used 32 cores of TPU v3 for the dual encoder.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(objective: str = "mlm") -> ConfigDict:
    steps = {"mlm": 1_500_000, "tlm": 300_000, "translations": 50_000}[objective]
    config = recipes.encoder("BERT", "base", steps, beta2=0.999)
    config.data.objective = objective
    config.model.vocab_size = 501_153
    config.noise.rate = 0.2
    config.train.sequence_length = {"mlm": 512, "tlm": 256, "translations": 128}[objective]
    rows = 4096 if objective == "translations" else 8192
    config.train.batch_tokens = rows * config.train.sequence_length
    config.train.tokens = steps * config.train.batch_tokens
    config.optimizer.warmup_tokens = steps // 100 * config.train.batch_tokens
    if objective == "translations":
        config.optimizer.peak_lr = 1e-3
    return config
