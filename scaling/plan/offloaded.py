"""Collectives inside a slice that other cores run beside the program: the sparse cores of v6e and v7x.

The compiler writes such a collective in three parts. ``async-start`` prepares it, the first part that has operands
(``async-start`` itself, or an ``async-update`` after it) begins it, and ``async-done`` waits for its end. Only the
work between the beginning and the wait can hide it.
"""

import collections
import dataclasses

from scaling.plan.hlo import Instruction, Module

_SPARSE_CORES = 'async_execution_thread="sparsecore"'


@dataclasses.dataclass
class Offloaded:
    """The offloaded collectives while a program runs, one after another, because all of them use the same links.

    Attributes:
        rate: bytes/s that a device can send.
        bytes: of those whose end the program waits for.
        waited: kind of collective -> seconds for which the program had nothing else to do.
    """

    rate: float
    bytes: float = 0.0
    waited: dict[str, float] = dataclasses.field(default_factory=lambda: collections.defaultdict(float))
    _free: float = 0.0
    _started: dict[str, tuple[str, float]] = dataclasses.field(default_factory=dict)  # without operands -> kind, bytes
    _arrivals: dict[str, tuple[str, float, float]] = dataclasses.field(default_factory=dict)  # -> kind, bytes, time

    @property
    def all_waited(self) -> float:
        """Seconds for all kinds together."""
        return sum(self.waited.values())

    def start(self, instruction: Instruction, kind: str, sent: float, times: int, now: float) -> None:
        """An ``async-start`` of a collective.

        Args:
            instruction: the start.
            kind: of the collective.
            sent: bytes that a device sends in one call.
            times: that it runs; its calls together are one.
            now: seconds of computation before it.
        """
        if instruction.operands:
            self._begin(instruction.name, kind, times * sent, now)
        else:
            self._started[instruction.name] = kind, times * sent

    def meet(self, instruction: Instruction, now: float) -> None:
        """Lets an ``async-update`` begin what was started without operands, or an ``async-done`` wait for its end."""
        if instruction.opcode not in ("async-update", "async-done") or not instruction.operands:
            return
        before = instruction.operands[0]
        if instruction.opcode == "async-update":
            if found := self._started.pop(before, None):
                self._begin(instruction.name, *found, now)
            elif before in self._arrivals:  # it goes on
                self._arrivals[instruction.name] = self._arrivals.pop(before)
        elif before in self._arrivals:
            kind, sent, arrival = self._arrivals.pop(before)
            self.bytes += sent
            self.waited[kind] += max(0.0, arrival - now - self.all_waited)

    def _begin(self, name: str, kind: str, sent: float, now: float) -> None:
        self._free = max(self._free, now + self.all_waited) + sent / self.rate
        self._arrivals[name] = kind, sent, self._free


def collective_of(module: Module, instruction: Instruction, kinds: tuple[str, ...]) -> Instruction | None:
    """The collective that an instruction starts on the sparse cores; None if it is anything else."""
    if instruction.opcode != "async-start" or _SPARSE_CORES not in instruction.text:
        return None
    return next((inner for inner in module.inside(instruction) if inner.opcode in kinds), None)
