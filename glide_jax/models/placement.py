"""Constraints on where, and in which order in memory, a batch's activations lie.

Without them the compiler chooses. With sharded parameters it would rather exchange activations,
which are far larger, than gather parameters.
"""

from collections.abc import Callable

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import NamedSharding


def on_each_device(
    function: Callable[..., jax.Array], batch: NamedSharding
) -> Callable[..., jax.Array]:
    """`function` of arrays (b, ...), on each device of its own examples.

    For kernels, which the compiler cannot partition itself.
    """
    spec = batch.spec
    return jax.shard_map(function, mesh=batch.mesh, in_specs=spec, out_specs=spec, check_vma=False)


def row_major(x: jax.Array, batch: NamedSharding) -> jax.Array:
    """`x` (b, ...), and its gradient, with its axes in this order in a TPU's memory.

    Convolutions on TPUs prefer pixels before examples, attention kernels examples before pixels;
    the compiler might transpose everything computed in between.
    """
    # On each device: asked for the layout of a sharded array, the compiler would gather it.
    layout = Layout(major_to_minor=tuple(range(x.ndim)))
    return on_each_device(lambda x: with_layout_constraint(x, layout), batch)(x)
