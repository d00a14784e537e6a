"""Everything that differs by platform: one table, from which a program's `Platform` is chosen.

A `Platform` is chosen once for each compiled program and given to `Network.bind`. It changes how a
network is computed, never its parameters:

    platform = Platform.of(mesh, batch_sharding(mesh), training=True)
    model = network.bind(params, platform)
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from glide_jax.models.attention import (
    Attend,
    attend,
    attend_on_cpu,
    attend_on_gpu,
    attend_on_tpu,
    has_cudnn_attention,
)
from glide_jax.models.convolution import Convolve, convolve
from glide_jax.models.cpu_convolution import convolve_often_on_cpu, convolve_on_cpu
from glide_jax.models.matmul import Matmul, matmul, matmul_on_cpu
from glide_jax.models.placement import row_major
from glide_jax.models.resampling import RepeatX2, repeat_x2, repeat_x2_by_padding


def any_layout(x: jax.Array) -> jax.Array:
    """`x`, in the layout that the compiler chooses."""
    return x


@dataclass(frozen=True)
class Platform:
    """The placement of a program's batch and its implementations; XLA's own unless given."""

    batch: NamedSharding | None = None
    """Sharding of activations (b, ...); None leaves it to the compiler."""
    attend: Attend = attend
    convolve: Convolve = convolve
    convolve_often: Convolve = convolve
    """`convolve` for networks that are compiled once for many calls."""
    matmul: Matmul = matmul
    repeat_x2: RepeatX2 = repeat_x2
    row_major: Callable[[jax.Array], jax.Array] = any_layout
    """Applied to activations around attention, (b, l, d)."""
    training: bool = True
    """Whether all parameters are float32; else stored as `Network.storage` says."""
    always_split_kernels: bool = False
    """Whether sampling, too, splits the kernels of projections to heads: TPUs would copy outputs to
    split them. The compiler moves the split out of the loop."""

    @classmethod
    def of(cls, mesh: Mesh, batch: NamedSharding | None, *, training: bool) -> "Platform":
        """The platform of a program.

        Args:
            mesh: its devices, all of one kind; they may be a description of absent ones.
            batch: sharding of its activations (b, ...); None if they are replicated.
            training: whether it takes gradients of the network's parameters.
        """
        device = mesh.devices.flat[0]
        choose = PLATFORMS.get(device.platform)
        chosen = cls(batch) if choose is None else choose(device, batch, training)
        return replace(chosen, training=training)

    @property
    def split_kernels(self) -> bool:
        """Whether projections to heads split their kernels, as in training, or their outputs."""
        return self.training or self.always_split_kernels

    def embedding_dtype(self, dtype: jnp.dtype) -> jnp.dtype:
        """Type of the linear layers of time and noise level, and of those that apply them (AdaGN).

        Sampling computes them in float32, as the original does in half precision; training, in the
        type of all other matmuls.
        """
        return dtype if self.training else jnp.dtype("float32")

    def constrain_batch(self, x: jax.Array) -> jax.Array:
        """`x` (b, ...), each device holding its own examples."""
        return x if self.batch is None else jax.lax.with_sharding_constraint(x, self.batch)


ANY_PLATFORM = Platform()
"""XLA's implementations without constraints: correct everywhere."""


def _cpu(device: jax.Device, batch: NamedSharding | None, training: bool) -> Platform:
    attention = attend if training else attend_on_cpu
    return Platform(batch, attention, convolve_on_cpu, convolve_often_on_cpu, matmul_on_cpu)


def _tpu(device: jax.Device, batch: NamedSharding | None, training: bool) -> Platform:
    if batch is None:  # kernels and layouts are per device
        return ANY_PLATFORM
    return Platform(
        batch,
        attend=partial(attend_on_tpu, kind=device.device_kind, batch=batch),
        repeat_x2=repeat_x2_by_padding,
        row_major=partial(row_major, batch=batch),
        always_split_kernels=True,
    )


def _gpu(device: jax.Device, batch: NamedSharding | None, training: bool) -> Platform:
    if batch is None or not has_cudnn_attention(device):
        return Platform(batch)
    return Platform(batch, attend=partial(attend_on_gpu, batch=batch))


PLATFORMS: dict[str, Callable[[jax.Device, NamedSharding | None, bool], Platform]] = {
    "cpu": _cpu,
    "gpu": _gpu,
    "tpu": _tpu,
}
"""`(device, batch, training) -> Platform` by JAX's platform name; others take XLA's own."""
