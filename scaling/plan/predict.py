"""Step time from a compiled program: the compiler's cycles for what it estimates well, stated models for the rest.

The model, and what it rests on (docs/planning.md has the measurements):

* matrix products take the compiler's ``estimated_cycles`` at the clock of the matrix units. For large ones these are
  within 5 % of what the units can do;
* everything else moves memory: its bytes, read and written, at ``MEMORY_EFFICIENCY`` of the data sheet's bandwidth, or
  the compiler's cycles where those are fewer (arrays that never leave the chip's fast memory);
* arrays that are brought into fast memory beforehand take no time of their own, but all bytes of the program together
  take at least what the memory needs for them: decoding waits for that;
* attention kernels carry no cycles: the products of the blocks that they visit, at ``KERNEL_EFFICIENCY`` of the peak;
* collectives send their bytes over all links of a chip; those that the compiler runs asynchronously take no time
  unless they are longer than all computation. Those of the sparse cores follow each other, and only the work that the
  compiler put between the beginning of one and its end hides it (``offloaded``);
* copies between chip and host take their bytes at the link's rate, one after the other in each direction, beside the
  work that the compiler put between their start and their end (``offloaded``);
* traffic between slices takes the data sheet's share of a chip in the data-centre network, one transfer after the
  other, beside the work that the compiler put between its start and its end (``between``).
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from scaling.catalog.chips import Chip
from scaling.model import flash
from scaling.plan.between import Network
from scaling.plan.estimate import MEMORY_EFFICIENCY
from scaling.plan.hlo import Instruction, Module
from scaling.plan.offloaded import TO_HOST, Offloaded, collective_of, copy_of
from scaling.plan.traffic import bytes_moved, bytes_prefetched

KERNEL_EFFICIENCY = 0.5


class Calibration(NamedTuple):
    """The ratio of measured to predicted step times, and the relative error for a program left out of the fit."""

    factor: float
    error: float
    measurements: int


# Train steps of MaxText whose speed was published, by kind of chip; "" for kinds of which none was: all of them
# together, with the error for a kind left out. ``python -m scaling.bench.calibrate`` prints them (docs/planning.md).
CALIBRATIONS = {
    "v5e": Calibration(0.899, 0.051, 3),
    "v5p": Calibration(1.023, 0.011, 3),
    "v6e": Calibration(1.160, 0.095, 3),
    "": Calibration(1.022, 0.163, 9),
}


def calibration(chip: Chip) -> Calibration:
    """Of a kind of chip."""
    return CALIBRATIONS.get(chip.name, CALIBRATIONS[""])


COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
PRODUCTS, UNEMBEDDING, KERNELS = "matrix products", "unembedding", "attention kernels"
OTHER = "other"  # calls that only name buffers
HOST = "to the host and back"  # what nothing hides of it
WAITING = "waiting for memory"  # beyond all work: for arrays that are brought into fast memory
BETWEEN = "between slices"  # traffic of all kinds that leaves a slice
# Opcodes that take no time, or whose time is that of what they start.
_FREE = re.compile(
    "parameter|constant|tuple|get-tuple-element|bitcast|while|conditional|call|after-all|partition-id|replica-id|"
    "(copy|slice|dynamic-slice|dynamic-update-slice|async)-(start|update|done)"
)
_OURS, _THEIRS = "jit(step)/", "jit(train_step)/"  # train steps, and MaxText's
_UNEMBEDDING = re.compile(r"bt[dv],[bv]|vd,bd")
_PARTS = re.compile(r".*-(start|update|done)")
_FLASH = re.compile(rf"({flash.FORWARD}|{flash.GRADIENTS})_(\d+)")  # with the tokens of a block
_CHANNEL = re.compile(r"channel_id=(\d+)")
_GROUP = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[(\d+),(\d+)\]|mesh\[([^\]]*)\] \{([^}]*)\})")


@dataclasses.dataclass
class Part:
    """One kind of work in a step.

    Attributes:
        seconds: by the model.
        again: those of them for what is computed a second time, for the backward pass.
        layers: those of them in loops over layers.
        cycles: the compiler's.
    """

    seconds: float = 0.0
    again: float = 0.0
    layers: float = 0.0
    cycles: int = 0


@dataclasses.dataclass
class Collective:
    """Traffic of one kind of collective: bytes that a chip sends, those hidden behind computation, and calls."""

    bytes: float = 0.0
    hidden_bytes: float = 0.0
    calls: int = 0


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The predicted time of a step, by kind of work.

    Attributes:
        seconds: of one step.
        parts: kind of work -> its part; without collectives.
        collectives: kind -> traffic inside a slice; ``BETWEEN`` -> what leaves it; a direction -> copies between
            chip and host.
        exposed: seconds of collectives that nothing hides.
        cycles: sum of the compiler's cycles, loops counted as often as they run; no kernels.
        operations: JAX's operation, as its path in the program -> seconds, the longest first.
        unread: parts of the program that are not known and whose time is missing, in words.
    """

    seconds: float
    parts: dict[str, Part]
    collectives: dict[str, Collective]
    exposed: float
    cycles: int
    operations: dict[str, float]
    unread: tuple[str, ...] = ()

    def calibrated(self, factor: float) -> "Prediction":
        """The same with all seconds multiplied by the factor that was fitted to measurements."""

        def scaled(part: Part) -> Part:
            return Part(factor * part.seconds, factor * part.again, factor * part.layers, part.cycles)

        return dataclasses.replace(
            self,
            seconds=factor * self.seconds,
            parts={kind: scaled(part) for kind, part in self.parts.items()},
            exposed=factor * self.exposed,
            operations={name: factor * seconds for name, seconds in self.operations.items()},
        )

    def divided(self, count: int) -> "Prediction":
        """The time of one of ``count`` equal parts of the program, such as the iterations of its loop."""
        return Prediction(
            self.seconds / count,
            {
                k: Part(p.seconds / count, p.again / count, p.layers / count, p.cycles // count)
                for k, p in self.parts.items()
            },
            {
                k: Collective(c.bytes / count, c.hidden_bytes / count, c.calls // count)
                for k, c in self.collectives.items()
            },
            self.exposed / count,
            self.cycles // count,
            {name: seconds / count for name, seconds in self.operations.items()},
            self.unread,
        )


def predict(module: Module, chip: Chip, runs: int | None = None) -> Prediction:
    """Step time of a program on one kind of chip.

    Args:
        module: the program.
        chip: the kind.
        runs: of a loop whose count is only known when it runs.
    """
    parts: dict[str, Part] = collections.defaultdict(Part)
    collectives: dict[str, Collective] = collections.defaultdict(Collective)
    operations: dict[str, float] = collections.defaultdict(float)
    seen: set[tuple[str, str, int]] = set()
    layers = _in_layers(module)
    network, work, moved = Network(chip.between / chip.devices), 0.0, 0
    alone = 0.0  # seconds of collectives beside which no computation runs
    link = chip.link / chip.devices
    offloaded, copies = Offloaded(link), Offloaded(chip.host.rate / chip.devices if chip.host else math.inf, apart=True)
    for instruction, times in module.walk(runs):
        now = work + alone + offloaded.all_waited
        if copied := copy_of(module, instruction):
            direction, size = copied
            moved += times * size
            copies.start(instruction, direction, size, times, now)
            if not instruction.opcode.endswith("-start"):
                copies.end(instruction.name, now)
        if copied or copies.meet(instruction, now):
            continue
        moved += times * bytes_prefetched(instruction)
        if inner := collective_of(module, instruction, COLLECTIVES):
            offloaded.start(instruction, inner.opcode, sent_bytes(inner), times, work + copies.all_waited)
        offloaded.meet(instruction, work + copies.all_waited)
        if network.meet(module, instruction, times, work) or (_FREE.fullmatch(instruction.opcode) and not inner):
            continue
        for found, hidden in _collectives(module, instruction):
            key = (found.opcode, _channel(found), times)
            if key in seen:  # start, middle and end of an asynchronous one each print it
                continue
            seen.add(key)
            traffic = collectives[found.opcode.removesuffix("-start")]
            sent = times * sent_bytes(found)
            traffic.bytes += sent
            traffic.calls += times
            if hidden:
                traffic.hidden_bytes += sent
            else:
                alone += sent / link
        if inner or _kind_of_collective(instruction.opcode):
            continue
        if _PARTS.fullmatch(instruction.opcode):
            module.unread.add(instruction.opcode)
            continue
        kind, seconds = _cost(module, instruction, chip)
        part = parts[kind]
        part.seconds += times * seconds
        part.again += times * seconds * ("rematted_computation" in instruction.op_name)
        part.layers += times * seconds * (instruction.name in layers)
        part.cycles += times * instruction.cycles
        operations[_operation(instruction)] += times * seconds
        work += times * seconds
        moved += times * bytes_moved(module, instruction) * (kind != OTHER)
    if (waiting := moved / _bandwidth(chip) - work) > 0:
        parts[WAITING].seconds = waiting
        work += waiting
    behind = (sum(c.hidden_bytes for c in collectives.values()) - sum(offloaded.sent.values())) / link
    exposed = alone + max(0.0, behind - work) + offloaded.all_waited
    for kind, seconds in offloaded.waited.items():
        collectives[kind].hidden_bytes = max(0.0, collectives[kind].hidden_bytes - seconds * link)
    if network.calls:
        exposed += network.waited
        collectives[BETWEEN] = Collective(network.bytes, network.hidden_bytes, network.calls)
    for kind, sent in copies.sent.items():
        collectives[kind] = Collective(sent, copies.hidden(kind), copies.calls[kind])
        parts[HOST].seconds += copies.waited[kind]
        if not chip.host:
            module.unread.add(f"how fast a {chip.name} sends {kind}")
    work += copies.all_waited
    cycles = sum(part.cycles for part in parts.values())
    longest = dict(sorted(operations.items(), key=lambda pair: -pair[1]))
    unread = tuple(sorted(module.unread))
    return Prediction(work + exposed, dict(parts), dict(collectives), exposed, cycles, longest, unread)


def _in_layers(module: Module) -> set[str]:
    """Names of the instructions of loops over layers: those with products, but not the unembedding's."""
    scheduled = [i for i, _ in module.walk(runs=1)]
    bodies = {i.called["body"][0] for i in scheduled if i.opcode == "while"}
    loops = [module.computations[body] for body in bodies]
    return {
        instruction.name
        for loop in loops
        if any(_has_product(module, i) and not _UNEMBEDDING.search(i.op_name) for i in loop)
        for instruction in loop
    }


def _cost(module: Module, instruction: Instruction, chip: Chip) -> tuple[str, float]:
    """The kind of work of an instruction, and its seconds."""
    for kernel in (instruction, *module.inside(instruction)):  # a fusion may read what it works on
        if "tpu_custom_call" in kernel.text and kernel.opcode == "custom-call":
            return KERNELS, kernel_flops(kernel) / (KERNEL_EFFICIENCY * chip.flops / chip.devices)
    if instruction.opcode == "custom-call":
        return OTHER, 0.0
    clock = chip.clock
    if _has_product(module, instruction):
        # Ours is chunked, by a loop; MaxText's is the only one outside of its loop over layers.
        name = instruction.op_name
        theirs = name.startswith(_THEIRS) and "while" not in name
        kind = UNEMBEDDING if theirs or _UNEMBEDDING.search(name) else PRODUCTS
        return kind, instruction.cycles / clock
    moved = bytes_moved(module, instruction) / _bandwidth(chip)
    seconds = min(moved, instruction.cycles / clock) if instruction.cycles else moved
    if "jvp" not in instruction.op_name and instruction.op_name.startswith((_OURS, _THEIRS)):
        kind = "optimizer"
    elif instruction.opcode in ("copy", "transpose") or not instruction.op_name:
        kind = "copies and layouts"
    else:
        kind = "norms and elementwise"
    return kind, seconds


def _bandwidth(chip: Chip) -> float:
    """Bytes/s of a device's main memory."""
    return MEMORY_EFFICIENCY * chip.hbm_bandwidth / chip.devices


def _operation(instruction: Instruction) -> str:
    """Forward or backward, and the last parts of the path."""
    path = instruction.op_name.split("/")
    when = "again" if "rematted_computation" in path else "back" if "transpose" in instruction.op_name else "forward"
    parts = [
        part for part in path if part not in ("while", "body", "closed_call", "checkpoint", "rematted_computation")
    ]
    return f"{when}: {'/'.join(parts[-2:])}" if instruction.op_name else f"{instruction.opcode} of the compiler"


def _has_product(module: Module, instruction: Instruction) -> bool:
    products = ("dot", "convolution")
    return instruction.opcode in products or any(i.opcode in products for i in module.inside(instruction))


def kernel_flops(instruction: Instruction) -> float:
    """Operations of the products of one call of an attention kernel, in the blocks that it visits.

    Forward: two products (scores, values). Backward in one kernel: five; for keys and values alone four, for queries
    alone three. The head is padded to 128 lanes. Our kernels have the pairs of blocks as their first operand. From
    the grid of the mask, the first operand of splash, follow the blocks: a whole grid is causal, a shrunken one (band)
    or an oblong one (a hop of ring attention) is visited whole.
    """
    operands = instruction.text.partition("operand_layout_constraints={")[2]
    if ours := _FLASH.search(instruction.name):
        pairs = re.search(r"s32\[5,(\d+)\]", operands)
        # Of the forward kernel queries [B, N, H / N, T, K]; of the other the gradient of the output, which is like
        # them, or [B, T, H * K] where K is a multiple of the lanes.
        query = re.search(r"bf16\[((?:\d+,)*\d+)\]", operands)
        if not pairs or not query:
            return 0.0
        *outer, _, head = (int(size) for size in query[1].split(","))
        products = 2 if ours[1] == flash.FORWARD else 5
        return products * 2 * math.prod(outer) * int(pairs[1]) * int(ours[2]) ** 2 * (-(-head // 128) * 128)
    grid = re.search(r"s\d+\[(\d+),(\d+),(\d+)\]", operands)
    arrays = [
        [int(size) for size in sizes.split(",")] for sizes in re.findall(r"bf16\[((?:\d+,){2,}\d+)\]", operands)[:2]
    ]  # queries [..., T, K], of rows (one is left out), groups of heads if they share keys, and heads; then keys
    if not grid or not arrays:
        return 0.0
    *outer, _, head = arrays[0]
    length = max(sizes[-2] for sizes in arrays)
    _, rows, columns = map(int, grid.groups())
    # The fused backward kernel has one result more than the other, the queries' gradient for each block of keys.
    results = re.findall(r"bf16\[([\d,]+)\]", instruction.shape)
    fused = any(len(sizes.split(",")) > len(arrays[0]) for sizes in results)
    names = {"fwd": 2, "dkv": 5 if fused else 4, "dq": 3}
    products = next((n for name, n in names.items() if re.search(f"m[hq]a_{name}", instruction.name)), 2)
    blocks = rows * (rows + 1) / 2 if rows == columns else rows * columns
    area = blocks * (length / max(rows, columns)) ** 2
    return products * 2 * math.prod(outer) * area * max(head, 128)


def _kind_of_collective(opcode: str) -> str:
    return next((kind for kind in COLLECTIVES if opcode in (kind, f"{kind}-start", f"{kind}-done")), "")


def _collectives(module: Module, instruction: Instruction) -> Iterable[tuple[Instruction, bool]]:
    """The collectives that an instruction runs, and whether they run behind computation."""
    if instruction.opcode.endswith("-done"):
        return
    if _kind_of_collective(instruction.opcode):
        yield instruction, instruction.opcode.endswith("-start")
        return
    for inner in module.inside(instruction):
        if _kind_of_collective(inner.opcode) and not inner.opcode.endswith("-done"):
            yield inner, True


def _channel(instruction: Instruction) -> str:
    found = _CHANNEL.search(instruction.text)
    return found[1] if found else instruction.name


def group_size(instruction: Instruction) -> int:
    """Devices that take part in one collective together."""
    found = _GROUP.search(instruction.text)
    if not found:
        return 2
    members, _, each, sizes, axes = found.groups()
    if members:
        return members.count(",") + 1
    if each:
        return int(each)
    by_name = dict(re.findall(r"'(\w+)'=(\d+)", sizes))
    size = 1
    for axis in re.findall(r"'(\w+)'", axes):
        size *= int(by_name[axis])
    return size


def sent_bytes(instruction: Instruction) -> float:
    """Bytes that each device sends in a ring (the least that any algorithm needs)."""
    size, kind = group_size(instruction), _kind_of_collective(instruction.opcode)
    whole = instruction.bytes
    if instruction.opcode.endswith("-start"):
        whole //= 2  # its result holds the operand too
    part = (size - 1) / size
    if kind == "all-reduce":
        return 2 * whole * part
    if kind == "reduce-scatter":
        return whole * (size - 1)
    return whole if kind == "collective-permute" else whole * part


def missing(unread: Sequence[str]) -> tuple[str, ...]:
    """A warning about the parts of a program that are not known; nothing if there are none."""
    if not unread:
        return ()
    more = f" and {len(unread) - 3} more" if len(unread) > 3 else ""
    return (f"WARNING: the time of what is not known is missing: {', '.join(unread[:3])}{more}.",)


def assumptions(chip: Chip, slices: int, step: str, kinds: Iterable[str] = ()) -> tuple[str, ...]:
    """The assumptions of a prediction, in sentences; ``kinds`` are those of its traffic."""
    to_host = (
        f"Copies to the host and back at {chip.host.rate / 1e9:g} GB/s a chip in each direction, as published and not "
        "measured, beside the work that they are started before."
        if chip.host and TO_HOST in kinds
        else ""
    )
    between = (
        f"Traffic between slices at {chip.between / 1e9:g} GB/s a chip, beside the work that it is started before."
    )
    fitted = calibration(chip)
    where = chip.name if chip.name in CALIBRATIONS else "other kinds"
    whose = f"{fitted.measurements} published measurements of MaxText on {where}"
    calibrated = (
        f"All of it times {fitted.factor:.2f}, by {whose}; a program left out is missed by {100 * fitted.error:.0f} %."
    )
    tokens = "Tokens are drawn from the whole softmax; loading, tokenizing and the host's work are left out."
    return (
        "A prediction, not a measurement: matrix products by the compiler's cycles; other work by its bytes at "
        f"{100 * MEMORY_EFFICIENCY:.0f} % of the memory's bandwidth;",
        f"attention kernels at {100 * KERNEL_EFFICIENCY:.0f} % of the peak in the blocks that they visit; collectives "
        "at the links' data sheet, asynchronous ones hidden.",
        *([between] if slices > 1 else []),
        *([to_host] if to_host else []),
        *([calibrated] if step == "train" else []),
        *([tokens] if step == "generate" else []),
    )
