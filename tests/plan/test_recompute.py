"""``compute.remat=auto``: what is chosen by shapes, what the compiler corrects, and what a training does."""

import dataclasses
import json

import jax
import pytest

from scaling import cli
from scaling.catalog import chips
from scaling.commands import recomputation
from scaling.config import remat
from scaling.config import schema as cfg
from scaling.config.files import load
from scaling.plan import estimate, plan, recompute, search

V5E, GIB = chips.find("v5e"), 2**30
XL = ("mesh.fsdp=16", "train.microbatch_sequences=64", "train.ramp_tokens=0", "compute.remat=auto")


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch, pytestconfig):
    monkeypatch.chdir(pytestconfig.rootpath)


def xl(*overrides):
    """1.3B on 16 chips, 4 sequences each: ``full`` is estimated at 3.9 GiB, and ``projections`` at 10.7."""
    texts = [f"--config.{text}" for text in (*XL, *overrides)]
    return plan.resolved(load("experiments/gpt3/1300m.py", texts), 16)


def seconds(config, text):
    return estimate.train_step(recompute.with_remat(config, text), V5E).seconds


def size(config, text):
    return sum(estimate.train_step(recompute.with_remat(config, text), V5E).memory.values())


def test_more_memory_is_less_time_and_it_always_fits():
    config, before = xl(), float("inf")
    for gib in (3, 4, 5, 6, 8, 10, 12):
        text = recompute.choose(config, V5E, gib * GIB)
        assert text == "full" or size(config, text) <= gib * GIB
        assert seconds(config, text) <= before * (1 + recompute.WORTH)
        before = seconds(config, text)
    assert recompute.choose(config, V5E, 3 * GIB) == "full" and text == "projections"


def test_a_part_of_the_layers_is_taken_only_where_it_is_worth_a_second_loop():
    fits = size(xl(), "attention+sum+hidden")
    whole, parted = (recompute.choose(xl(), V5E, share * fits) for share in (1.001, 0.995))
    assert ":" not in whole
    assert ":" in parted and int(parted.partition(":")[2]) % 2 == 0  # dense and banded layers take turns
    stages = xl("mesh.slices=2", "mesh.stage=2", "mesh.fsdp=8")
    assert ":" not in recompute.choose(stages, V5E, 6.8 * GIB)


def large(*overrides):
    """6.7B on 64 chips, 4 sequences each: 18 GiB are all that layers may keep, and 9 GiB of a v5e are free."""
    knobs = (*XL, "mesh.fsdp=64", "train.microbatch_sequences=256", "train.batch_tokens=524288", *overrides)
    texts = [f"--config.{text}" for text in knobs]
    return plan.resolved(load("experiments/gpt3/6700m.py", texts), 64)


LIMIT = 0.95 * 16 * GIB


def with_host(rate, memory=48e9):
    return dataclasses.replace(V5E, host=chips.Host(rate, memory))


def test_the_host_keeps_what_the_chip_cannot_if_its_link_carries_it():
    config, chip = large(), V5E
    here, away = recompute.choose(config, chip, LIMIT), recompute.choose(config, chip, LIMIT, host=True)
    assert remat.HOST not in here and away == "qkv@host+hidden"  # all kinds there: 0.89 of the forward pass
    guess = estimate.train_step(recompute.with_remat(config, away), chip)
    assert sum(guess.memory.values()) <= LIMIT and 0 < guess.host <= recompute.HOST_SHARE * chip.host.memory
    assert guess.way == guess.host / 16e9 <= recompute.BESIDE_HOST * guess.forward
    assert guess.seconds < (1 - recompute.WORTH_OF_HOST) * seconds(config, here)
    # A slower link does not carry it, and a host with less memory does not hold it.
    assert recompute.choose(config, with_host(8e9), LIMIT, host=True) == here
    assert recompute.choose(config, with_host(16e9, memory=guess.host), LIMIT, host=True) != away


def test_what_is_made_last_has_the_least_time_on_its_way_to_the_host_and_back():
    """A sum has as many bytes as what attention makes before it, and is read before it in the backward pass."""

    def exposed(text, chip):
        guess = estimate.train_step(recompute.with_remat(large(), text), chip)
        moved = estimate.HOST_TRAFFIC * guess.host / (estimate.MEMORY_EFFICIENCY * V5E.hbm_bandwidth)
        return guess.parts["to the host and back"] - moved

    slow = with_host(3e9)
    assert exposed("sum@host", slow) > 1.2 * exposed("attention@host", slow) > 0
    assert exposed("hidden@host", V5E) > 0
    assert exposed("qkv@host+attention@host+sum@host+hidden", V5E) == pytest.approx(0, abs=1e-6)


