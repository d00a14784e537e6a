"""A network as a pure function of one flat dict of parameters.

Modules are written with flax.nnx and hold parameters and static fields only. Code outside `models/`
sees a `Network`: the shapes and initial values of its parameters, and `bind`, which builds the
module around given parameters, inside or outside of a traced function:

    network = Network(lambda rngs, platform: GlideModel(config, platform, rngs))
    params = jax.device_put(network.init(seed=0))
    loss = lambda params: network.bind(params, platform)(x_t, t, text)
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from flax import nnx

from glide_jax.models.platform import ANY_PLATFORM, Platform
from glide_jax.shapes import Params

M = TypeVar("M", bound=nnx.Module)


class Network(Generic[M]):
    """A module without its parameters.

    Args:
        build: constructor of the module for a platform, which must not change the parameters;
            their initial values are drawn from the given random streams.
    """

    def __init__(self, build: Callable[[nnx.Rngs, Platform], M]) -> None:
        self._build = build
        self._abstract_modules: dict[Platform, tuple[Any, Any]] = {}

    def init(self, seed: int) -> dict[str, np.ndarray]:
        """Initial values of all parameters, drawn on the host: the same for every mesh.

        A jitted initializer, with its hundreds of small draws, would take longer to compile than a
        small model takes to show its first results.
        """
        _, state = nnx.split(self._build(nnx.Rngs(seed), ANY_PLATFORM))
        return {_name(path): np.asarray(v.get_value()) for path, v in nnx.to_flat_state(state)}

    def bind(self, params: Params, platform: Platform = ANY_PLATFORM) -> M:
        """The module around `params`.

        Args:
            params: by name; those of no module parameter are ignored.
            platform: of the program in which the module is called.

        Raises:
            KeyError: a parameter of the module is missing.
        """
        graphdef, variables = self._abstract(platform)
        bound = [(path, variable.replace(params[_name(path)])) for path, variable in variables]
        return nnx.merge(graphdef, nnx.from_flat_state(bound))

    @cached_property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and type of every parameter by name; allocates none."""
        _, variables = self._abstract(ANY_PLATFORM)
        return {_name(path): variable.get_value() for path, variable in variables}

    @property
    def parameter_count(self) -> int:
        """Number of scalar parameters."""
        return sum(math.prod(shape.shape) for shape in self.shapes.values())

    def _abstract(self, platform: Platform) -> tuple[Any, Any]:
        """The module's graph and its parameters' shapes, made once for each platform."""

        def build() -> M:
            # One key for all: nnx.Rngs would trace a counter and a fold for every parameter.
            return self._build(_OneKey(jax.random.key(0)), platform)

        if platform not in self._abstract_modules:
            graphdef, state = nnx.split(nnx.eval_shape(build))
            self._abstract_modules[platform] = graphdef, list(nnx.to_flat_state(state))
        return self._abstract_modules[platform]


class _OneKey(nnx.Rngs):
    """The same key for every parameter."""

    def __init__(self, key: jax.Array) -> None:
        self.key = key

    def params(self) -> jax.Array:
        return self.key


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
