"""Devices without the hardware: TPU slices and the GPUs of a machine, and their compilers."""

import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import jax
from jax.experimental import topologies

from glide_jax.errors import UserError, first_line, shown
from glide_jax.parallel.chips import chip_of


@dataclass(frozen=True)
class Gpu:
    """What the compiler knows of a GPU: from XLA's target configurations and NVIDIA's papers."""

    kind: str
    """Device kind."""
    capability: tuple[int, int]
    """Compute capability, major and minor."""
    cores: int
    """Streaming multiprocessors."""
    core_flops: int
    """Float32 units of a multiprocessor."""
    core_threads: int
    core_shared_bytes: int
    l2_bytes: int
    clock_ghz: float


GPUS: dict[str, Gpu] = {
    "rtx3090": Gpu("NVIDIA GeForce RTX 3090", (8, 6), 82, 128, 1536, 102_400, 6 << 20, 1.7),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", (8, 9), 128, 128, 1536, 102_400, 72 << 20, 2.52),
    "a100-40": Gpu("NVIDIA A100-SXM4-40GB", (8, 0), 108, 64, 2048, 167_936, 40 << 20, 1.41),
    "a100-80": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 2048, 167_936, 40 << 20, 1.41),
    "l40s": Gpu("NVIDIA L40S", (8, 9), 142, 128, 1536, 102_400, 96 << 20, 2.52),
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 2048, 233_472, 50 << 20, 1.98),
    "h200": Gpu("NVIDIA H200", (9, 0), 132, 128, 2048, 233_472, 50 << 20, 1.98),
}
"""GPUs, by their names in `--topology`."""

MAX_GPUS = 8
"""GPUs of a machine."""


def topology_devices(name: str, slices: int = 1) -> Sequence[jax.Device]:
    """The devices of a TPU slice, or the GPUs of a machine, without the hardware.

    Args:
        name: of a slice, generation and shape: v5e:4x4, v5p:4x4x4, v6e:8x8. Of GPUs, their name in
            GPUS and their number: rtx4090, h100:8.
        slices: number of such slices.

    Raises:
        UserError: the compiler is not installed, or there is no such topology.
    """
    if re.match(r"v[0-9]", name):
        return _tpus(name, slices)
    gpu, _, number = name.partition(":")
    if gpu not in GPUS:
        raise UserError(
            f"--topology {shown(name)}: give a TPU slice, such as v5e:4x4 or v5p:4x4x4, or GPUs: "
            f"{', '.join(GPUS)}, and their number, such as h100:8"
        )
    if not re.fullmatch("[1-9]?", number) or int(number or 1) > MAX_GPUS:
        raise UserError(f"--topology {name}: give 1 to {MAX_GPUS} GPUs, such as {gpu}:{MAX_GPUS}")
    return _gpus(GPUS[gpu], int(number or 1))


def _gpus(gpu: Gpu, number: int) -> Sequence[jax.Device]:
    try:
        return topologies.get_topology_desc(
            gpu.kind, "cuda", target_config=_target_config(gpu), topology=f"1x1x{number}"
        ).devices
    except NotImplementedError:  # no plugin is registered
        raise UserError('plans need the CUDA compiler: pip install -e ".[cuda]"') from None


def _target_config(gpu: Gpu) -> str:
    """XLA's description of a GPU: the text of a `stream_executor.GpuTargetConfigProto`."""
    chip = chip_of(gpu.kind)
    assert chip is not None  # a test
    major, minor = gpu.capability
    return f"""
        platform_name: "CUDA"
        device_description_str: "{gpu.kind}"
        runtime_version {{ major: 13 }}
        dnn_version_info {{ major: 9 minor: 12 }}
        gpu_device_info {{
          cuda_compute_capability {{ major: {major} minor: {minor} }}
          core_count: {gpu.cores}
          fpus_per_core: {gpu.core_flops}
          clock_rate_ghz: {gpu.clock_ghz}
          device_memory_size: {chip.hbm_bytes}
          memory_bandwidth: {int(chip.hbm_bytes_per_s)}
          l2_cache_size: {gpu.l2_bytes}
          shared_memory_per_core: {gpu.core_shared_bytes}
          shared_memory_per_block_optin: {gpu.core_shared_bytes - 1024}
          shared_memory_per_block: 49152
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
          threads_per_core_limit: {gpu.core_threads}
          threads_per_block_limit: 1024
          threads_per_warp: 32
          block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
        }}
    """


def _tpus(name: str, slices: int) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError('plans need the TPU compiler: pip install -e ".[tpu]"')
    # The environment of a slice's worker, so that libtpu does not query the cloud.
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
    except Exception as error:  # libtpu and JAX raise several types
        raise UserError(
            f"--topology {name}: no such slice ({first_line(error)}); give a generation "
            "and a shape in chips, such as v5e:4x4, v5p:4x4x4 or v6e:8x8"
        ) from None


def fsdp_of(text: str, chips: int) -> int:
    """The fsdp axis of `--mesh DATAxFSDP`. Raises UserError unless the mesh has `chips` chips."""
    match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text)
    if match is None:
        raise UserError(f"--mesh {shown(text)}: give DATAxFSDP, such as 16x4")
    data, fsdp = int(match[1]), int(match[2])
    if data * fsdp != chips:
        raise UserError(f"--mesh {text}: {data} x {fsdp} is not the topology's {chips} chips")
    return fsdp
