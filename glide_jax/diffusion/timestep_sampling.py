"""Which t training draws: evenly, mostly late, or where the latest losses are large."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

KEPT = 10
"""Losses remembered of each t. Sec. 3.3, arXiv 2102.09672."""
UNIFORM_SHARE = 0.001
"""Of draws that pay no heed to losses: no t is forgotten, and no weight exceeds 1000."""


def uniform(key: PRNGKeyArray, count: int, T: int) -> Int[Array, "count"]:
    """Every t in [0, T) alike."""
    return jax.random.randint(key, (count,), 0, T)


def rising(key: PRNGKeyArray, count: int, T: int) -> Int[Array, "count"]:
    """P(t) = (2t + 1) / T^2: the larger of two uniform draws."""
    return jnp.maximum(uniform(key, count, T), uniform(jax.random.fold_in(key, 1), count, T))


def stratified(key: PRNGKeyArray, count: int, T: int) -> Int[Array, "count"]:
    """One uniform t from each of `count` equal parts of [0, T), in random order."""
    order_key, place_key = jax.random.split(key)
    place = jnp.arange(count) + jax.random.uniform(place_key, (count,))
    t = jnp.minimum((place * (T / count)).astype(jnp.int32), T - 1)
    return jax.random.permutation(order_key, t)


class LossHistory(NamedTuple):
    """The latest losses of each t. A pytree of two arrays, for the train state."""

    values: Float[Array, "T kept"]
    """(T, 10) float32, each row a ring."""
    counts: Int[Array, "T"]
    """How many losses each ring has been given since the start of training."""

    @classmethod
    def empty(cls, T: int) -> "LossHistory":
        """Before the first loss."""
        return cls(jnp.zeros((T, KEPT), jnp.float32), jnp.zeros(T, jnp.int32))


def probabilities(history: LossHistory) -> Float[Array, "T"]:
    """How likely each t is to be drawn.

    p_t ~ sqrt(E[L_t^2]), Eq. 18, arXiv 2102.09672, over the losses remembered, mixed with a
    thousandth of uniform draws; all alike until every t has ten losses, or if all of them are 0.
    """
    values, counts = history
    T = len(counts)
    # Only ratios matter: scaled so that no square overflows.
    scaled = values / jnp.max(jnp.abs(values))
    root = jnp.sqrt(jnp.mean(jnp.square(scaled), axis=1))
    by_loss = (1 - UNIFORM_SHARE) * root / jnp.sum(root) + UNIFORM_SHARE / T
    known = jnp.all(counts >= KEPT) & jnp.any(values != 0)
    return jnp.where(known, by_loss, 1 / T)


def draw(
    key: PRNGKeyArray, count: int, history: LossHistory
) -> tuple[Int[Array, "count"], Float[Array, "count"]]:
    """Draws t by `probabilities`.

    Returns:
        t, and the weights 1 / (T p_t) with which the expected loss is that of uniform t.
    """
    p = probabilities(history)
    t = jax.random.choice(key, len(p), (count,), p=p)
    return t, 1 / (len(p) * p[t])


def update(history: LossHistory, t: Int[Array, "b"], losses: Float[Array, "b"]) -> LossHistory:
    """Remembers a batch's losses in the places of the oldest.

    Args:
        history: before.
        t: in [0, T); some may be equal, and of more than ten equal ones the last ten count.
        losses: of each example, not weighted; those that are not finite are left out.

    Returns:
        After. The same for the same batch on any number of devices.
    """
    values, counts = history
    T, b = len(counts), len(t)
    t = jnp.where(jnp.isfinite(losses), t, T)  # T is no row: writing there does nothing
    order = jnp.argsort(t, stable=True)
    in_order = t[order]
    rank = jnp.arange(b) - jnp.searchsorted(in_order, in_order)  # among those of the same t
    new = jnp.zeros(T, counts.dtype).at[t].add(1, mode="drop")
    kept = rank >= new.at[in_order].get(mode="fill", fill_value=0) - KEPT
    slot = (counts.at[in_order].get(mode="fill", fill_value=0) + rank) % KEPT
    values = values.at[jnp.where(kept, in_order, T), slot].set(
        losses[order].astype(values.dtype), mode="drop"
    )
    return LossHistory(values, counts + new)
