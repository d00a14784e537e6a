"""Time and communication of a TPU's or GPU's program, from its optimized HLO text.

The text lists instructions in the order of execution. Most of a TPU's have the compiler's estimate
in cycles; attention kernels have their FLOPs. A GPU's have none: see roofline.py. Collectives have
no estimate: their time follows from the bytes that cross the links of the compiler's rings, by
default both directions of one axis of the torus ("How to Scale Your Model",
jax-ml.github.io/scaling-book, sec. 3). An asynchronous collective is exposed only as far as the
computation between its start and its end does not overlap it. It is a pair of instructions, or a
chain with fusions that compute something else in between, or a call on the sparse cores.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from glide_jax.parallel.chips import Chip
from glide_jax.plan import roofline
from glide_jax.plan.hlo import (
    Computations,
    Instruction,
    branches,
    bytes_of,
    called,
    computations_of,
    loop,
)

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass
class Usage:
    """Estimated time and communication of a program, or a part of it, on one chip."""

    operation_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Computation by JAX operation, or by HLO operation where there is none."""
    exposed_s: float = 0.0
    """Exposed communication: collectives that no computation overlaps."""
    collective_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Time of collectives by kind, overlapped or not."""
    collective_bytes: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Bytes of the exchanged arrays by kind, before they are split."""

    @property
    def compute_s(self) -> float:
        """Total time of computation."""
        return sum(self.operation_s.values(), 0.0)

    @property
    def step_s(self) -> float:
        """Total time."""
        return self.compute_s + self.exposed_s

    def fields(self) -> dict[str, Any]:
        """The fields that a forecast has in common with this."""
        return {
            "operation_s": dict(self.operation_s),
            "exposed_s": self.exposed_s,
            "collective_s": dict(self.collective_s),
            "collective_bytes": dict(self.collective_bytes),
        }

    def add(self, other: "Usage", times: int) -> None:
        """Adds a part of the program that runs `times` times."""
        for name, seconds in other.operation_s.items():
            self.add_computation(name, times * seconds)
        self.exposed_s += times * other.exposed_s
        for kind in other.collective_s:
            self.add_collective(
                kind, times * other.collective_s[kind], times * other.collective_bytes[kind]
            )

    def add_computation(self, operation: str, seconds: float) -> None:
        """Adds the time of an operation."""
        if seconds:
            self.operation_s[operation] += seconds

    def add_collective(self, kind: str, seconds: float, size: float) -> None:
        """Adds the time and the bytes of a collective."""
        self.collective_s[kind] += seconds
        self.collective_bytes[kind] += size


def usage(text: str, chip: Chip) -> Usage:
    """Estimates the time and communication of a program.

    Args:
        text: `jax.stages.Compiled.as_text()` of a program compiled for TPUs or GPUs.
        chip: what it is compiled for.
    """
    computations, entry = computations_of(text)
    return _usage(entry, computations, chip)


def loops_usage(text: str, chip: Chip) -> Usage:
    """`usage` of a program's loops alone. One of unknown length counts one turn."""
    computations, entry = computations_of(text)
    total = Usage()
    for instruction in computations[entry]:
        if instruction.operation == "while":
            body, turns = loop(instruction, computations)
            total.add(_usage(body, computations, chip), turns)
    return total


def timing(chip: Chip) -> str:
    """Where the times of `usage` come from."""
    return "the TPU compiler's cycles" if chip.clock_hz else roofline.SOURCE


