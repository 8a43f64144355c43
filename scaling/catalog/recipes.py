"""The papers' training recipes, shared by the files in ``experiments/`` (which are loaded by path).

The docstrings say which values a paper leaves open. An experiment or the command line can change every value.
"""

from ml_collections import ConfigDict

from scaling.catalog import families, layouts, sizes
from scaling.config.schema import default_config

_BILLION = 1_000_000_000


def gpt3(name: str, topology: str = "", *, fsdp: int = 1, tensor: int = 1, remat: str = "none") -> ConfigDict:
    """GPT-3's recipe (arXiv 2005.14165, sections 2.1 to 2.3 and appendix B).

    Not published, chosen here: the band width (256), which sizes ramp the batch over 4B and which over up
    to 12B tokens, and the split of the 300B tokens into steps.

    Args:
        name: one of ``scaling.catalog.sizes.GPT3``.
        topology: TPU slice whose layout (``scaling.catalog.layouts``) replaces ``fsdp``, ``tensor`` and ``remat``;
            empty = none.
        fsdp: devices that share the parameters and the optimizer state.
        tensor: devices that share each matrix product.
        remat: what the backward pass recomputes, to save memory.

    Raises:
        ValueError: no layout for that topology.
    """
    config = sizes.GPT3[name].apply(default_config())
    config.data.tokenizer = "gpt2"
    config.model.attention_pattern = ("dense", "banded")
    config.model.band_width = 256
    config.compute.remat = remat

    config.train.tokens = sizes.GPT3_TOKENS
    config.train.ramp_start_tokens = 32_768
    # "over the first 4-12 billion tokens of training, depending on the model size"
    full = config.train.batch_tokens
    config.train.ramp_tokens = (4 if full <= 2**19 else 6 if full <= 2**20 else 8 if full <= 2**21 else 12) * _BILLION

    config.optimizer.beta1, config.optimizer.beta2 = 0.9, 0.95
    config.optimizer.epsilon = 1e-8
    config.optimizer.clip_norm = 1.0
    config.optimizer.weight_decay = 0.1
    config.optimizer.schedule = "cosine"
    config.optimizer.final_fraction = 0.1
    config.optimizer.warmup_tokens = 375_000_000
    config.optimizer.decay_tokens = 260 * _BILLION

    config.mesh.fsdp, config.mesh.tensor = fsdp, tensor
    if topology:
        layouts.find(name, topology).apply(config)
    return config


def gpt2(name: str, *, fsdp: int = 1, remat: str = "none") -> ConfigDict:
    """GPT-2's shapes and batch (Radford et al. 2019, section 2.3).

    The paper does not publish the learning rate, the length of training, the schedule or the weight decay. GPT-3's are
    used here, with the peak learning rate of the GPT-3 size that is nearest in parameters.

    Args:
        name: one of ``scaling.catalog.sizes.GPT2``.
        fsdp: devices that share the parameters and the optimizer state.
        remat: what the backward pass recomputes, to save memory.
    """
    config = sizes.GPT2[name].apply(default_config())
    config.data.tokenizer = "gpt2"
    config.optimizer.peak_lr = {"124m": 6.0e-4, "355m": 3.0e-4, "774m": 2.5e-4, "1558m": 2.0e-4}[name]
    config.compute.remat = remat
    config.mesh.fsdp = fsdp
    return config


def gpt1() -> ConfigDict:
    """GPT-1's recipe (Radford et al. 2018, section 4.1): 100 epochs of BooksCorpus, here counted in tokens.

    The corpus is not distributed any more; at about 1B tokens, 100 epochs are 100B tokens. The 40,000 merges of the
    tokenizer are not distributed either: the embedded tokenizer is used, whose smaller vocabulary fits into the same
    40,478 rows.
    """
    config = sizes.GPT1["gpt1"].apply(default_config())
    config.data.tokenizer = "books"
    config.model.scale_residual_init = False  # "a simple weight initialization of N(0, 0.02)"
    config.model.dropout_embedding = 0.1
    config.model.dropout_attention = 0.1
    config.model.dropout_residual = 0.1

    config.train.tokens = 100 * _BILLION
    config.optimizer.beta2 = 0.999  # Adam's default; the paper names no other
    config.optimizer.clip_norm = 1.0  # from the released fine-tuning code; the paper names none
    config.optimizer.weight_decay = 0.01
    config.optimizer.schedule = "cosine"
    config.optimizer.final_fraction = 0.0
    config.optimizer.warmup_tokens = 2000 * config.train.batch_tokens
    return config


