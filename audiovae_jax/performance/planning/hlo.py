"""Reads the text of a compiled program (HLO): collectives and memory traffic."""

import dataclasses
import math
import re
from collections.abc import Iterator

_COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
    "ragged-all-to-all",
)  # fmt: skip
# Instructions that only refer to buffers, and move no data.
_FREE = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "partition-id", "replica-id")
_BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<=]*)\]")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_COMPUTATION = re.compile(r"^(?:(ENTRY) )?%?([\w.\-]+) .*\{$", flags=re.MULTILINE)
_BODY = re.compile(r"\bbody=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_COUNTED_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")  # the axes and sizes, and the axes of a group


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices.

    Attributes:
      op: such as "all-reduce".
      bytes: input of each device.
      devices: number of devices in a group; None if the text does not give it, which means all.
    """

    op: str
    bytes: int
    devices: int | None


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    line: str


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled module, in the order of its text.

    An asynchronous start and its end count once.
    """
    sizes, found = {}, []
    for instruction in _instructions(text):
        sizes[instruction.name] = _size(instruction.type)
        op = instruction.op.removesuffix("-start")
        if op in _COLLECTIVES:
            given = sum(sizes.get(name, 0) for name in instruction.operands)
            found.append(Collective(op, given, _group_size(instruction.line)))
    return found


def entry_traffic(text: str) -> int:
    """Bytes that the entry computation's instructions read and write, each alone.

    A loop counts as its body, as often as it runs. A fusion is one instruction, and its internal traffic does not
    count. This is an estimate: instructions may share a cache, or read only part of an operand.
    """
    return _traffic("ENTRY", _computations(text))


def _traffic(name, computations):
    sizes, moved = {}, 0
    for instruction in _instructions(computations.get(name, "")):
        sizes[instruction.name] = size = _size(instruction.type)
        if instruction.op == "while":
            rounds, body = _TRIPS.search(instruction.line), _BODY.search(instruction.line)
            moved += int(rounds.group(1) if rounds else 1) * _traffic(body.group(1) if body else "", computations)
        elif instruction.op not in _FREE and not instruction.op.endswith("-done"):
            moved += size + sum(sizes.get(name, 0) for name in instruction.operands)
    return moved


def _computations(text):
    """The text of each computation by its name, or "ENTRY"."""
    starts = list(_COMPUTATION.finditer(text))
    ends = [start.start() for start in starts[1:]] + [len(text)]
    return {start[1] or start[2]: text[start.end() : end] for start, end in zip(starts, ends, strict=True)}


def _instructions(text) -> Iterator[_Instruction]:
    for line in text.splitlines():
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        end = _end_of_type(line, match.end())
        opcode = _OPCODE.match(line, end)
        if not opcode:
            continue
        inside = line[opcode.end() : _closing(line, opcode.end() - 1)]
        operands = tuple(_NAME.findall(inside))
        yield _Instruction(match.group(1), line[match.end() : end], opcode.group(1), operands, line)


def _end_of_type(line, start):
    # Tuple types contain spaces, and TPU layouts contain parentheses.
    if line.startswith("(", start):
        return _closing(line, start) + 1
    end = line.find(" ", start)
    return len(line) if end < 0 else end


def _closing(line, opening):
    depth = 0
    for position in range(opening, len(line)):
        if line[position] == "(":
            depth += 1
        elif line[position] == ")":
            depth -= 1
            if depth == 0:
                return position
    return len(line)


def _size(type_):
    bits = 0
    for dtype, shape in _ARRAY.findall(type_):
        width = 8 if dtype.startswith("f8") else _BITS.get(dtype, 0)
        count = 1
        for length in filter(None, shape.replace("<=", "").split(",")):
            count *= int(length)
        bits += width * count
    return bits // 8


def _group_size(line):
    if match := _LISTED_GROUPS.search(line):
        return len(match.group(1).split(","))
    if match := _COUNTED_GROUPS.search(line):
        return int(match.group(1))
    if match := _MESH_GROUPS.search(line):
        sizes = dict(axis.split("=") for axis in match.group(1).split(","))
        axes = match.group(2).split(",")
        return math.prod(int(sizes[axis]) for axis in axes) if sizes.keys() >= set(axes) else None
    return None
