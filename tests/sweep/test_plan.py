"""From a sweep to its runs: lengths, rules, names, and what is refused."""

import dataclasses
import json
import re

import pytest

from scaling.catalog import flops, sizes
from scaling.config import default_config
from scaling.config.files import load
from scaling.config.schema import freeze, to_json
from scaling.sweep import plan as sweeps
from scaling.sweep import rules
from scaling.sweep.display import plan_to_text
from scaling.sweep.plan import Shape, Sweep, plan
from scaling.sweep.progress import Clock


def base(**train):
    config = default_config()
    config.data.tokenizer = "bytes"
    config.model.context_length = 64
    config.optimizer.warmup_tokens = 0
    config.train.update(train)
    return config


SMALL, LARGE = Shape(2, 32, 2), Shape(4, 64, 4)


def test_isoflop_runs_spend_their_budget_to_a_batch():
    runs = plan(Sweep(base(batch_tokens=256), [SMALL, LARGE], [sweeps.isoflop(1e11, 4e11)]))
    assert [run.config.model.d_model for run in runs[:2]] != [run.config.model.d_model for run in runs[1:3]]
    for run, budget in zip(sorted(runs, key=lambda r: r.scale.flops), (1e11, 1e11, 4e11, 4e11), strict=True):
        per_token = flops.training_per_token(run.config.model)
        assert run.scale.flops == per_token * run.config.train.tokens
        assert abs(run.scale.flops - budget) <= per_token * 256 / 2 + 1
    assert [run.scale.flops for run in runs] == sorted(run.scale.flops for run in runs)


def test_isoflop_keeps_only_sizes_between_the_ratios():
    sweep = Sweep(base(batch_tokens=256), [SMALL, LARGE], [sweeps.isoflop(1e11, between=(2, 100))])
    (run,) = plan(sweep)
    assert run.config.model.d_model == 32
    everywhere = plan(dataclasses.replace(sweep, budgets=[sweeps.isoflop(1e11)]))
    assert {r.config.model.d_model: r.config.train.tokens / r.scale.params.total > 2 for r in everywhere} == {
        32: True,
        64: False,
    }


def test_a_ladder_trains_each_size_on_a_multiple_of_its_parameters():
    runs = plan(Sweep(base(batch_tokens=256), [SMALL, LARGE], [sweeps.tokens_per_parameter(20)]))
    for run in runs:
        assert run.config.train.tokens == pytest.approx(20 * run.scale.params.total, abs=128)
        assert run.config.train.tokens % 256 == 0
        assert run.scale.params == sizes.parameters(run.config.model)


def test_budgets_and_rules_follow_the_active_parameters():
    """Sizes, lengths and learning rates of a model with experts are those of what each token costs."""
    config = base(batch_tokens=256)
    sweep = Sweep(config, [SMALL], [sweeps.tokens_per_parameter(20)], peak_lr=rules.power(1, -1))
    config.model.update(gated=True, mlp_bias=False)
    (dense,) = plan(sweep)
    config.model.experts.update(count=8, per_token=1)
    (mixture,) = plan(sweep)
    router = 2 * 32 * 8
    assert mixture.scale.params.active == dense.scale.params.active + router
    assert mixture.scale.params.total > 3 * mixture.scale.params.active
    assert mixture.config.train.tokens == pytest.approx(20 * mixture.scale.params.active, abs=128)
    parameters = mixture.scale.params
    assert mixture.config.optimizer.peak_lr == 1 / (parameters.without_embeddings - parameters.idle)
    between = sweeps.isoflop(mixture.scale.flops, between=(19, 21))
    assert len(plan(dataclasses.replace(sweep, budgets=[between]))) == 1
    assert rules.gpt3_peak_lr(mixture.scale) == pytest.approx(rules.gpt3_peak_lr(dense.scale), rel=0.01)


def test_the_table_names_active_parameters_where_there_are_experts():
    def table(config):
        runs = plan(Sweep(config, [SMALL], [sweeps.tokens_per_parameter(20)]))
        return runs[0], plan_to_text(runs, Clock(1e9, 1.0), 1, "", frozenset()).splitlines()

    config = base(batch_tokens=256)
    _, (header, *_) = table(config)
    assert "active" not in header
    config.model.experts.update(count=8, per_token=1)
    run, (header, row, *_) = table(config)
    cells = dict(zip(header.replace("peak lr", "peak_lr").split(), row.split(), strict=True))
    assert float(cells["params"]) == pytest.approx(run.scale.params.total, rel=1e-3)
    assert float(cells["active"]) == pytest.approx(run.scale.params.active, rel=1e-3)
    assert float(cells["tok/param"]) == pytest.approx(20, rel=0.02)


