"""A few cases of some faults, and that the comparison notices what it must; `make faults` tries many of all."""

import json

import pytest

from tests.faults import lab as laboratory
from tests.faults.killed import operation
from tests.faults.lab import Lab, Row, Witness, differences
from tests.faults.table import FAULTS, to_markdown, to_table

# What no other test tries: signals, disks, sweeps, the guard and launching have tests of their own.
TRIED = ("crash_states", "damage", "kill_points", "rewards", "store_kill", "store_spoiled")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("faults"), quick=True)
    yield lab
    lab.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIED)
def test_fault(lab, name):
    row = FAULTS[name](lab)
    if row.skipped and not row.cases:
        pytest.skip(row.skipped)
    assert not row.failures and row.cases > 0
    assert row.fault in to_markdown([row]) and to_table([row]).row_count == 1


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Writes a run directory of three steps, with changes to its lines."""
    monkeypatch.setattr(laboratory, "weights", lambda run_dir: {"w": (run_dir / "weights").read_bytes()})

    def write(name, weights=b"same", **changes):
        run_dir = tmp_path / name
        run_dir.mkdir()
        (run_dir / "weights").write_bytes(weights)
        for file in ("metrics.jsonl", "evals.jsonl"):
            found = [{"step": n, "loss": 2.0 / n, "batch_hash": f"{n:x}", "seconds": len(name)} for n in (1, 2, 3)]
            found[1] |= changes if file == "metrics.jsonl" else {}
            (run_dir / file).write_text("".join(json.dumps(line) + "\n" for line in found) + '{"torn')
        return run_dir

    return write


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"loss": 1.0000000001}, "metrics.jsonl, step 2: loss is 1.0000000001, not 1.0"),
        ({"batch_hash": "3"}, "metrics.jsonl, step 2: batch_hash is 3, not 2"),
        ({"step": 1}, "metrics.jsonl has steps [1, 1, 3]"),
        ({"weights": b"other"}, "the final state differs"),
    ],
)
def test_the_comparison_notices(run, changes, sentence):
    assert differences(run("one"), run("two")) == []
    assert differences(run("other", **changes), run("three")) == [sentence]
    if "weights" not in changes:
        tolerant = differences(run("again", **changes), run("four"), tolerance=1e-5)
        assert tolerant == ([] if "loss" in changes else [sentence])


def test_the_witness_remembers_lines_that_are_gone(run):
    witness = Witness(run("reference"))
    witness.look(run("good"), 0)
    assert not witness.wrong and witness.repeated == 0
    witness.look(run("bad", loss=5.0), 1)
    assert len(witness.wrong) == 1 and "step 2 was once logged" in witness.wrong[0] and witness.repeated == 2


def test_a_row_fails_with_its_failures():
    row = Row("fault", "passes", cases=3, figures="12 s")
    assert row.check(True, "no") and to_markdown([row]).endswith("| fault | passes | 3 | 12 s | passed |\n")
    assert not row.check(False, "why") and row.failures == ["why"] and "FAILED (1)" in to_markdown([row])
    assert "| 0 | no root | skipped |" in to_markdown([Row("fault", "passes", skipped="no root")])


def test_operations_that_change_files(tmp_path):
    assert operation("open", (str(tmp_path), "r", 0)) is None and operation("import", ("os",)) is None
    assert operation("open", ("a", "wb", 0)) == "a" and operation("os.rename", ("a", "b", -1, -1)) == "a"
    assert operation("os.remove", ("a", -1)) == "a" and operation("os.remove", ("a", 7)) == "inside/a"
