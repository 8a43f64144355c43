r"""A small LLaMA that proposes tokens to a large one: the draft of speculative decoding (docs/generation.md).

    scaling tokenizer reduce MODEL/tokenizer.json 'text/*.jsonl.gz' --vocab_size=8192 --output=draft.reduced
    scaling train --config=experiments/drafts/small.py --config.data.train='text/*.jsonl.gz' \
        --config.data.tokenizer=draft.reduced --config.model.context_length=LENGTH

LENGTH is the context of the model, which a draft must have, too. Its rotary positions need no weights.

Machine: 2 CPU cores, half an hour for 5M tokens. Validation loss 4.2 nats a token of the part, on web text and
Wikipedia with SmolLM2's tokenizer; what it gained as a draft: docs/generation.md.
"""

from ml_collections import ConfigDict

from scaling.catalog import families
from scaling.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    for knob, value in families.LLAMA2.items():
        config.model[knob] = value
    config.model.tied_embedding = True
    config.model.num_layers = 4
    config.model.d_model = 256
    config.model.num_heads = 4
    config.model.d_ff = 704
    config.model.context_length = 8192
    config.compute.dtype = "float32"
    config.compute.loss_chunk = 0

    config.train.sequence_length = 256
    config.train.batch_tokens = 4096
    config.train.tokens = 5_000_000

    config.optimizer.peak_lr = 3e-3
    config.optimizer.warmup_tokens = 200_000
    config.eval.every_steps = 200
    config.eval.tokens = 32_768
    config.log.every_steps = 10
    config.checkpoint.every_steps = 200
    return config
