"""A network as a pure function of one flat dict of parameters.

Modules are written with flax.nnx and hold parameters and static fields only. Code outside `models/`
sees a `Network`: the shapes and initial values of its parameters, and `bind`, which builds the
module around given parameters, inside or outside of a traced function:

    network = Network(lambda rngs, platform: GlideModel(config, platform, rngs))
    params = jax.device_put(network.init(seed=0))
    loss = lambda params: network.bind(params, platform)(x_t, t, text)
"""

import math
from collections.abc import Callable, Mapping
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
        self._storage: dict[Platform, dict[str, jax.ShapeDtypeStruct]] = {}

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

    def storage(self, platform: Platform) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and type of every parameter as a program for `platform` reads it, by name.

        All are float32 in training. Sampling stores them in the type in which their module
        computes, so that no step casts them. Vectors (norms and biases) stay float32, in which they
        are added. The modules compute in float32 what the original's half precision does: norms,
        the linear layers of the time embedding and of AdaGN, and the output convolution.
        """
        if platform not in self._storage:
            self._abstract(platform)
        return self._storage[platform]

    def stored(self, params: Mapping[str, Any], platform: Platform) -> dict[str, Any]:
        """`params`, on the host or on devices, with the types of `storage`."""
        storage = self.storage(platform)
        return {
            name: value.astype(storage[name].dtype, copy=False) for name, value in params.items()
        }

    @cached_property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and type of every parameter by name; allocates none."""
        return self.storage(ANY_PLATFORM)

    @property
    def parameter_count(self) -> int:
        """Number of scalar parameters."""
        return sum(math.prod(shape.shape) for shape in self.shapes.values())

    def _abstract(self, platform: Platform) -> tuple[Any, Any]:
        """The module's graph and its parameters' shapes, made once for each platform."""
        if platform not in self._abstract_modules:
            module = self._build(_NoKeys(), platform)
            graphdef, state = nnx.split(module)
            variables = [
                (path, variable.replace(_shape(variable.get_value())))
                for path, variable in nnx.to_flat_state(state)
            ]
            self._abstract_modules[platform] = graphdef, variables
            self._storage[platform] = {
                _name(path): _stored(variable.get_value(), module, path, platform)
                for path, variable in variables
            }
        return self._abstract_modules[platform]


class _NoKeys(nnx.Rngs):
    """Random streams without keys: initializers return shapes. To trace them would take longer."""

    def __init__(self) -> None:
        pass

    def params(self) -> None:
        return None


def _shape(value: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(value.shape, value.dtype)


def _stored(
    shape: jax.ShapeDtypeStruct, module: nnx.Module, path: tuple[Any, ...], platform: Platform
) -> jax.ShapeDtypeStruct:
    """See `Network.storage`."""
    if platform.training or len(shape.shape) < 2:
        return shape
    owner: Any = module
    for key in path[:-1]:
        owner = owner[key] if isinstance(key, int) else getattr(owner, key)
    return jax.ShapeDtypeStruct(shape.shape, owner.dtype)


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
