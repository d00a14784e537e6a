"""The kernel distance (KID): the squared maximum mean discrepancy between two sets of features.

The kernel is (x.y / d + 1)^3 (section 4 of arXiv 1801.01401). The estimator is unbiased, so values
for few images compare with those for many, and values below zero are right: two sets of the same
distribution average to 0.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from glide_jax.errors import UserError
from glide_jax.evaluation.metrics.estimate import (
    Estimate,
    groups_of,
    jackknife_error,
    require_features,
)

Features = Float[np.ndarray, "n d"]
Reference = Float[np.ndarray, "m d"]

TILE = 2048
"""Rows and columns of the kernel matrix computed at a time."""
SUBSET_SIZE = 1000
"""Images of a subset, as torch-fidelity and clean-fid take them."""


def kid(samples: Features, reference: Reference) -> Estimate:
    """The unbiased estimate from all pairs of images; its error is a jackknife over both sets.

    torch-fidelity and clean-fid average over random subsets of 1,000 images, which has the same
    expectation and more variance.

    Args:
        samples, reference: features, at least two images each.

    Raises:
        UserError: a feature is not finite, or the sets have different widths.

    Raises:
        UserError: there are fewer.
    """
    for name, features in (("samples", samples), ("reference images", reference)):
        if len(features) < 2:
            raise UserError(f"KID needs at least 2 {name}, not {len(features)}")
    require_features(samples, reference)
    within_x, within_y = _kernel_sums(samples), _kernel_sums(reference)
    between = _kernel_sums(samples, reference)
    sizes_x, sizes_y = (np.array([*map(len, groups_of(len(z)))]) for z in (samples, reference))

    def mmd(x: np.ndarray, y: np.ndarray) -> float:
        """Of the images in these groups only."""
        n, m = sizes_x[x].sum(), sizes_y[y].sum()
        return float(
            within_x[np.ix_(x, x)].sum() / (n * (n - 1))
            + within_y[np.ix_(y, y)].sum() / (m * (m - 1))
            - 2 * between[np.ix_(x, y)].sum() / (n * m)
        )

    all_x, all_y = np.arange(len(sizes_x)), np.arange(len(sizes_y))
    error = None
    if min(len(all_x), len(all_y)) > 1:
        error = math.hypot(
            jackknife_error([mmd(np.delete(all_x, group), all_y) for group in all_x]),
            jackknife_error([mmd(all_x, np.delete(all_y, group)) for group in all_y]),
        )
    return Estimate(mmd(all_x, all_y), error)


def _kernel_sums(
    x: Features, other: Reference | None = None
) -> Float[np.ndarray, "groups_x groups_y"]:
    """Sums of k(x_i, y_j) over each pair of groups; of one set, k(x_i, x_j) with i != j."""
    within, y = other is None, x if other is None else other
    groups_x, groups_y = len(groups_of(len(x))), len(groups_of(len(y)))
    sums = np.zeros((groups_x, groups_y))
    for start in range(0, len(x), TILE):
        rows = x[start : start + TILE].astype(np.float64)
        of_rows = _indicator(start, len(rows), groups_x)
        for begin in range(start if within else 0, len(y), TILE):
            columns = y[begin : begin + TILE].astype(np.float64)
            tile = _kernel(rows, columns)
            if within and start == begin:
                np.fill_diagonal(tile, 0)
            part = of_rows @ tile @ _indicator(begin, len(columns), groups_y).T
            sums += part
            if within and start < begin:
                sums += part.T  # of the same pairs in the other order
    return sums


def _indicator(start: int, count: int, groups: int) -> Float[np.ndarray, "groups count"]:
    """Which of `count` images from `start` on belong to each group."""
    of_images = (start + np.arange(count)) % groups
    return (of_images == np.arange(groups)[:, None]).astype(np.float64)


def kid_torch_fidelity(
    samples: Features,
    reference: Reference,
    subsets: int = 100,
    subset_size: int = SUBSET_SIZE,
    seed: int = 2020,
) -> tuple[float, float]:
    """KID over random subsets, as torch-fidelity and torchmetrics compute it.

    The mean is also clean-fid's value after numpy.random.seed(seed), whose default is not seeded.

    Args:
        samples, reference: features.
        subsets: number of subsets, each drawn without replacement.
        subset_size: images per subset, at most as many as either set has.
        seed: of numpy.random.RandomState.

    Returns:
        Mean and standard deviation over the subsets. The latter is of one subset's estimate, not of
        their mean, and not a standard error.

    Raises:
        UserError: there are fewer images than a subset needs.
    """
    require_features(samples, reference)
    least = min(len(samples), len(reference))
    if least < subset_size:
        raise UserError(
            f"KID over subsets of {subset_size:,} images needs as many samples and as many "
            f"reference images, not {least:,}; KID over all images, as --implementation "
            "guided-diffusion computes it, needs 2"
        )
    random = np.random.RandomState(seed)
    values = [
        squared_mmd(
            samples[random.choice(len(samples), subset_size, replace=False)],
            reference[random.choice(len(reference), subset_size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def kid_k_diffusion(samples: Features, reference: Reference, max_size: int = 5000) -> float:
    """KID as k-diffusion computes it: the mean over parts of at most max_size images, in order."""
    parts = math.ceil(max(len(samples), len(reference)) / max_size)
    pairs = zip(_parts(samples, parts), _parts(reference, parts), strict=True)
    return float(np.mean([squared_mmd(x, y) for x, y in pairs]))


def _parts(x: Features, parts: int) -> Iterator[Features]:
    bounds = [round(i * len(x) / parts) for i in range(parts + 1)]
    return (x[low:high] for low, high in pairwise(bounds))


def squared_mmd(x: Features, y: Reference) -> float:
    """The unbiased estimate of the squared MMD (Eq. 3 of arXiv 1801.01401), in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    n, m = len(x), len(y)
    k_xx, k_yy, k_xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    within_x = (k_xx.sum() - np.trace(k_xx)) / (n * (n - 1))
    within_y = (k_yy.sum() - np.trace(k_yy)) / (m * (m - 1))
    return float(within_x + within_y - 2 * k_xy.mean())


def _kernel(x: Features, y: Reference) -> Float[np.ndarray, "n m"]:
    tile = x @ y.T
    tile /= x.shape[1]
    tile += 1
    return tile * tile * tile  # NumPy's power takes seven times as long
