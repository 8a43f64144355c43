"""Which faults there are, and how their rows are printed."""

from collections.abc import Callable

from rich.table import Table

from tests.faults import damage, disks, guards, kills, meshes, processes, records, rewards, stores, sweeps
from tests.faults.lab import Lab, Row

FAULTS: dict[str, Callable[[Lab], Row]] = {
    "kill": kills.random_times,
    "kill_synchronous": kills.random_times_synchronous,
    "kill_points": kills.chosen_points,
    "crash_states": damage.crash_states,
    "signals": kills.signals,
    "damage": damage.every_file,
    "folders": damage.odd_folders,
    "disk_full": disks.full,
    "read_only": disks.readonly,
    "records": records.bad_records,
    "meshes": meshes.resume_elsewhere,
    "processes": processes.lost_process,
    "bad_steps": guards.bad_steps,
    "flipped_bit": guards.flipped_bit,
    "hung_step": guards.hung_step,
    "sweep": sweeps.killed,
    "rewards": rewards.killed,
    "store_kill": stores.killed,
    "store_spoiled": stores.spoiled,
    "store_gone": stores.gone,
    "store_refused": stores.refused,
    "store_stalls": stores.stalls,
}


def _verdict(row: Row) -> str:
    if row.failures:
        return f"FAILED ({len(row.failures)})"
    return "passed" if row.cases else "skipped"


def _figures(row: Row) -> str:
    return "; ".join(part for part in (row.figures, row.skipped) if part)


def to_table(rows: list[Row]) -> Table:
    """For the terminal."""
    table = Table(title="Fault matrix", show_lines=True)
    for name in ("fault", "passes when", "cases", "figures", "s", ""):
        table.add_column(name, justify="right" if name in ("cases", "s") else "left")
    for row in rows:
        table.add_row(row.fault, row.expected, str(row.cases), _figures(row), f"{row.seconds:.0f}", _verdict(row))
    return table


def to_markdown(rows: list[Row]) -> str:
    """For docs/faults.md."""
    lines = ["| fault | passes when | cases | figures | |", "|---|---|---|---|---|"]
    lines += [f"| {r.fault} | {r.expected} | {r.cases} | {_figures(r)} | {_verdict(r)} |" for r in rows]
    return "\n".join(lines) + "\n"
