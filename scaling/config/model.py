"""The knobs of what a model is and how it is computed: the sections ``model`` and ``compute`` of ``schema.Config``."""

import dataclasses
import math
from typing import NamedTuple

from scaling.config.knob import knob


class Sight(NamedTuple):
    """How far back a layer's tokens see: ``window`` positions (0 = all), and if ``strided`` every so many."""

    window: int = 0
    strided: bool = False


@dataclasses.dataclass(frozen=True)
class Rotary:
    theta: float = knob(10_000.0, "", "base of the wavelengths")
    dim: int = knob(0, "features", "so many features of each head turn, from its first; 0 = all")
    interleaved: bool = knob(False, "", "features 2i and 2i + 1 turn together (GPT-J), not i and i + dim/2 (LLaMA)")
    scaling: str = knob("none", "", "for texts longer than those trained on: none, linear, llama3 or yarn")
    factor: float = knob(1.0, "", "longest text divided by the longest text trained on")
    original_length: int = knob(0, "tokens", "the longest text trained on; for llama3 and yarn")
    low: float = knob(0.0, "turns", "pairs with fewer turns over original_length are slowed down whole; 0 = 1")
    high: float = knob(0.0, "turns", "pairs with more turns stay as they are; 0 = 4 for llama3, 32 for yarn")
    attention_factor: float = knob(0.0, "", "yarn multiplies queries and keys by it; 0 = 0.1 ln(factor) + 1")
    truncate: bool = knob(True, "", "yarn rounds the bounds between slow and fast pairs to whole pairs")

    @property
    def bounds(self) -> tuple[float, float]:
        """``low`` and ``high``, with what their 0 stands for."""
        return self.low or 1.0, self.high or (32.0 if self.scaling == "yarn" else 4.0)

    @property
    def amplitude(self) -> float:
        """What turned features are multiplied by."""
        if self.scaling != "yarn":
            return 1.0
        return self.attention_factor or (0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0)


@dataclasses.dataclass(frozen=True)
class Experts:
    count: int = knob(0, "experts", "MLPs of which each token takes a few, in the place of one; 0 = no experts")
    per_token: int = knob(2, "experts", "that each token takes: those with the largest logits of the router")
    every: int = knob(1, "layers", "layers n, 2n, ... have experts, all others an MLP (GLaM: 2)")
    d_ff: int = knob(0, "features", "hidden width of an expert; 0 = config.model.d_ff")
    gated: bool = knob(True, "", "experts have gates, as config.model.gated says of MLPs; they have no biases")
    normalize: bool = knob(True, "", "the weights of a token's experts sum to 1")
    capacity: float = knob(
        1.25,
        "",
        "slots of each expert in a sequence, as a multiple of what equal load needs, in training and validation loss; "
        "later tokens that find none are dropped. 0 = drop none, as scoring and generation always do",
    )
    balance_loss: float = knob(0.01, "", "coefficient of each layer's load-balancing loss, which is 1 at equal load")
    z_loss: float = knob(0.0, "", "coefficient of each layer's squared log-partition of the router")


@dataclasses.dataclass(frozen=True)
class Disentangled:
    distance: int = knob(0, "tokens", "farther than this, positions are all alike; 0 = context_length")
    buckets: int = knob(
        0, "buckets", "of distances on each side, near ones exactly (DeBERTa 3: 256); 0 = each distance for itself"
    )
    content_to_position: bool = knob(True, "", "queries are multiplied by keys of the distance")
    position_to_content: bool = knob(True, "", "keys are multiplied by queries of the distance")
    shared: bool = knob(False, "", "distances are projected by the matrices of the tokens (DeBERTa 3)")
    norm: bool = knob(False, "", "a norm of the table of distances (DeBERTa 3)")
    key_bias: bool = knob(True, "", "the projections to keys have biases as those to queries have (DeBERTa 1: not)")
    absolute: bool = knob(False, "", "embeddings have learned absolute positions, too")


