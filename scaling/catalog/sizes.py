"""The published sizes of GPT-1, GPT-2 and GPT-3, and counts of parameters by each convention in use.

Sources: GPT-1, Radford et al. 2018, section 4.1; GPT-2, Radford et al. 2019, table 2; GPT-3, arXiv
2005.14165, tables 2.1 and D.1. Nothing here needs JAX.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from scaling.config.schema import Model

GPT3_TOKENS = 300_000_000_000  # training length of every GPT-3 size (table D.1)


@dataclasses.dataclass(frozen=True)
class Size:
    """One published model: the shape that is trained here, and the numbers that the paper prints.

    None = the paper does not give the number.
    """

    name: str
    family: str
    num_layers: int
    d_model: int
    num_heads: int
    d_head: int
    context_length: int
    vocab_size: int
    batch_tokens: int  # the paper's rounded number as whole sequences
    peak_lr: float | None
    printed_parameters: float
    printed_pf_days: float | None = None
    printed_flops: float | None = None
    norm: str = "pre"
    d_ff: int = 0  # 0 = 4 * d_model
    switches: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # further knobs of the model section
    note: str = ""

    def model(self) -> Model:
        """The resolved model section of this size, with all other knobs at their defaults."""
        return Model(
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            num_layers=self.num_layers,
            d_model=self.d_model,
            num_heads=self.num_heads,
            d_head=self.d_head,
            d_ff=self.d_ff or 4 * self.d_model,
            norm=self.norm,
            **self.switches,
        )

    def apply(self, config: ConfigDict) -> ConfigDict:
        """Writes shape, batch and peak learning rate (where published) into an experiment's config.

        Args:
            config: from ``scaling.config.default_config``; changed in place.

        Returns:
            The same config.
        """
        for knob in ("vocab_size", "context_length", "num_layers", "d_model", "num_heads", "d_head", "norm"):
            setattr(config.model, knob, getattr(self, knob))
        config.model.d_ff = self.d_ff or 4 * self.d_model
        for knob, value in self.switches.items():
            if dataclasses.is_dataclass(value):
                config.model[knob].update(dataclasses.asdict(value))  # type: ignore[arg-type]
            else:
                setattr(config.model, knob, value)
        config.train.batch_tokens = self.batch_tokens
        if self.peak_lr is not None:
            config.optimizer.peak_lr = self.peak_lr
        return config


def _gpt3(
    name: str,
    shape: tuple[int, int, int, int],
    batch_sequences: int,
    peak_lr: float,
    printed: tuple[float, float, float],
    note: str = "",
) -> Size:
    layers, d_model, heads, d_head = shape
    parameters, pf_days, flops = printed
    return Size(
        name=name,
        family="GPT-3",
        num_layers=layers,
        d_model=d_model,
        num_heads=heads,
        d_head=d_head,
        context_length=2048,
        vocab_size=50_257,
        batch_tokens=batch_sequences * 2048,
        peak_lr=peak_lr,
        printed_parameters=parameters,
        printed_pf_days=pf_days,
        printed_flops=flops,
        note=note,
    )


def _gpt2(name: str, layers: int, d_model: int, heads: int, printed_parameters: float) -> Size:
    return Size(
        name=name,
        family="GPT-2",
        num_layers=layers,
        d_model=d_model,
        num_heads=heads,
        d_head=64,
        context_length=1024,
        vocab_size=50_257,
        batch_tokens=512 * 1024,
        peak_lr=None,  # "manually tuned", section 2.3
        printed_parameters=printed_parameters,
        note="the paper's count is too low; the released weights hold what is counted here",
    )


_SIZES = (
    Size(
        name="gpt1",
        family="GPT-1",
        num_layers=12,
        d_model=768,
        num_heads=12,
        d_head=64,
        context_length=512,
        vocab_size=40_478,
        batch_tokens=64 * 512,
        peak_lr=2.5e-4,
        printed_parameters=117e6,
        norm="post",
        note="printed in later papers; GPT-1's own gives no count",
    ),
    _gpt2("124m", 12, 768, 12, 117e6),
    _gpt2("355m", 24, 1024, 16, 345e6),
    _gpt2("774m", 36, 1280, 20, 762e6),
    _gpt2("1558m", 48, 1600, 25, 1542e6),
    # Batches of 0.5M, 1M, 2M are 256, 512, 1024 sequences.
    _gpt3("125m", (12, 768, 12, 64), 256, 6.0e-4, (125e6, 2.60, 2.25e20)),
    _gpt3("350m", (24, 1024, 16, 64), 256, 3.0e-4, (356e6, 7.42, 6.41e20)),
    _gpt3("760m", (24, 1536, 16, 96), 256, 2.5e-4, (760e6, 15.8, 1.37e21)),
    _gpt3(
        "1300m",
        (24, 2048, 16, 128),
        512,
        2.0e-4,
        (1320e6, 27.5, 2.38e21),
        "XL; printed with 24 heads, but 24*128 is not 2048 and the printed parameters fit 16",
    ),
    _gpt3("2700m", (32, 2560, 32, 80), 512, 1.6e-4, (2650e6, 55.2, 4.77e21)),
    _gpt3("6700m", (32, 4096, 32, 128), 1024, 1.2e-4, (6660e6, 139.0, 1.20e22)),
    _gpt3(
        "13b",
        (40, 5120, 40, 128),
        1024,
        1.0e-4,
        (12850e6, 268.0, 2.31e22),
        "printed with d_model 5140, but that is not 40*128 and the printed parameters fit 5120",
    ),
    _gpt3(
        "175b",
        (96, 12288, 96, 128),
        1536,
        0.6e-4,
        (174600e6, 3640.0, 3.14e23),
        "printed batch 3.2M; 1536 sequences (3.1M) divide over meshes of powers of two",
    ),
)

GPT1 = {s.name: s for s in _SIZES if s.family == "GPT-1"}
GPT2 = {s.name: s for s in _SIZES if s.family == "GPT-2"}
GPT3 = {s.name: s for s in _SIZES if s.family == "GPT-3"}
ALL = _SIZES


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Numbers of parameters of a model by part, as in ``scaling.model.decoder``."""

    token_embedding: int  # padded_vocab rows
    positions: int  # of learned and relative ones, and of types of tokens and XLNet's query stream
    blocks: int
    final_norm: int  # 0 in post-norm models
    unembedding: int  # 0 where tied to the token embedding
    ends: int  # what else lies outside the blocks: projections and norms at the embedding and the head, biases
    padding: int  # parameters in the rows that pad the vocabulary to vocab_multiple, in all tables together
    matrices: int  # weight matrices of the blocks that a token is multiplied by: no biases, no norms, no idle experts
    source: int  # of these, what the tokens of an encoder's source are multiplied by, and the decoder's are not
    idle: int  # of all experts, those that a token does not take
    projection: int  # matrices from the last state to the logits, without padding, tied or not

    @property
    def tree(self) -> int:
        """All parameters of the tree, padding included."""
        outside = self.token_embedding + self.positions + self.final_norm + self.unembedding + self.ends
        return outside + self.blocks

    @property
    def total(self) -> int:
        """All parameters, without padding: the convention of GPT-3's tables 2.1 and D.1 and of model cards."""
        return self.tree - self.padding

    @property
    def active(self) -> int:
        """Of all parameters, those that serve one token: all without experts, and else without the idle ones."""
        return self.total - self.idle

    @property
    def without_embeddings(self) -> int:
        """Blocks and final norm; neither token nor position embeddings nor an untied output matrix."""
        return self.blocks + self.final_norm

    @property
    def kaplan(self) -> int:
        """2 d_model n_layer (2 d_attn + d_ff), 12 n_layer d_model^2 in the usual shape (arXiv 2001.08361, eq. 2.1)."""
        return self.matrices

    @property
    def chinchilla(self) -> int:
        """Matrices of the blocks and the last layer, with which each token is multiplied.

        The FLOPs of arXiv 2203.15556, appendix F, count the final logits, so the parameters that go with
        them do too, tied or not (the convention that reconciles it with Kaplan et al.: arXiv 2406.19146).
        """
        return self.matrices + self.projection


