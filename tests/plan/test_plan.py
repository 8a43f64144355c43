"""Plans: from shapes alone, from the compiler where it is installed, and what is said of mistakes."""

import dataclasses
import json
import math
import re

import pytest

from scaling import cli, exit_codes
from scaling.catalog import chips
from scaling.commands import plan as command
from scaling.config.files import load
from scaling.plan import estimate, plan, search, topology

XL = "--config=experiments/gpt3/1300m.py"
STEADY = "--config.train.ramp_tokens=0"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch, pytestconfig):
    monkeypatch.chdir(pytestconfig.rootpath)


def resolved(path, count, *overrides):
    return plan.resolved(load(path, [f"--config.{text}" for text in (*overrides, "train.ramp_tokens=0")]), count)


def test_parameters_and_moments_are_what_the_mesh_holds():
    """12 bytes a parameter in all, cut over the shards; only biases, norms and the padded vocabulary add to it."""
    config = resolved("experiments/gpt3/1300m.py", 16, "mesh.fsdp=16", "train.microbatch_sequences=64")
    memory = estimate.train_step(config, chips.find("v5e")).memory
    assert memory["params"] + memory["optimizer"] == pytest.approx(12 * 1.3157e9 / 16, rel=0.01)


def test_stages_share_the_layers_and_wait_for_one_another():
    layout = ("mesh.slices=2", "mesh.fsdp=8", "compute.remat=full", "train.microbatch_sequences=128")
    one, two = (
        resolved("experiments/gpt3/1300m.py", 16, *layout, f"mesh.stage={stages}", f"mesh.data={data}")
        for stages, data in ((1, 1), (2, 1))
    )
    assert one.mesh.devices == two.mesh.devices == 16 and one.mesh.replicas == 2 and two.mesh.replicas == 1
    whole, half = (estimate.train_step(config, chips.find("v5p")) for config in (one, two))
    outside = 4 * (50304 + 2048) * 2048 / 8
    assert half.memory["params"] - outside == pytest.approx((whole.memory["params"] - outside) / 2, rel=0.01)
    assert two.train.pipeline_microbatches == 8
    bubble = half.parts["pipeline filling and emptying"]
    working = half.seconds - bubble - half.parts["exposed collectives"]
    assert 0.9 * working / 8 < bubble < working / 8  # 8 ticks and 1; less the loss, which does not wait
    # The stage's forward pass once more, with its last products, which a layer alone does not compute again.
    assert 2 < half.parts["recomputation"] / whole.parts["recomputation"] < 3


def test_search_tries_stages_over_slices_only():
    for slices, stages in ((1, {1}), (4, {1, 2, 4})):
        config = resolved("experiments/gpt3/1300m.py", 16, f"mesh.slices={slices}", "train.microbatch_sequences=16")
        found = {candidate.mesh.stage: candidate for candidate in search.candidates(config, 16)}
        assert set(found) == stages and all(c.mesh.devices == 16 for c in found.values())
        assert all(c.train.pipeline_microbatches % c.mesh.stage == 0 for c in found.values())
    assert "--config.mesh.stage=4 " in search.Candidate(found[4], None).knobs


def test_more_remat_takes_less_memory_and_more_time():
    plans = [
        plan.estimated(
            resolved("experiments/gpt3/1300m.py", 16, f"compute.remat={remat}", "train.microbatch_sequences=64"),
            "v5p",
            16,
        )
        for remat in ("none", "projections", "full")
    ]
    assert plans[0].bytes > plans[1].bytes > plans[2].bytes
    assert plans[2].seconds > plans[1].seconds
    assert all(found.fits for found in plans)


