"""Distributions of t in training: uniform, rising, or in proportion to recent losses."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

KEPT = 10
"""Number of recent losses of each t. Sec. 3.3, arXiv 2102.09672."""
UNIFORM_FRACTION = 0.001
"""Fraction of uniform draws: every t keeps a probability, and no weight exceeds 1000."""


def uniform(key: PRNGKeyArray, count: int, T: int) -> Int[Array, "count"]:
    """P(t) = 1 / T for t in [0, T)."""
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
    """Recent losses of each t: a pytree of two arrays, part of the train state."""

    values: Float[Array, "T kept"]
    """(T, 10) float32, each row a ring buffer."""
    counts: Int[Array, "T"]
    """Number of losses of each t since the start of training."""

    @classmethod
    def empty(cls, T: int) -> "LossHistory":
        """The history before the first loss."""
        return cls(jnp.zeros((T, KEPT), jnp.float32), jnp.zeros(T, jnp.int32))


def probabilities(history: LossHistory) -> Float[Array, "T"]:
    """P(t) ~ sqrt(E[L_t^2]) over recent losses. Eq. 18, arXiv 2102.09672.

    Mixed with UNIFORM_FRACTION of uniform draws. Uniform until every t has ten losses, and when all
    losses are 0.
    """
    values, counts = history
    T = len(counts)
    # Only ratios matter; the scale keeps squares from overflowing.
    scaled = values / jnp.max(jnp.abs(values))
    root = jnp.sqrt(jnp.mean(jnp.square(scaled), axis=1))
    by_loss = (1 - UNIFORM_FRACTION) * root / jnp.sum(root) + UNIFORM_FRACTION / T
    known = jnp.all(counts >= KEPT) & jnp.any(values != 0)
    return jnp.where(known, by_loss, 1 / T)


def draw(
    key: PRNGKeyArray, count: int, history: LossHistory
) -> tuple[Int[Array, "count"], Float[Array, "count"]]:
    """Importance sampling of t by `probabilities`.

    Returns:
        t, and weights 1 / (T p_t): the expected weighted loss is that of uniform t.
    """
    p = probabilities(history)
    t = jax.random.choice(key, len(p), (count,), p=p)
    return t, 1 / (len(p) * p[t])


def update(history: LossHistory, t: Int[Array, "b"], losses: Float[Array, "b"]) -> LossHistory:
    """Replace the oldest losses by those of a batch.

    Args:
        history: the history before this batch.
        t: in [0, T); may repeat. Of more than ten equal t the last ten count.
        losses: unweighted losses of the examples; non-finite ones are ignored.

    Returns:
        The updated history, independent of the number of devices.
    """
    values, counts = history
    T, b = len(counts), len(t)
    t = jnp.where(jnp.isfinite(losses), t, T)  # writes to row T are dropped
    order = jnp.argsort(t, stable=True)
    in_order = t[order]
    rank = jnp.arange(b) - jnp.searchsorted(in_order, in_order)  # among equal t
    new = jnp.zeros(T, counts.dtype).at[t].add(1, mode="drop")
    kept = rank >= new.at[in_order].get(mode="fill", fill_value=0) - KEPT
    slot = (counts.at[in_order].get(mode="fill", fill_value=0) + rank) % KEPT
    values = values.at[jnp.where(kept, in_order, T), slot].set(
        losses[order].astype(values.dtype), mode="drop"
    )
    return LossHistory(values, counts + new)
