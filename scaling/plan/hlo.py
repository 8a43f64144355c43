"""Reads the optimized program that a compiler prints: instructions, their cycles and bytes, loops and their trips.

The TPU compiler writes its own estimate, ``estimated_cycles``, on every fusion and copy. A loop's body is printed
once, so sums multiply by the trip count. Calls of kernels (Pallas) have no cycles. An unknown form is no error; it is
noted in ``Module.unread``.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|called_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%?[\w.\-]+)"
)
_ARRAY = re.compile(r"\b(pred|[subf]\d+\w*|bf16|c64|c128)\[([\d,]*)\]")
_TRIPS = re.compile(r'"?known_trip_count"?[:=]\{"?n"?:"?(\d+)')
_CONSTANT = re.compile(r"^[su](?:32|64)\[\]\S* constant\((\d+)\)")

# What runs asynchronously as ``async-start`` of a computation that holds nothing else, or as ``copy-start`` and so on.
_ALONE = (
    *("copy", "slice", "dynamic-slice", "dynamic-update-slice"),
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"),
)

_NO_CYCLES = 2**63 - 1  # as the compiler writes what it has no estimate of

_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        shape: text of its result's type.
        opcode: such as fusion, copy, all-gather, while.
        operands: names of other instructions.
        cycles: the compiler's estimate; 0 where it gives none.
        op_name: the path of JAX's operations that it came from.
        called: computations that it runs or maps.
        text: the whole line, for what is not parsed.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    cycles: int
    op_name: str
    called: Mapping[str, tuple[str, ...]]
    text: str

    @property
    def bytes(self) -> int:
        """Bytes of its result, with all parts of a tuple."""
        return shape_bytes(self.shape)


@dataclasses.dataclass(frozen=True)
class Module:
    """A printed program.

    Attributes:
        computations: by name.
        entry: name of the one that runs.
        unread: unknown forms in words; they are missing from all figures of the program.
    """

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str
    unread: set[str] = dataclasses.field(default_factory=set)

    @functools.cached_property
    def shapes(self) -> dict[str, str]:
        """Types of all instructions by name, and of parts of tuples that operands name as ``tuple#1``.

        Names are unique in a program.
        """
        scheduled = [i for instructions in self.computations.values() for i in instructions]
        types = {i.name: i.shape for i in scheduled}
        for name in {operand for i in scheduled for operand in i.operands if "#" in operand}:
            whole, _, place = name.rpartition("#")
            parts = _parts(types.get(whole, ""))
            if place.isdigit() and int(place) < len(parts):
                types[name] = parts[int(place)]
        return types

    def walk(
        self, runs: int | None = None, computation: str | None = None, times: int = 1
    ) -> Iterator[tuple[Instruction, int]]:
        """Every instruction that is scheduled, with how often it runs; those inside fusions are not.

        Args:
            runs: of a loop whose bound is no constant.
            computation: to begin with; None = the entry.
            times: that it runs.
        """
        name = computation or self.entry
        if name not in self.computations:
            self.unread.add(f"the computation {name}")
        for instruction in self.computations.get(name, ()):
            yield instruction, times
            called = [name for names in instruction.called.values() for name in names]
            if instruction.opcode == "while":
                for body in instruction.called.get("body", ()):
                    yield from self.walk(runs, body, times * self.trips(instruction, runs))
            elif instruction.opcode == "conditional":  # one of the branches runs: say, the costliest
                yield from self.walk(runs, max(called, key=self._cycles), times)
            elif instruction.opcode in ("call", "async-start", "custom-call"):
                for name in called:
                    yield from self.walk(runs, name, times)

    def _cycles(self, computation: str) -> int:
        return sum(instruction.cycles * times for instruction, times in self.walk(1, computation))

    def trips(self, loop: Instruction, otherwise: int | None = None) -> int:
        """How often a while loop runs: the compiler's own count, the bound in its condition, ``otherwise``, or 1."""
        if found := _TRIPS.search(loop.text):
            return int(found[1])
        conditions = loop.called.get("condition", ())
        bounds = {int(found[1]) for condition in conditions for found in self._constants(condition)}
        if not bounds and otherwise is not None:
            return otherwise
        if len(bounds) != 1:
            self.unread.add(f"how often {loop.name} runs (counted once)")
            return 1
        return bounds.pop()

    def _constants(self, computation: str) -> Iterator[re.Match[str]]:
        for instruction in self.computations.get(computation, ()):
            if found := _CONSTANT.match(f"{instruction.shape} {instruction.opcode}({','.join(instruction.operands)})"):
                yield found
            for names in instruction.called.values():
                for name in names:
                    yield from self._constants(name)

    def inside(self, instruction: Instruction) -> Iterator[Instruction]:
        """The instructions of a fusion, and of fusions in it."""
        for names in instruction.called.values():
            for name in names:
                for inner in self.computations.get(name, ()):
                    yield inner
                    yield from self.inside(inner)


