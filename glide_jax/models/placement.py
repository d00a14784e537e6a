"""Each device computes its part of the batch: said where blocks begin, decided by the caller.

The compiler shares work out as it thinks best. Where parameters are shared out as well, it would
rather exchange activations, which are far larger, than gather parameters, unless it is told that
the activations stay where they are.
"""

from collections.abc import Iterator
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
