"""Objectives: the contract between `step.Trainer` and each kind of model."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from glide_jax.diffusion.timestep_sampling import LossHistory
from glide_jax.models.network import Network
from glide_jax.models.platform import ANY_PLATFORM, Platform
from glide_jax.shapes import Batch, Params

Tree = TypeVar("Tree")


class BatchGradient(NamedTuple):
    """The gradient of one batch's loss."""

    grads: Params
    metrics: dict[str, Float[Array, ""]]
    """Means over the batch: `loss`, the differentiated one, and its parts."""
    t: Int[Array, "b"]
    """The noise step of each example."""
    losses: Float[Array, "b"]
    """The loss of each example, without the weight for the probability of its t."""


class Validation(NamedTuple):
    """Losses of one held-out batch."""

    t: Int[Array, "b"]
    """The noise step of each example."""
    values: dict[str, Float[Array, "b"]]
    """`loss` and its parts, for each example."""


@runtime_checkable
class Objective(Protocol):
    """A loss to minimize. Its methods are traced; all randomness comes from their key."""

    network: Network[Any]
    frozen: Params
    """Constant parameters of other networks in the loss; an argument of the methods."""
    timestep_count: int
    """T, the number of noise steps."""

    def gradient(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        key: PRNGKeyArray,
        history: LossHistory | None,
        platform: Platform = ANY_PLATFORM,
    ) -> BatchGradient:
        """The gradient of a batch's loss.

        Args:
            params: parameters of the network.
            frozen: the attribute of the same name.
            batch: from the loader.
            key: the key of this step.
            history: latest losses of each t, for a run that draws t by them.
            platform: of the program that traces it.
        """
        ...

    def validate(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        key: PRNGKeyArray,
        platform: Platform = ANY_PLATFORM,
    ) -> Validation:
        """Losses without dropout, at stratified t."""
        ...

    def constrain(self, params: Params) -> Params:
        """Project updated parameters onto the allowed set."""
        ...


def split_micro_batches(tree: Tree, parts: int) -> Tree:
    """Reshapes every array (b, ...) to (parts, b / parts, ...).

    Interleaved: example i goes to micro-batch i mod `parts`, so every device keeps its own
    examples.
    """

    def leaf(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

    return jax.tree.map(leaf, tree)


def merge_micro_batches(tree: Tree) -> Tree:
    """Inverse of `split_micro_batches`."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), tree)


def mean_gradient(
    loss: Callable[[Params, Any], tuple[jax.Array, Tree]], params: Params, inputs: Any, parts: int
) -> tuple[Params, Tree]:
    """The gradient of a mean over examples, one micro-batch after another.

    Args:
        loss: `(params, inputs) -> (mean, values)`, where values are arrays (b, ...).
        params: parameters to differentiate by.
        inputs: a tree of arrays (b, ...).
        parts: number of micro-batches.

    Returns:
        The gradient, and the values of all examples.
    """
    gradient = jax.grad(loss, has_aux=True)
    if parts == 1:
        return gradient(params, inputs)

    def add(total: Params, part: Any) -> tuple[Params, Tree]:
        grads, values = gradient(params, part)
        return jax.tree.map(jnp.add, total, grads), values

    zeros = jax.tree.map(jnp.zeros_like, params)
    total, values = jax.lax.scan(add, zeros, split_micro_batches(inputs, parts))
    return jax.tree.map(lambda x: x / parts, total), merge_micro_batches(values)
