import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from scaling.catalog import families, flops, size_report, sizes
from scaling.config.resolve import resolve
from scaling.config.schema import Config, Data, Disentangled, Experts, Model, Train, default_config, freeze
from scaling.model import decoder
from tests import tiny

# arXiv 2005.14165, table D.1, typed in again from the paper: parameters in millions, PF-days, FLOPs.
TABLE_D1 = {
    "125m": (125, 2.60, 2.25e20),
    "350m": (356, 7.42, 6.41e20),
    "760m": (760, 15.8, 1.37e21),
    "1300m": (1320, 27.5, 2.38e21),
    "2700m": (2650, 55.2, 4.77e21),
    "6700m": (6660, 139, 1.20e22),
    "13b": (12850, 268, 2.31e22),
    "175b": (174600, 3640, 3.14e23),
}


@pytest.mark.parametrize("name", TABLE_D1)
def test_gpt3_agrees_with_table_d1(name):
    millions, pf_days, train_flops = TABLE_D1[name]
    counted = sizes.parameters(sizes.GPT3[name].model()).total
    assert counted == pytest.approx(millions * 1e6, rel=0.01)
    assert flops.pf_days(counted) == pytest.approx(pf_days, rel=0.01)
    assert flops.six_n(counted) * sizes.GPT3_TOKENS == pytest.approx(train_flops, rel=0.01)


def test_all_published_sizes_are_there():
    assert set(sizes.GPT3) == set(TABLE_D1)
    assert len(sizes.GPT2) == 4
    assert len(sizes.GPT1) == 1


@pytest.mark.parametrize(
    ("name", "count"), [("124m", 124_439_808), ("355m", 354_823_168), ("774m", 774_030_080), ("1558m", 1_557_611_200)]
)
def test_gpt2_equals_the_released_weights(name, count):
    assert sizes.parameters(sizes.GPT2[name].model()).total == count


def test_gpt1_equals_the_released_weights():
    assert sizes.parameters(sizes.GPT1["gpt1"].model()).total == 116_534_784


@pytest.mark.parametrize("size", sizes.ALL, ids=lambda s: f"{s.family}-{s.name}")
def test_shapes_are_consistent(size):
    assert size.num_heads * size.d_head == size.d_model
    assert size.batch_tokens % size.context_length == 0


VARIANTS = {
    "pre-norm, tied": {},
    "post-norm": {"norm": "post"},
    "untied, padded": {"tied_embedding": False, "vocab_size": 1000, "vocab_multiple": 64},
    "wide heads, narrow mlp": {"d_head": 24, "d_ff": 40},
    **tiny.SWITCHES,
    "encoder": families.BERT | {"pooler": True, "pair_head": True},
    "encoder, XLNet": families.XLNET | {"norm": "post", "vocab_multiple": 8},
    "decoder, Transformer-XL": families.TRANSFORMER_XL | {"norm": "post"},
    "encoder, narrow": families.ROBERTA | {"embedding_width": 16, "vocab_multiple": 8},
    "encoder, shared": families.BERT | {"embedding_width": 16, "narrow_embedding": True, "layer_groups": 1},
    "encoder, classes": families.BERT | {"outputs": 3, "pooler": True, "pair_head": True},
    "encoder, DeBERTa": families.DEBERTA | {"pooler": True, "vocab_multiple": 8},
    "encoder, DeBERTa 3": families.DEBERTA_3,
    "encoder, absolute": families.DEBERTA
    | {"disentangled": Disentangled(distance=5, position_to_content=False, absolute=True), "layer_groups": 1},
    "encoder and decoder": {"encoder_layers": 2},
    "encoder and decoder, 2017": families.TRANSFORMER | {"encoder_layers": 3, "norm": "post", "dropout_residual": 0.1},
    "encoder and decoder, T5": families.T5 | {"encoder_layers": 4, "d_head": 16},
    "encoder and decoder, T5 1.1": families.T5_11 | {"encoder_layers": 3, "vocab_multiple": 8},
    "encoder and decoder, BART": families.BART | {"encoder_layers": 2, "norm": "post", "token_types": 2},
    "encoder and decoder, grouped": {"encoder_layers": 1, "num_kv_heads": 2, "qk_norm": True, "qkv_bias": False},
    "discriminator": families.ELECTRA | {"embedding_width": 16},
    "discriminator and generator": families.ELECTRA | {"generator_layers": 2, "generator_width": 16},
    "discriminator and generator, narrow": families.ELECTRA
    | {"generator_layers": 3, "generator_width": 8, "embedding_width": 16, "vocab_multiple": 8},
    "discriminator and generator, relative": families.ELECTRA
    | {"generator_layers": 3, "generator_width": 32, "positions": "relative", "norm": "pre", "embedding_norm": False},
    "discriminator, classes": families.ELECTRA | {"generator_layers": 2, "generator_width": 16, "outputs": 3},
    "encoder, narrow, classes": families.BERT | {"outputs": 3, "embedding_width": 16},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_counts_equal_the_real_tree(changes):
    model = dataclasses.replace(
        Model(vocab_size=97, context_length=16, num_layers=3, d_model=32, num_heads=4, d_head=8, d_ff=128), **changes
    )
    tree = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(decoder.abstract(model)))
    assert sizes.parameters(model).tree == tree