def test_time_and_cost_follow_from_the_step(capsys):
    arguments = [XL, STEADY, "--config.train.microbatch_sequences=16", "--device=v5p", "--devices=16", "--price=4"]
    assert cli.main(["plan", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["days"] == pytest.approx(found["run_tokens"] / found["tokens"] * found["seconds"] / 86400)
    assert found["chip_hours"] == pytest.approx(16 * 24 * found["days"])
    assert found["cost"] == pytest.approx(4 * found["chip_hours"])
    flops = found["tokens"] * found["flops_per_token"] / found["seconds"]
    assert found["mfu"] == pytest.approx(flops / (16 * 459e12))
    assert cli.main(["plan", *arguments]) == 0
    text = capsys.readouterr().out
    assert "of 95 GiB a chip" in text and "chip-hours" in text and "not a measurement" in text


def test_what_does_not_fit_is_said_and_exits_so(capsys):
    arguments = [XL, STEADY, "--config.mesh.fsdp=1", "--config.train.microbatch_sequences=512"]
    assert cli.main(["plan", *arguments, "--device=v5e", "--devices=1"]) == exit_codes.USAGE
    assert "does NOT fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "needs --config=FILE"),
        ([XL], "--topology=NAME .*--device=KIND"),
        ([XL, "--topology=v5e:4x4", "--device=v5e"], "--topology=NAME .*--device=KIND"),
        ([XL, "--topology=v9:4x4"], "'v9' .*v4, v5p"),
        ([XL, "--topology=v5e:4x4x4"], "v5e .*v5e:4x8"),
        ([XL, "--topology=v5p:4x4"], "v5p .*v5p:4x4x8"),
        ([XL, "--topology=v5e:4x4", "--slices=0"], "--slices=0 .*1"),
        ([XL, "--topology=v5e:4x4", "--devices=3"], "--devices .*--device"),
        ([XL, "--device=v5e"], "--device=v5e .*--devices=N"),
        ([XL, STEADY, "--device=abacus", "--devices=4"], "--device=abacus .*v7x"),
        ([XL, "--device=v5e", "--devices=4", "--step=eval"], "--step=eval .*--topology"),
        ([XL, "--device=v5e", "--devices=4", "--step=generate"], "--step=generate .*--topology"),
        ([XL, "--topology=v5e:4x4", "--batch_size=4"], "--batch_size, --prompt_tokens, --tokens .*--step=gen"),
        ([XL, "--topology=v5e:4x4", "--step=generate", "--tokens=1"], "--tokens=1 .*2"),
        ([XL, "--topology=v5e:4x4", "--step=generate", "--batch_size=0"], "--batch_size=0 .*1"),
        ([XL, "--device=v5e", "--devices=4", "--price=0"], "--price=0.* more than 0"),
        ([XL, "--device=v5e", "--devices=4", "--price=inf"], "--price=inf.* more than 0"),
        ([XL, "--device=v5e", "--devices=4", "--top=-1"], "--top=-1 .*0 or more"),
        ([XL, "--device=v5e", "--devices=3"], "must divide that"),
    ],
)
def test_mistakes(arguments, words, capsys):
    assert cli.main(["plan", *arguments]) == exit_codes.USAGE
    assert re.search(words, capsys.readouterr().err)


def test_sizes_of_topologies():
    assert topology.count("v5e:4x8", 2) == 64
    assert topology.count("v7x:2x2x1", 1) == 8  # two devices a chip


# GiB a chip that the TPU's compiler (libtpu 0.0.42.1) needs for the train steps of docs/benchmarks.md.
COMPILED = {
    ("125m", "v5e:2x4"): 9.47,
    ("125m", "v5p:2x2x1"): 33.96,
    ("350m", "v5e:4x4"): 7.41,
    ("350m", "v5p:2x2x2"): 39.95,
    ("760m", "v5e:4x4"): 9.52,
    ("760m", "v5p:2x2x2"): 19.19,
    ("1300m", "v5e:4x8"): 10.54,
    ("1300m", "v5p:2x2x4"): 20.61,
    ("2700m", "v5e:8x8"): 11.07,
    ("2700m", "v5p:2x4x4"): 39.82,
}


@pytest.mark.parametrize(("size", "where"), COMPILED)
def test_the_estimate_agrees_with_the_compiler_on_memory(size, where):
    chip, sides = where.split(":")
    count = math.prod(map(int, sides.split("x")))
    config = plan.resolved(load(f"experiments/gpt3/{size}.py:{where}", ["--config.train.ramp_tokens=0"]), count)
    assert plan.estimated(config, chip, count).bytes / 2**30 == pytest.approx(COMPILED[size, where], rel=0.1)


