"""Which models an objective of pre-training takes."""

import dataclasses

import pytest

from scaling.config import schema as cfg
from scaling.objectives.pretraining import OBJECTIVES, must_fit

DECODER = cfg.Model(context_length=512)
ENCODER = dataclasses.replace(DECODER, causal=False, token_types=2)
BOTH = dataclasses.replace(DECODER, encoder_layers=2)
PREFIX = dataclasses.replace(DECODER, prefix_lm=True)
ELECTRA = dataclasses.replace(ENCODER, discriminator=True, generator_layers=2)
XLNET = dataclasses.replace(ENCODER, positions="xlnet")
TAKEN = {
    "next_token": [DECODER],
    "mlm": [ENCODER], "mlm_nsp": [ENCODER], "mlm_sop": [ENCODER], "tlm": [ENCODER],
    "replaced_token": [ELECTRA],
    "translations": [ENCODER],
    "permutation": [XLNET],
    "span_corruption": [BOTH], "denoising": [BOTH], "prefix": [BOTH, PREFIX],
    "pairs": [DECODER, BOTH, PREFIX],
}  # fmt: skip


def config(objective, model, **data):
    return cfg.Config(
        model=model, data=cfg.Data(objective=objective, **data), train=cfg.Train(sequence_length=128)
    )  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_takes_its_models_and_refuses_the_others(name):
    for model in (DECODER, ENCODER, BOTH, PREFIX, ELECTRA, *TAKEN[name]):
        if model in TAKEN[name]:
            must_fit(config(name, model))
            continue
        with pytest.raises(ValueError, match=rf"config\.model\.\w+=\S+ must be .* with .*objective='{name}'"):
            must_fit(config(name, model))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (config("pairs", DECODER, mixture=(("a", 1.0),)), r"config\.data\.mixture=.* must be \(\) with"),
        (config("pairs", BOTH, control_field="code"), r"config\.data\.control_field='code' must be '' with"),
        (
            config("pairs", BOTH, source_length=513),
            r"source_length=513 must be at most config\.model\.context",
        ),
        (
            config("tlm", dataclasses.replace(ENCODER, token_types=1)),
            r"model\.token_types=1 must be at least 2",
        ),
    ],
)
def test_knobs_that_do_not_go_together_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        must_fit(changed)