def family(family: str, size: str, tokens: float, /, **optimizer: float | str) -> ConfigDict:
    """A published shape of another family, trained as GPT-3 is but for what is given.

    AdamW with betas 0.9 and 0.95, weight decay 0.1, a cosine to a tenth over the whole run and 2,000 steps of warm-up
    are what most of them use. The knobs of the data are the user's. The tokenizer is named only where it is GPT-2's.

    Args:
        family: as ``scaling.catalog.families`` has it.
        size: of the shape.
        tokens: length of training.
        optimizer: knobs of ``config.optimizer`` in which the paper differs.

    Raises:
        ValueError: no such family or shape.
    """
    config = families.find(family, size).apply(default_config())
    config.data.tokenizer = "gpt2" if family in families.WITH_GPT2_TOKENS else ""
    config.train.tokens = int(tokens)
    config.optimizer.warmup_tokens = min(2000 * config.train.batch_tokens, config.train.tokens // 10)
    config.optimizer.update(optimizer)
    return config


def encoder(family: str, size: str, steps: int, /, **optimizer: float | str) -> ConfigDict:
    """A published encoder with masked language modelling: AdamW with a linear decay to 0, dropout 0.1 everywhere.

    Args:
        family: as ``scaling.catalog.families`` has it.
        size: of the shape.
        steps: length of training.
        optimizer: knobs of ``config.optimizer`` in which papers differ.

    Raises:
        ValueError: no such family or shape.
    """
    config = families.find(family, size).apply(default_config())
    config.data.objective = "mlm"
    config.model.dropout_embedding = config.model.dropout_attention = config.model.dropout_residual = 0.1
    config.train.tokens = steps * config.train.batch_tokens
    config.optimizer.schedule = "linear"
    config.optimizer.final_fraction = 0.0
    config.optimizer.weight_decay = 0.01
    config.optimizer.warmup_tokens = steps // 100 * config.train.batch_tokens
    config.optimizer.update(optimizer)
    return config


def encoder_decoder(
    family: str, size: str, lengths: tuple[int, int], rows: int, steps: int, /, **optimizer: float | str
) -> ConfigDict:
    """A published encoder with its decoder: no weight decay, no clipping, and dropout 0.1 everywhere.

    Tokens are counted in those of the target, whose places a row has.

    Args:
        family: as ``scaling.catalog.families`` has it.
        size: of the shape.
        lengths: tokens of the source and of the target in a row.
        rows: in a batch.
        steps: length of training.
        optimizer: knobs of ``config.optimizer`` in which papers differ.

    Raises:
        ValueError: no such family or shape.
    """
    config = families.find(family, size).apply(default_config())
    config.data.tokenizer = "gpt2+mask" if family == "BART" else ""
    config.data.source_length, config.train.sequence_length = lengths
    config.train.batch_tokens = rows * lengths[1]
    config.train.tokens = steps * config.train.batch_tokens
    config.model.dropout_embedding = config.model.dropout_attention = config.model.dropout_residual = 0.1
    config.optimizer.clip_norm = 0.0
    config.optimizer.weight_decay = 0.0
    config.optimizer.update(optimizer)
    return config


def small_transformer(d_model: int, layers: int, alone: bool, length: int) -> ConfigDict:
    """The Transformer of 2017 in miniature, for pairs on two CPU cores: sinusoids, ReLU, label smoothing 0.1.

    Args:
        d_model: width, of heads of 32.
        layers: of the encoder, and as many of the decoder.
        alone: in their place a decoder alone, with as many parameters, that reads the source before the target.
        length: tokens of a source, and of a target; a decoder alone has both in a row.
    """
    config = default_config()
    config.data.objective = "pairs"
    # A layer of a decoder that attends to a source has 16 d_model^2 parameters, every other one 12.
    config.model.num_layers, config.model.encoder_layers = (layers * 7 // 3, 0) if alone else (layers, layers)
    config.model.attention_pattern = ("dense",)
    config.model.d_model = d_model
    config.model.num_heads = d_model // 32
    config.model.context_length = config.train.sequence_length = 2 * length if alone else length
    config.model.positions = "sinusoidal"
    config.model.sinusoid = "interleaved"
    config.model.scaled_embedding = True
    config.model.activation = "relu"
    config.compute.dtype = "float32"  # CPUs have no fast bfloat16
    config.compute.loss_chunk = 0
    config.train.label_smoothing = 0.1
    config.train.batch_tokens = 64 * config.train.sequence_length
    config.optimizer.beta2 = 0.98
    config.optimizer.epsilon = 1e-9
    config.optimizer.weight_decay = 0.0
    config.optimizer.schedule = "inverse_sqrt"
    config.checkpoint.keep_last = 1
    config.log.tensorboard = False
    return config


def finetuning(rows: int, peak_lr: float, warmup: float, lm_weight: float) -> ConfigDict:
    """Fine-tuning for a task, as for GPT-1 and BERT: 3 epochs of 32 examples a batch, a linear decay, dropout 0.1.

    Args:
        rows: of an example.
        peak_lr: learning rate after warm-up.
        warmup: its share of the training.
        lm_weight: of the language model's loss.
    """
    config = default_config()
    config.data.tokenizer = ""  # the start's
    config.compute.loss_chunk = 0
    config.model.dropout_embedding = 0.1
    config.model.dropout_attention = 0.1
    config.model.dropout_residual = 0.1

    config.align.epochs = 3.0
    config.align.lm_weight = lm_weight
    config.align.dropout = 0.1
    config.align.warmup = warmup
    config.train.sequence_length = 128
    config.train.batch_tokens = 32 * rows * config.train.sequence_length
    config.optimizer.peak_lr = peak_lr
    config.optimizer.beta2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.optimizer.schedule = "linear"
    config.optimizer.final_fraction = 0.0
    config.optimizer.warmup_tokens = 0

    config.eval.every_steps = 0
    config.checkpoint.every_steps = 500
    config.log.tensorboard = False
    return config


def small_bytes(band_width: int) -> ConfigDict:
    """Byte models of 10 thousand to a few million parameters on a CPU; docs/results/cpu_ladder says what was tried.

    Args:
        band_width: of every other layer, as in GPT-3. A narrow band is learned quickly; with dense layers alone, runs
            of fewer than a million bytes end at the loss of a bigram model and follow no law.
    """
    config = default_config()
    config.data.tokenizer = "bytes"
    config.model.context_length = 128
    config.model.attention_pattern = ("banded", "dense")
    config.model.band_width = band_width
    config.compute.dtype = "float32"  # CPUs have no fast bfloat16
    # muP: one learning rate for every width, and larger initial weights for narrow models.
    config.model.parametrization = "mup"
    config.model.base_width = 64
    config.model.init_std = 0.08
    config.compute.loss_chunk = 0  # the vocabulary is small
    config.optimizer.peak_lr = 5e-3
    config.checkpoint.every_steps = 1000
    config.checkpoint.keep_last = 1
    config.log.tensorboard = False
    return config
