r"""DistilBERT: six layers that imitate BERT's twelve (arXiv 1910.01108).

    scaling distill --config=experiments/encoders/distilbert.py --config.start=runs/bert-base \
        --config.data.train='gs://bucket/corpus/*.jsonl.gz'

The student begins with every second layer of the teacher, and learns from its distribution at temperature 2, from
hidden tokens and from the direction of its states (section 3), with the weights 5, 2 and 1 of the authors' code.
Batches of 4,000 rows of 512 tokens, lr 5e-4, three passes over BERT's corpus.

Machine: eight accelerators with 16 GB and --config.train.microbatch_sequences=256.
Time and loss: not measured here. The paper used eight V100 GPUs for 90 hours.
"""

from ml_collections import ConfigDict

from scaling.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.objective = "mlm"
    config.data.tokenizer = ""  # that of the teacher
    config.model.attention_pattern = ("dense",)
    config.model.dropout_embedding = config.model.dropout_attention = config.model.dropout_residual = 0.1
    config.distill.layers = 6
    config.train.sequence_length = 512
    config.train.batch_tokens = 4000 * 512
    config.train.tokens = 4800 * config.train.batch_tokens  # three passes over 3.3G words
    config.optimizer.peak_lr = 5e-4
    config.optimizer.schedule = "linear"
    config.optimizer.final_fraction = 0.0
    config.optimizer.warmup_tokens = 240 * config.train.batch_tokens
    return config
