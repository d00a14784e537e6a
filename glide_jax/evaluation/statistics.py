"""Mean and covariance of features, computed in one pass, and the Frechet distance between them."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from glide_jax.errors import UserError
from glide_jax.evaluation.metrics.estimate import GROUPS, Estimate, jackknife_error
from glide_jax.evaluation.metrics.frechet import frechet_gradient, square_root_factor

logger = logging.getLogger(__name__)

COMPARED = ("network", "weights", "resize")
"""Settings that must be equal for features to compare, if both sides say them."""
PREPARED = ("px", "crop", "blur")
"""Settings that must be equal, or set on neither side, if both sides say COMPARED."""
FLAGS = {"blur": "--blur-radius"}
"""Of settings whose flags have another name."""

_BUFFERED = 256
"""Rows of a group that wait for one rank-k update of its covariance."""


@dataclass(frozen=True)
class Statistics:
    """A Gaussian fitted to features."""

    mu: Float[np.ndarray, "d"]
    """Mean, float64."""
    sigma: Float[np.ndarray, "d d"]
    """Unbiased covariance, float64."""
    n: int | None = None
    """Number of images; None if the file that they come from does not say."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """How the features were computed (`FeatureExtractor.settings`); empty if unknown."""


@dataclass(frozen=True)
class Moments:
    """Number, mean and scatter matrix (sum of outer products of deviations) of features."""

    n: int
    mean: Float[np.ndarray, "d"]
    scatter: Float[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> "Moments":
        """Those of these rows, in float64."""
        x = features.astype(np.float64)
        mean = x.mean(0)
        x -= mean
        return cls(len(x), mean, x.T @ x)

    def __add__(self, other: "Moments") -> "Moments":
        """Those of both sets (Chan, Golub and LeVeque, 1983)."""
        return self._combined(other, 1)

    def __sub__(self, part: "Moments") -> "Moments":
        """Those of the rows that are not in a part of this set."""
        return self._combined(part, -1)

    def _combined(self, other: "Moments", sign: int) -> "Moments":
        n = self.n + sign * other.n
        difference = other.mean - self.mean
        mean = self.mean + sign * other.n / n * difference
        between = sign * self.n * other.n / n * np.outer(difference, difference)
        return Moments(n, mean, self.scatter + sign * other.scatter + between)

    def statistics(self, settings: Mapping[str, str]) -> Statistics:
        """The fitted Gaussian of at least two rows."""
        return Statistics(self.mean, self.scatter / (self.n - 1), self.n, settings)


class RunningStatistics:
    """Statistics of features that arrive in batches, in constant memory: 8 GROUPS d^2 bytes.

    Row i belongs to group i % GROUPS, for the jackknife standard error of `frechet`.

    Args:
        settings: how the features are computed.
    """

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self.settings = dict(settings or {})
        self.n = 0
        """Rows so far."""
        self._groups: list[Moments | None] = [None] * GROUPS
        self._waiting: list[list[np.ndarray]] = [[] for _ in range(GROUPS)]

    def add(self, features: Float[np.ndarray, "n d"]) -> None:
        """Adds rows.

        Raises:
            UserError: a value is not finite.
        """
        finite = np.isfinite(features).all(1)
        if not finite.all():
            raise UserError(
                f"the features of image {self.n + int(finite.argmin())} are not finite: "
                "check the images and the weights"
            )
        for group in range(GROUPS):
            rows = features[(group - self.n) % GROUPS :: GROUPS]
            if len(rows):
                self._waiting[group].append(rows.copy())  # the caller may reuse its array
                if sum(map(len, self._waiting[group])) >= _BUFFERED:
                    self._update(group)
        self.n += len(features)

    def _update(self, group: int) -> None:
        if self._waiting[group]:
            new, old = Moments.of(np.concatenate(self._waiting[group])), self._groups[group]
            self._groups[group] = new if old is None else old + new
            self._waiting[group] = []

    def groups(self) -> list[Moments]:
        """Those of each group that has rows."""
        for group in range(GROUPS):
            self._update(group)
        return [group for group in self._groups if group is not None]

    def statistics(self) -> Statistics:
        """Those of all rows.

        Raises:
            UserError: there are fewer than two rows.
        """
        if self.n < 2:
            raise UserError(f"a covariance needs at least 2 images, not {self.n}")
        return self._total().statistics(self.settings)

    def without_each_group(self) -> Iterator[Statistics]:
        """Those of all rows but one group's, for each group; none if too few would be left."""
        groups, total = self.groups(), self._total()
        for group in groups if len(groups) > 2 else []:
            yield (total - group).statistics(self.settings)

    def _total(self) -> Moments:
        first, *others = self.groups()
        return sum(others, start=first)


