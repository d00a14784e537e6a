"""Nearest neighbors of features in a set that is read in batches, and signs of memorization."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float, Int

from glide_jax.evaluation.metrics.estimate import Estimate, mean_estimate


class Nearest(NamedTuple):
    """The k nearest neighbors of each query, nearest first."""

    distances: Float[np.ndarray, "n k"]
    """Euclidean."""
    indices: Int[np.ndarray, "n k"]
    """Of the neighbors, in the order in which they were read."""


def nearest_neighbors(
    queries: Float[np.ndarray, "n d"], batches: Iterable[Float[np.ndarray, "m d"]], k: int = 1
) -> Nearest:
    """The nearest of all rows of all batches, in memory for one batch.

    Args:
        queries: features.
        batches: of the set to search, at least k rows in all.
        k: neighbors of each query.
    """
    queries = queries.astype(np.float64)
    squares = np.square(queries).sum(1)[:, None]
    distances = np.full((len(queries), k), np.inf)
    indices = np.full((len(queries), k), -1)
    first = 0
    for batch in batches:
        rows = batch.astype(np.float64)
        found = np.maximum(squares - 2 * queries @ rows.T + np.square(rows).sum(1), 0)
        both = np.concatenate([distances, np.sqrt(found)], 1)
        places = np.broadcast_to(first + np.arange(len(rows)), (len(queries), len(rows)))
        order = np.argsort(both, axis=1, kind="stable")[:, :k]
        distances = np.take_along_axis(both, order, 1)
        indices = np.take_along_axis(np.concatenate([indices, places], 1), order, 1)
        first += len(rows)
    return Nearest(distances, indices)


class Memorization(NamedTuple):
    """Whether samples are nearer to training images than held-out images are."""

    suspicious: Estimate
    """Fraction of samples nearer than the PERCENTILE of held-out images: PERCENTILE % without
    memorization."""
    nearer: float
    """Probability that a sample is nearer than a held-out image: 1/2 without memorization."""
    z: float
    """The same as a z-score of the Mann-Whitney test; strongly positive values tell of copying (the
    statistic of Meehan, Chaudhuri and Dasgupta, arXiv 2004.05675, with the opposite sign)."""


PERCENTILE = 1.0


def memorization(samples: Float[np.ndarray, "n"], held_out: Float[np.ndarray, "m"]) -> Memorization:
    """Compares distances to the nearest training image.

    Args:
        samples: of each sample.
        held_out: of each held-out image of the same distribution as the training images.
    """
    n, m = len(samples), len(held_out)
    threshold = np.percentile(held_out, PERCENTILE)
    u = scipy.stats.mannwhitneyu(held_out, samples).statistic  # pairs with the sample nearer
    deviation = np.sqrt(n * m * (n + m + 1) / 12)
    return Memorization(
        mean_estimate(samples < threshold), float(u / (n * m)), float((u - n * m / 2) / deviation)
    )
