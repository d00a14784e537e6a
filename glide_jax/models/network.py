"""A network as a pure function of one flat dict of parameters.

Modules are written with flax.nnx and hold parameters only. Everything outside `models/` sees a
`Network`: shapes and an initializer for the parameters, and `bind`, which gives the module back
around any parameters with the same names, inside or outside of a traced function:

    network = Network(lambda rngs: GlideModel(config, rngs))
    params = jax.device_put(network.init(seed=0))
    loss = lambda params: network.bind(params)(x_t, t, text)
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from flax import nnx

from glide_jax.shapes import Params

M = TypeVar("M", bound=nnx.Module)


class Network(Generic[M]):
    """What a module computes, apart from its parameters.

    Args:
        build: makes the module, its parameters drawn from the given random streams.
    """

    def __init__(self, build: Callable[[nnx.Rngs], M]) -> None:
        self._build = build

    def init(self, seed: int) -> dict[str, np.ndarray]:
        """Draws all parameters, on the host: the same numbers for every mesh of devices.

        A jitted initializer would take longer to compile, for its hundreds of small draws, than
        a small model takes to show its first results.
        """
        _, state = nnx.split(self._build(nnx.Rngs(seed)))
        return {_name(path): np.asarray(v.get_value()) for path, v in nnx.to_flat_state(state)}

    def bind(self, params: Params) -> M:
        """The module around `params`.

        Raises:
            KeyError: a parameter of the module is not in `params`.
        """
        graphdef, variables = self._abstract
        bound = [(path, variable.replace(params[_name(path)])) for path, variable in variables]
        return nnx.merge(graphdef, nnx.from_flat_state(bound))

    @cached_property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Name, shape and type of every parameter, without allocating any."""
        return {_name(path): variable.get_value() for path, variable in self._abstract[1]}

    @property
    def parameter_count(self) -> int:
        """How many numbers the parameters are."""
        return sum(math.prod(shape.shape) for shape in self.shapes.values())

    @cached_property
    def _abstract(self) -> tuple[Any, Any]:
        def build() -> M:
            # One key for all: nnx.Rngs would trace a counter and a fold for every parameter.
            return self._build(_OneKey(jax.random.key(0)))

        graphdef, state = nnx.split(nnx.eval_shape(build))
        return graphdef, list(nnx.to_flat_state(state))


class _OneKey(nnx.Rngs):
    """The same key for every parameter."""

    def __init__(self, key: jax.Array) -> None:
        self.key = key

    def params(self) -> jax.Array:
        return self.key


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
