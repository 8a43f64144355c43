"""A few cases of each fault; `make faults` tries many."""

import pytest

from tests.faults.lab import Lab
from tests.faults.table import FAULTS, to_markdown, to_table

# Those that take the longest are left to `make faults`; what they try has tests of its own.
TRIED = ("kill", "kill_points", "crash_states", "damage", "signals", "disk_full")


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
