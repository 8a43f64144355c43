"""Bytes that an instruction moves between a chip's main memory and what is nearer."""

import re

from scaling.plan.hlo import Instruction, Module, shape_bytes

_SLICE, _UPDATE, _GATHER = "dynamic-slice", "dynamic-update-slice", "gather"
_LAID_OUT = re.compile(r"\b\w+\[[\d,]*\]\{[^{}]*\}")
_FAST = re.compile(r"S\([1-9]\)")


def bytes_moved(module: Module, instruction: Instruction) -> int:
    """Bytes that are read and written in the chip's main memory.

    Operands and result; but of an array that is only sliced, the slice, of one from which rows are gathered, the rows,
    of one that is updated in place, the update (a loop over layers slices its stacked weights and writes into
    stacked activations), and of one that is handed through, as beside an asynchronous collective, nothing.
    """
    inner = _inner(module, instruction)
    touched = _touched(module, inner)
    total = 0
    for place, name in enumerate(instruction.operands):
        whole = shape_bytes(_without_fast_memory(module.shapes.get(name, "")))
        total += min(whole, touched.get(place, whole))
    result = shape_bytes(_without_fast_memory(instruction.shape))
    handed = {name for i in inner if i.opcode == "tuple" for name in i.operands}
    result -= sum(
        shape_bytes(_without_fast_memory(i.shape)) for i in inner if i.opcode == "parameter" and i.name in handed
    )
    updates = [shape_bytes(module.shapes.get(i.operands[1], "")) for i in inner if i.opcode == _UPDATE]
    return total + (min(result, sum(updates)) if updates else result)


def _inner(module: Module, instruction: Instruction) -> list[Instruction]:
    """The instructions of a fusion, without those of fusions in it."""
    return [i for names in instruction.called.values() for name in names for i in module.computations.get(name, ())]


def _touched(module: Module, inner: list[Instruction]) -> dict[int, int]:
    """Parameters of a fusion that are only sliced, updated in place or handed through -> the bytes that are touched."""
    numbers = {i.name: int(i.operands[0]) for i in inner if i.opcode == "parameter"}
    found: dict[int, int] = {}
    for name, number in numbers.items():
        parts = [_part(module, i, name) for i in inner if name in i.operands]
        if parts and None not in parts:
            found[number] = sum(part for part in parts if part)
    return found


def _part(module: Module, user: Instruction, name: str) -> int | None:
    """Bytes that an instruction of a fusion touches of its operand ``name``; None = all of them."""
    if user.opcode == "tuple":
        return 0
    if user.opcode == _SLICE:
        return user.bytes
    if user.opcode in (_UPDATE, _GATHER) and user.operands[0] == name:
        return user.bytes if user.opcode == _GATHER else 0
    if user.opcode == "fusion":  # libtpu 0.0.52 puts the slice of a stack into a fusion inside that of a product
        touched = _touched(module, _inner(module, user))
        places = [place for place, operand in enumerate(user.operands) if operand == name]
        return sum(touched[place] for place in places) if all(place in touched for place in places) else None
    return None


def bytes_prefetched(instruction: Instruction) -> int:
    """Bytes that an asynchronous copy or slice moves between main and fast memory, or twice within main memory."""
    if instruction.opcode not in ("copy-start", "slice-start"):
        return 0
    ends = _LAID_OUT.findall(instruction.shape)[:2]  # where to and from; of a slice from and where to
    return min(map(shape_bytes, ends)) * sum(not _FAST.search(end) for end in ends)


def _without_fast_memory(shape: str) -> str:
    """A type without those of its arrays that lie in fast memory, which the layout marks S(1)."""
    return _LAID_OUT.sub(lambda found: "" if _FAST.search(found[0]) else found[0], shape)
