"""The train state: everything that a training step changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from glide_jax.errors import UserError

Leaf = Any
"""An array, its ShapeDtypeStruct or its sharding."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that training changes. Randomness is a function of the seed and the step.

    The same tree with shapes or shardings for its leaves says what the arrays are and where.
    """

    step: Leaf
    """Steps taken, skipped ones included; () int32, as the other two counters."""
    params: dict[str, Leaf]
    ema: dict[str, Leaf]
    """Moving average of the parameters: what is sampled from."""
    opt_state: Any
    skipped: Leaf
    """Steps whose loss or gradient was not finite and that changed nothing."""
    skipped_in_a_row: Leaf
    history: Any
    """`LossHistory` where training draws t by it, else None."""


def require_same_shapes(shapes: Mapping[str, Any], stored: Mapping[str, Any], where: str) -> None:
    """Raises UserError if the arrays `stored` at `where` are not of these names and shapes."""
    for name in sorted(set(shapes) | set(stored)):
        ours = tuple(shapes[name].shape) if name in shapes else "absent"
        theirs = tuple(stored[name].shape) if name in stored else "absent"
        if ours != theirs:
            raise UserError(
                f"the config does not match {where}: {name} is {theirs} there and {ours} in the "
                "config"
            )
