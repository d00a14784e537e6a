"""Meshes and shardings, by parameter name: models know nothing of devices.

The mesh has two axes. The batch is sharded over both; parameters, EMA and optimizer state are
sharded over 'fsdp' (ZeRO, arXiv 2004.13336) and replicated over 'data'. With several TPU slices,
'fsdp' stays within a slice, and only gradients cross the network between slices.
"""

import contextlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from glide_jax.config import Config
from glide_jax.errors import UserError
from glide_jax.parallel.host_memory import keep_freed_memory
from glide_jax.shapes import Batch, Params

Rule = tuple[str, PartitionSpec | Literal["fsdp", "replicate"]]

RULES: tuple[Rule, ...] = (
    (r".*\.(scale|bias)", "replicate"),
    (r".*\.kernel", "fsdp"),
    (r"(text|image)\.(\w+_embedding|projection)", "fsdp"),
    (r"(position|code|dot)_embedding", "fsdp"),
    (r"logit_scale|mean|std|basis|dot_edges|query|image_null", "replicate"),
)
"""The first matching rule applies; a parameter without one is an error."""

FSDP_MIN_SIZE = 2**16
"""Size from which a parameter is sharded: smaller ones are cheaper to replicate than to gather."""


def use_all_cores(batch_examples: int, processes: int = 1, sharing: int = 1) -> None:
    """Makes each CPU core a device, as far as the batch divides. Call it before JAX is used.

    XLA runs many operations of a small U-Net on a single core. With one device per core, each with
    its part of the batch, all cores are busy (benchmarks/train_step.py). Accelerators are not
    affected. The environment variable JAX_NUM_CPU_DEVICES takes precedence. Programs on CPUs also
    reuse their memory: see `host_memory`.

    Args:
        batch_examples: size of a micro-batch, over all processes.
        processes: number of processes of the run.
        sharing: number of processes that share this machine's cores.
    """
    most = max(_cores() // sharing, 1)
    fitting = (n for n in range(1, most + 1) if batch_examples % (n * processes) == 0)
    _set_cpu_devices(max(fitting, default=1))


def use_cores_to_sample(images: int, fsdp: int = 1) -> None:
    """`use_all_cores` for sampling, which pads its batches: any number divides them.

    Args:
        images: of a batch. More devices than images would sample only padding.
        fsdp: devices over which parameters are sharded.
    """
    fsdp = max(fsdp, 1)  # checked once devices are known
    _set_cpu_devices(max(min(_cores(), images) // fsdp, 1) * fsdp)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _set_cpu_devices(devices: int) -> None:
    keep_freed_memory()
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # too late: JAX is already in use
            jax.config.update("jax_num_cpu_devices", devices)


def make_mesh(config: Config, given: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a run: all devices of all processes, neighbors along 'fsdp'.

    Args:
        config: of the run.
        given: devices to use instead.

    Raises:
        UserError: the number of devices does not divide the batch, or train.fsdp the devices.
    """
    devices = jax.device_count() if given is None else len(given)
    fsdp = config.train.fsdp
    if devices % fsdp:
        raise UserError(f"train.fsdp ({fsdp}) must divide the number of devices ({devices})")
    per_micro_batch = config.train.batch_examples // config.train.micro_batches
    if per_micro_batch % devices:
        raise UserError(
            f"train.batch_examples / train.micro_batches ({per_micro_batch}) must be divisible "
            f"by the number of devices ({devices})"
        )
    return _mesh(jax.devices() if given is None else given, fsdp)


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """Compiler options of `jax.jit` for a train step on this mesh.

    With parameters sharded over all chips, the TPU compiler splits matmuls and passes parts of the
    parameters around instead of gathering them, which is far slower
    (docs/notes/2026-11-26-tpu-plans.md). The option is the size, in MiB, from which it does so.
    """
    tpus = mesh.devices.flat[0].platform == "tpu"
    if not tpus or mesh.shape["data"] > 1 or mesh.size == 1:
        return None
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": str(2**20)}


def bytes_a_device(shapes: Any, shardings: Any) -> int:
    """Bytes of a tree of arrays, or of their shapes, on each device."""
    sizes = jax.tree.map(
        lambda x, sharding: math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize,
        shapes,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))


def local_mesh(fsdp: int = 1, given: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of this process's devices: for sampling, which runs in one process.

    Args:
        fsdp: number of devices over which parameters are sharded.
        given: devices to use instead.

    Raises:
        UserError: `fsdp` does not divide the number of devices.
    """
    devices = jax.local_devices() if given is None else given
    if fsdp < 1 or len(devices) % fsdp:
        raise UserError(f"--fsdp {fsdp}: must divide the number of devices ({len(devices)})")
    return _mesh(devices, fsdp)


def _mesh(devices: Sequence[jax.Device], fsdp: int) -> Mesh:
    on_tpu = devices[0].platform == "tpu"
    slices = len({getattr(d, "slice_index", 0) for d in devices}) if on_tpu else 1
    chips = len(devices) // slices
    if chips % fsdp:
        raise UserError(
            f"train.fsdp ({fsdp}) must divide the {chips} chips of a slice: parameters are not "
            "sharded across slices"
        )
    # A slice is a torus, of which 'fsdp' may be part of an axis: jax.make_mesh refuses that.
    shape = (chips // fsdp, fsdp)
    if slices == 1:
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        array = mesh_utils.create_hybrid_device_mesh(
            shape, (slices, 1), devices, allow_split_physical_axes=True
        )
    # Auto: the compiler propagates shardings. Explicit, the default, rejects sharded convolutions.
    return Mesh(array, ("data", "fsdp"), (AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: its examples over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def to_devices(batch: Batch, mesh: Mesh) -> Batch:
    """The global batch, from each process's part of it."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def to_host(tree: Any) -> Any:
    """Full arrays, as NumPy arrays in every process. All processes must call it."""
    return multihost_utils.process_allgather(tree, tiled=True)


def place(values: Mapping[str, Any], shardings: Mapping[str, NamedSharding]) -> Params:
    """Sharded arrays, from full values that every process has."""
    return {
        name: jax.make_array_from_callback(
            value.shape, shardings[name], np.asarray(value).__getitem__
        )
        for name, value in values.items()
    }


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def infer(shapes: Any, mesh: Mesh, rules: tuple[Rule, ...] = RULES) -> Any:
    """The sharding of every leaf of a tree, by the parameter it belongs to.

    Args:
        shapes: tree of arrays or ShapeDtypeStructs that contains dicts keyed by parameter name:
            parameters, a train state, an optimizer's moments.
        mesh: from `make_mesh` or `local_mesh`.
        rules: regular expressions on parameter names.

    Raises:
        ValueError: no rule matches a parameter.
    """

    def leaf(path: tuple[Any, ...], shape: Any) -> NamedSharding:
        name = _parameter_name(path)
        spec = PartitionSpec() if name is None else _spec(name, shape.shape, mesh, rules)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def _parameter_name(path: tuple[Any, ...]) -> str | None:
    keys = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    return keys[-1] if keys else None


def _spec(name: str, shape: tuple[int, ...], mesh: Mesh, rules: tuple[Rule, ...]) -> PartitionSpec:
    for pattern, rule in rules:
        if re.fullmatch(pattern, name):
            if isinstance(rule, PartitionSpec):
                return rule
            return _fsdp(shape, mesh.shape["fsdp"]) if rule == "fsdp" else PartitionSpec()
    raise ValueError(f"no sharding rule matches the parameter {name}")


def _fsdp(shape: tuple[int, ...], devices: int) -> PartitionSpec:
    """Shards the largest divisible axis of an array of at least FSDP_MIN_SIZE numbers."""
    divisible = [axis for axis, size in enumerate(shape) if size % devices == 0]
    if devices == 1 or not divisible or np.prod(shape) < FSDP_MIN_SIZE:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*("fsdp" if axis == largest else None for axis in range(len(shape))))
