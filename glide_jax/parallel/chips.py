"""Peak rates of accelerators, by JAX's device kind: for plans and MFU.

TPUs: cloud.google.com/tpu/docs/system-architecture-tpu-vm; their links: "How to Scale Your Model"
(jax-ml.github.io/scaling-book). GPUs: NVIDIA's data sheets, dense bfloat16, SXM.
"""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Peak rates of one device."""

    name: str
    flops: float
    """Multiplications and additions in bfloat16, in 1/s."""
    hbm_bytes: int
    hbm_bytes_per_s: float
    link_bytes_per_s: float = 0.0
    """One-way bandwidth of one link of the torus; TPUs only."""
    clock_hz: float = 0.0
    """Derived from `flops` and the multiply-adds per cycle: 65,536 (v5e), 131,072 (v4, v5p) and
    262,144 (v6e). TPUs only."""
    kernel_flops: float = 0.0
    """FLOP/s of the attention kernel, counting heads padded to 128 lanes: from
    benchmarks/attention_kernels.py. Only for TPUs with such a kernel."""


CHIPS: dict[str, Chip] = {
    "TPU v4": Chip("v4", 275e12, 32 * GIB, 1.2e12, 4.5e10, 1.05e9),
    "TPU v5 lite": Chip("v5e", 197e12, 16 * GIB, 8.1e11, 4.5e10, 1.5e9, 1.56e14),
    "TPU v5": Chip("v5p", 459e12, 95 * GIB, 2.8e12, 9e10, 1.75e9, 3.65e14),
    "TPU v6 lite": Chip("v6e", 918e12, 32 * GIB, 1.6e12, 9e10, 1.75e9, 2.71e14),
    "NVIDIA A100": Chip("A100", 312e12, 80 * GIB, 2.0e12),
    "NVIDIA H100": Chip("H100", 989e12, 80 * GIB, 3.35e12),
    "NVIDIA H200": Chip("H200", 989e12, 141 * GIB, 4.8e12),
}
"""Chips, by the start of their device kind."""


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a device kind; None for CPUs and unlisted accelerators.

    Args:
        device_kind: `jax.Device.device_kind`.
    """
    kind = {"TPU v5e": "TPU v5 lite", "TPU v6e": "TPU v6 lite"}.get(device_kind, device_kind)
    matching = [start for start in CHIPS if kind.startswith(start)]
    return CHIPS[max(matching, key=len)] if matching else None
