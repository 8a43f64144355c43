"""Traffic between slices, over the data-centre network, in a program that the TPU's compiler made for several.

Such a program is compiled for one slice. What crosses slices has become transfers through the hosts, which it marks
``xla_megascale``: a ``send`` and a ``recv`` that run beside computation until ``recv-done`` waits for them. Sums and
gathers inside the slice stand apart, before and after, so that each device sends only its part.
"""

import dataclasses
import re

from scaling.plan.hlo import Instruction, Module, shape_bytes

_TRANSFER = re.compile(r'_xla_host_transfer_rendezvous="([^"]*)".*_xla_megascale_transfer_type="(\w+)"')


@dataclasses.dataclass
class Network:
    """What is on its way between slices while a program runs, one transfer after the other.

    Attributes:
        slices: that are joined.
        rate: bytes/s that a device can send.
        bytes: sent by a device.
        calls: transfers.
        waited: seconds for which the program had nothing else to do.
    """

    slices: int
    rate: float
    bytes: float = 0.0
    calls: int = 0
    waited: float = 0.0
    _free: float = 0.0
    _names: dict[str, str] = dataclasses.field(default_factory=dict)  # of ``recv`` instructions -> their transfers
    _arrivals: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def hidden_bytes(self) -> float:
        """Those of them that travel behind computation."""
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
        found = _TRANSFER.search(instruction.text)
        name, kind = found.groups() if found else ("", "")
        now += self.waited
        if instruction.opcode == "recv":
            self._names[instruction.name] = name
        elif instruction.opcode == "send":
            sent = times * self._sent(kind, shape_bytes(module.shapes[instruction.operands[0]]))
            self.bytes += sent
            self.calls += times
            self._free = max(self._free, now) + sent / self.rate
            self._arrivals[name] = self._free
        elif instruction.opcode == "recv-done":
            self.waited += max(0.0, self._arrivals[self._names[instruction.operands[0]]] - now)
        return True

    def _sent(self, kind: str, size: int) -> float:
        """Bytes that a device sends of an array that it hands over, by the least that any algorithm needs."""
        part = (self.slices - 1) / self.slices
        return size * {"ALL_REDUCE": 2 * part, "ALL_GATHER": self.slices - 1}.get(kind, part)
