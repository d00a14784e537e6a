"""Optimized HLO text: its computations, their instructions, and the bytes of their arrays."""

import math
import re
from dataclasses import dataclass

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}

_COMPUTATION = re.compile(r"(ENTRY )?%(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\(([^)]*)")


@dataclass(frozen=True)
class Instruction:
    """One instruction of the text."""

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    """Names of its operands."""
    line: str

    @property
    def arrays(self) -> list[tuple[str, tuple[int, ...]]]:
        """Type and axes of each array of the result."""
        found = re.findall(r"(\w+)\[([\d,]*)\]", self.shape)
        return [(kind, tuple(int(n) for n in axes.split(",") if n)) for kind, axes in found]

    def axes(self, setting: str) -> list[int]:
        """The axes of a setting, as lhs_batch_dims={0,1}; none if it is missing."""
        found = re.search(rf"{setting}={{([\d,]*)}}", self.line)
        return [int(axis) for axis in found[1].split(",") if axis] if found else []


Computations = dict[str, list[Instruction]]


def computations_of(text: str) -> tuple[Computations, str]:
    """The computations of a program, and the name of the one that runs.

    Args:
        text: `jax.stages.Compiled.as_text()`.
    """
    computations: Computations = {}
    entry, current = "", []
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header is not None:
            current = computations[header[2]] = []
            if header[1]:
                entry = header[2]
            continue
        found = _INSTRUCTION.match(line)
        if found is not None:
            operands = tuple(re.findall(r"%([\w.-]+)", found[4]))
            current.append(Instruction(found[1], found[2], found[3], operands, line))
    return computations, entry


def loop(instruction: Instruction, computations: Computations) -> tuple[str, int]:
    """The body of a while loop and its trip count, if need be the constant of its condition."""
    condition, body = (
        re.search(rf"{part}=%([\w.-]+)", instruction.line)[1]  # type: ignore[index]
        for part in ("condition", "body")
    )
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.line):
        return body, int(known[1])
    constants = (re.search(r"constant\((\d+)\)", i.line) for i in computations[condition])
    return body, max((int(found[1]) for found in constants if found), default=1)


def branches(instruction: Instruction) -> list[str]:
    """Names of the computations of a conditional, one of which runs."""
    listed = re.search(r"branch_computations={([^}]*)}", instruction.line)
    text = listed[1] if listed else " ".join(re.findall(r"_computation=(%\S+)", instruction.line))
    return re.findall(r"%([\w.-]+)", text)


def called(instruction: Instruction, computations: Computations) -> list[Instruction]:
    """The instruction and those of the computation it calls."""
    found = re.search(r"calls=%([\w.-]+)", instruction.line)
    if instruction.operation == "call-start":
        found = re.search(r"to_apply=%([\w.-]+)", instruction.line)
    return [instruction, *(computations.get(found[1], []) if found else [])]


def bytes_of(instruction: Instruction) -> float:
    """Bytes of the result; of a start, of its largest array."""
    sizes = [BYTES.get(kind, 0) * math.prod(axes) for kind, axes in instruction.arrays]
    combined = max if instruction.operation.endswith("-start") else sum
    return float(combined(sizes or [0]))