def frechet(samples: RunningStatistics | Statistics, reference: Statistics) -> Estimate:
    """The Frechet distance of samples from a reference.

    Its standard error is the jackknife's over groups of samples, for the given reference; the
    effect of a group on the covariance is taken to first order. It is None for samples of which
    only the statistics are known. The distance itself is biased: it grows as there
    are fewer samples, so only distances of equally many samples compare.

    Raises:
        UserError: the features do not compare, see `require_comparable`; or fewer than 2 samples.
    """
    parts: Iterator[Statistics] = iter(())
    if isinstance(samples, RunningStatistics):
        parts, samples = samples.without_each_group(), samples.statistics()
    require_comparable(samples, reference)
    for name, statistics in (("samples", samples), ("reference images", reference)):
        warn_of_few(name, statistics)
    of_covariances, gradient = frechet_gradient(square_root_factor(reference.sigma), samples.sigma)

    def of_means(statistics: Statistics) -> float:
        return float(np.square(reference.mu - statistics.mu).sum())

    without = [
        of_means(part) + float(np.vdot(gradient, part.sigma - samples.sigma)) for part in parts
    ]
    error = jackknife_error(without) if without else None
    return Estimate(of_means(samples) + of_covariances, error)


def require_comparable(samples: Statistics, reference: Statistics) -> None:
    """Checks that two statistics are of the same features; warns where one does not say.

    Raises:
        UserError: `unknown_settings` raises it, or they differ in width.
    """
    unknown = unknown_settings(samples.settings, reference.settings)
    if samples.mu.shape != reference.mu.shape:
        raise UserError(
            f"statistics do not compare: the samples' have {len(samples.mu)} dimensions, the "
            f"reference's {len(reference.mu)}; compute both with the same network"
        )
    if unknown:
        logger.warning("the statistics do not say their %s: assumed equal", ", ".join(unknown))


def unknown_settings(samples: Mapping[str, str], reference: Mapping[str, str]) -> list[str]:
    """The settings that must be equal, but that samples or reference do not say.

    Raises:
        UserError: they are of different networks, weights or resizing rules, or of images that
            were prepared differently.
    """
    unknown: list[str] = []
    for name in (*COMPARED, *PREPARED):
        default = "not set" if name in PREPARED else None
        found = [settings.get(name, default) for settings in (samples, reference)]
        differ = found[0] != found[1]
        if None in found or (differ and unknown and name in PREPARED):
            unknown.append(name)
        elif differ:
            raise UserError(
                f"statistics do not compare: {name} is {_short(found[0])} for the samples and "
                f"{_short(found[1])} for the reference; compute both with the same "
                f"{FLAGS.get(name, f'--{name}')}"
            )
    return unknown


def _short(value: str | None) -> str:
    """A hash as its first characters."""
    text = str(value)
    return text if len(text) < 64 else text[:12]


def warn_of_few(name: str, statistics: Statistics) -> None:
    """Warns of fewer images than twice the dimensions, for which the bias exceeds most effects."""
    n, d = statistics.n, len(statistics.mu)
    if n is not None and n < 2 * d:
        singular = ", so the covariance is singular" if n <= d else ""
        logger.warning(
            f"{n:,} {name} for {d:,} dimensions{singular}: the Frechet distance is far too large; "
            f"use at least {2 * d:,} images, or KID, which has no such bias"
        )