def parameters(model: Model) -> Parameters:
    """Counts the parameters of a resolved model config (``vocab_size``, ``d_head`` and ``d_ff`` known)."""
    assert model.vocab_size and model.d_head and model.d_ff, "resolve the config first"
    d, f, width, experts = model.d_model, model.d_ff, model.d_embedding, model.experts
    routed = model.expert_layers  # the other layers have an MLP
    plain = model.num_layers - routed
    queries, keys = model.num_heads * model.d_head, model.kv_heads * model.d_head
    ups = 2 if model.gated else 1
    expert = d * (3 if experts.gated else 2) * model.d_expert
    idle = routed * (experts.count - experts.per_token) * expert
    attentions = model.num_layers * (2 if model.encoder_layers else 1)  # a decoder attends to its source, too
    matrices = (
        attentions * d * (2 * queries + 2 * keys)
        + plain * d * (ups + 1) * f
        + routed * (d * experts.count + experts.per_token * expert)
    )
    biases = attentions * (
        model.qkv_bias * (queries + keys) + model.has_key_bias * keys + model.out_bias * d
    ) + plain * model.mlp_bias * (ups * f + d)
    # Transformer-XL projects distances, once for all rows: no token is multiplied by that matrix.
    scores = model.num_layers * model.is_relative * queries * (d + 2 + 3 * (model.positions == "xlnet"))
    scores += _positional(model)
    norms = model.num_layers * _norm(model, d) * (1 if model.parallel == "one_norm" else 2)
    norms += attentions * model.qk_norm * 2 * _norm(model, model.d_head) + (attentions - model.num_layers) * _norm(
        model, d
    )
    projected = (width * d + model.narrow_embedding * d if width != d else 0) + (
        d * model.d_output if model.d_output != d else 0
    )
    head = d * width + width + _norm(model, width) if model.transforms else 0
    ends = projected + model.embedding_norm * _norm(model, model.d_summed) + head + model.pooler * (d * d + d)
    ends += _norm(model, d) if model.distances and model.disentangled.norm else 0
    ends += model.outputs * (model.d_output + 1) + model.pairs * 2 * (d + 1)
    discriminating = model.discriminates * (d + 1) * d  # a product, and one number
    ends += discriminating + model.discriminates * (d + 1)
    unties, has_bias = not (model.tied_embedding or model.outputs), model.logit_bias and not model.outputs
    rows = width * (1 + unties) + has_bias  # of each token, in all tables
    counted = Parameters(
        token_embedding=model.padded_vocab * width,
        positions=_positions(model),
        blocks=(matrices + idle + biases + scores + norms) * model.stored_layers // model.num_layers,
        final_norm=_norm(model, d) if model.norm == "pre" else 0,
        unembedding=unties * model.padded_vocab * width,
        ends=ends + has_bias * model.padded_vocab,
        padding=(model.padded_vocab - model.vocab_size) * rows,
        matrices=matrices,
        source=0,
        idle=idle,
        projection=model.outputs * model.d_output
        or discriminating
        or (model.vocab_size + model.transforms * d) * width,
    )
    if model.generates:
        return _with_generator(counted, model)
    return _with_encoder(counted, model) if model.encoder_layers else counted