@dataclasses.dataclass(frozen=True)
class Model:
    vocab_size: int = knob(0, "tokens", "vocabulary; 0 = the tokenizer's")
    vocab_multiple: int = knob(128, "tokens", "rows of the embedding are padded to a multiple of this")
    context_length: int = knob(2048, "tokens", "longest text: of learned positions, their number")
    num_layers: int = knob(12, "layers", "Transformer blocks")
    encoder_layers: int = knob(
        0, "layers", "Transformer blocks of an encoder, whose final states each block attends to (T5); 0 = no encoder"
    )
    layer_groups: int = knob(
        0, "groups", "layers one after the other share weights, in this many groups (ALBERT: 1); 0 = none share"
    )
    d_model: int = knob(768, "features", "width of the residual stream")
    num_heads: int = knob(12, "heads", "attention heads in a block")
    num_kv_heads: int = knob(0, "heads", "heads of keys and values, each for a group of query heads; 0 = num_heads")
    d_head: int = knob(0, "features", "width of one head; 0 = d_model / num_heads")
    d_ff: int = knob(0, "features", "hidden width of the MLP; 0 = 4 * d_model")
    causal: bool = knob(True, "", "tokens see only what comes before them; False = an encoder (BERT)")
    prefix_lm: bool = knob(
        False, "", "the tokens of a prompt, which are a source in training, see each other (T5's prefix LM)"
    )
    norm: str = knob("pre", "", "a norm before each sublayer ('pre', GPT-2/3) or after it ('post', GPT-1)")
    norm_kind: str = knob("layer", "", "layer (LayerNorm) or rms (RMSNorm, which has no bias)")
    norm_bias: bool = knob(True, "", "LayerNorm has a bias")
    norm_epsilon: float = knob(1e-5, "", "added to the variance, or mean square, in a norm")
    qk_norm: bool = knob(False, "", "queries and keys are normalised head by head")
    embedding_norm: bool = knob(False, "", "a norm after the embeddings (BLOOM)")
    parallel: str = knob(
        "no", "", "attention and MLP side by side, with a norm for both ('one_norm', GPT-J) or each ('two_norms', NeoX)"
    )
    activation: str = knob("gelu_tanh", "", "nonlinearity of the MLP: gelu_tanh, gelu (exact), relu or silu")
    gated: bool = knob(False, "", "the MLP has a gate: activation(gate(x)) * up(x) (SwiGLU with silu)")
    qkv_bias: bool = knob(True, "", "the projections to queries, keys and values have biases")
    out_bias: bool = knob(True, "", "the projection of attention back to the residual stream has a bias")
    mlp_bias: bool = knob(True, "", "the projections of the MLP have biases")
    attention_scale: float = knob(0.0, "", "multiplies q.k; 0 = that of the parametrization, 1/sqrt(d_head) or muP's")
    positions: str = knob(
        "learned",
        "",
        "learned, sinusoidal, rotary, alibi, relative (T5), disentangled (DeBERTa), transformer_xl, xlnet or none",
    )
    position_offset: int = knob(0, "rows", "row of the first position in the table of learned ones (OPT: 2)")
    sinusoid: str = knob("halves", "", "sines then cosines ('halves', CTRL), or in turns ('interleaved')")
    token_types: int = knob(0, "types", "kinds of tokens that embeddings tell apart, by a table (BERT: 2 texts)")
    relative_buckets: int = knob(32, "buckets", "distances that relative positions tell apart, near ones exactly")
    relative_distance: int = knob(128, "tokens", "farther than this, relative positions are all alike")
    segment_length: int = knob(
        0, "tokens", "a text is read in segments of so many, each with a memory (Transformer-XL); 0 = as a whole"
    )
    memory_length: int = knob(
        0, "tokens", "states before a segment that each layer sees there; no gradient flows into them"
    )
    scaled_embedding: bool = knob(False, "", "token embeddings are multiplied by sqrt(d_model)")
    scaled_output: bool = knob(False, "", "logits are divided by sqrt(d_model) (T5 with a tied embedding)")
    embedding_width: int = knob(
        0, "features", "width of the token embeddings, projected to d_model and back (OPT-350m); 0 = d_model"
    )
    narrow_embedding: bool = knob(
        False,
        "",
        "positions, types and their norm have the embeddings' width, and the projection to d_model a bias (ALBERT)",
    )
    tied_embedding: bool = knob(True, "", "the output projection uses the matrix of the token embedding")
    logit_bias: bool = knob(False, "", "each token's logit has a bias (GPT-J)")
    head_transform: bool = knob(
        False, "", "a product, the activation and a norm between the last block and the output projection (BERT)"
    )
    pooler: bool = knob(False, "", "config.model.outputs are made of tanh(W h + b) of the state that is read (BERT)")
    outputs: int = knob(
        0, "numbers", "that the model computes for a text: 1 = a reward, n = classes; 0 = logits of the next token"
    )
    pair_head: bool = knob(
        False,
        "",
        "a head tells of the pooler's state whether two texts follow each other (BERT) or are swapped (ALBERT)",
    )
    discriminator: bool = knob(
        False, "", "in the place of logits, a head tells of each token whether another model has replaced it (ELECTRA)"
    )
    generator_layers: int = knob(
        0,
        "layers",
        "Transformer blocks of a generator, whose tokens a discriminator reads, with the same embeddings; 0 = none",
    )
    generator_width: int = knob(
        0, "features", "d_model of the generator; its heads are as wide as others, and its MLP is in proportion"
    )
    attention_pattern: tuple[str, ...] = knob(
        ("dense",), "", "attention of layers 0, 1, ...: 'dense', 'banded' or 'strided'; repeated over all layers"
    )
    band_width: int = knob(
        256,
        "tokens",
        "in a banded layer a token sees this many positions, its own included; a strided one also each so many-th",
    )
    document_mask: bool = knob(False, "", "attention stays inside documents; positions restart (GPT-3: False)")
    dropout_embedding: float = knob(0.0, "probability", "dropout after the embeddings")
    dropout_attention: float = knob(0.0, "probability", "dropout on the attention weights")
    dropout_residual: float = knob(0.0, "probability", "dropout on the output of each sublayer")
    init_std: float = knob(0.02, "", "standard deviation of initial weights (at base_width under muP)")
    scale_residual_init: bool = knob(True, "", "output projections of sublayers start divided by sqrt(2 * num_layers)")
    parametrization: str = knob("standard", "", "standard, mup (over width) or completep (over width and depth)")
    base_width: int = knob(256, "features", "d_model at which the muP hyperparameters were tuned")
    base_depth: int = knob(2, "layers", "num_layers at which the CompleteP hyperparameters were tuned")
    rotary: Rotary = Rotary()
    experts: Experts = Experts()
    disentangled: Disentangled = Disentangled()

    @property
    def has_position_table(self) -> bool:
        """Whether a learned position is added to each embedding."""
        return self.positions == "learned" or (self.positions == "disentangled" and self.disentangled.absolute)

    @property
    def distances(self) -> int:
        """Rows on each side of the table of disentangled positions; 0 = there is none."""
        by = self.disentangled
        return (by.buckets or by.distance or self.context_length) if self.positions == "disentangled" else 0

    @property
    def positional_scores(self) -> int:
        """Products with distances that are added to one of a query with a key."""
        by = self.disentangled
        return by.content_to_position + by.position_to_content if self.positions == "disentangled" else 0

    @property
    def has_key_bias(self) -> bool:
        """Whether the projection to keys has a bias."""
        return self.qkv_bias and (self.positions != "disentangled" or self.disentangled.key_bias)

    @property
    def sights(self) -> tuple[Sight, ...]:
        """What the layers of one period of ``attention_pattern`` see."""
        return tuple(
            Sight(0 if kind == "dense" else self.band_width, kind == "strided") for kind in self.attention_pattern
        )

    @property
    def kv_heads(self) -> int:
        """Heads of keys and of values."""
        return self.num_kv_heads or self.num_heads

    @property
    def d_expert(self) -> int:
        """Hidden width of an expert."""
        return self.experts.d_ff or self.d_ff

    @property
    def expert_layers(self) -> int:
        """Layers that have experts in the place of an MLP."""
        return self.num_layers // self.experts.every if self.experts.count else 0

    @property
    def is_relative(self) -> bool:
        """Whether scores depend on content and distance together, as in Transformer-XL."""
        return self.positions in ("transformer_xl", "xlnet")

    @property
    def has_type_table(self) -> bool:
        """Whether types of tokens are added to embeddings; XLNet compares those of two tokens."""
        return bool(self.token_types) and self.positions != "xlnet"

    @property
    def has_grouped_heads(self) -> bool:
        """Whether each head of keys and values serves several of queries."""
        return self.kv_heads < self.num_heads

    @property
    def d_embedding(self) -> int:
        """Width of the token embeddings and of the output projection."""
        return self.embedding_width or self.d_model

    @property
    def pairs(self) -> bool:
        """Whether there is a ``pair_head``; where ``outputs`` are in the place of logits, it is left out."""
        return self.pair_head and not self.outputs

    @property
    def has_logits(self) -> bool:
        """Whether final states become logits: an encoder that has neither a transform nor a bias for them is bare."""
        return self.causal or self.head_transform or self.logit_bias or self.positions == "xlnet"

    @property
    def transforms(self) -> bool:
        """Whether there is a ``head_transform``; where ``outputs`` are in the place of logits, it is left out."""
        return self.head_transform and not self.outputs

    @property
    def discriminates(self) -> bool:
        """Whether there is the head of a ``discriminator``; ``outputs`` take its place, as that of logits."""
        return self.discriminator and not self.outputs

    @property
    def generates(self) -> bool:
        """Whether there is a generator; where ``outputs`` are in the place of a discriminator, it is left out."""
        return self.generator_layers > 0 and self.discriminates

    @property
    def generator(self) -> "Model":
        """The generator of a model that has one, as a model: an encoder with logits, on the same embeddings."""
        return dataclasses.replace(
            self,
            num_layers=self.generator_layers,
            d_model=self.generator_width,
            num_heads=self.generator_width // self.d_head,
            d_ff=self.d_ff * self.generator_width // self.d_model,
            embedding_width=self.d_embedding,
            head_transform=True,
            logit_bias=True,
            pooler=False,
            discriminator=False,
            generator_layers=0,
            generator_width=0,
        )

    @property
    def d_summed(self) -> int:
        """Width in which embeddings, positions and types are added."""
        return self.d_embedding if self.narrow_embedding else self.d_model

    @property
    def encoder(self) -> "Model":
        """The encoder of a model that has one, as a model: it sees both sides, and has ``encoder_layers``."""
        return dataclasses.replace(self, num_layers=self.encoder_layers, encoder_layers=0, causal=False)

    @property
    def stored_layers(self) -> int:
        """Layers that have weights of their own."""
        return self.layer_groups or self.num_layers

    @property
    def d_output(self) -> int:
        """Width of final hidden states: of an encoder's, a ``head_transform`` makes it that of the embeddings."""
        return self.d_embedding if self.causal else self.d_model

    @property
    def padded_vocab(self) -> int:
        """Rows of the token embedding: ``vocab_size`` rounded up to ``vocab_multiple``."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple


@dataclasses.dataclass(frozen=True)
class Compute:
    dtype: str = knob("bfloat16", "", "matrix products: bfloat16 or float32; norms, softmax, loss: always float32")
    quantization: str = knob("none", "", "8-bit products with the blocks' matrices: none, int8 or fp8 (needs qwix)")
    decode_int8: str = knob(
        "none",
        "",
        "what is in 8 bits while texts are continued (scaling plan --step=generate; elsewhere --int8): none, weights "
        "(matrices of blocks and tables), cache (keys and values) or both",
    )
    remat: str = knob(
        "none",
        "",
        "what the backward pass recomputes: none, dots, projections, full, or all but some of qkv, attention, sum and "
        "hidden, such as qkv+sum; qkv@host keeps it in the host's memory; projections:16 keeps in the first 16 layers "
        "only; auto chooses by the memory",
    )
    scan_unroll: int = knob(
        1,
        "",
        "periods of the attention pattern in one iteration of the loop over layers; more is faster on CPUs, but "
        "takes longer to compile",
    )
    attention_block: int = knob(512, "tokens", "block of queries and of keys in the TPU's attention kernel")
    loss_chunk: int = knob(512, "tokens", "positions of each sequence whose logits are computed at once; 0 = all")

    @property
    def int8_weights(self) -> bool:
        """Whether the matrices of blocks and the tables are in 8 bits."""
        return self.decode_int8 in ("weights", "both")

    @property
    def int8_cache(self) -> bool:
        """Whether keys and values are in 8 bits."""
        return self.decode_int8 in ("cache", "both")


@dataclasses.dataclass(frozen=True)
class Network:
    """A model and how it is computed: everything that a forward pass depends on."""

    model: Model
    compute: Compute = Compute()

    @property
    def of_generator(self) -> "Network":
        """That of the generator of a model that has one (``Model.generator``)."""
        return Network(self.model.generator, self.compute)
