"""The train state: all that a training step updates."""

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
    """All that a training step updates. Randomness is a function of the seed and the step.

    Its leaves are arrays, or their shapes, or their shardings.
    """

    step: Leaf
    """Steps taken, skipped ones included; () int32, as the other two counters."""
    params: dict[str, Leaf]
    ema: dict[str, Leaf]
    """EMA parameters, which are used for sampling."""
    opt_state: Any
    skipped: Leaf
    """Steps without an update, as their loss or gradient was not finite."""
    skipped_in_a_row: Leaf
    history: Any
    """`LossHistory` if t is sampled from it, else None."""


def require_same_shapes(shapes: Mapping[str, Any], stored: Mapping[str, Any], where: str) -> None:
    """Raises UserError if the arrays `stored` at `where` have other names or shapes."""
    for name in sorted(set(shapes) | set(stored)):
        ours = tuple(shapes[name].shape) if name in shapes else "absent"
        theirs = tuple(stored[name].shape) if name in stored else "absent"
        if ours != theirs:
            raise UserError(
                f"the config does not match {where}: {name} is {theirs} there and {ours} in the "
                "config"
            )
