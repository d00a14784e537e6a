"""TPU slices that need not be there: their devices, their compiler, and how its finds are told."""

import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from glide_jax.errors import UserError
from glide_jax.training.chips import GIB, Chip, chip_of

EFFORTS: dict[str, dict[str, Any]] = {
    "quick": {"exec_time_optimization_effort": -0.5},
    "full": {},
}
"""How hard the compiler tries, as options to it; training gets `full`."""

QUICK = "  Effort quick: memory holds; times and what is exchanged are upper bounds."


def topology_devices(name: str) -> Sequence[jax.Device]:
    """The devices of a TPU slice that is not there.

    Args:
        name: generation and shape: v5e:4x4, v5p:4x4x4, v6e:8x8.

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
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
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


def memory_lines(sizes: Mapping[str, int], used: int, hbm: int) -> list[str]:
    """For people: what takes how many bytes of a chip's HBM, and whether all of it fits."""
    margin = (hbm - used) / GIB
    verdict = f"fits, {margin:.1f} GiB to spare" if margin >= 0 else f"{-margin:.1f} GiB too much"
    return [
        "HBM of a chip",
        *(f"  {name:20}{size / GIB:9.2f} GiB" for name, size in sizes.items()),
        f"  {'all':20}{used / GIB:9.2f} GiB",
        f"  of {hbm / GIB:.0f} GiB: {verdict}",
    ]


def collective_lines(sizes: Mapping[str, float], seconds: Mapping[str, float]) -> list[str]:
    """For people: bytes and seconds of collectives, by kind."""
    return [
        f"  {kind:20}{size / 1e9:9.2f} GB {1e3 * seconds[kind]:9.1f} ms"
        for kind, size in sorted(sizes.items())
    ]
