"""What runs beside the program by itself: collectives of the sparse cores of v6e and v7x, copies to and from the host.

Only the work between the beginning of such a transfer and the wait for its end can hide it.

The compiler writes a collective of the sparse cores in three parts. ``async-start`` prepares it, the first part that
has operands (``async-start`` itself, or an ``async-update`` after it) begins it, and ``async-done`` waits for its end.
A copy between the memories of chip and host has a ``-start`` and a ``-done``; what lies in the host's memory is marked
``S(5)``.
"""

import collections
import dataclasses
import re

from scaling.plan.hlo import Instruction, Module, shape_bytes

TO_HOST, FROM_HOST = "to the host", "from the host"
_SPARSE_CORES = 'async_execution_thread="sparsecore"'
_ON_HOST = re.compile(r"S\(5\)")
_ARRAY = re.compile(r"\b\w+\[\d[\d,]*\](?:\{[^{}]*\})?")  # in a type; without scalars, such as places of slices
_UPDATE = "dynamic-update-slice"
_COPIES = ("copy", "slice", "dynamic-slice", _UPDATE)


@dataclasses.dataclass
class Offloaded:
    """Transfers while a program runs; those that use the same link follow each other.

    Attributes:
        rate: bytes/s of a link.
        apart: whether each kind has a link of its own, as the two directions to the host have.
        sent: kind -> bytes of those whose end the program waits for.
        calls: kind -> their number.
        waited: kind -> seconds for which the program had nothing else to do.
    """

    rate: float
    apart: bool = False
    sent: dict[str, float] = dataclasses.field(default_factory=lambda: collections.defaultdict(float))
    calls: dict[str, int] = dataclasses.field(default_factory=lambda: collections.defaultdict(int))
    waited: dict[str, float] = dataclasses.field(default_factory=lambda: collections.defaultdict(float))
    _free: dict[str, float] = dataclasses.field(default_factory=lambda: collections.defaultdict(float))
    _started: dict[str, tuple[str, float, int]] = dataclasses.field(default_factory=dict)  # -> kind, bytes, calls
    _arrivals: dict[str, tuple[str, float, int, float]] = dataclasses.field(default_factory=dict)  # ..., calls, time

    @property
    def all_waited(self) -> float:
        """Seconds for all kinds together."""
        return sum(self.waited.values())

    def start(self, instruction: Instruction, kind: str, sent: float, times: int, now: float) -> None:
        """The start of a transfer.

        Args:
            instruction: the start.
            kind: of the transfer.
            sent: bytes that a device sends in one call.
            times: that it runs; its calls together are one.
            now: seconds of computation before it.
        """
        if instruction.operands:
            self._begin(instruction.name, kind, times * sent, times, now)
        else:
            self._started[instruction.name] = kind, times * sent, times

    def meet(self, instruction: Instruction, now: float) -> bool:
        """Lets an ``-update`` begin what was started without operands, or a ``-done`` wait for its end.

        Returns:
            Whether it belongs to a transfer.
        """
        before = instruction.operands[0] if instruction.operands else ""
        if instruction.opcode.endswith("-update"):
            if found := self._started.pop(before, None):
                self._begin(instruction.name, *found, now)
            elif before in self._arrivals:  # it goes on
                self._arrivals[instruction.name] = self._arrivals.pop(before)
            return instruction.name in self._arrivals
        if instruction.opcode.endswith("-done") and before in self._arrivals:
            self.end(before, now)
            return True
        return False

    def end(self, name: str, now: float) -> None:
        """Waits for the end of what the instruction of this name began."""
        kind, sent, calls, arrival = self._arrivals.pop(name)
        self.sent[kind] += sent
        self.calls[kind] += calls
        self.waited[kind] += max(0.0, arrival - now - self.all_waited)

    def hidden(self, kind: str) -> float:
        """Bytes of a kind whose transfer computation hides."""
        waited = self.waited[kind]
        return max(0.0, self.sent[kind] - waited * self.rate) if waited else self.sent[kind]

    def _begin(self, name: str, kind: str, sent: float, calls: int, now: float) -> None:
        link = kind if self.apart else ""
        self._free[link] = max(self._free[link], now + self.all_waited) + sent / self.rate
        self._arrivals[name] = kind, sent, calls, self._free[link]


def collective_of(module: Module, instruction: Instruction, kinds: tuple[str, ...]) -> Instruction | None:
    """The collective that an instruction starts on the sparse cores; None if it is anything else."""
    if instruction.opcode != "async-start" or _SPARSE_CORES not in instruction.text:
        return None
    return next((inner for inner in module.inside(instruction) if inner.opcode in kinds), None)


def copy_of(module: Module, instruction: Instruction) -> tuple[str, int] | None:
    """Direction and bytes of a copy between the memories of chip and host, or of its start; None of anything else."""
    opcode = instruction.opcode.removesuffix("-start")
    if opcode not in _COPIES or not instruction.operands:
        return None
    first = module.shapes.get(instruction.operands[0], "")  # what is copied from, or what is updated
    if opcode == _UPDATE:
        part = module.shapes.get(instruction.operands[1], "")
        return (TO_HOST, shape_bytes(part)) if _ON_HOST.search(first) else None
    arrays = _ARRAY.findall(instruction.shape)  # a start has the array that is copied or cut beside the copy or slice
    size = min(map(shape_bytes, arrays), default=0)
    if _ON_HOST.search(first):
        return FROM_HOST, size
    if opcode == "copy" and arrays and _ON_HOST.search(arrays[0]):
        return TO_HOST, size
    return None