@pytest.mark.parametrize("size", [sizes.GPT1["gpt1"], sizes.GPT2["1558m"], sizes.GPT3["175b"]], ids=lambda s: s.name)
def test_published_sizes_equal_the_real_tree(size):
    tree = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(decoder.abstract(size.model())))
    assert sizes.parameters(size.model()).tree == tree


def _glam(layers, width, heads, vocabulary):
    experts = Experts(count=64, every=2, gated=False)
    return Model(
        vocab_size=vocabulary, num_layers=layers, d_model=width, num_heads=heads, d_head=128, d_ff=4 * width,
        gated=True, positions="rotary", norm_kind="rms", qkv_bias=False, out_bias=False, mlp_bias=False,
        experts=experts,
    )  # fmt: skip


# Total and active parameters, as printed: GLaM, arXiv 2112.06905, table 4; Mixtral, arXiv 2401.04088, section 1.
EXPERTS = {
    "GLaM 1.7B/64E": (_glam(24, 2048, 16, 32_000), 27e9, 1.879e9),
    "GLaM 8B/64E": (_glam(32, 4096, 32, 32_000), 143e9, 9.8e9),
    "GLaM 64B/64E": (_glam(64, 8192, 128, 256_000), 1.162e12, 96.6e9),
    "Mixtral 8x7B": (
        dataclasses.replace(
            _glam(32, 4096, 32, 32_000), d_ff=14_336, num_kv_heads=8, tied_embedding=False, experts=Experts(count=8)
        ),
        46.7e9,
        12.9e9,
    ),
}


@pytest.mark.parametrize(("model", "total", "active"), EXPERTS.values(), ids=EXPERTS)
def test_experts_that_a_token_does_not_take_are_not_active(model, total, active):
    counted = sizes.parameters(model)
    assert (counted.total, counted.active) == pytest.approx((total, active), rel=0.01)
    assert flops.forward_per_token(model, 1) == pytest.approx(
        2 * (counted.active - counted.token_embedding * (not model.tied_embedding)), rel=0.001
    )


def test_conventions():
    model = sizes.GPT3["125m"].model()
    counted = sizes.parameters(model)
    assert counted.kaplan == 12 * 12 * 768**2
    assert counted.chinchilla == counted.kaplan + 50_257 * 768
    assert counted.total == counted.without_embeddings + (50_257 + 2048) * 768
    assert counted.tree - counted.total == (50_304 - 50_257) * 768
    untied = sizes.parameters(dataclasses.replace(model, tied_embedding=False))
    assert untied.total - counted.total == 50_257 * 768
    assert untied.chinchilla == counted.chinchilla  # the last layer counts once, tied or not


@pytest.mark.parametrize("window", [0, 1, 3, 7, 8, 100])
def test_positions_seen_equals_the_mask(window):
    length = 7
    i, j = np.indices((length, length))
    mask = (j <= i) & ((i - j < window) if window else True)
    assert flops.positions_seen(length, window) == pytest.approx(mask.sum() / length)
    if window:
        mask |= (j <= i) & ((i - j) % window == 0)
        assert flops.positions_seen(length, window, True) == pytest.approx(mask.sum() / length)
    both = (np.abs(i - j) < window) if window else np.ones_like(mask)
    assert flops.positions_seen(length, window, causal=False) == pytest.approx(both.sum() / length)