def test_parts_stand_beside_what_the_units_could_do():
    config = resolved("experiments/gpt3/1300m.py", 16, "mesh.fsdp=16", "train.microbatch_sequences=64")
    found = dataclasses.replace(
        plan.estimated(config, "v5e", 16),
        seconds=1.0,
        parts={"matrix products": 0.8, "optimizer": 0.2, "other": 0.0},
        again={"matrix products": 0.2},
        layer={"matrix products": 0.01},
        ideal={"matrix products": 0.45},
        collectives={"between slices": (5e9, 4e9, 3)},
    )
    lines = command.to_text("1300m", found, None).splitlines()
    products = next(line for line in lines if "matrix products" in line)
    assert products.endswith("800.0 ms   80.0 %  10 ms a layer, 75 % of the peak, 25 % of it computed again")
    assert next(line for line in lines if "optimizer  " in line).endswith("200.0 ms   20.0 %")
    assert not any(line.startswith("  other") for line in lines)
    assert "  between slices                 5.00 GB sent by a chip in 3 calls, 80 % of it hidden" in lines


def test_what_is_generated_is_said_by_token_and_by_prompt():
    config = resolved("experiments/gpt3/1300m.py", 16, "mesh.fsdp=16", "train.microbatch_sequences=64")
    found = dataclasses.replace(
        plan.estimated(config, "v5e", 16),
        step="generate",
        seconds=2e-3,
        prefill=0.05,
        tokens=8,
        memory={"params": 2**30, "key-value cache": 2**29, "temporary": 2**28},
        ideal={plan.READ: 1.5e-3},
    )
    text = command.to_text("1300m", found, None)
    assert "params 1.00, key-value cache 0.50, temporary 0.25 GiB" in text
    assert "token step   2 ms for 8 texts: 4,000 tokens/s; reading weights and cache once takes 1.5 ms, 75 %" in text
    assert "prompts      50 ms" in text and "chip-hours" not in text


def test_slices_cost_their_network():
    """The same 32 chips, as one slice and as two: gradients go over the data-centre network in each microbatch."""

    def seconds(slices, sequences):
        layout = (f"mesh.slices={slices}", "mesh.fsdp=16", f"train.microbatch_sequences={sequences}")
        return plan.estimated(resolved("experiments/gpt3/1300m.py", 32, *layout), "v5e", 32).seconds

    assert seconds(2, 128) > seconds(1, 128)
    assert seconds(2, 64) - seconds(1, 64) == pytest.approx(2 * (seconds(2, 128) - seconds(1, 128)))


