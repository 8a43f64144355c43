"""BERT, RoBERTa (and XLM-RoBERTa) and DistilBERT: encoders with norms after sums, and a product before the logits."""

from collections.abc import Sequence

from scaling.interop.family import ACTIVATIONS, Family, Key

KEYS = (
    Key("vocab_size", "vocab_size", 30_522),
    Key("max_position_embeddings", "context_length", 512),
    Key("hidden_size", "d_model", 768),
    Key("num_hidden_layers", "num_layers", 12),
    Key("num_attention_heads", "num_heads", 12),
    Key("intermediate_size", "d_ff", 3072),
    Key("type_vocab_size", "token_types", 2),
    Key("layer_norm_eps", "norm_epsilon", 1e-12),
    Key("hidden_dropout_prob", "dropout_embedding dropout_residual", 0.1),
    Key("attention_probs_dropout_prob", "dropout_attention", 0.1),
    Key("initializer_range", "init_std", 0.02),
)
ENCODER = {"causal": False, "norm": "post", "embedding_norm": True, "scale_residual_init": False}
EMBEDDINGS = {
    "embeddings.word_embeddings.weight": ("tokens", "V W"),
    "embeddings.position_embeddings.weight": ("positions", "P S"),
    "embeddings.token_type_embeddings.weight": ("types", "T S"),
    "embeddings.LayerNorm.weight": ("embedding_norm.gain", "S"),
    "embeddings.LayerNorm.bias": ("embedding_norm.bias", "S"),
}
POOLER = {"pooler.dense.weight": ("pooler", "Q D"), "pooler.dense.bias": ("pooler_bias", "Q")}


def with_defaults(keys: tuple[Key, ...], **defaults: float) -> tuple[Key, ...]:
    """The keys with other default values, by our knobs."""
    return tuple(key._replace(default=defaults.get(key.ours, key.default)) for key in keys)


def linear(theirs: str, ours: str, rows: str, columns: str) -> dict[str, tuple[str, str]]:
    """The weights [rows, columns] and the bias [rows] of a module of theirs."""
    return {f"{theirs}.weight": (ours, f"{rows} {columns}"), f"{theirs}.bias": (f"{ours}_bias", rows)}


def norm(theirs: str, ours: str, width: str = "D") -> dict[str, tuple[str, str]]:
    """Gain and bias of a norm of theirs."""
    return {f"{theirs}.weight": (f"{ours}.gain", width), f"{theirs}.bias": (f"{ours}.bias", width)}


def head(dense: str, layer_norm: str, decoder: str, bias: str) -> dict[str, tuple[str, str]]:
    """What is between the last block and logits: names of theirs for a product, a norm, the table and the bias."""
    tensors = linear(dense, "transform", "W", "D") | norm(layer_norm, "transform_norm", "W")
    return tensors | {f"{decoder}.weight": ("unembedding", "V W"), bias: ("logit_bias", "V")}


def attention(names: Sequence[str], ours: str) -> dict[str, tuple[str, str]]:
    """The tensors of an attention of ours and its norm, by the names of modules that ``block`` has first."""
    query, key, value, out, its_norm = names
    return (
        linear(query, f"{ours}.query", "HK", "D")
        | linear(key, f"{ours}.key", "NK", "D")
        | linear(value, f"{ours}.value", "NK", "D")
        | linear(out, f"{ours}.out", "D", "HK")
        | norm(its_norm, f"{ours}_norm")
    )


def block(names: str) -> dict[str, tuple[str, str]]:
    """The tensors of a layer, by the names of their modules.

    Args:
        names: of queries, keys, values, the product after attention, its norm, the two products of the MLP, its norm.
    """
    *of_attention, up, down, mlp_norm = names.split()
    return (
        attention(of_attention, "attention")
        | linear(up, "mlp.up", "F", "D")
        | linear(down, "mlp.down", "D", "F")
        | norm(mlp_norm, "mlp_norm")
    )


