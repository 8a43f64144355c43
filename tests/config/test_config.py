import dataclasses
import functools
import json
import re
from pathlib import Path

import pytest

from scaling.config import describe
from scaling.config import schema as cfg
from scaling.config.files import load, split_arguments
from scaling.config.kind import TRAINING
from scaling.config.resolve import CHOICES, resolve
from scaling.corpus.config import CORPUS
from scaling.model.mlp import ACTIVATIONS

ROOT = Path(__file__).resolve().parents[2]


def change(**values):
    """A config with dotted knobs set, dots written as two underscores."""
    config = cfg.to_dict(cfg.Config())
    for name, value in values.items():
        *sections, knob = name.split("__")
        functools.reduce(lambda section, key: section[key], sections, config)[knob] = value
    return cfg.freeze(config)


def test_defaults_resolve_and_leave_nothing_to_derive():
    resolved = resolve(cfg.Config(), vocab_size=50_257, device_count=8, name="run")
    assert resolved.workdir == "runs/run"
    assert resolved.model.vocab_size == 50_257
    assert resolved.model.padded_vocab == 50_304
    assert (resolved.model.d_head, resolved.model.d_ff) == (64, 3072)
    assert resolved.train.sequence_length == 2048
    assert resolved.train.microbatch_sequences == 256 == resolved.eval.batch_sequences
    assert resolved.optimizer.decay_tokens == resolved.train.tokens
    assert resolved.mesh.data == 8


def test_resolving_twice_changes_nothing():
    once = resolve(change(train__ramp_tokens=10**9), vocab_size=300, device_count=4, name="a")
    assert resolve(once, vocab_size=300, device_count=4, name="b") == once


def test_given_values_are_kept():
    config = change(workdir="w", model__d_head=32, model__num_heads=7, model__d_ff=100, mesh__data=2, mesh__fsdp=4)
    resolved = resolve(config, device_count=8)
    assert (resolved.workdir, resolved.model.d_head, resolved.model.d_ff) == ("w", 32, 100)


def test_with_a_ramp_the_microbatch_is_the_first_batch():
    assert resolve(change(train__ramp_tokens=10**9)).train.microbatch_sequences == 32_768 // 2048


def test_wsd_decays_over_a_fifth():
    config = change(optimizer__schedule="wsd", train__tokens=10**10)
    assert resolve(config).optimizer.decay_tokens == 2 * 10**9


def test_mesh_is_left_open_until_the_devices_are_known():
    assert resolve(cfg.Config()).mesh.data == -1
    assert resolve(change(mesh__fsdp=2, mesh__tensor=2), device_count=8).mesh.data == 2


def test_values_that_are_fine():
    resolve(change(model__num_heads=7, model__d_head=64))
    resolve(change(optimizer__schedule="constant", optimizer__warmup_tokens=0))
    resolve(change(data__train="", data__mixture=(("a/*.txt", 0.5), ("b.jsonl", 2))))
    resolve(change(train__sequence_length=1024))
    resolve(change(optimizer__clip_norm=0.0, optimizer__weight_decay=0.0, optimizer__peak_lr=0.0))


