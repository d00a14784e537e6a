"""Each device computes its part of the batch: said where blocks begin, decided by the caller.

The compiler shares work out as it thinks best. Where parameters are shared out as well, it would
rather exchange activations, which are far larger, than gather parameters, unless it is told that
the activations stay where they are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
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


def shared_out(x: jax.Array) -> jax.Array:
    """`x` (b, ...), whose examples stay on the devices that have them."""
    sharding = _batch.get()
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)


def runs_on_tpu() -> bool:
    """Whether it is TPUs that the batch is shared out over; False where the caller did not say."""
    sharding = _batch.get()
    return sharding is not None and sharding.mesh.devices.flat[0].platform == "tpu"


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
