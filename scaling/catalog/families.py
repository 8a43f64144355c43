"""The models that followed GPT: what each family switches on, and its published shapes.

Sources are given with each family. What a shape leaves out is GPT-3's. Nothing here needs JAX.
"""

from typing import Any

from scaling.catalog.sizes import Size
from scaling.config.schema import Disentangled, Experts, Rotary

_NO_BIAS = dict(qkv_bias=False, out_bias=False, mlp_bias=False)
_NO_TYPES = dict(token_types=0)
_SWIGLU = dict(gated=True, activation="silu")

# CTRL (arXiv 1909.05858, section 3.2, and the released code).
CTRL = dict(
    positions="sinusoidal",
    scaled_embedding=True,
    activation="relu",
    logit_bias=True,
    norm_epsilon=1e-6,
    vocab_multiple=1,
)
# OPT (arXiv 2205.01068, table 1); the 350M model has the norms after, and narrow embeddings.
OPT = dict(activation="relu", position_offset=2)
OPT_350M = OPT | dict(embedding_width=512)
# GPT-Neo (the released configurations): local attention in every other layer, scores that are not scaled.
GPT_NEO = dict(attention_pattern=("dense", "banded"), band_width=256, attention_scale=1.0, qkv_bias=False)
# GPT-J (the released configuration): one norm for attention and MLP.
GPT_J = dict(
    positions="rotary",
    rotary=Rotary(dim=64, interleaved=True),
    parallel="one_norm",
    qkv_bias=False,
    out_bias=False,
    tied_embedding=False,
    logit_bias=True,
)
# GPT-NeoX-20B (arXiv 2204.06745, section 2).
GPT_NEOX = dict(positions="rotary", rotary=Rotary(dim=24), parallel="two_norms", tied_embedding=False)
# BLOOM (arXiv 2211.05100, section 3.2 and table 3).
BLOOM = dict(positions="alibi", embedding_norm=True)
# PaLM (arXiv 2204.02311, section 2 and table 1): one head of keys and values, no biases anywhere.
PALM = dict(
    positions="rotary", parallel="one_norm", num_kv_heads=1, norm_bias=False, norm_epsilon=1e-6, **_NO_BIAS, **_SWIGLU
)
# LaMDA (arXiv 2201.08239, section 3): T5's relative positions, a gated GELU.
LAMDA = dict(positions="relative", gated=True, norm_kind="rms", **_NO_BIAS)
# GLaM (arXiv 2112.06905, section 4 and table 4): 64 experts in every second layer, of which a token takes two.
GLAM = LAMDA | dict(experts=Experts(count=64, every=2, gated=False))
# LLaMA (arXiv 2302.13971, section 2.2); Llama 2 (arXiv 2307.09288, section 2.2); Llama 3 (arXiv 2407.21783, table 3).
LLAMA = dict(positions="rotary", norm_kind="rms", tied_embedding=False, norm_epsilon=1e-6, **_NO_BIAS, **_SWIGLU)
LLAMA2 = LLAMA | dict(norm_epsilon=1e-5)
LLAMA3 = LLAMA2 | dict(rotary=Rotary(theta=500_000.0), num_kv_heads=8)
LLAMA31 = LLAMA3 | dict(
    rotary=Rotary(theta=500_000.0, scaling="llama3", factor=8.0, original_length=8192, low=1.0, high=4.0)
)
# Mistral 7B (arXiv 2310.06825, section 2): a sliding window in all layers.
MISTRAL = LLAMA2 | dict(num_kv_heads=8, attention_pattern=("banded",), band_width=4096)
# Mixtral 8x7B (arXiv 2401.04088, table 1).
MIXTRAL = LLAMA2 | dict(num_kv_heads=8, rotary=Rotary(theta=1_000_000.0), experts=Experts(count=8))