# what is set, and what the sentence must hold: the knob, the value, what would be right
REFUSED = {
    "heads": (dict(model__num_heads=7), ["config.model.num_heads=7", "d_model=768", "6 or 8"]),
    "norm": (dict(model__norm="rms"), ["config.model.norm='rms'", "pre, post"]),
    "activation": (dict(model__activation="swish"), ["config.model.activation='swish'", "gelu_tanh, gelu, relu"]),
    "remat": (dict(compute__remat="all"), ["config.compute.remat='all'", "none, dots, projections, full, auto"]),
    "schedule": (dict(optimizer__schedule="step"), ["config.optimizer.schedule='step'", "cosine, wsd"]),
    "parametrization": (dict(model__parametrization="ntk"), ["config.model.parametrization='ntk'", "mup"]),
    "dtype": (dict(compute__dtype="float16"), ["config.compute.dtype='float16'", "bfloat16, float32"]),
    "pattern": (dict(model__attention_pattern=("dense", "local")), ["attention_pattern", "local", "dense or banded"]),
    "no pattern": (dict(model__attention_pattern=()), ["attention_pattern=()", "at least one"]),
    "lr": (dict(optimizer__peak_lr=-1e-3), ["config.optimizer.peak_lr=-0.001", "0 or more"]),
    "nan lr": (dict(optimizer__peak_lr=float("nan")), ["config.optimizer.peak_lr=nan", "finite"]),
    "infinite z-loss": (dict(train__z_loss=float("inf")), ["config.train.z_loss=inf", "finite"]),
    "encoder": (dict(model__encoder_layers=-1), ["config.model.encoder_layers=-1", "0 or more"]),
    "decay": (dict(optimizer__weight_decay=-0.1), ["config.optimizer.weight_decay=-0.1", "0 or more"]),
    "dropout": (dict(model__dropout_residual=1.0), ["config.model.dropout_residual=1.0", "[0, 1)"]),
    "beta": (dict(optimizer__beta2=1.5), ["config.optimizer.beta2=1.5", "[0, 1)"]),
    "final fraction": (dict(optimizer__final_fraction=2.0), ["config.optimizer.final_fraction=2.0", "[0, 1]"]),
    "context": (dict(train__sequence_length=4096), ["config.train.sequence_length=4096", "2048 positions"]),
    "batch": (
        dict(train__batch_tokens=5000),
        ["config.train.batch_tokens=5000", "config.train.sequence_length=2048", "4096 or 6144"],
    ),
    "microbatch": (
        dict(train__microbatch_sequences=100),
        ["config.train.microbatch_sequences=100", "256 sequences", "64 or 128"],
    ),
    "layers": (
        dict(model__num_layers=3, model__attention_pattern=("dense", "banded")),
        ["config.model.num_layers=3", "2 entries", "2 or 4"],
    ),
    "band": (dict(model__band_width=0), ["config.model.band_width=0", "at least 1"]),
    "warm-up": (
        dict(train__tokens=10**6, optimizer__warmup_tokens=10**7),
        ["config.optimizer.warmup_tokens=10000000", "config.optimizer.decay_tokens=1000000"],
    ),
    "wsd warm-up": (
        dict(optimizer__schedule="wsd", train__tokens=10**9, optimizer__warmup_tokens=9 * 10**8),
        ["config.optimizer.decay_tokens=200000000", "100000000"],
    ),
    "tokens": (dict(train__tokens=1000), ["config.train.tokens=1000", "one batch", "524288"]),
    "no layers": (dict(model__num_layers=0), ["config.model.num_layers=0", "at least 1"]),
    "base width": (dict(model__base_width=0), ["config.model.base_width=0", "at least 1"]),
    "mixture and train": (dict(data__mixture=(("a", 1.0),)), ["config.data.train='books'", "config.data.mixture"]),
    "no data": (dict(data__train=""), ["config.data.train=''", "books"]),
    "weight": (dict(data__train="", data__mixture=(("a", 0.0),)), ["config.data.mixture=('a', 0.0)", "more than 0"]),
    "mixture shape": (dict(data__train="", data__mixture=("a",)), ["config.data.mixture='a'", "pairs"]),
    "prompts": (dict(sample__prompts=(5,)), ["config.sample.prompts=5", "texts"]),
    "ramp start": (
        dict(train__ramp_tokens=10**9, train__microbatch_sequences=32),
        ["config.train.ramp_start_tokens=32768", "microbatch", "65536"],
    ),
    "ramp above batch": (
        dict(train__ramp_tokens=10**9, train__ramp_start_tokens=2**20, train__microbatch_sequences=1),
        ["config.train.ramp_start_tokens=1048576", "config.train.batch_tokens=524288"],
    ),
    "vocabulary": (dict(model__vocab_size=100), ["config.model.vocab_size=100", "50257"]),
    "devices": (dict(mesh__data=3), ["data=3", "8 devices"]),
    "fsdp devices": (dict(mesh__fsdp=3), ["fsdp=3", "8 devices"]),
    "experts a token": (
        dict(model__experts__count=4, model__experts__per_token=5),
        ["config.model.experts.per_token=5", "config.model.experts.count=4"],
    ),
    "layers with experts": (
        dict(model__experts__count=4, model__experts__every=5),
        ["config.model.experts.every=5", "config.model.num_layers=12", "4 or 6"],
    ),
    "expert axis": (
        dict(model__experts__count=6, mesh__expert=4),
        ["config.mesh.expert=4", "config.model.experts.count=6", "2 or 3"],
    ),
    "expert axis without experts": (dict(mesh__expert=2), ["config.mesh.expert=2", "config.model.experts.count=0"]),
    "expert axis and no bound": (
        dict(model__experts__count=4, model__experts__capacity=0.0, mesh__expert=2),
        ["config.model.experts.capacity=0.0", "config.mesh.expert=2"],
    ),
    "experts in a pipeline": (
        dict(model__experts__count=4, mesh__stage=2),
        ["config.mesh.stage=2", "config.model.experts.count"],
    ),
    "mesh 0": (dict(mesh__fsdp=0), ["config.mesh.fsdp=0", "at least 1"]),
    "mesh data 0": (dict(mesh__data=0), ["config.mesh.data=0", "-1"]),
    "tensor heads": (dict(mesh__tensor=8), ["config.mesh.tensor=8", "config.model.num_heads=12", "4 or 6"]),
    "tensor d_ff": (
        dict(mesh__tensor=4, model__d_ff=1001),
        ["config.mesh.tensor=4", "config.model.d_ff=1001", "1 or 7"],
    ),
    "tensor vocabulary": (
        dict(mesh__tensor=4, model__vocab_multiple=1),
        ["config.model.vocab_multiple=1", "50257", "config.mesh.tensor=4"],
    ),
    "tensor sequence": (
        dict(mesh__tensor=4, train__sequence_length=1022, train__batch_tokens=1022 * 8),
        ["config.train.sequence_length=1022", "config.mesh.tensor=4", "1020 or 1024"],
    ),
    "fsdp width": (
        dict(mesh__fsdp=8, model__d_model=772, model__num_heads=4),
        ["config.mesh.fsdp=8", "config.model.d_model=772", "2 or 4"],
    ),
    "batch shards": (dict(train__batch_tokens=2048 * 4), ["config.train.batch_tokens=8192", "8 shards", "16384"]),
    "microbatch shards": (
        dict(train__microbatch_sequences=4),
        ["config.train.microbatch_sequences=4", "8 shards", "slices*data*fsdp"],
    ),
    "evaluation shards": (dict(eval__batch_sequences=12), ["config.eval.batch_sequences=12", "8 shards", "8 or 16"]),
}


