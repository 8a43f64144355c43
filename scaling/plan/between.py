"""Traffic between slices, over the data-centre network, in a program that the TPU's compiler made for several slices.

Such a program is compiled for one slice. Traffic between slices has become transfers through the hosts, which are
marked ``xla_megascale``: a ``send`` and a ``recv`` that run beside computation until ``recv-done`` waits for them. Sums
and gathers inside the slice are separate instructions before and after, so each device sends only its part.
"""

import dataclasses
import re

from scaling.plan.hlo import Instruction, Module, shape_bytes

_NAME = re.compile(r'_xla_host_transfer_rendezvous="([^"]*)"')
_KIND = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_TARGET = re.compile(r'_xla_megascale_target=("[^"]*"|\{\{[\d,]*\})')


@dataclasses.dataclass
class Network:
    """The transfers between slices while a program runs, one after another.

    Attributes:
        rate: bytes/s that a device can send.
        bytes: sent by a device.
        calls: transfers.
        waited: seconds for which the program had nothing else to do.
    """

    rate: float
    bytes: float = 0.0
    calls: int = 0
    waited: float = 0.0
    _free: float = 0.0
    _names: dict[str, str] = dataclasses.field(default_factory=dict)  # of ``recv`` instructions -> their transfers
    _arrivals: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def hidden_bytes(self) -> float:
        """Bytes whose transfer computation hides."""
        return max(0.0, self.bytes - self.waited * self.rate)

    def meet(self, module: Module, instruction: Instruction, times: int, now: float) -> bool:
        """Lets an instruction that runs ``times`` times start a transfer, or wait for one.

        Args:
            module: the program.
            instruction: any.
            times: that it runs; its transfers together are one.
            now: seconds of computation before it.

        Returns:
            Whether it belongs to a transfer.
        """
        if instruction.opcode not in ("send", "send-done", "recv", "recv-done"):
            return False
        now += self.waited
        name, kind, target = (found.search(instruction.text) for found in (_NAME, _KIND, _TARGET))
        if instruction.opcode == "recv" and name:
            self._names[instruction.name] = name[1]
        elif instruction.opcode == "send" and name and kind and target:
            size = shape_bytes(module.shapes.get(instruction.operands[0], ""))
            sent = times * _sent(kind[1], size, _together(target[1]))
            self.bytes += sent
            self.calls += times
            self._free = max(self._free, now) + sent / self.rate
            self._arrivals[name[1]] = self._free
        elif instruction.opcode == "recv-done":
            arrival = self._arrivals.get(self._names.get(instruction.operands[0], ""), 0.0)
            self.waited += max(0.0, arrival - now)
        return True


def _sent(kind: str, size: int, slices: int) -> float:
    """Bytes that a device sends of an array that it hands over, by the least that any algorithm needs."""
    part = (slices - 1) / slices
    shares = {"ALL_REDUCE": 2 * part, "ALL_GATHER": slices - 1, "REDUCE_SCATTER": part, "ALL_TO_ALL": part}
    return size * shares.get(kind, 1.0)


def _together(target: str) -> int:
    """Slices that take part in a transfer together, from ``{1,2,4:5}x{0:3}`` or groups, ``{{100000,200000},...}``."""
    parts = target.partition("}")[0].strip('"{').split(",")
    bounds = [[int(end) for end in part.split(":")] for part in parts]
    return sum(ends[-1] - ends[0] + 1 for ends in bounds)