# BERT (arXiv 1810.04805, section 3.1, and the released code) and RoBERTa (arXiv 1907.11692, section 3): encoders.
BERT = dict(
    causal=False,
    embedding_norm=True,
    activation="gelu",
    norm_epsilon=1e-12,
    token_types=2,
    head_transform=True,
    logit_bias=True,
    scale_residual_init=False,
    vocab_multiple=1,
)
# ELECTRA's discriminator (arXiv 2003.10555, table 6), without its generator.
ELECTRA = BERT | dict(discriminator=True, head_transform=False, logit_bias=False, narrow_embedding=True)
ELECTRA_SMALL = ELECTRA | dict(embedding_width=128)
ROBERTA = BERT | dict(norm_epsilon=1e-5, token_types=1, position_offset=2)
# XLM (arXiv 1901.07291, section 5.1; counts are those of arXiv 1911.02116, table 6): no product before the logits, and
# a table of 15 languages, or none.
XLM = BERT | dict(token_types=15, head_transform=False)
# DeBERTa (arXiv 2006.03654, section 3 and table 8) and DeBERTa 3 (arXiv 2111.09543, table 1), as they are released.
DEBERTA = BERT | dict(
    positions="disentangled", disentangled=Disentangled(key_bias=False), norm_epsilon=1e-7, token_types=0
)
DEBERTA_3 = DEBERTA | dict(disentangled=Disentangled(buckets=256, shared=True, norm=True))
# The Transformer (arXiv 1706.03762, sections 3 and 5, table 3): an encoder with a decoder.
TRANSFORMER = dict(
    positions="sinusoidal",
    sinusoid="interleaved",
    scaled_embedding=True,
    activation="relu",
    norm_epsilon=1e-6,
    scale_residual_init=False,
    vocab_multiple=1,
)
# T5 (arXiv 1910.10683, section 2.1, and the released configurations); its version 1.1, with a gate and untied.
T5 = dict(
    positions="relative",
    norm_kind="rms",
    norm_epsilon=1e-6,
    attention_scale=1.0,
    activation="relu",
    scaled_output=True,
    scale_residual_init=False,
    vocab_multiple=1,
    **_NO_BIAS,
)
T5_11 = T5 | dict(gated=True, activation="gelu_tanh", scaled_output=False, tied_embedding=False)
# BART (arXiv 1910.13461, section 2.1, and the released code).
BART = dict(position_offset=2, embedding_norm=True, activation="gelu", scale_residual_init=False, vocab_multiple=1)


# Transformer-XL (arXiv 1901.02860, sections 3 and 4.1, and the released code): segments of 150 tokens, memory of 150.
TRANSFORMER_XL = dict(
    positions="transformer_xl",
    segment_length=150,
    memory_length=150,
    activation="relu",
    scaled_embedding=True,
    qkv_bias=False,
    out_bias=False,
    logit_bias=True,
    scale_residual_init=False,
    vocab_multiple=1,
)
# XLNet (arXiv 1906.08237, section 2, and the released code).
XLNET = dict(
    positions="xlnet",
    causal=False,
    activation="gelu",
    norm_epsilon=1e-12,
    token_types=5,
    qkv_bias=False,
    out_bias=False,
    logit_bias=True,
    scale_residual_init=False,
    vocab_multiple=1,
)