@pytest.mark.parametrize(("values", "expected"), REFUSED.values(), ids=REFUSED)
def test_impossible_values_are_refused(values, expected):
    with pytest.raises(ValueError) as caught:
        resolve(change(**values), vocab_size=50_257, device_count=8)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for part in expected:
        assert part in sentence


NUMBERS = {name: value for name, value, _, _ in cfg.knobs() if type(value) in (int, float)}


@pytest.mark.slow
@pytest.mark.parametrize("text", ["1e22", "1e39", "1e400", "-1e39", "-inf", "nan", "9" * 400, "9" * 5000])
def test_numbers_that_nothing_can_hold_are_refused_by_name(text):
    for name, default in NUMBERS.items():
        if text == "1e22" and type(default) is float:
            continue  # large, but a number
        with pytest.raises(ValueError, match=f"^{re.escape(name)}[= ]") as caught:
            resolve(_override(f"--{name}={text}"), vocab_size=50_257)
        assert len(str(caught.value)) < 400


def test_numbers_of_a_file_that_nothing_can_hold_are_refused_by_name():
    for name in NUMBERS:
        _, *sections = name.split(".")
        with pytest.raises(ValueError, match=f"^{re.escape(name)}[= ]") as caught:
            resolve(
                cfg.freeze(functools.reduce(lambda value, section: {section: value}, reversed(sections), 10**400)),
                vocab_size=50_257,
            )
        assert len(str(caught.value)) < 400


def test_more_steps_than_can_be_counted_and_weights_beyond_floats():
    with pytest.raises(ValueError, match=r"config\.train\.tokens=\d+ .*\d+ steps"):
        resolve(change(train__tokens=2**53, train__batch_tokens=2048))
    with pytest.raises(ValueError, match=r"config\.data\.mixture"):
        resolve(change(data__train="", data__mixture=(("a", 10**400),)))


def test_choices_are_those_of_the_model():
    assert set(CHOICES["model.activation"]) == set(ACTIVATIONS)


def test_every_knob_has_a_meaning():
    names = [name for name, _, _, help in cfg.knobs() if help]
    assert len(names) == len(set(names)) == len(list(cfg.knobs()))


