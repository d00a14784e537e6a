"""Which device holds what: decided here from the parameters' names, never inside the models.

The mesh has two axes. The batch is split over both; parameters, EMA and optimizer state alike are
split over 'fsdp' (arXiv 2004.13336, ZeRO) and repeated along 'data'.
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
from glide_jax.shapes import Batch, Params

Rule = tuple[str, PartitionSpec | Literal["fsdp", "replicate"]]

RULES: tuple[Rule, ...] = (
    (r".*\.(scale|bias)", "replicate"),
    (r".*\.kernel", "fsdp"),
    (r"(text|image)\.\w+_embedding", "fsdp"),
    (r"logit_scale", "replicate"),
)
"""First match wins; a parameter that none matches is an error."""

FSDP_MIN_SIZE = 2**16
"""Parameters with fewer numbers than this are cheaper to repeat than to gather."""


def use_all_cores(batch_examples: int, processes: int = 1, sharing: int = 1) -> None:
    """Makes CPU cores devices of their own, as many as share a batch evenly. Call it first of all.

    XLA runs many of a small U-Net's operations on one core while the others wait. With a device a
    core, each with its part of the batch, all are busy (benchmarks/train_step.py measures it).
    Accelerators do not notice. JAX_NUM_CPU_DEVICES in the environment says otherwise.

    Args:
        batch_examples: of a micro-batch, over all processes.
        processes: of the run.
        sharing: how many of them share this machine's cores.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    most = max((cores or 1) // sharing, 1)
    fitting = (n for n in range(1, most + 1) if batch_examples % (n * processes) == 0)
    devices = max(fitting, default=1)
    with contextlib.suppress(RuntimeError):  # JAX is already in use: its devices stay as they are
        jax.config.update("jax_num_cpu_devices", devices)


def make_mesh(config: Config, given: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices of all processes as ('data', 'fsdp'), neighbors along 'fsdp'.

    Args:
        config: of the run.
        given: other devices than those.

    Raises:
        UserError: the devices, or the batch, do not divide.
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
    """For a train step on this mesh, to be given to `jax.jit`.

    Where parameters are shared out over all chips, a TPU's compiler would rather take products
    apart, and pass parts of the parameters around, than gather them, which is far slower
    (docs/scaling.md). This is the size, in MiB, from which on it does.
    """
    tpus = mesh.devices.flat[0].platform == "tpu"
    if not tpus or mesh.shape["data"] > 1 or mesh.size == 1:
        return None
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": str(2**20)}


def bytes_a_device(shapes: Any, shardings: Any) -> int:
    """Of a tree of arrays or their shapes, on each device."""
    sizes = jax.tree.map(
        lambda x, sharding: math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize,
        shapes,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))


def local_mesh(fsdp: int = 1, given: Sequence[jax.Device] | None = None) -> Mesh:
    """This process's devices, likewise: for drawing, which no other process takes part in.

    Args:
        fsdp: devices over which parameters are shared out.
        given: other devices than those.

    Raises:
        UserError: the devices do not divide.
    """
    devices = jax.local_devices() if given is None else given
    if fsdp < 1 or len(devices) % fsdp:
        raise UserError(f"--fsdp {fsdp}: must divide the number of devices ({len(devices)})")
    return _mesh(devices, fsdp)


def _mesh(devices: Sequence[jax.Device], fsdp: int) -> Mesh:
    # A slice is a torus, of which 'fsdp' may be less than an axis: jax.make_mesh would refuse that.
    array = mesh_utils.create_device_mesh(
        (len(devices) // fsdp, fsdp), devices, allow_split_physical_axes=True
    )
    # Auto: the compiler propagates shardings. Explicit, the default, rejects sharded convolutions.
    return Mesh(array, ("data", "fsdp"), (AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples over every device."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def to_devices(batch: Batch, mesh: Mesh) -> Batch:
    """A global batch from each process's part of it."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def to_host(tree: Any) -> Any:
    """All of every array in each process's memory, as NumPy's. All processes call it together."""
    return multihost_utils.process_allgather(tree, tiled=True)


def place(values: Mapping[str, Any], shardings: Mapping[str, NamedSharding]) -> Params:
    """Arrays from values that every process has whole."""
    return {
        name: jax.make_array_from_callback(
            value.shape, shardings[name], np.asarray(value).__getitem__
        )
        for name, value in values.items()
    }


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def infer(shapes: Any, mesh: Mesh, rules: tuple[Rule, ...] = RULES) -> Any:
    """A sharding for every leaf of a tree, by the parameter that it belongs to.

    Args:
        shapes: a tree of arrays or ShapeDtypeStructs in which dicts keyed by parameter names may
            stand anywhere: parameters, a train state, an optimizer's moments.
        mesh: from `make_mesh` or `local_mesh`.
        rules: regular expressions on the name.

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
    """Splits the largest axis that divides, if the array is worth it."""
    divisible = [axis for axis, size in enumerate(shape) if size % devices == 0]
    if devices == 1 or not divisible or np.prod(shape) < FSDP_MIN_SIZE:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*("fsdp" if axis == largest else None for axis in range(len(shape))))
