"""Our train step beside MaxText's best, for the sizes and slices that people use: ``scaling bench tpu --table``.

One libtpu compiles both sides of every row. Each side has settings in the order of what they compute twice, the least
first; the first that fits into the memory counts. MaxText's best is what takes the fewest cycles.
"""

import dataclasses
import re
import shlex
from collections.abc import Iterator

from scaling.bench import maxtext_client as maxtext
from scaling.bench import tpu
from scaling.bench.tpu import NO_RING, Case, Step
from scaling.plan import topology

_SPARSE = " ".join(
    f"--xla_tpu_enable_sparse_core_collective_offload_{kind}=true"
    for kind in ("all_gather", "all_reduce", "reduce_scatter")
)
# Those of its recipes for v6e. For v5e and v5p no recipe has so much fast memory, without which its steps take up to 20
# % more cycles; for v5p one has sparse cores for all-gathers.
_V5E = f"{NO_RING} --xla_tpu_scoped_vmem_limit_kib=65536"
_FLAGS = {
    "v5e": _V5E,
    "v5p": f"{_V5E} {_SPARSE}",
    "v6e": f"{NO_RING} --xla_tpu_scoped_vmem_limit_kib=98304 {_SPARSE}",
}
# As ours. None of its recipes has it.
_TO_HOST = "--xla_tpu_pipeline_memory_host_transfers=false"
_LLAMA, _MIXTRAL = ("Llama 2", "7b"), ("Mixtral", "8x7b")
_AUTO = ("compute.remat=auto", "compute.remat=full")
_LEAST, _FULL = ("minimal_with_context",), ("save_qkv_proj", "full")
_QKV = " ".join(f"{name}_proj=offload" for name in ("qkv", "query", "key", "value"))


def _split(data: int, fsdp: int) -> tuple[str, ...]:
    """Gathers within parts of the slice: over all chips of a cube of v5p they are sums of arrays of mostly zeros."""
    return tuple(f"{remat} mesh.data={data} mesh.fsdp={fsdp} mesh.shard_optimizer=True" for remat in _AUTO)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        size: as of ``scaling bench tpu --sizes``.
        case: slice and batch.
        ours: our settings, the fastest first.
        policies: chains of MaxText's ways to recompute, the fastest first.
        meshes: its axes to try; "" = all chips in fsdp.
    """

    size: str
    case: Case
    ours: tuple[str, ...] = _AUTO
    policies: tuple[tuple[str, ...], ...] = (_LEAST,)
    meshes: tuple[str, ...] = ("",)


ROWS = (
    Row("1300m", Case("v5e:4x4", 4)),
    Row("1300m", Case("v6e:4x4", 4)),
    Row("1300m", Case("v5e:4x8", 4)),
    Row("2700m", Case("v5e:8x8", 2)),
    Row(
        "6700m", Case("v5p:4x4x4", 4), ours=_split(4, 16), meshes=("", "ici_data_parallelism=4 ici_fsdp_parallelism=16")
    ),
    Row("6700m", Case("v5e:8x8", 4), policies=(_FULL, (f"custom mlpwi=device {_QKV}",))),
    Row("13b", Case("v5p:4x4x8", 2), ours=_split(8, 16), meshes=("", "ici_data_parallelism=8 ici_fsdp_parallelism=16")),
    Row("13b", Case("v6e:8x8", 2)),
    Row(
        "13b",
        Case("v5e:16x16", 2),
        policies=(_FULL,),
        meshes=("", "ici_data_parallelism=2 ici_fsdp_parallelism=128 allow_split_physical_axes=true"),
    ),
    Row(
        "llama2-7b",
        Case("v5e:8x8", 2, 4096, _LLAMA),
        policies=(_FULL, (f"custom mlpwi_0=device out_proj=offload {_QKV}",)),
    ),
    Row("llama2-7b", Case("v6e:8x8", 2, 4096, _LLAMA)),
    Row(
        "mixtral-8x7b",
        Case("v5p:4x4x8", 2, 4096, _MIXTRAL),
        ours=tuple(f"compute.remat={remat} mesh.expert=8 mesh.fsdp=16" for remat in ("projections", "full")),
        meshes=("", "ici_expert_parallelism=8 ici_fsdp_parallelism=16"),
    ),
)


def table(python: str | None, only: tuple[str, ...] = ()) -> Iterator[str]:
    """Compiles what is not in the cache, with a line for each program; then the table.

    Args:
        python: an interpreter that has MaxText; None = our side alone.
        only: sizes; all if empty.

    Yields:
        Lines of text.

    Raises:
        ValueError: knobs, topology or interpreter cannot be used, or nothing fits.
    """
    rows = [row for row in ROWS if not only or row.size in only]
    lines = []
    for row in rows:
        yield f"{row.size} on {row.case.topology}, {row.case.sequences} sequences of {row.case.length} a chip"
        best: list[Step] = []
        for who, chains in (("ours", [row.ours]), ("MaxText", _theirs(row) if python else [])):
            found = []
            for chain in chains:
                for knobs in chain:
                    step = tpu.compiled(who, row.size, row.case, knobs, python)
                    yield f"  {who:<8} {tpu.line(step, row.size, row.case)}"
                    if step.prediction:
                        found.append(step)
                        break
            if chains and not found:
                raise ValueError(f"no setting of {who} fits {row.case.topology}")
            if found:
                best.append(min(found, key=tpu.cycles))
        lines.append(_line(row, best))
    yield f"\nlibtpu {maxtext.version(maxtext.library())}" + (f"; {maxtext.versions(python)}" if python else "") + "\n"
    yield "| model | slice, sequences a chip | ours | MFU | GiB | MaxText | MFU | GiB | cycles | predicted time |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    yield from lines


def _theirs(row: Row) -> list[list[str]]:
    """For each of its axes MaxText's chains of settings, the fastest first."""
    flags = _FLAGS[topology.parse(row.case.topology)[0].name]

    def knobs(policy: str, mesh: str) -> str:
        all_flags = f"{flags} {_TO_HOST}" if "offload" in policy else flags
        return f"remat_policy={policy} {mesh} {shlex.quote(f'compile_xla_flags={all_flags}')}"

    return [[knobs(policy, mesh) for policy in chain] for mesh in row.meshes for chain in row.policies]


def _line(row: Row, best: list[Step]) -> str:
    cells = [row.size, f"{row.case.topology}, {row.case.sequences}"]
    for step in best:
        found = step.prediction
        assert found
        name = step.chosen or next(word.partition("=")[2] for word in step.knobs.split() if "remat" in word)
        name += " with the host" if "=offload" in step.knobs else ""
        axes = re.findall(r"(?:mesh\.|ici_)(data|expert)(?:_parallelism)?=(\d+)", step.knobs)
        name = ", ".join([name, *(f"{axis}={size}" for axis, size in axes)])
        cells += [
            f"{found.cycles / 1e6:,.0f}M, {1e3 * found.seconds:,.0f} ms, `{name}`",
            f"{100 * tpu.mfu(step, row.size, row.case):.1f} %",
            f"{step.bytes / 2**30:.1f}",
        ]
    if len(best) == 2:
        mine, peer = (step.prediction for step in best)
        assert mine and peer
        cells += [f"**{mine.cycles / peer.cycles:.2f}**", f"{mine.seconds / peer.seconds:.2f}"]
    return f"| {' | '.join(cells)} |"