def test_json_round_trip():
    config = change(data__train="", data__mixture=(("a", 0.5),), sample__prompts=("x", "y"))
    assert cfg.freeze(json.loads(cfg.to_json(config))) == config
    assert hash(config) == hash(dataclasses.replace(config))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"modle": {}}, "did you mean config.model?"),
        ({"model": {"num_layer": 2}}, "did you mean config.model.num_layers?"),
        ({"model": 3}, "config.model is a section"),
        ({"model": {"num_layers": "2"}}, "config.model.num_layers"),
        ({"model": {"num_layers": True}}, "config.model.num_layers"),
        ({"log": {"tensorboard": 1}}, "config.log.tensorboard"),
    ],
)
def test_freeze_refuses(values, expected):
    with pytest.raises(ValueError, match="config") as caught:
        cfg.freeze(values)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("name", "knob"),
    [
        ("config.model.num_layer", "config.model.num_layers"),
        ("config.modle.num_layers", "config.model.num_layers"),
        ("config.lr", "config.optimizer.peak_lr"),
        ("config.train.batch_size", "config.train.batch_tokens"),
        ("config.mixture", "config.data.mixture"),
        ("config.sed", "config.seed"),
    ],
)
def test_nearest_knob(name, knob):
    assert TRAINING.nearest(name) == knob


def _override(*arguments):
    spec, overrides, rest = split_arguments(arguments)
    assert spec is None
    assert rest == []
    return load(None, overrides)


def test_overrides_of_every_type():
    config = _override(
        "--config.train.tokens=1e9",
        "--config.train.batch_tokens",
        "1_024",
        "--config.optimizer.peak_lr=3e-4",
        "--config.optimizer.clip_norm=2",
        "--config.log.tensorboard=false",
        "--config.model.attention_pattern=('dense','banded')",
        "--config.data.mixture=(('a/*.txt', 0.5), ('b', 1))",
        "--config.data.train=",
        "--config.sample.prompts=Once upon a time, there (was",
    )
    assert config.train.tokens == 10**9
    assert config.train.batch_tokens == 1024
    assert config.optimizer.peak_lr == 3e-4
    assert config.optimizer.clip_norm == 2.0
    assert isinstance(config.optimizer.clip_norm, float)
    assert config.log.tensorboard is False
    assert config.model.attention_pattern == ("dense", "banded")
    assert config.data.mixture == (("a/*.txt", 0.5), ("b", 1))
    assert config.data.train == ""
    assert config.sample.prompts == ("Once upon a time, there (was",)


def test_short_forms_of_true_and_false_and_lists():
    assert _override("--noconfig.log.tensorboard").log.tensorboard is False
    assert _override("--config.model.document_mask").model.document_mask is True
    config = _override("--config.model.attention_pattern=dense", "--config.model.attention_pattern=banded")
    assert config.model.attention_pattern == ("dense", "banded")


def test_the_last_override_wins():
    assert _override("--config.seed=1", "--config.seed=2").seed == 2


def test_an_experiment_takes_an_argument(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(
        "from scaling.config import default_config\n"
        "def get_config(layers='12'):\n"
        "    config = default_config()\n"
        "    config.model.num_layers = int(layers)\n"
        "    return config\n"
    )
    assert load(f"{path}:6").model.num_layers == 6
    assert load(str(path)).model.num_layers == 12
    assert load(f"{path}:6", ["--config.model.num_layers=3"]).model.num_layers == 3
    assert not list(tmp_path.glob("__pycache__"))


def test_the_written_reference_is_current():
    assert (ROOT / "docs/config.md").read_text() == describe.to_markdown(), "run `make docs`"
    corpus = describe.to_markdown(CORPUS.root, "scaling/corpus/config.py")
    assert (ROOT / "docs/corpus_knobs.md").read_text() == corpus, "run `make docs`"


@pytest.mark.parametrize(("before", "now"), cfg.MOVED.items())
def test_a_config_of_before_a_knob_moved_is_read(before, now):
    """``config.json`` and the meta of checkpoints keep the names of their day."""
    values = cfg.to_dict(cfg.Config())
    (old_section, old_name), (section, name) = before.split("."), now.split(".")
    other = {"compute.dtype": "float32", "compute.quantization": "int8", "compute.remat": "full"}.get(now, 7)
    values[old_section][old_name] = other
    del values[section][name]
    assert getattr(getattr(cfg.freeze(values), section), name) == other
    del values["compute"]
    assert getattr(getattr(cfg.freeze(values), section), name) == other
    with pytest.raises(ValueError, match=f"config.{before} .*config.{now}"):
        TRAINING.check(f"config.{before}")