def test_a_grid_takes_every_combination_and_equal_lengths_once():
    sweep = Sweep(
        base(batch_tokens=256),
        [SMALL],
        [sweeps.tokens(10_000, 20_000), sweeps.tokens(20_000)],
        grid={"optimizer.peak_lr": (1e-3, 2e-3), "seed": (0, 1, 2)},
    )
    runs = plan(sweep)
    assert len(runs) == len({run.name for run in runs}) == 2 * 2 * 3
    assert {(run.config.optimizer.peak_lr, run.config.seed) for run in runs} == {
        (lr, seed) for lr in (1e-3, 2e-3) for seed in (0, 1, 2)
    }
    assert "l2-d32-t20k-peak_lr0.001-seed2" in {run.name for run in runs}
    assert all(run.config.workdir == f"runs/sweep/{run.name}" for run in runs)


def test_names_tell_shapes_of_one_width_apart():
    shapes = [Shape(2, 32, 2), Shape(2, 32, 4), Shape(2, 64, 4)]
    runs = plan(Sweep(base(batch_tokens=256), shapes, [sweeps.tokens(10_240)]))
    assert {run.name for run in runs} == {"l2-d32-h2-t10.2k", "l2-d32-h4-t10.2k", "l2-d64-t10.2k"}


def test_rules_set_learning_rate_batch_and_warm_up_of_each_run():
    seen = []

    def lr(scale):
        seen.append(scale)
        return 1.0 / scale.params.total

    sweep = Sweep(
        base(),
        [SMALL, LARGE],
        [sweeps.tokens(40_000)],
        peak_lr=lr,
        batch_tokens=rules.power(2.0, 0.5, of="tokens"),
        warmup_fraction=0.1,
        evaluations=4,
    )
    runs = plan(sweep)
    assert [scale.tokens for scale in seen] == [run.config.train.tokens for run in runs]
    for run in runs:
        train, optimizer = run.config.train, run.config.optimizer
        assert optimizer.peak_lr == 1.0 / run.scale.params.total
        assert train.batch_tokens == 512  # 2 sqrt(40000) = 400, and 8 * 64 is the power of two next to it
        assert optimizer.warmup_tokens == round(0.1 * train.tokens)
        assert run.config.eval.every_steps == run.steps // 4
        assert run.steps * train.batch_tokens == train.tokens


def test_batches_divide_over_the_mesh():
    config = base()
    config.mesh.fsdp = 8
    (run,) = plan(Sweep(config, [SMALL], [sweeps.tokens(40_000)], batch_tokens=lambda scale: 100))
    assert run.config.train.batch_tokens == 8 * 64


def test_the_gpt3_rules_are_the_table_and_go_on_beyond_it():
    def scale(total):
        found = sizes.parameters(sizes.GPT3["125m"].model())
        return sweeps.Scale(dataclasses.replace(found, blocks=found.blocks + total - found.total), 1.0)

    for size in sizes.GPT3.values():
        at = scale(int(size.printed_parameters))
        assert rules.gpt3_peak_lr(at) == pytest.approx(size.peak_lr)
        assert rules.gpt3_batch_tokens(at) == pytest.approx(size.batch_tokens)
    between = rules.gpt3_peak_lr(scale(500_000_000))
    assert 2.5e-4 < between < 3.0e-4
    small, smaller = rules.gpt3_peak_lr(scale(10**7)), rules.gpt3_peak_lr(scale(10**6))
    assert 6e-4 < small < smaller
    assert smaller / small == pytest.approx(10**0.32, rel=0.05)
    assert rules.gpt3_peak_lr(scale(10**12)) < 0.6e-4


def test_published_shapes_replace_the_whole_shape_of_the_base():
    config = sizes.GPT3["125m"].apply(base(batch_tokens=2048))
    runs = plan(Sweep(config, [Shape.of(size) for size in sizes.GPT3.values()], [sweeps.tokens(1e6)]))
    assert {run.scale.params.total for run in runs} == {
        sizes.parameters(size.model()).total for size in sizes.GPT3.values()
    }


def test_power_keeps_its_limits():
    with pytest.raises(ValueError, match="'params'"):
        rules.power(1, 1, of="size")
    scale = sweeps.Scale(sizes.parameters(sizes.GPT3["125m"].model()), 1e9, tokens=1e6)
    assert rules.power(2, 0.5, of="tokens")(scale) == pytest.approx(2000)
    assert rules.power(3, 1, of="flops")(scale) == pytest.approx(3e15)
    assert rules.power(1, 1)(scale) == scale.params.without_embeddings
    assert rules.power(2, 0.5, of="tokens", between=(1, 512))(scale) == 512
    assert rules.power(2, 0.5, of="tokens", between=(4096, 8192))(scale) == 4096