def parse(text: str) -> Module:
    """The module of ``compiled.as_text()``.

    Raises:
        ValueError: there is no entry computation.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, unread = "", set[str]()
    name, lines = "", list[Instruction]()
    for line in _joined(text):
        if (head := _COMPUTATION.match(line)) and not line.startswith(" "):
            name, lines = head[2], []
            entry = name if head[1] else entry
        elif line.startswith("}") and name:
            computations[name] = tuple(lines)
            name = ""
        elif name and (found := _INSTRUCTION.match(line)) and (instruction := _instruction(found[2], found[3])):
            lines.append(instruction)
        elif name and line.strip():
            unread.add(f"the line {line.strip()[:80]!r}")
    if not entry:
        raise ValueError("the text has no ENTRY computation; it is no optimized HLO module")
    return Module(_named_alike(computations), entry, unread)


def _named_alike(computations: dict[str, tuple[Instruction, ...]]) -> dict[str, tuple[Instruction, ...]]:
    """Both spellings of what runs asynchronously alone as one: ``async-start`` of a slice becomes ``slice-start``.

    Printers choose as they like. Starts of anything else keep their name; ``walk`` goes into them. JAX prints those of
    libtpu 0.0.42.1 for the sparse cores as ``call-start``, which is an ``async-start`` here.
    """
    wrapped: dict[str, str] = {}  # start, update -> what it wraps

    def renamed(instruction: Instruction) -> Instruction:
        if instruction.opcode in ("call-start", "call-update", "call-done"):
            return dataclasses.replace(instruction, opcode=instruction.opcode.replace("call", "async"))
        _, _, end = instruction.opcode.partition("async-")
        if not end:
            return instruction
        names = [name for names in instruction.called.values() for name in names]
        inner = [i.opcode for name in names for i in computations.get(name, ()) if i.opcode != "parameter"]
        before = wrapped.get(instruction.operands[0], "") if instruction.operands and end != "start" else ""
        alone = inner[0] if len(inner) == 1 and inner[0] in _ALONE else before
        if not alone:
            return instruction
        wrapped[instruction.name] = alone
        return dataclasses.replace(instruction, opcode=f"{alone}-{end}")

    return {name: tuple(map(renamed, instructions)) for name, instructions in computations.items()}


def _joined(text: str) -> Iterator[str]:
    """Lines of the program; an instruction that is broken (the metadata of kernels is) in one piece."""
    waiting = ""
    for line in text.splitlines():
        if line.startswith(('"', "}}")):
            waiting += line
            continue
        yield waiting
        waiting = line
    yield waiting


def _instruction(name: str, rest: str) -> Instruction | None:
    shape, rest = _split_shape(rest)
    found = re.match(r"([a-z][\w\-]*)\(", rest)
    if not found:
        return None
    operands, attributes = _split_operands(rest[found.end() :])
    cycles, op_name = _CYCLES.search(attributes), _OP_NAME.search(attributes)
    estimate = int(cycles[1]) if cycles else 0
    called: dict[str, tuple[str, ...]] = {}
    for match in _CALLED.finditer(attributes):
        key = match[0].split("=", 1)[0]
        called[key] = tuple(part.strip(" %") for part in match[1].strip("{}").split(","))
    return Instruction(
        name=name,
        shape=shape,
        opcode=found[1],
        operands=operands,
        cycles=estimate if estimate < _NO_CYCLES else 0,
        op_name=op_name[1] if op_name else "",
        called=called,
        text=rest,
    )


def _split_shape(text: str) -> tuple[str, str]:
    """A type in front, which may be a tuple in brackets, and the rest."""
    if not text.startswith("("):
        shape, _, rest = text.partition(" ")
        return shape, rest
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return text[: place + 1], text[place + 2 :]
    return text, ""


def _parts(shape: str) -> list[str]:
    """The types in that of a tuple."""
    parts, depth = [""], 0
    for character in re.sub(r"/\*.*?\*/", "", shape[1:-1]):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _split_operands(text: str) -> tuple[tuple[str, ...], str]:
    """What stands before the closing bracket, as names, and what follows."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            inner = re.sub(r"/\*.*?\*/", "", text[:place])
            return tuple(part.strip(" %") for part in inner.split(",") if part.strip()), text[place + 1 :]
    return (), text


@functools.lru_cache(maxsize=4096)
def shape_bytes(shape: str) -> int:
    """Bytes of a type as printed, without padding of its layout; parts of a tuple are added up."""
    total = 0
    for kind, sizes in _ARRAY.findall(shape):
        bits = _BITS.get(kind) or int(re.sub(r"\D", " ", kind).split()[0])
        count = 1
        for size in filter(None, sizes.split(",")):
            count *= int(size)
        total += count * bits // 8
    return total