def test_forward_flops_by_hand():
    model = Model(
        vocab_size=11,
        num_layers=2,
        d_model=6,
        num_heads=2,
        d_head=3,
        d_ff=10,
        context_length=4,
        attention_pattern=("dense", "banded"),
        band_width=2,
    )
    a_block = 2 * (3 * 6 * 6 + 6 * 6 + 2 * 6 * 10)
    dense = 2 * 2 * 6 * (1 + 2 + 3 + 4) / 4
    banded = 2 * 2 * 6 * (1 + 2 + 2 + 2) / 4
    assert flops.forward_per_token(model) == pytest.approx(2 * a_block + dense + banded + 2 * 6 * 11)
    assert flops.training_per_token(model) == 3 * flops.forward_per_token(model)
    logits = 3 * 2 * 6 * 11
    assert flops.training_per_token(model, predicted=0.25) == flops.training_per_token(model) - 0.75 * logits
    assert flops.forward_per_token(model, sequence_length=1) < flops.forward_per_token(model)


def test_exact_flops_are_close_to_6n_for_large_models():
    model = sizes.GPT3["175b"].model()
    assert flops.training_per_token(model) == pytest.approx(flops.six_n(sizes.parameters(model).total), rel=0.02)


def test_apply_writes_the_shape():
    config = sizes.GPT3["760m"].apply(default_config())
    resolved = resolve(freeze(config))
    assert sizes.parameters(resolved.model) == sizes.parameters(sizes.GPT3["760m"].model())
    assert resolved.optimizer.peak_lr == 2.5e-4
    assert resolved.train.batch_tokens == 524_288


def test_report_holds_every_size_in_both_forms():
    rows = json.loads(size_report.to_json())
    assert [r["name"] for r in rows] == [s.name for s in (*sizes.ALL, *families.ALL)]
    for r in rows:
        if r["family"] == "GPT-3":
            assert abs(r["deviation_percent"]["parameters"]) < 1
            assert abs(r["deviation_percent"]["pf_days"]) < 1
    text = size_report.to_text()
    assert all(name in text for name in ("GPT-1", "GPT-2 1558m", "GPT-3 175b", "24*128 is not 2048"))


def test_a_generator_costs_its_products_and_the_logits_of_hidden_tokens():
    """By hand: a discriminator of width 8 and a generator of width 4, with 1 and 2 layers, on embeddings of 6."""
    model = Model(
        vocab_size=10, num_layers=1, d_model=8, num_heads=2, d_head=4, d_ff=16, causal=False, embedding_width=6,
        narrow_embedding=True, discriminator=True, generator_layers=2, generator_width=4,
    )  # fmt: skip
    blocks = (4 * 8 * 8 + 2 * 8 * 16) + 2 * (4 * 4 * 4 + 2 * 4 * 8)
    seen = 4 * 8 * 5 + 2 * 4 * 4 * 5
    heads, logits = 8 * 8 + 8, (10 + 4) * 6
    config = Config(model=model, train=Train(sequence_length=5), data=Data(objective="replaced_token"))
    assert flops.forward_per_token(model, 5) == pytest.approx(2 * (blocks + heads + logits) + seen)
    assert flops.of_pretraining(config) == pytest.approx(3 * (2 * (blocks + heads + 0.15 * logits) + seen))


def test_a_source_of_another_length_costs_what_its_products_cost():
    """By hand: 2 and 3 layers of width 8 with 2 heads of 4 and an MLP of 16; a source of 6 for a target of 4."""
    model = Model(vocab_size=10, num_layers=3, encoder_layers=2, d_model=8, num_heads=2, d_head=4, d_ff=16)
    attention, mlp = 4 * 8 * 8, 2 * 8 * 16
    source = 6 * 2 * (2 * (attention + mlp) + 3 * 2 * 8 * 8)  # the encoder; keys and values for each decoder layer
    target = 4 * 2 * (3 * (attention + 2 * 8 * 8 + mlp) + 10 * 8)  # queries and outputs of the second attention
    seen = 2 * 6 * 6 + 3 * 4 * 6 + 3 * (1 + 2 + 3 + 4)  # pairs of a query and a key: encoder, across, decoder
    assert flops.forward_per_token(model, 4, 6) * 4 == pytest.approx(source + target + 4 * 8 * seen)
    assert flops.forward_per_token(model, 4) == flops.forward_per_token(model, 4, 4)
    config = Config(model=model, train=Train(sequence_length=4), data=Data(source_length=6, objective="pairs"))
    assert flops.of_pretraining(config) == pytest.approx(3 * flops.forward_per_token(model, 4, 6))
