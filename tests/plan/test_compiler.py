"""The TPU's own compiler on small cases, held to recorded figures. ``make plan-check`` installs it and runs this."""

import collections
import importlib.metadata
import importlib.util
import math
import re

import pytest

from scaling import cli, exit_codes
from scaling.catalog import chips
from scaling.config.files import load
from scaling.plan import compiled, decoding, estimate, hlo, plan, predict, topology
from scaling.plan.request import Request

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="the TPU compiler is not installed; `make plan-check` installs it and runs these",
    ),
]
LIBTPU = "0.0.42.1"  # by which the figures below were recorded
SLACK = 1.05
SMALL = (
    "model.num_layers=2",
    "model.d_model=256",
    "model.num_heads=4",
    "model.context_length=1024",
    "compute.remat=projections",
    "train.sequence_length=1024",
    "train.microbatch_sequences=8",
    "train.batch_tokens=16384",
    "train.ramp_tokens=0",
)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch, pytestconfig, tmp_path):
    monkeypatch.chdir(pytestconfig.rootpath)
    monkeypatch.setenv("SCALING_CACHE", str(tmp_path))


def resolved(count, *overrides):
    """125m, two narrow layers of it."""
    texts = [f"--config.{text}" for text in (*SMALL, *overrides)]
    return plan.resolved(load("experiments/gpt3/125m.py", texts), count)


def check(found, *, memory, cycles, collectives):
    """Whether a plan needs no more than was recorded, each with 5 % to spare.

    Args:
        found: the plan.
        memory: bytes a device.
        cycles: that the compiler estimates.
        collectives: kind -> bytes; a kind that is not here must not occur.
    """
    assert found.fits
    figures = {"bytes a device": (found.bytes, memory), "cycles": (found.cycles, cycles)}
    for kind, (sent, _, _) in found.collectives.items():
        figures[f"bytes of {kind}"] = (sent, collectives.get(kind, 0))
    more = [f"{now:,.0f} {name}, recorded {then:,.0f}" for name, (now, then) in figures.items() if now > SLACK * then]
    version = importlib.metadata.version("libtpu")
    if more and version != LIBTPU:
        pytest.skip(f"figures are of libtpu {LIBTPU}, this is {version}: record them anew ({'; '.join(more)})")
    if more:
        pytest.fail("more than recorded: " + "; ".join(more))


def test_a_train_step_on_three_axes():
    """Nothing is made whole to be laid out anew, and what is stored is what the estimate says."""
    config = resolved(8, "mesh.fsdp=2", "mesh.tensor=2")
    found = plan.compiled(config, "v5e:2x4", 1)
    guess = estimate.train_step(config, chips.find("v5e"))
    assert found.memory["params"] == pytest.approx(guess.memory["params"], rel=0.01)
    assert found.memory["optimizer"] == pytest.approx(guess.memory["optimizer"], rel=0.01)
    assert predict.KERNELS in found.parts and predict.PRODUCTS not in found.again  # none is computed twice
    assert all(0 < found.ideal[kind] < found.parts[kind] for kind in (predict.PRODUCTS, predict.KERNELS))
    check(
        found,
        memory=261_817_856,
        cycles=7_377_349,
        collectives={
            "all-gather": 37_552_128,
            "all-reduce": 56_273_472,
            "all-to-all": 524_288,
            "collective-permute": 3_170_336,
            "reduce-scatter": 25_755_648,
        },
    )
    assert plan.compiled(config, "v5e:2x4", 1) == found  # from the cache


def test_a_train_step_on_two_slices():
    """Gradients, and nothing else, go from slice to slice: two bytes a parameter, the table four, each microbatch."""
    config = resolved(8, "mesh.slices=2", "mesh.fsdp=4")
    found = plan.compiled(config, "v5e:2x2", 2)
    sent, hidden, calls = found.collectives[predict.BETWEEN]
    table = 4 * config.model.padded_vocab * config.model.d_model / 4
    assert sent > 2 * table and calls > 2
    chip = chips.find("v5e")
    assert found.parts["exposed collectives"] > predict.calibration(chip).factor * (sent - hidden) / chip.between
    check(
        found,
        memory=400_913_408,
        cycles=9_011_716,
        collectives={
            "all-gather": 64_693_248,
            "all-reduce": 102_567_972,
            "all-to-all": 786_432,
            predict.BETWEEN: 56_788_992,
        },
    )