def _with_generator(discriminator: Parameters, model: Model) -> Parameters:
    """Adds the generator, an encoder with logits, which has the discriminator's embeddings."""
    generator = parameters(model.generator)
    kept = model.embedding_norm * _norm(model, model.d_summed)
    own_positions = model.relative_buckets * model.generator.num_heads if model.positions == "relative" else 0
    return dataclasses.replace(
        discriminator,
        positions=discriminator.positions + own_positions,
        blocks=discriminator.blocks + generator.blocks,
        final_norm=discriminator.final_norm + generator.final_norm,
        ends=discriminator.ends + generator.ends - kept,
        padding=discriminator.padding + model.padded_vocab - model.vocab_size,  # of the bias of its logits
        matrices=discriminator.matrices + generator.matrices,
        projection=discriminator.projection + generator.projection,
    )


def _with_encoder(decoder: Parameters, model: Model) -> Parameters:
    """Adds the encoder, a stack with positions and norms of its own, which reads the decoder's token embeddings."""
    encoder = parameters(model.encoder)
    keys = model.num_layers * model.d_model * 2 * model.kv_heads * model.d_head  # and values, of what it made
    return dataclasses.replace(
        decoder,
        positions=decoder.positions + encoder.positions,
        blocks=decoder.blocks + encoder.blocks,
        final_norm=decoder.final_norm + encoder.final_norm,
        ends=decoder.ends + model.embedding_norm * _norm(model, model.d_summed),
        matrices=decoder.matrices + encoder.matrices,
        source=encoder.matrices + keys,
    )


def _positions(model: Model) -> int:
    types = model.token_types * model.d_summed if model.has_type_table else 0
    if model.positions == "xlnet":
        return model.d_model  # of the query stream
    if model.positions == "relative":
        return types + model.relative_buckets * model.num_heads
    rows = model.context_length + model.position_offset if model.has_position_table else 0
    distances = 2 * model.distances * model.d_model
    return types + rows * model.d_summed + distances


def _positional(model: Model) -> int:
    """The blocks' projections of disentangled positions, with which no token is multiplied."""
    by, width = model.disentangled, model.num_heads * model.d_head
    if not model.distances or by.shared:
        return 0
    biases = by.content_to_position * model.has_key_bias + by.position_to_content * model.qkv_bias
    return model.num_layers * width * (model.positional_scores * model.d_model + biases)


def _norm(model: Model, features: int) -> int:
    return 2 * features if model.norm_kind == "layer" and model.norm_bias else features