def _size(
    family: str,
    name: str,
    shape: tuple[int, int, int, int],  # layers, width, heads, width of the MLP
    context_length: int,
    vocab_size: int,
    billions: float,
    batch_tokens: int,
    peak_lr: float | None,
    switches: dict[str, Any],
    **rest: Any,
) -> Size:
    layers, d_model, heads, d_ff = shape
    d_head = rest.pop("d_head", d_model // heads)
    return Size(
        name=name,
        family=family,
        num_layers=layers,
        d_model=d_model,
        num_heads=heads,
        d_head=d_head,
        d_ff=d_ff,
        context_length=context_length,
        vocab_size=vocab_size,
        batch_tokens=batch_tokens,
        peak_lr=peak_lr,
        printed_parameters=billions * 1e9,
        switches=switches,
        **rest,
    )


def _both(
    family: str,
    name: str,
    shape: tuple[int, int, int, int],
    context_length: int,
    vocab_size: int,
    billions: float,
    batch_tokens: int,
    peak_lr: float,
    switches: dict[str, Any],
    **rest: Any,
) -> Size:
    """A decoder with an encoder of as many layers."""
    switches = switches | dict(encoder_layers=shape[0])
    return _size(family, name, shape, context_length, vocab_size, billions, batch_tokens, peak_lr, switches, **rest)


_M = 1_048_576

ALL = (
    _size("CTRL", "1600m", (48, 1280, 16, 8192), 256, 246_534, 1.63, 1024 * 256, None, CTRL),
    _size("OPT", "125m", (12, 768, 12, 3072), 2048, 50_272, 0.125, _M // 2, 6.0e-4, OPT),
    _size("OPT", "350m", (24, 1024, 16, 4096), 2048, 50_272, 0.331, _M // 2, 3.0e-4, OPT_350M, norm="post"),
    _size("OPT", "1300m", (24, 2048, 32, 8192), 2048, 50_272, 1.316, _M, 2.0e-4, OPT),
    _size("OPT", "6700m", (32, 4096, 32, 16_384), 2048, 50_272, 6.66, 2 * _M, 1.2e-4, OPT),
    _size("OPT", "66b", (64, 9216, 72, 36_864), 2048, 50_272, 65.7, 2 * _M, 0.8e-4, OPT),
    _size("OPT", "175b", (96, 12_288, 96, 49_152), 2048, 50_272, 175, 2 * _M, 1.2e-4, OPT),
    _size("GPT-Neo", "1300m", (24, 2048, 16, 8192), 2048, 50_257, 1.316, _M // 2, 2.0e-4, GPT_NEO),
    _size("GPT-Neo", "2700m", (32, 2560, 20, 10_240), 2048, 50_257, 2.65, _M // 2, 1.6e-4, GPT_NEO),
    _size("GPT-J", "6b", (28, 4096, 16, 16_384), 2048, 50_400, 6.05, 2 * _M, 1.2e-4, GPT_J),
    _size("GPT-NeoX", "20b", (44, 6144, 64, 24_576), 2048, 50_432, 20.55, 1536 * 2048, 0.97e-4, GPT_NEOX),
    _size("BLOOM", "560m", (24, 1024, 16, 4096), 2048, 250_880, 0.559, 256 * 2048, 3.0e-4, BLOOM),
    _size("BLOOM", "7100m", (30, 4096, 32, 16_384), 2048, 250_880, 7.069, 512 * 2048, 1.2e-4, BLOOM),
    _size("BLOOM", "176b", (70, 14_336, 112, 57_344), 2048, 250_880, 176.2, 2048 * 2048, 6.0e-5, BLOOM),
    _size("PaLM", "8b", (32, 4096, 16, 16_384), 2048, 256_000, 8.63, 512 * 2048, 1e-2, PALM, d_head=256),
    _size("PaLM", "62b", (64, 8192, 32, 32_768), 2048, 256_000, 62.5, 512 * 2048, 1e-2, PALM, d_head=256),
    _size("PaLM", "540b", (118, 18_432, 48, 73_728), 2048, 256_000, 540.35, 2048 * 2048, 1e-2, PALM, d_head=256),
    _size("LaMDA", "137b", (64, 8192, 128, 65_536), 2048, 32_000, 137.0, 256 * 1024, None, LAMDA, d_head=128),
    _size("GLaM", "1700m64e", (24, 2048, 16, 8192), 1024, 32_000, 26.84, _M, None, GLAM, d_head=128),
    _size("GLaM", "8b64e", (32, 4096, 32, 16_384), 1024, 32_000, 142.9, _M, None, GLAM, d_head=128),
    _size("GLaM", "64b64e", (64, 8192, 128, 32_768), 1024, 256_000, 1161.8, _M, None, GLAM, d_head=128),
    _size("LLaMA", "7b", (32, 4096, 32, 11_008), 2048, 32_000, 6.74, 4 * _M, 3.0e-4, LLAMA),
    _size("LLaMA", "13b", (40, 5120, 40, 13_824), 2048, 32_000, 13.02, 4 * _M, 3.0e-4, LLAMA),
    _size("LLaMA", "33b", (60, 6656, 52, 17_920), 2048, 32_000, 32.5, 4 * _M, 1.5e-4, LLAMA),
    _size("LLaMA", "65b", (80, 8192, 64, 22_016), 2048, 32_000, 65.2, 4 * _M, 1.5e-4, LLAMA),
    _size("Llama 2", "7b", (32, 4096, 32, 11_008), 4096, 32_000, 6.74, 4 * _M, 3.0e-4, LLAMA2),
    _size("Llama 2", "13b", (40, 5120, 40, 13_824), 4096, 32_000, 13.02, 4 * _M, 3.0e-4, LLAMA2),
    _size("Llama 2", "70b", (80, 8192, 64, 28_672), 4096, 32_000, 68.98, 4 * _M, 1.5e-4, LLAMA2 | dict(num_kv_heads=8)),
    _size("Llama 3", "8b", (32, 4096, 32, 14_336), 8192, 128_256, 8.03, 16 * _M, 3.0e-4, LLAMA3),
    _size("Llama 3", "70b", (80, 8192, 64, 28_672), 8192, 128_256, 70.55, 16 * _M, 1.5e-4, LLAMA3),
    _size("Llama 3", "405b", (126, 16_384, 128, 53_248), 131_072, 128_256, 405.85, 16 * _M, 8.0e-5, LLAMA31),
    _size("Mistral", "7b", (32, 4096, 32, 14_336), 32_768, 32_000, 7.24, 4 * _M, None, MISTRAL),
    _size("Mixtral", "8x7b", (32, 4096, 32, 14_336), 32_768, 32_000, 46.7, 4 * _M, None, MIXTRAL),
    _size("BERT", "base", (12, 768, 12, 3072), 512, 30_522, 0.110, 256 * 512, 1.0e-4, BERT, norm="post"),
    _size("BERT", "large", (24, 1024, 16, 4096), 512, 30_522, 0.336, 256 * 512, 1.0e-4, BERT, norm="post"),
    # The paper prints 14M for small; its tables, matrices, biases and norms are 13.5M, as in the released weights.
    _size("ELECTRA", "small", (12, 256, 4, 1024), 512, 30_522, 0.0135, 128 * 128, 5e-4, ELECTRA_SMALL, norm="post"),
    _size("ELECTRA", "base", (12, 768, 12, 3072), 512, 30_522, 0.110, 256 * 512, 2.0e-4, ELECTRA, norm="post"),
    _size("ELECTRA", "large", (24, 1024, 16, 4096), 512, 30_522, 0.335, 2048 * 512, 2.0e-4, ELECTRA, norm="post"),
    _size("RoBERTa", "base", (12, 768, 12, 3072), 512, 50_265, 0.125, 8000 * 512, 6.0e-4, ROBERTA, norm="post"),
    _size("RoBERTa", "large", (24, 1024, 16, 4096), 512, 50_265, 0.355, 8000 * 512, 4.0e-4, ROBERTA, norm="post"),
    _size("XLM", "15", (12, 1024, 8, 4096), 512, 95_000, 0.250, 4096 * 256, 1.0e-4, XLM, norm="post"),
    _size("XLM", "100", (16, 1280, 16, 5120), 512, 200_000, 0.570, 4096 * 256, 1.0e-4, XLM | _NO_TYPES, norm="post"),
    _size("DeBERTa", "base", (12, 768, 12, 3072), 512, 50_265, 0.139, 2048 * 512, 2.0e-4, DEBERTA, norm="post"),
    _size("DeBERTa", "large", (24, 1024, 16, 4096), 512, 50_265, 0.405, 2048 * 512, 2.0e-4, DEBERTA, norm="post"),
    _size("DeBERTa 3", "base", (12, 768, 12, 3072), 512, 128_100, 0.184, 8192 * 512, 6.0e-4, DEBERTA_3, norm="post"),
    _size("DeBERTa 3", "large", (24, 1024, 16, 4096), 512, 128_100, 0.435, 8192 * 512, 3.0e-4, DEBERTA_3, norm="post"),
    _size(
        "Transformer-XL",
        "base",
        (16, 410, 10, 2100),
        900,
        267_735,
        0.151,
        9000,
        2.5e-4,
        TRANSFORMER_XL,
        d_head=41,
        norm="post",
    ),
    # Counts of the released weights; the paper says that they are like BERT's, which have no matrices for distances.
    _size("XLNet", "base", (12, 768, 12, 3072), 512, 32_000, 0.117, 256 * 512, 1.0e-4, XLNET, norm="post"),
    _size("XLNet", "large", (24, 1024, 16, 4096), 512, 32_000, 0.361, 8192 * 512, 4.0e-4, XLNET, norm="post"),
    # The paper prints 65M for base; its tables, matrices, biases and norms are 63.1M.
    _both("Transformer", "base", (6, 512, 8, 2048), 512, 37_000, 0.0631, 896 * 128, 6.99e-4, TRANSFORMER, norm="post"),
    _both("Transformer", "big", (6, 1024, 16, 4096), 512, 37_000, 0.213, 896 * 128, 4.94e-4, TRANSFORMER, norm="post"),
    # Counts of T5 and BART are those of the released weights; T5's paper prints 770M for large.
    _both("T5", "small", (6, 512, 8, 2048), 512, 32_128, 0.0605, 2048 * 512, 0.01, T5),
    _both("T5", "base", (12, 768, 12, 3072), 512, 32_128, 0.2229, 2048 * 512, 0.01, T5),
    _both("T5", "large", (24, 1024, 16, 4096), 512, 32_128, 0.7377, 2048 * 512, 0.01, T5),
    _both("T5", "3b", (24, 1024, 32, 16_384), 512, 32_128, 2.852, 2048 * 512, 0.01, T5, d_head=128),
    _both("T5", "11b", (24, 1024, 128, 65_536), 512, 32_128, 11.31, 2048 * 512, 0.01, T5, d_head=128),
    _both("T5 1.1", "small", (8, 512, 6, 1024), 512, 32_128, 0.07696, 2048 * 512, 0.01, T5_11, d_head=64),
    _both("T5 1.1", "base", (12, 768, 12, 2048), 512, 32_128, 0.2476, 2048 * 512, 0.01, T5_11),
    _both("T5 1.1", "large", (24, 1024, 16, 2816), 512, 32_128, 0.7832, 2048 * 512, 0.01, T5_11),
    _both("T5 1.1", "xl", (24, 2048, 32, 5120), 512, 32_128, 2.850, 2048 * 512, 0.01, T5_11),
    _both("T5 1.1", "xxl", (24, 4096, 64, 10_240), 512, 32_128, 11.13, 2048 * 512, 0.01, T5_11),
    _both("mT5", "small", (8, 512, 6, 1024), 1024, 250_112, 0.300, 1024 * 1024, 0.01, T5_11, d_head=64),
    _both("mT5", "base", (12, 768, 12, 2048), 1024, 250_112, 0.582, 1024 * 1024, 0.01, T5_11),
    _both("mT5", "large", (24, 1024, 16, 2816), 1024, 250_112, 1.23, 1024 * 1024, 0.01, T5_11),
    _both("mT5", "xl", (24, 2048, 32, 5120), 1024, 250_112, 3.74, 1024 * 1024, 0.01, T5_11),
    _both("mT5", "xxl", (24, 4096, 64, 10_240), 1024, 250_112, 12.9, 1024 * 1024, 0.01, T5_11),
    _both("BART", "base", (6, 768, 12, 3072), 1024, 50_265, 0.1394, 8000 * 512, 6.0e-4, BART, norm="post"),
    _both("BART", "large", (12, 1024, 16, 4096), 1024, 50_265, 0.4063, 8000 * 512, 4.0e-4, BART, norm="post"),
)

WITH_GPT2_TOKENS = ("OPT", "GPT-Neo", "GPT-J")


def find(family: str, name: str) -> Size:
    """A published shape.

    Raises:
        ValueError: no such one; the message has those of the family, or the families.
    """
    names = {size.name: size for size in ALL if size.family == family}
    if not names:
        raise ValueError(f"family {family!r} is none of {', '.join(dict.fromkeys(size.family for size in ALL))}")
    if name not in names:
        raise ValueError(f"{family} has no size {name!r}; must be one of {', '.join(names)}")
    return names[name]
