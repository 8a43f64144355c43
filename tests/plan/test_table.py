"""The layouts that ship, and the table of what they take."""

import dataclasses
import re
from pathlib import Path

import pytest

from scaling import cli, exit_codes
from scaling.catalog import chips, layouts, recipes, sizes
from scaling.config import schema as cfg
from scaling.config.files import load
from scaling.config.resolve import resolve
from scaling.plan import plan, topology

ROOT = Path(__file__).parents[2]
SHIPPED = [(size, where) for size in layouts.LAYOUTS for where in layouts.LAYOUTS[size]]


def test_every_size_has_layouts_on_several_slices():
    assert set(layouts.LAYOUTS) == set(sizes.GPT3)
    for size, known in layouts.LAYOUTS.items():
        assert len(known) >= 2
        # The state of 175B alone would fill a whole slice of v5e.
        kinds = {"v5p", "v6e", "v7x"} | ({"v5e"} if size != "175b" else set())
        assert kinds == {topology.parse(name)[0].name for name in known}


@pytest.mark.parametrize(("size", "where"), SHIPPED, ids="-".join)
def test_a_layout_trains_the_papers_batch_on_all_chips(size, where):
    config = load(f"{ROOT}/experiments/gpt3/{size}.py:{where}")
    found = resolve(config, vocab_size=50_257, device_count=topology.count(where, 1))
    train = found.train
    assert train.batch_tokens == sizes.GPT3[size].apply(cfg.default_config()).train.batch_tokens
    assert train.ramp_start_tokens == train.microbatch_sequences * 2048 <= train.batch_tokens
    assert train.microbatch_sequences % (found.mesh.data * found.mesh.fsdp) == 0
    chip = topology.parse(where)[0]
    guess = plan.estimated(plan.resolved(config, topology.count(where, 1)), chip.name, topology.count(where, 1))
    assert guess.fits, f"{guess.bytes / 2**30:.1f} GiB by shapes"


def test_another_topology_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"13b .*'v4:2x2x1'.* v5e:16x16, v5p:4x4x8"):
        recipes.gpt3("13b", "v4:2x2x1")


def test_the_table_says_what_each_layout_takes(monkeypatch, capsys):
    def compiled(config, name, slices, step="train", fresh=False):
        chip = topology.parse(name)[0]
        guess = dataclasses.replace(plan.estimated(config, chip.name, topology.count(name, slices)), where=name)
        if chip is chips.find("v5p"):
            return dataclasses.replace(guess, refusal="7.00G more than there is")
        parts = {"matrix products": 0.6, "optimizer": 0.1, "exposed collectives": 0.25}
        return dataclasses.replace(guess, seconds=1.0, parts=parts, cycles=940_000_000)

    monkeypatch.setattr(plan, "compiled", compiled)
    assert cli.main(["plan", "--table", "1300m", "125m"]) == 0
    shown, told = capsys.readouterr()
    rows = [[cell.strip() for cell in line.split("|")] for line in shown.splitlines()]
    assert rows[2][1:5] == ["1300m", "v5e:4x8", "32", "fsdp=32"]
    assert any(cell.startswith("does not fit: 7.00G") for cell in rows[3])
    parts = rows[-6]
    assert parts[1:4] == ["1300m", "v5e:4x8", "1,000 ms"]
    assert parts[4] == "60.0 %" and parts[9:13] == ["10.0 %", "25.0 %", "5.0 %", "940"]
    assert "compiling 8 of 8: 125m for v7x:2x2x1" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--table", "1b"], "--table: '1b' .*125m, 350m"),
        (["--table", "--device=v5e"], "--table .*own configs"),
        (["--table", "--config=experiments/gpt3/125m.py"], "--table .*own configs"),
        (["--table", "--json"], "--fresh"),
        (["--table", "--slices=2"], "--fresh"),
        (["--table", "--config.compute.remat=full"], "--fresh"),
    ],
)
def test_mistakes(arguments, words, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cli.main(["plan", *arguments]) == exit_codes.USAGE
    assert re.search(words, capsys.readouterr().err)
