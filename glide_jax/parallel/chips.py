"""Peak rates of accelerators, by JAX's device kind: for plans and MFU.

TPUs: cloud.google.com/tpu/docs/system-architecture-tpu-vm; their links: "How to Scale Your Model"
(jax-ml.github.io/scaling-book). GPUs: NVIDIA's data sheets (A100, H100, H200: SXM; L40S) and the
white papers of GA102 (RTX 3090) and Ada (RTX 4090): dense bfloat16 with float32 accumulation, half
of NVLink's bandwidth, or PCIe 4.0 x16. The L40S's memory is what nvidia-smi shows: error correction
takes the rest of 48 GB.
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
    """One-way bandwidth of one link of the torus; of a GPU, of all its links."""
    links: int = 2
    """Links that a collective uses: both directions of an axis of the torus; a GPU's count as 1."""
    clock_hz: float = 0.0
    """Derived from `flops` and the multiply-adds per cycle: 65,536 (v5e), 131,072 (v4, v5p) and
    262,144 (v6e). TPUs only."""
    kernel_flops: float = 0.0
    """FLOP/s of the attention kernel, counting heads padded to 128 lanes: from
    benchmarks/attention_kernels.py. Only for TPUs with such a kernel."""

    @property
    def usable_bytes(self) -> int:
        """Memory of a program; of a GPU, 95%: the rest is for CUDA and cuDNN."""
        return self.hbm_bytes if self.clock_hz else int(0.95 * self.hbm_bytes)


CHIPS: dict[str, Chip] = {
    "TPU v4": Chip("v4", 275e12, 32 * GIB, 1.2e12, 4.5e10, clock_hz=1.05e9),
    "TPU v5 lite": Chip("v5e", 197e12, 16 * GIB, 8.1e11, 4.5e10, 2, 1.5e9, 1.56e14),
    "TPU v5": Chip("v5p", 459e12, 95 * GIB, 2.8e12, 9e10, 2, 1.75e9, 3.65e14),
    "TPU v6 lite": Chip("v6e", 918e12, 32 * GIB, 1.6e12, 9e10, 2, 1.75e9, 2.71e14),
    "NVIDIA GeForce RTX 3090": Chip("RTX 3090", 71e12, 24 * GIB, 9.36e11, 3.2e10, 1),
    "NVIDIA GeForce RTX 4090": Chip("RTX 4090", 165e12, 24 * GIB, 1.008e12, 3.2e10, 1),
    "NVIDIA L40S": Chip("L40S", 362e12, 45 * GIB, 8.64e11, 3.2e10, 1),
    "NVIDIA A100-SXM4-40GB": Chip("A100 40 GB", 312e12, 40 * GIB, 1.555e12, 3e11, 1),
    "NVIDIA A100-SXM4-80GB": Chip("A100", 312e12, 80 * GIB, 2.0e12, 3e11, 1),
    "NVIDIA H100 80GB HBM3": Chip("H100", 989e12, 80 * GIB, 3.35e12, 4.5e11, 1),
    "NVIDIA H200": Chip("H200", 989e12, 141 * GIB, 4.8e12, 4.5e11, 1),
}
"""Chips, by their device kind."""

_OTHER_KINDS = {
    "TPU v5e": "TPU v5 lite",
    "TPU v5p": "TPU v5",
    "TPU v6e": "TPU v6 lite",
    "NVIDIA A100-PCIE-40GB": "NVIDIA A100-SXM4-40GB",
    "NVIDIA A100 80GB PCIe": "NVIDIA A100-SXM4-80GB",
}
"""Device kinds with the peak rate of another one."""


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a device kind; None for CPUs and unlisted accelerators.

    Only the full name tells: an H100 PCIe, an RTX 4090 Laptop GPU or a part of a GPU (MIG) is
    slower than the chip whose name it begins with.

    Args:
        device_kind: `jax.Device.device_kind`.
    """
    return CHIPS.get(_OTHER_KINDS.get(device_kind, device_kind))
