"""Bytes that an instruction moves between a chip's main memory and what is nearer."""

import re

from scaling.plan.hlo import Instruction, Module, shape_bytes

_SLICE, _UPDATE, _GATHER = "dynamic-slice", "dynamic-update-slice", "gather"
_LAID_OUT = re.compile(r"\b\w+\[[\d,]*\]\{[^{}]*\}")
_FAST = re.compile(r"S\([1-9]\)")
_SAME = "output_to_operand_aliasing={{}: (0, {})}"  # of an inner fusion whose result is its operand


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
    parts = {number: _part(module, inner, name) for name, number in numbers.items()}
    return {number: part for number, part in parts.items() if part is not None}


def _part(module: Module, inner: list[Instruction], name: str) -> int | None:
    """Bytes that a fusion touches of one of its arrays; None = all of them."""
    parts = [_part_of_user(module, inner, user, name) for user in inner if name in user.operands]
    return sum(part for part in parts if part) if parts and None not in parts else None


def _part_of_user(module: Module, inner: list[Instruction], user: Instruction, name: str) -> int | None:
    if user.opcode == "tuple":
        return 0
    if user.opcode == _SLICE:
        return user.bytes
    if user.opcode in (_UPDATE, _GATHER) and user.operands[0] == name:
        return user.bytes if user.opcode == _GATHER else 0
    if user.opcode != "fusion":
        return None
    if _SAME in user.text:  # libtpu 0.0.52 tells v7x so that an array is laid out in other tiles
        return _part(module, inner, user.name)
    # It puts the slice of a stack into a fusion inside that of a product.
    touched = _touched(module, _inner(module, user))
    places = [place for place, operand in enumerate(user.operands) if operand == name]
    return sum(touched[place] for place in places) if all(place in touched for place in places) else None


def bytes_prefetched(instruction: Instruction) -> int:
    """Bytes that an asynchronous copy or slice moves between main and fast memory, or twice within main memory."""
    if instruction.opcode not in ("copy-start", "slice-start", f"{_SLICE}-start", f"{_UPDATE}-start"):
        return 0
    # Where to and from; of a slice from and where to; of an update what is updated, and by what. Scalars are places.
    ends = [end for end in _LAID_OUT.findall(instruction.shape) if "[]" not in end][:2]
    return min(map(shape_bytes, ends), default=0) * sum(not _FAST.search(end) for end in ends)


def _without_fast_memory(shape: str) -> str:
    """A type without those of its arrays that lie in fast memory, which the layout marks S(1)."""
    return _LAID_OUT.sub(lambda found: "" if _FAST.search(found[0]) else found[0], shape)
