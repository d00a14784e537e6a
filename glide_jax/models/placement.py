"""Each device computes its part of the batch: said where blocks begin, decided by the caller.

The compiler shares work out as it thinks best. Where parameters are shared out as well, it would
rather exchange activations, which are far larger, than gather parameters, unless it is told that
the activations stay where they are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import NamedSharding

_batch: ContextVar[NamedSharding | None] = ContextVar("sharding of a batch", default=None)


@contextmanager
def batch_over(sharding: NamedSharding) -> Iterator[None]:
    """Around the tracing of a program whose batches are shared out like this."""
    token = _batch.set(sharding)
    try:
        yield
    finally:
        _batch.reset(token)


def constrain_batch(x: jax.Array) -> jax.Array:
    """`x` (b, ...), whose examples stay on the devices that have them."""
    sharding = _batch.get()
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)


def tpu_kind() -> str:
    """Of the TPUs that the batch is shared out over, as "TPU v5p".

    Empty if it is none, or the caller did not say.
    """
    sharding = _batch.get()
    if sharding is None:
        return ""
    device = sharding.mesh.devices.flat[0]
    return device.device_kind if device.platform == "tpu" else ""


def row_major(x: jax.Array) -> jax.Array:
    """`x`, and its gradient, with its axes in this order in a TPU's memory.

    Convolutions there like pixels before examples and kernels examples before pixels, and the
    compiler might bring all that is computed in between from one order into the other.
    """
    if not tpu_kind():
        return x
    # On each device: the compiler, asked for a layout of the whole, gave every device all of it.
    layout = Layout(major_to_minor=tuple(range(x.ndim)))
    return on_each_device(lambda x: with_layout_constraint(x, layout))(x)


def on_each_device(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`function` of arrays (b, ...), on each device of its own examples: for kernels, which the
    compiler cannot share out itself. Within `batch_over` only.
    """
    sharding = _batch.get()
    assert sharding is not None
    spec = sharding.spec
    return jax.shard_map(
        function, mesh=sharding.mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
