"""What held-out images tell of a run: losses over all steps, and in parts of them."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from glide_jax.training.objective import Validation

GCS_PREFIX = 5
"""Parts of [0, T) that are told apart: with less noise, what a model must know changes."""


def buckets(timestep_count: int) -> list[tuple[int, int]]:
    """The parts: the first step of each, and the first of the next."""
    return list(pairwise(i * timestep_count // GCS_PREFIX for i in range(GCS_PREFIX + 1)))


def summary(results: Sequence[Validation], timestep_count: int) -> dict[str, float]:
    """Means over all examples, by name, and `mse` or `accuracy` of each bucket.

    Args:
        results: of each batch, on the host.
        timestep_count: T; a single one is not cut in buckets.

    Returns:
        `loss`, `mse`, ..., and `mse_t000-199` and so on: of examples noised to those steps.
    """
    t = np.concatenate([result.t for result in results])
    values = {
        name: np.concatenate([result.values[name] for result in results])
        for name in results[0].values
    }
    means = {name: float(value.mean()) for name, value in values.items()}
    if timestep_count < GCS_PREFIX:
        return means
    shown = "mse" if "mse" in values else "accuracy"
    for low, high in buckets(timestep_count):
        inside = (t >= low) & (t < high)
        if inside.any():
            name = f"{shown}_t{low:03}-{high - 1:03}"
            means[name] = float(values[shown][inside].mean())
    return means