@pytest.mark.parametrize(
    ("changes", "overrides", "words"),
    [
        ({}, ["--config.train.tokens=5"], "config.train.tokens .*budgets"),
        ({}, ["--config.model.d_model=5"], "config.model.d_model .*shapes"),
        ({"budgets": [sweeps.isoflop(1e11, between=(1e5, 1e6))]}, [], "no runs"),
        ({"budgets": [sweeps.tokens(-5)]}, [], "at least 1"),
        ({"shapes": [Shape(2, 30, 4)]}, [], "num_heads=4 .*divide"),
        ({"budgets": [sweeps.tokens(50_000, 50_001)]}, [], "two runs .*l2-d32-t50k"),
        ({"grid": {"optimizer.peaklr": (1,)}}, [], "did you mean config.optimizer.peak_lr"),
        ({"grid": {"model.d_model": (1,)}}, [], "model.d_model.* shapes"),
        ({"warmup_fraction": 1.5}, [], "warmup_fraction=1.5"),
        ({"peak_lr": lambda scale: -1.0}, [], "l2-d32-t50k: config.optimizer.peak_lr=-1.0 "),
        ({"batch_tokens": lambda scale: 0}, [], "must be positive"),
        ({"evaluations": 0}, [], "evaluations=0"),
        ({"evaluations": 2.5}, [], "evaluations .*whole number.* 2.5"),
        ({"budgets": sweeps.tokens(50_000)}, [], "budgets .*list"),
        ({"budgets": [50_000]}, [], "budgets .*list"),
        ({"budgets": [sweeps.tokens([1, 2])]}, [], "list of tokens"),
        ({"budgets": [sweeps.tokens(float("nan"))]}, [], "at least 1"),
        ({"budgets": [lambda scale: 1024]}, [], "gives 1024 for Shape"),
        ({"budgets": [sweeps.tokens(100)]}, [], "100 tokens .*256"),
        ({"budgets": [sweeps.tokens(49_900, 50_100)], "base": base(batch_tokens=4096)}, [], "are the same run"),
        ({"shapes": [(2, 32, 2)]}, [], "shapes .*list of Shape"),
        ({"shapes": [Shape(2, 32.0, 2)]}, [], "of whole numbers"),
        ({"shapes": [SMALL, SMALL]}, [], "two runs .*named"),
        ({"shapes": [SMALL, Shape(2, 30, 4)]}, [], r"Shape\(num_layers=2, d_model=30"),
        ({"peak_lr": 1e-3}, [], "peak_lr .*rule"),
        ({"batch_tokens": lambda scale: float("inf")}, [], "must be positive"),
        ({"warmup_fraction": "0.1"}, [], "warmup_fraction .*number"),
        ({"grid": {"seed": 3}}, [], "grid .*dict"),
        ({"grid": {"data.tokenizer": "bytes"}}, [], "grid .*dict"),
        ({"grid": {"workdir": ("a", "b")}}, [], "workdir.* plan"),
        ({"grid": {"seed": (0, "x")}}, [], "l2-d32-t50k-seedx: config.seed .*int"),
        ({"base": 5}, [], "base .*ConfigDict"),
        ({"shapes": list(range(1000))}, [], "shapes .*list of Shape"),
        ({"budgets": [lambda scale: "x" * 3000]}, [], "list of tokens"),
    ],
)
def test_refused_in_one_sentence(changes, overrides, words):
    sweep = dataclasses.replace(Sweep(base(batch_tokens=256), [SMALL], [sweeps.tokens(50_000)]), **changes)
    with pytest.raises(ValueError) as error:
        plan(sweep, overrides)
    assert re.search(words, str(error.value))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_overrides_reach_every_run():
    sweep = Sweep(base(batch_tokens=256), [SMALL, LARGE], [sweeps.tokens(50_000)])
    runs = plan(sweep, ["--config.seed=7", "--config.workdir=/tmp/x/"], "name")
    assert [run.config.seed for run in runs] == [7, 7]
    assert [run.config.workdir for run in runs] == [f"/tmp/x/{run.name}" for run in runs]


def test_a_plan_written_as_json_is_read_back_as_the_same_config(tmp_path):
    (run,) = plan(Sweep(base(batch_tokens=256), [SMALL], [sweeps.tokens(50_000)]))
    path = tmp_path / "plan.json"
    path.write_text(to_json(run.config))
    here = dataclasses.replace(run.config, workdir=str(tmp_path))  # a run is where its plan lies
    assert load(str(path)) == here
    assert load(str(path), ["--config.seed=3"]) == dataclasses.replace(here, seed=3)
    path.write_text(json.dumps({"config": json.loads(to_json(run.config)), "versions": {}}))
    assert load(str(path)) == here
    assert freeze(json.loads(to_json(run.config))) == run.config


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("[1]", "JSON object"), ("{", "plan.json: .*JSON"), ('{"modle": {}}', "config.model")],
)
def test_a_json_config_that_is_none_is_refused(tmp_path, text, sentence):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        load(str(path))
