"""What a kind of model is trained for: the contract between `step.Trainer` and the models."""

from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from glide_jax.diffusion.timestep_sampling import LossHistory
from glide_jax.models.network import Network
from glide_jax.shapes import Batch, Params

Tree = TypeVar("Tree")


class Gradient(NamedTuple):
    """Of one batch."""

    grads: Params
    metrics: dict[str, Float[Array, ""]]
    """`loss`, which the gradient is of, and what else tells of the batch."""
    t: Int[Array, "b"]
    """Steps that the examples were noised to."""
    losses: Float[Array, "b"]
    """Each example's loss, not weighted by how likely its t was."""


class Validation(NamedTuple):
    """Of one batch."""

    t: Int[Array, "b"]
    values: dict[str, Float[Array, "b"]]
    """Each example's: `loss`, and what it is made of."""


@runtime_checkable
class Objective(Protocol):
    """A loss to lower. Its methods are traced; what they draw at random follows from their key."""

    network: Network[Any]
    frozen: Params
    """Parameters of other networks that the loss needs, handed to the methods as they are."""
    timestep_count: int
    """T."""

    def gradient(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        key: PRNGKeyArray,
        history: LossHistory | None,
    ) -> Gradient:
        """The gradient of a batch's loss.

        Args:
            params: of the network.
            frozen: the attribute of this name.
            batch: from the loader.
            key: of this step.
            history: latest losses of each t, where training draws t by them.
        """
        ...

    def validate(
        self, params: Params, frozen: Params, batch: Batch, key: PRNGKeyArray
    ) -> Validation:
        """Losses without dropout, at steps spread evenly over [0, T)."""
        ...

    def constrain(self, params: Params) -> Params:
        """The parameters after an update, held to where they may be."""
        ...


def stratified_timesteps(key: PRNGKeyArray, count: int, T: int) -> Int[Array, "count"]:
    """One t from each of `count` equal parts of [0, T), in random order."""
    order_key, place_key = jax.random.split(key)
    place = jnp.arange(count) + jax.random.uniform(place_key, (count,))
    t = jnp.minimum((place * (T / count)).astype(jnp.int32), T - 1)
    return jax.random.permutation(order_key, t)


def split(tree: Tree, parts: int) -> Tree:
    """Every array (b, ...) as (parts, b / parts, ...).

    Interleaved: example i goes to part i mod `parts`, so that every device keeps its own.
    """

    def leaf(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

    return jax.tree.map(leaf, tree)


def merge(tree: Tree) -> Tree:
    """Undoes `split`."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), tree)