def test_prompts_and_tokens():
    """The key-value cache is an item of its own; the weights stay where they are."""
    request = Request(batch_size=4, prompt_tokens=200, tokens=50)
    config = resolved(4, "mesh.tensor=4")
    found = plan.compiled(config, "v5e:2x2", 1, "generate", request=request)
    model = config.model
    slots = 256 + 64  # both lengths rounded up
    cache = 2 * model.num_layers * 4 * model.d_model * slots * 2 / 4
    assert cache <= found.memory["key-value cache"] < 2.5 * cache  # heads of 64 are padded to 128
    assert found.tokens == 4 and found.seconds > 0 and found.prefill > found.seconds
    check(found, memory=15_982_592, cycles=186_093, collectives={"all-reduce": 15_360, "all-gather": 96})


def test_8_bits_are_read_as_they_are():
    """In the loop over tokens no array in 8 bits is made wide, but inside of a product's fusion."""
    config = resolved(4, "mesh.tensor=4", "compute.decode_int8=both")
    request = Request(batch_size=4, prompt_tokens=200, tokens=50)
    module = hlo.parse(decoding.compile_generation(config, topology.devices("v5e:2x2"), request).decode)
    found = collections.defaultdict(set)
    for instruction, times in module.walk(runs=49):
        for kind, sizes in re.findall(r"(\w+)\[([\d,]+)\]", instruction.shape):
            if times > 1 and math.prod(map(int, sizes.split(","))) >= 16_384:
                found[kind].add(sizes)
    assert {"256,3,1,64", "1,64,256", "256,768", "768,256", "4,1,320,64"} <= found["s8"]
    assert not found["s8"] & (found["bf16"] | found["f32"])


def test_a_layout_that_makes_arrays_whole_is_refused(monkeypatch, capsys):
    """The warning is the compiler's own; only the program that makes it warn stands in for the train step."""

    def misfit(config, devices, step):
        import jax
        import numpy as np
        from jax.sharding import AxisType, Mesh, NamedSharding
        from jax.sharding import PartitionSpec as P

        mesh = Mesh(np.asarray(devices).reshape(2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

        def program(x):
            x = jax.lax.with_sharding_constraint(jax.numpy.sin(x), P(("a", "b"), None))
            return jax.lax.with_sharding_constraint(x.reshape(16, 4, 128), P(None, "b", "a"))

        x = jax.ShapeDtypeStruct((64, 128), "float32", sharding=NamedSharding(mesh, P(("a", "b"))))
        with jax.set_mesh(mesh):
            text = jax.jit(program).lower(x).compile().as_text()
        return compiled.Program(compiled.Memory(0, 0, 0, 0, 0), text, seconds=0.0, tokens=1, host=0)

    monkeypatch.setattr(compiled, "compile_step", misfit)
    small = [f"--config.{text}" for text in SMALL]
    arguments = ["plan", "--config=experiments/gpt3/125m.py", "--topology=v5e:2x4", *small]
    assert cli.main(arguments) == exit_codes.USAGE
    said = capsys.readouterr().err
    assert re.search("arrays whole.* v5e:2x4", said)
    assert len(said.strip().splitlines()) == 2  # what is compiled, and the sentence


def test_its_topologies_are_known():
    for name in ("v4:2x2x1", "v5p:2x2x1", "v5e:2x2", "v6e:2x2", "v7x:2x2x1"):
        assert len(topology.devices(name)) == topology.count(name, 1)
    with pytest.raises(ValueError, match=r"--topology=v5e:3x5.*refuses"):
        topology.devices("v5e:3x5")
