r"""BERT against GPT, and others beside them: Transformers of about 0.95M parameters, pre-trained in several ways.

    scaling train --config=experiments/bert_gpt/pretrain.py:bert,FOLDER

FOLDER holds .jsonl.gz files with a field "text": books/*.jsonl.gz, wikipedia/*.jsonl.gz, c4/*.jsonl.gz.

``gpt`` and ``bert`` have the same blocks and the same tables, and read the same text in the same order. They differ in
what a token sees and in what is predicted; BERT has a product and a norm before its logits in addition (1.8 % of the
parameters), which fine-tuning leaves out. ``electra`` has the blocks of ``bert`` as a discriminator, which is what is
fine-tuned, and a generator of half their width beside it. ``t5`` has two layers that read and two that write: each
token passes through two, as in the others, and the model has 1.56 times their parameters. ``bert4`` is BERT with four
layers, and ``albert4`` the same with one set of weights for all four and embeddings of 32 features. The shape is that
of BERT-tiny (arXiv 1908.08962). Rows of 128 tokens hold several documents, which see each other.

Machine: 2 CPU cores, minutes a training. Time and loss: docs/results/bert_gpt.
"""

from ml_collections import ConfigDict

from scaling.config import default_config

PARTS = (("books", 0.6), ("wikipedia", 0.33), ("c4", 0.07))  # about the sizes of the three


def get_config(choice: str = "bert") -> ConfigDict:
    arm, _, folder = choice.partition(",")
    folder = folder or "data"
    config = default_config()
    config.data.train = ""
    config.data.mixture = tuple((f"{folder}/{part}/*.jsonl.gz", weight) for part, weight in PARTS)
    config.data.tokenizer = "books+mask"  # also for GPT, so that the tables are equal

    config.model.context_length = 128
    config.model.num_layers = 2
    config.model.d_model = 128
    config.model.num_heads = 2
    # With learned positions BERT stays at the loss of word frequencies on so little text (docs/results/bert_gpt).
    config.model.positions = "rotary"
    config.model.init_std = 0.08  # large initial weights, because the model is narrow
    config.compute.dtype = "float32"  # CPUs have no fast bfloat16
    config.compute.loss_chunk = 0  # the vocabulary is small
    config.compute.scan_unroll = 2
    if arm == "t5":
        config.data.objective = "span_corruption"
        config.data.tokenizer = "books+sentinels"
        config.model.encoder_layers = 2
    elif arm != "gpt":
        config.data.objective = "mlm"
        config.model.causal = False
        config.model.head_transform = arm != "electra"
    if arm in ("bert4", "albert4"):
        config.model.num_layers = 4
    if arm == "albert4":
        config.model.layer_groups = 1
        config.model.embedding_width = 32
        config.model.narrow_embedding = True

    if arm == "electra":
        config.data.objective = "replaced_token"
        config.model.discriminator = True
        config.model.narrow_embedding = True
        config.model.generator_layers = 2
        config.model.generator_width = 64
        config.noise.random = config.noise.kept = 0.0

    config.train.tokens = 1_500_000
    config.train.batch_tokens = 2048  # a model this small learns more from many steps than from large batches
    if arm == "t5":  # tokens are counted in those of targets: 29 of each 141 of the text, whose source has 128
        config.data.source_length, config.train.sequence_length = 128, 29
        config.train.batch_tokens = 16 * 29
        config.train.tokens = config.train.tokens * 29 // 141
    config.optimizer.peak_lr = 3e-3
    config.optimizer.warmup_tokens = config.train.tokens // 10

    config.eval.every_steps = 300
    config.eval.tokens = 65_536 if arm != "t5" else 16_384
    config.checkpoint.every_steps = 300
    config.checkpoint.keep_last = 1
    config.log.tensorboard = False
    return config