INSIDE = block(
    "attention.self.query attention.self.key attention.self.value attention.output.dense attention.output.LayerNorm "
    "intermediate.dense output.dense output.LayerNorm"
)
UNUSED = "classifier_dropout gradient_checkpointing"
# Without ties, old and new versions of transformers differ in which of two biases they add.
ONLY = {"is_decoder": False, "position_embedding_type": "absolute", "tie_word_embeddings": True}
BUFFERS = r"embeddings\.(position_ids|token_type_ids)"

BERT = Family(
    "bert", "BertForMaskedLM", "bert.", "encoder.layer.",
    keys=(*KEYS, Key("hidden_act", "activation", "gelu", ACTIVATIONS)),
    fixed=ENCODER,
    outside=EMBEDDINGS | POOLER | head(
        "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder",
        "cls.predictions.bias",
    ) | {"cls.seq_relationship.weight": ("pair_head", "2 D"), "cls.seq_relationship.bias": ("pair_bias", "2")},
    inside=INSIDE,
    only=ONLY,
    unused=UNUSED,
    buffers=BUFFERS + r"|cls\.predictions\.decoder\.bias",
    bare_class="BertModel",
    pairs_class="BertForPreTraining",
    optional={
        "pooler.dense.weight": "pooler", "cls.predictions.transform.dense.weight": "head_transform logit_bias",
        "cls.seq_relationship.weight": "pair_head",
    },
    respelled={".gamma": ".weight", ".beta": ".bias"},
)  # fmt: skip


def _roberta(model_type: str, class_name: str, bare_class: str, vocab_size: int) -> Family:
    return Family(
        model_type, class_name, "roberta.", "encoder.layer.",
        # The activation of its head is fixed.
        keys=(
            *with_defaults(KEYS, vocab_size=vocab_size), Key("hidden_act", "activation", "gelu", {"gelu": "gelu"}),
        ),
        fixed=ENCODER | {"position_offset": 2},
        outside=EMBEDDINGS | POOLER | head("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"),
        inside=INSIDE,
        only=ONLY | {"pad_token_id": 1},
        unused=UNUSED,
        buffers=BUFFERS + r"|lm_head\.decoder\.bias",
        bare_class=bare_class,
        optional={"pooler.dense.weight": "pooler", "lm_head.dense.weight": "head_transform logit_bias"},
        counts_offset=True,
    )  # fmt: skip


ROBERTA = _roberta("roberta", "RobertaForMaskedLM", "RobertaModel", 50_265)
XLM_ROBERTA = _roberta("xlm-roberta", "XLMRobertaForMaskedLM", "XLMRobertaModel", 30_522)

DISTILBERT = Family(
    "distilbert", "DistilBertForMaskedLM", "distilbert.", "transformer.layer.",
    keys=(
        Key("vocab_size", "vocab_size", 30_522),
        Key("max_position_embeddings", "context_length", 512),
        Key("dim", "d_model", 768),
        Key("n_layers", "num_layers", 6),
        Key("n_heads", "num_heads", 12),
        Key("hidden_dim", "d_ff", 3072),
        Key("activation", "activation", "gelu", ACTIVATIONS),
        Key("dropout", "dropout_embedding dropout_residual", 0.1),
        Key("attention_dropout", "dropout_attention", 0.1),
        Key("initializer_range", "init_std", 0.02),
    ),
    fixed=ENCODER | {"norm_epsilon": 1e-12},
    outside=EMBEDDINGS | head("vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias"),
    inside=block(
        "attention.q_lin attention.k_lin attention.v_lin attention.out_lin sa_layer_norm ffn.lin1 ffn.lin2 "
        "output_layer_norm"
    ),
    only={"tie_word_embeddings": True},
    unused="qa_dropout seq_classif_dropout sinusoidal_pos_embds",  # its sinusoids are stored as if they were learned
    buffers=BUFFERS,
    bare_class="DistilBertModel",
    optional={"vocab_transform.weight": "head_transform logit_bias"},
)  # fmt: skip