def _usage(name: str, computations: Computations, chip: Chip) -> Usage:
    total = Usage()
    compute_s = _timer(name, computations, chip)
    started: dict[str, tuple[float, float]] = {}  # by name or chain: start and duration
    for instruction in computations[name]:
        if instruction.operation == "while":
            body, turns = loop(instruction, computations)
            total.add(_usage(body, computations, chip), turns)
            continue
        if instruction.operation == "conditional":  # either network of Karlo's upsampler
            usages = (_usage(branch, computations, chip) for branch in branches(instruction))
            total.add(max(usages, key=lambda branch: branch.step_s), 1)
            continue
        if instruction.operation.endswith("-done"):
            if instruction.operands[0] in started:
                start, takes_s = started.pop(instruction.operands[0])
                total.exposed_s += max(0.0, takes_s - (total.step_s - start))
            continue
        collective = next(_collectives(instruction, computations), None)
        if collective is None:
            total.add_computation(_operation(instruction), compute_s(instruction))
            continue
        chain = _chain(instruction, computations)
        starts_chain = instruction.name.startswith("async-collective-start")
        if chain and not starts_chain:  # possibly in a loop
            total.add_computation(_operation(instruction), compute_s(instruction))
            if chain in started and instruction.name.startswith("async-collective-done"):
                start, takes_s = started.pop(chain)
                total.exposed_s += max(0.0, takes_s - (total.step_s - start))
            continue
        kind, size = collective
        links = _links(instruction, computations, chip)
        takes_s = _takes_s(kind, size, _group(instruction, computations), links, chip)
        total.add_collective(kind, takes_s, size)
        if instruction.operation.endswith("-start"):
            started[instruction.name] = (total.step_s, takes_s)
        elif starts_chain:
            started[chain] = (total.step_s, takes_s)
        else:
            total.exposed_s += takes_s
    return total


def _collectives(
    instruction: Instruction, computations: Computations
) -> Iterator[tuple[str, float]]:
    """Kind and bytes of the collectives in an instruction."""
    for part in called(instruction, computations):
        kind = part.operation.removesuffix("-start")
        if kind in COLLECTIVES:
            size = bytes_of(part)
            if kind == "reduce-scatter":
                size *= _group(part, computations)
            if "all-reduce-scatter" in instruction.line:
                kind = "reduce-scatter"
            yield kind, size


def _chain(instruction: Instruction, computations: Computations) -> str:
    """The chain an instruction belongs to; empty if none."""
    found = (re.search(r'chain_id="\d+"', i.line) for i in called(instruction, computations))
    return next((link[0] for link in found if link), "")


def _group(instruction: Instruction, computations: Computations) -> int:
    """Number of chips in a collective."""
    for part in called(instruction, computations):
        line = part.line
        if found := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", line):
            sizes = {axis: int(n) for axis, n in re.findall(r"'(\w+)'=(\d+)", found[1])}
            return math.prod(sizes[axis] for axis in re.findall(r"'(\w+)'", found[2]))
        if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
            return len(found[1].split(","))
        if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
            return int(found[1])
    return 2  # collective-permute: between two chips


def _links(instruction: Instruction, computations: Computations, chip: Chip) -> int:
    """Number of links of a chip in use at once, in one direction."""
    for part in called(instruction, computations):
        rings = re.search(r'"strategy":"UniDirection\w*","debug":"[^"]*?colors:(\d+)', part.line)
        if rings:
            return int(rings[1])
    return chip.links


def _takes_s(kind: str, size: float, group: int, links: int, chip: Chip) -> float:
    """Time of a ring collective over `group` chips."""
    once = size * (group - 1) / group / (links * chip.link_bytes_per_s)
    return once * {"all-reduce": 2.0, "all-to-all": 0.25}.get(kind, 1.0)


def _operation(instruction: Instruction) -> str:
    """Name of the JAX operation; of the HLO operation where there is none, as for copies.

    A fusion counts as the operation that the compiler named it after.
    """
    named = re.search(r'op_name="[^"]*/([\w-]+)"', instruction.line)
    return named[1] if named else instruction.operation


def _timer(name: str, computations: Computations, chip: Chip) -> Callable[[Instruction], float]:
    """`instruction -> seconds`, for the instructions of a computation."""
    if not chip.clock_hz:
        return roofline.timer(name, computations, chip)

    def compute_s(instruction: Instruction) -> float:
        if cycles := re.search(r'"estimated_cycles":"(\d+)"', instruction.line):
            return int(cycles[1]) / chip.clock_hz
        kernel = re.search(r'"cost_estimate":\{"flops":"(\d+)"', instruction.line)
        return 0.0 if kernel is None else int(kernel[1]) / chip.kernel_flops

    return compute_s
