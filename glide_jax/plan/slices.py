"""TPU slices that need not be there: their devices, their compiler, and what it finds."""

import importlib.util
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from glide_jax.errors import UserError
from glide_jax.parallel.chips import GIB, Chip, chip_of

EFFORTS: dict[str, dict[str, Any]] = {
    "quick": {"exec_time_optimization_effort": -0.5},
    "full": {},
}
"""How hard the compiler tries, as options to it; training gets `full`."""


def topology_devices(name: str, slices: int = 1) -> Sequence[jax.Device]:
    """The devices of a TPU slice, without the TPUs.

    Args:
        name: generation and shape: v5e:4x4, v5p:4x4x4, v6e:8x8.
        slices: number of such slices.

    Raises:
        UserError: there is no libtpu, or it knows no such slice.
    """
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise UserError('plans need the TPU compiler: pip install -e ".[tpu]"')
    # As on a worker of a slice, so that libtpu does not ask the cloud where it is.
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-16"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_WORKER_ID", "0"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        os.environ.setdefault(variable, value)
    try:
        several = {"num_slices": slices} if slices > 1 else {}
        return topologies.get_topology_desc(name, "tpu", **several).devices
    except Exception as error:  # libtpu's and JAX's are of several kinds
        raise UserError(
            f"--topology {name}: no such slice ({str(error).splitlines()[0]}); name a generation "
            "and its shape in chips, as v5e:4x4, v5p:4x4x4 or v6e:8x8"
        ) from None


def known_chip(device: jax.Device) -> Chip:
    """What is known of a slice's chips. Raises UserError if nothing is."""
    chip = chip_of(device.device_kind)
    if chip is None:
        raise UserError(f"nothing is known of the chip {device.device_kind!r}")
    return chip


def compile_for(
    topology: str, lowered: jax.stages.Lowered, effort: str
) -> tuple[jax.stages.Compiled, float]:
    """A program for a slice, and the seconds that compiling took.

    Args:
        topology: see `topology_devices`.
        lowered: for these devices.
        effort: a key of EFFORTS.

    Raises:
        UserError: it takes more memory than there is.
    """
    started = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=EFFORTS[effort])
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first_line = str(error).strip().splitlines()[0][:300]
        raise UserError(f"{topology}: the compiler finds no room: {first_line}") from None
    return compiled, time.perf_counter() - started


def fsdp_of(text: str, chips: int) -> int:
    """The 'fsdp' of `--mesh DATAxFSDP`. Raises UserError if it is not of so many chips."""
    try:
        data, fsdp = map(int, text.split("x"))
    except ValueError:
        raise UserError(f"--mesh {text}: give two numbers, data x fsdp, as 16x4") from None
    if min(data, fsdp) < 1 or data * fsdp != chips:
        raise UserError(f"--mesh {text}: {data} x {fsdp} is not the slice's {chips} chips")
    return fsdp


@dataclass(frozen=True, kw_only=True)
class SlicePlan(ABC):
    """What compiled programs take on a slice; bytes and seconds are of one chip."""

    config: str
    topology: str
    mesh: tuple[int, int]
    """Data x fsdp."""
    chips: int
    hbm_bytes: int
    parameter_bytes: int
    temporary_bytes: int
    """All that lives within a program, gradients and gathered parameters too."""
    batch_bytes: int
    """What goes in and comes out besides parameters and a training's state."""
    code_bytes: int
    operation_s: dict[str, float]
    """Computation, by JAX's operation; estimated, as all seconds."""
    waiting_s: float
    """For other chips, with nothing to compute."""
    collective_s: dict[str, float]
    collective_bytes: dict[str, float]
    compile_s: float
    effort: str

    @property
    def compute_s(self) -> float:
        """All computation."""
        return sum(self.operation_s.values(), 0.0)

    @property
    def used_bytes(self) -> int:
        """Of HBM."""
        return self.parameter_bytes + self.temporary_bytes + self.batch_bytes + self.code_bytes

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return self.used_bytes <= self.hbm_bytes

    @abstractmethod
    def report(self) -> str:
        """For people."""

    def tell(self, what: str, sizes: Mapping[str, int], unit: str, estimated: Sequence[str]) -> str:
        """For people.

        Args:
            what: was compiled.
            sizes: bytes of a chip's HBM, by what takes them.
            unit: that collectives and estimates are of.
            estimated: lines.
        """
        sizes = {**sizes, "all": self.used_bytes}
        margin = (self.hbm_bytes - self.used_bytes) / GIB
        fits = f"fits, {margin:.1f} GiB to spare" if margin >= 0 else f"{-margin:.1f} GiB too much"
        collectives = sorted(self.collective_bytes.items())
        lines = [
            f"{self.config} on {self.topology}: {self.chips} chips as {self.mesh[0]} data x "
            f"{self.mesh[1]} fsdp, {what} (compiled in {self.compile_s:.0f} s, effort "
            f"{self.effort})",
            "HBM of a chip",
            *(f"  {name:20}{size / GIB:9.2f} GiB" for name, size in sizes.items()),
            f"  of {self.hbm_bytes / GIB:.0f} GiB: {fits}",
            f"Collectives of a {unit}",
            *(
                f"  {kind:20}{size / 1e9:9.2f} GB {1e3 * self.collective_s[kind]:9.1f} ms"
                for kind, size in collectives
            ),
            f"Computation of a {unit}, what takes 2% and more of it",
            *shares(self.operation_s),
            "Estimated",
            *(f"  {line}" for line in estimated),
        ]
        if self.effort == "quick":
            lines.append(
                "  Effort quick: memory holds; times and what is exchanged are upper bounds."
            )
        return "\n".join(lines)


def shares(operation_s: Mapping[str, float]) -> Sequence[str]:
    """For people: the operations that take 2% and more of what all take, the longest first."""
    total = sum(operation_s.values())
    longest = sorted(operation_s.items(), key=lambda operation: -operation[1])
    return [
        f"  {name:20}{1e3 * seconds:12.2f} ms {seconds / total:7.1%}"
        for name, seconds in longest
        if seconds > 0 and seconds >= 0.02 * total
    ]
