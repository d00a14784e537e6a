"""An estimate with its standard error.

Two kinds of standard error cover all metrics. The mean of one value per image has the usual one, to
which a bootstrap of the mean converges. A statistic of all images together has the jackknife over
GROUPS groups of images. Unlike a bootstrap, it repeats no image: repetition changes the distances
to nearest neighbors, the rank of a covariance, and the bias of a Frechet distance.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from glide_jax.errors import UserError

GROUPS = 10
"""Groups of images for the jackknife: image i belongs to group i % GROUPS."""


class Estimate(NamedTuple):
    """A metric's value."""

    value: float
    standard_error: float | None
    """Standard deviation of the value over other images of the same kind; None if unknown."""


def require_features(*sets: Shaped[np.ndarray, "..."]) -> None:
    """Checks sets of features, one row per image.

    Raises:
        UserError: a value is not finite, or the sets have rows of different lengths.
    """
    for features in sets:
        finite = np.isfinite(features).all(1)
        if not finite.all():
            raise UserError(
                f"the features of image {int(finite.argmin())} are not finite: check the images "
                "and the weights"
            )
    widths = sorted({features.shape[1] for features in sets})
    if len(widths) > 1:
        raise UserError(
            f"features of {widths[0]:,} and {widths[1]:,} dimensions do not compare: compute both "
            "with the same network"
        )


def mean_estimate(values: Shaped[np.ndarray, "n"]) -> Estimate:
    """The mean of one value per image.

    Args:
        values: of each image; images are assumed independent. Infinite ones have no error.
    """
    values = np.asarray(values, np.float64)
    known = len(values) > 1 and np.isfinite(values).all()
    error = float(values.std(ddof=1)) / len(values) ** 0.5 if known else None
    return Estimate(float(values.mean()), error)


def jackknife_error(without: Sequence[float]) -> float:
    """Standard error of a statistic by the delete-a-group jackknife (Eq. 11.5 of Efron and
    Tibshirani, An Introduction to the Bootstrap, with groups in place of single observations).

    Args:
        without: the statistic of all images but one group's, for each group: at least two.
    """
    values = np.asarray(without, np.float64)
    groups = len(values)
    return float(np.sqrt((groups - 1) / groups * np.square(values - values.mean()).sum()))


def groups_of(n: int) -> Sequence[np.ndarray]:
    """The indices of the images in each group: GROUPS groups, fewer if one had below two images."""
    groups = max(1, min(GROUPS, n // 2))
    return [np.arange(group, n, groups) for group in range(groups)]
