"""Forecasts of programs compiled for absent devices: memory, time, communication."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from glide_jax.errors import UserError, first_line
from glide_jax.parallel.chips import GIB, Chip, chip_of

EFFORTS: dict[str, dict[str, Any]] = {
    "quick": {"exec_time_optimization_effort": -0.5},
    "full": {},
}
"""Compiler options by effort; training compiles with `full`."""

ONLY_CUBLAS = {"xla_gpu_enable_triton_gemm": False}
"""Compiler options for GPUs: all matmuls by cuBLAS, none by Triton."""


def known_chip(device: jax.Device) -> Chip:
    """The chip of a device. Raises UserError if it is not in `chips.CHIPS`."""
    chip = chip_of(device.device_kind)
    if chip is None:
        raise UserError(f"unknown chip {device.device_kind!r}: add it to parallel/chips.py")
    return chip


def compile_for(
    topology: str, lowered: jax.stages.Lowered, effort: str
) -> tuple[jax.stages.Compiled, float]:
    """Compiles a program for a topology; also returns the compile time in seconds.

    Args:
        topology: see `topology_devices`.
        lowered: the program, lowered for these devices.
        effort: a key of EFFORTS.

    Raises:
        UserError: the program needs more memory than the chips have.
    """
    started = time.perf_counter()
    options = EFFORTS[effort]
    try:
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if "output tile sizes" not in str(error):
                raise
            # Tiles of Triton's matmuls are measured on a GPU; without one, cuBLAS takes all shapes.
            compiled = lowered.compile(compiler_options={**options, **ONLY_CUBLAS})
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"{topology}: out of memory: {first_line(error)}") from None
    return compiled, time.perf_counter() - started


@dataclass(frozen=True, kw_only=True)
class Forecast(ABC):
    """Memory, time and communication of compiled programs; bytes and seconds are per chip."""

    config: str
    topology: str
    mesh: tuple[int, int]
    """Data x fsdp."""
    chips: int
    hbm_bytes: int
    """`Chip.usable_bytes`."""
    parameter_bytes: int
    temporary_bytes: int
    """Temporary buffers of a program, including gradients and gathered parameters."""
    batch_bytes: int
    """Inputs and outputs other than parameters and training state."""
    code_bytes: int
    operation_s: dict[str, float]
    """Estimated time of computation by JAX operation."""
    exposed_s: float
    """Estimated exposed communication: collectives that no computation overlaps."""
    collective_s: dict[str, float]
    collective_bytes: dict[str, float]
    timing: str
    """How the times were estimated; see `compiled.timing`."""
    compile_s: float
    effort: str

    @property
    def compute_s(self) -> float:
        """Estimated time of all computation."""
        return sum(self.operation_s.values(), 0.0)

    @property
    def used_bytes(self) -> int:
        """HBM in use."""
        return self.parameter_bytes + self.temporary_bytes + self.batch_bytes + self.code_bytes

    @property
    def fits(self) -> bool:
        """Whether the programs fit the chip's HBM."""
        return self.used_bytes <= self.hbm_bytes

    @abstractmethod
    def report(self) -> str:
        """Human-readable summary."""

    def _report(
        self, program: str, sizes: Mapping[str, int], unit: str, estimates: Sequence[str]
    ) -> str:
        """Human-readable summary.

        Args:
            program: description of the program.
            sizes: bytes of a chip's memory, by use.
            unit: period of the collectives and operations: a step, a denoiser call.
            estimates: lines of the last section.
        """
        sizes = {**sizes, "total": self.used_bytes}
        margin = (self.hbm_bytes - self.used_bytes) / GIB
        fits = f"fits, {margin:.1f} GiB free" if margin >= 0 else f"{-margin:.1f} GiB too much"
        collectives = sorted(self.collective_bytes.items())
        lines = [
            f"{self.config} on {self.topology}: {self.chips} chips as {self.mesh[0]} data x "
            f"{self.mesh[1]} fsdp, {program} (compiled in {self.compile_s:.0f} s, effort "
            f"{self.effort})",
            "Memory per chip",
            *(f"  {name:20}{size / GIB:9.2f} GiB" for name, size in sizes.items()),
            f"  of {self.hbm_bytes / GIB:g} GiB: {fits}",
            f"Collectives per {unit}",
            *(
                f"  {kind:20}{size / 1e9:9.2f} GB {1e3 * self.collective_s[kind]:9.1f} ms"
                for kind, size in collectives
            ),
            f"Computation per {unit}: operations of at least 2%",
            *shares(self.operation_s),
            f"Estimates from {self.timing}, not measured",
            *(f"  {line}" for line in estimates),
        ]
        if self.effort == "quick":
            lines.append(
                "  With effort quick, memory is up to 15% too high; "
                "time and communication are upper bounds."
            )
        return "\n".join(lines)


def shares(operation_s: Mapping[str, float]) -> Sequence[str]:
    """Lines on the operations of at least 2% of the total time, the longest first."""
    total = sum(operation_s.values())
    longest = sorted(operation_s.items(), key=lambda operation: -operation[1])
    return [
        f"  {name:20}{1e3 * seconds:12.2f} ms {seconds / total:7.1%}"
        for name, seconds in longest
        if seconds > 0 and seconds >= 0.02 * total
    ]