def test_search_ranks_what_fits(capsys):
    arguments = [XL, "--device=v5e", "--devices=16", "--search=3"]
    assert cli.main(["plan", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) > 20 and all(one["fits"] for one in found)
    assert [one["seconds"] for one in found] == sorted(one["seconds"] for one in found)
    # The knobs that are printed give the plan that is printed.
    again = [XL, *found[0]["knobs"].split(), "--device=v5e", "--devices=16", "--json"]
    assert cli.main(["plan", *again]) == 0
    assert json.loads(capsys.readouterr().out)["seconds"] == found[0]["seconds"]
    assert cli.main(["plan", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "layouts fit" in lines[0] and sum("--config.mesh.fsdp=" in line for line in lines) == 3


def test_search_compiles_the_best_and_drops_what_does_not_fit(monkeypatch, capsys):
    asked = []

    def compiled(config, name, slices, step, fresh, request=None):
        asked.append(config)
        guess = plan.estimated(config, "v5e", 16)
        return dataclasses.replace(guess, refusal="too much" if len(asked) == 1 else "", seconds=10.0 - len(asked))

    monkeypatch.setattr(plan, "compiled", compiled)
    assert cli.main(["plan", XL, "--topology=v5e:4x4", "--search=3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(asked) == 3 and [one["seconds"] for one in found] == [7.0, 8.0]


@pytest.mark.slow
@pytest.mark.parametrize(("slices", "devices"), [(1, 64), (2, 128)])
def test_the_knobs_of_a_search_train(slices, devices, capsys):
    """With the recipe's ramp, whose first batch is less than a microbatch of the layout, and on several slices."""
    arguments = [XL, "--device=v5e", f"--devices={devices}", f"--slices={slices}", "--search", "--json"]
    assert cli.main(["plan", *arguments]) == 0
    knobs = json.loads(capsys.readouterr().out)[0]["knobs"].split()
    assert any("ramp_start_tokens" in knob for knob in knobs)
    assert cli.main(["config", XL, *knobs, f"--devices={devices}"]) == 0
    assert json.loads(capsys.readouterr().out)["mesh"]["slices"] == slices


def test_search_goes_on_after_a_layout_that_is_refused(monkeypatch, capsys):
    asked = []

    def compiled(config, name, slices, step, fresh, request=None):
        asked.append(config)
        if len(asked) == 1:
            raise plan.WholeArrays("the compiler makes arrays whole")
        return plan.estimated(config, "v5e", 16)

    monkeypatch.setattr(plan, "compiled", compiled)
    assert cli.main(["plan", XL, "--topology=v5e:4x4", "--search=3", "--json"]) == 0
    assert len(asked) == 3 and len(json.loads(capsys.readouterr().out)) == 2


def test_slices_come_from_the_config_unless_they_are_given(capsys):
    arguments = ["plan", XL, "--device=v5p", "--devices=16", "--config.mesh.slices=2", "--json"]
    for more, slices in (([], 2), (["--slices=4"], 4)):
        assert cli.main([*arguments, *more]) == 0
        assert json.loads(capsys.readouterr().out)["layout"].startswith(f"slices={slices} ")


def test_a_compiled_plan_is_kept_and_not_lost_where_it_cannot_be(monkeypatch, tmp_path, capsys):
    config = resolved("experiments/gpt3/1300m.py", 16, "mesh.fsdp=16", "train.microbatch_sequences=64")
    compiled = []

    def step(base, config, chip, devices):
        compiled.append(devices)
        return plan.estimated(config, "v5e", 16)

    monkeypatch.setattr(plan, "_step", step)
    monkeypatch.setattr(topology, "devices", lambda name, slices: [None] * 16)
    monkeypatch.setenv("SCALING_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        assert plan.compiled(config, "v5e:4x4", 1).seconds > 0
    assert len(compiled) == 1
    (kept,) = (tmp_path / "cache/plans").iterdir()
    for damaged in (b"", b"{}", b"[1]", b"\xff", kept.read_bytes()[:-9]):
        kept.write_bytes(damaged)
        assert plan.compiled(config, "v5e:4x4", 1).seconds > 0
        assert f"{kept} is damaged" in capsys.readouterr().err
    assert len(compiled) == 6
    (tmp_path / "file").touch()
    monkeypatch.setenv("SCALING_CACHE", str(tmp_path / "file"))
    assert plan.compiled(config, "v5e:4x4", 1).seconds > 0
    assert "not kept (Not a directory" in capsys.readouterr().err
    monkeypatch.setenv("SCALING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_something=1")
    plan.compiled(config, "v5e:4x4", 1)
    assert len(compiled) == 8  # another program
    for knob in ("compute.remat=none", "compute.dtype=float32", "model.num_layers=12"):
        plan.compiled(resolved("experiments/gpt3/1300m.py", 16, "mesh.fsdp=16", knob), "v5e:4x4", 1)
    assert len(compiled) == 11


def test_without_the_compiler_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    from jax.experimental import topologies

    def absent(*arguments, **more):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr(topologies, "get_topology_desc", absent)
    with pytest.raises(ValueError, match=r"TPU compiler.* pip install 'scaling\[plan\]'"):
        topology.devices("v5e:2x2")


def test_less_than_what_should_stay_free_is_said():
    config = resolved("experiments/gpt3/1300m.py", 16, "mesh.fsdp=16", "train.microbatch_sequences=64")
    guess = plan.estimated(config, "v5e", 16)
    tight = dataclasses.replace(guess, memory={"params": int(0.97 * guess.hbm)})
    assert re.search("3 % .*5 % .*free: params", command.to_text("1300m", tight, None))
    assert "should stay free" not in command.to_text("1300m", guess, None)


def test_search_says_what_is_missing(capsys):
    arguments = ["--config=experiments/gpt3/175b.py", "--device=v5e", "--devices=8", "--search"]
    assert cli.main(["plan", *arguments]) == exit_codes.USAGE
    assert "nothing fits 8 x v5e" in capsys.readouterr().err