def test_the_host_keeps_nothing_where_that_is_not_needed_or_not_known():
    assert recompute.choose(xl(), V5E, LIMIT, host=True) == "projections"
    unknown = [dataclasses.replace(V5E, host=None), with_host(16e9, memory=0), chips.find("H100"), chips.find("v4")]
    for chip in unknown:
        assert remat.HOST not in recompute.choose(large(), chip, LIMIT, host=True)
    stages = large("mesh.slices=2", "mesh.stage=2", "mesh.fsdp=32")
    assert remat.HOST not in recompute.choose(stages, V5E, LIMIT, host=True)


@pytest.mark.parametrize("slower", [1.0, 1.5])
def test_the_compiler_decides_about_the_host(slower):
    """Once by shapes with the host and once without; the program that the compiler finds faster is taken."""

    def compiles(config):
        guess = estimate.train_step(config, V5E)
        seconds = guess.seconds * (slower if remat.HOST in config.compute.remat else 1.0)
        return dataclasses.replace(plan.estimated(config, "v5e", 64), memory=guess.memory, seconds=seconds)

    text, _ = recompute.compiled(large(), V5E, compiles)
    assert text == recompute.choose(large(), V5E, LIMIT, host=slower == 1.0)


def test_a_gpu_keeps_everything_if_it_fits_and_never_attention_alone():
    config, h100 = xl(), chips.find("H100")
    assert recompute.choose(config, h100, 70 * GIB) == "none"
    assert recompute.choose(config, h100, 5 * GIB) not in ("none", "attention")


def test_the_compiler_corrects_the_estimate():
    """Here it needs 3 GiB more than shapes say; what it does not fit is not taken."""
    tried = []

    def compiles(config):
        tried.append(config.compute.remat)
        guess = plan.estimated(config, "v5e", 16)
        memory = guess.memory | {"temporary": guess.memory["temporary"] + 6 * GIB}
        if sum(memory.values()) > 15.75 * GIB:
            return dataclasses.replace(guess, refusal="Exceeded hbm capacity", seconds=0.0)
        return dataclasses.replace(guess, memory=memory)

    text, found = recompute.compiled(xl(), V5E, compiles)
    assert tried[0] == "projections" and text == tried[-1] != "projections" and len(tried) <= recompute.TRIES
    assert found.fits and found.bytes == size(xl(), text) + 6 * GIB


def test_plans_say_what_is_chosen(capsys):
    overrides = [f"--config.{text}" for text in (*XL, "train.microbatch_sequences=128", "train.batch_tokens=2097152")]
    arguments = ["plan", "--config=experiments/gpt3/1300m.py", *overrides, "--device=v5e", "--devices=16"]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    text = err.partition("compute.remat=auto is ")[2].partition(" here, ")[0]
    assert text not in ("", "full", "projections") and f"remat={text}, 8 sequences" in out
    assert cli.main([*arguments, "--json"]) == 0
    assert f"remat={text}," in json.loads(capsys.readouterr().out)["layout"]


def test_a_search_ranks_what_would_be_chosen():
    config = xl("train.batch_tokens=2097152")
    found = search.search(config, "v5e", 16, 16)
    between = [c for c in found if c.config.compute.remat not in search.REMATS]
    assert between and all(c.guess.fits for c in between)
    assert any(f"--config.compute.remat={c.config.compute.remat} " in c.knobs for c in between)


def test_a_training_keeps_everything_on_a_cpu_and_its_choice_when_it_is_resumed(tmp_path, monkeypatch):
    config = xl()
    assert recomputation.settled(config, tmp_path, "train").compute.remat == "none"

    class Device:
        platform, device_kind = "tpu", "TPU v5 lite"

        def memory_stats(self):
            return {"bytes_limit": 15.75 * GIB}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    chosen = recomputation.settled(config, tmp_path, "train")
    assert chosen.compute.remat == "projections"  # 10.7 of 14.2 GiB
    began = recompute.with_remat(config, "qkv+sum")
    (tmp_path / "config.json").write_text(json.dumps({"config": cfg.to_dict(began)}))
    assert recomputation.settled(config, tmp_path, "train") == began
    other = xl("train.microbatch_sequences=32")
    assert recomputation.settled(other, tmp_path, "train").compute.remat == "projections"
    Device.device_kind = "Quantum 9"
    with pytest.raises(ValueError, match=r"config\.compute\.remat='auto' .*'Quantum 9'; must name a policy"):
        recomputation.settled(other, tmp_path, "train")
    with pytest.raises(ValueError, match=r"`scaling distill` it must name a policy"):
        recomputation.settled(config, tmp_path, "distill")
    assert recomputation.settled(began, tmp_path, "distill") == began
