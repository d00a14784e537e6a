"""Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797).

All four ask which images lie in a ball around an image of the other set, which reaches to that
image's k-th nearest neighbor in its own set. Implementations differ in the arithmetic of distances
and in whether a ball includes its surface: `Arithmetic` names them.

Distances are computed in tiles, so memory is bounded for any number of images. Standard errors are
those of the mean over images, for the given balls.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from glide_jax.errors import UserError
from glide_jax.evaluation.metrics.estimate import Estimate, mean_estimate, require_features

Features = Float[np.ndarray, "n d"]
Reference = Float[np.ndarray, "m d"]
Arithmetic = Literal["guided_diffusion", "float32", "float64"]
"""guided_diffusion: float16 where all distances of a block are finite in it, else float32, as in
guided-diffusion's evaluator. float32: as torch-fidelity, and that evaluator's fallback. Both are
squared distances, and balls include their surface. float64: as dgm-eval, with open balls."""

BLOCK = 10_000
"""Rows and columns for which guided-diffusion decides about float16."""
TILE = 2000
"""Rows and columns of distances held at a time."""

_LARGEST_HALF = float(np.finfo(np.float16).max)
_LANES = 8


class Manifold(NamedTuple):
    """The balls around the images of a set."""

    features: Features
    radii: Float[np.ndarray, "n"]
    """Distance to the k-th nearest other image; squared, except in float64."""


class PrecisionRecall(NamedTuple):
    """See the module."""

    precision: Estimate
    """Fraction of samples within any reference ball."""
    recall: Estimate
    """Fraction of reference images within any sample's ball."""
    density: Estimate
    """Mean number of reference balls around a sample, over k."""
    coverage: Estimate
    """Fraction of reference images whose ball contains a sample."""


def precision_recall(
    samples: Features,
    reference: Reference,
    k: int = 3,
    arithmetic: Arithmetic = "guided_diffusion",
) -> PrecisionRecall:
    """All four metrics of a set of samples.

    Args:
        samples, reference: features, more than k each. Recall depends on their numbers:
            guided-diffusion takes 50,000 samples and 10,000 reference images.
        k: which nearest neighbor a ball reaches to; dgm-eval takes 5.
        arithmetic: see `Arithmetic`.

    Raises:
        UserError: a set has k images or fewer, a feature is not finite, or the sets have different
            widths.
    """
    require_features(samples, reference)
    of_reference = manifold(reference, k, arithmetic)
    of_samples = manifold(samples, k, arithmetic)
    balls = np.zeros(len(samples), np.int64)  # reference balls around each sample
    covered = np.zeros(len(reference), bool)  # reference images in a ball of a sample
    contains = np.zeros(len(reference), bool)  # reference balls with a sample
    for rows, columns, distances in _tiles(reference, samples, arithmetic):
        in_reference = _within(distances, of_reference.radii[rows, None], arithmetic)
        in_samples = _within(distances, of_samples.radii[columns], arithmetic)
        balls[columns] += in_reference.sum(0)
        contains[rows] |= in_reference.any(1)
        covered[rows] |= in_samples.any(1)
    return PrecisionRecall(
        precision=mean_estimate(balls > 0),
        recall=mean_estimate(covered),
        density=mean_estimate(balls / k),
        coverage=mean_estimate(contains),
    )


def manifold(features: Features, k: int, arithmetic: Arithmetic = "guided_diffusion") -> Manifold:
    """The balls around the images of a set.

    Raises:
        UserError: there are k images or fewer.
    """
    if len(features) <= k:
        raise UserError(
            f"precision and recall with k = {k} need more than {k} images in each set, "
            f"not {len(features)}"
        )
    nearest = np.full((len(features), k + 1), np.inf, np.float64)  # with the image itself
    for rows, _, distances in _tiles(features, features, arithmetic):
        both = np.concatenate([nearest[rows], distances], 1)
        nearest[rows] = np.partition(both, k, axis=1)[:, : k + 1]
    return Manifold(features, nearest.max(1))


def _within(
    distances: Float[np.ndarray, "n m"], radii: np.ndarray, arithmetic: Arithmetic
) -> Bool[np.ndarray, "n m"]:
    return distances < radii if arithmetic == "float64" else distances <= radii


def _tiles(
    x: Features, y: Reference, arithmetic: Arithmetic
) -> Iterator[tuple[slice, slice, Float[np.ndarray, "n m"]]]:
    """Distances of all pairs, one tile after the other: rows, columns, and their distances."""
    may_overflow = arithmetic == "guided_diffusion" and not _surely_finite(x, y)
    for block_rows in _slices(0, len(x), BLOCK):
        for block_columns in _slices(0, len(y), BLOCK):
            tiles = [
                (rows, columns)
                for rows in _slices(block_rows.start, block_rows.stop, TILE)
                for columns in _slices(block_columns.start, block_columns.stop, TILE)
            ]
            distance = _DISTANCES[arithmetic]
            if may_overflow and not all(
                np.isfinite(distance(x[rows], y[columns])).all() for rows, columns in tiles
            ):
                distance = _float32_distances
            for rows, columns in tiles:
                yield rows, columns, distance(x[rows], y[columns])


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    for low in range(start, stop, size):
        yield slice(low, min(low + size, stop))


def _surely_finite(x: Features, y: Reference) -> bool:
    """Whether no distance, nor any term of it, can be above float16's largest value."""
    largest = max(np.square(z.astype(np.float32)).sum(1).max() for z in (x, y))
    return bool(4.1 * largest < _LARGEST_HALF)  # |x - y|^2 is at most 4 times the larger square


def _float16_distances(x: Features, y: Reference) -> Float[np.ndarray, "n m"]:
    """Squared distances of features in float16 on a CPU, as TensorFlow computes them.

    Matmuls add up in float32 and round once; sums of squares add up in float16, in _LANES lanes.
    """
    x, y = x.astype(np.float16), y.astype(np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        matmul = (x.astype(np.float32) @ y.astype(np.float32).T).astype(np.float16)
        squares = _float16_squares(x)[:, None] - np.float16(2) * matmul + _float16_squares(y)
        return np.maximum(squares, np.float16(0)).astype(np.float32)


def _float16_squares(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n"]:
    padded = np.pad(x * x, ((0, 0), (0, -x.shape[1] % _LANES)))
    lanes = np.zeros((len(x), _LANES), np.float16)
    for start in range(0, padded.shape[1], _LANES):
        lanes = lanes + padded[:, start : start + _LANES]
    while lanes.shape[1] > 1:
        low, high = np.split(lanes, 2, axis=1)
        lanes = low + high
    return lanes[:, 0]


def _float32_distances(x: Features, y: Reference) -> Float[np.ndarray, "n m"]:
    """Squared distances in float32, from norms and a matmul."""
    return _squared_distances(x.astype(np.float32), y.astype(np.float32))


def _float64_distances(x: Features, y: Reference) -> Float[np.ndarray, "n m"]:
    """Distances in float64."""
    return np.sqrt(_squared_distances(x.astype(np.float64), y.astype(np.float64)))


def _squared_distances(x: Features, y: Reference) -> Float[np.ndarray, "n m"]:
    squares_x, squares_y = (np.square(z).sum(1) for z in (x, y))
    return np.maximum(squares_x[:, None] - 2 * (x @ y.T) + squares_y, 0)


_DISTANCES = {
    "guided_diffusion": _float16_distances,
    "float32": _float32_distances,
    "float64": _float64_distances,
}
