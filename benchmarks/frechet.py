"""Frechet distance at FID's 2,048 dimensions beside SciPy's matrix square root, and precision and
recall at guided-diffusion's size, in bounded memory.

python -m benchmarks.frechet
python -m benchmarks.frechet --samples 50000 --reference 10000 --dimensions 2048
"""

import resource
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import scipy.linalg
import tyro

from glide_jax.evaluation.metrics.frechet import frechet_distance
from glide_jax.evaluation.metrics.precision_recall import precision_recall


@dataclass(frozen=True)
class Arguments:
    """Times metrics on random features."""

    dimensions: int = 2048
    """Of the features."""
    samples: int = 5000
    """For precision and recall."""
    reference: int = 5000
    """For precision and recall."""


def timed(compute: Callable[[], object]) -> tuple[float, object]:
    """Seconds, and the result."""
    started = perf_counter()
    found = compute()
    return perf_counter() - started, found


def main() -> None:
    """Prints both."""
    arguments = tyro.cli(Arguments)
    d = arguments.dimensions
    random = np.random.default_rng(0)
    gaussians = []
    for _ in range(2):
        x = random.normal(size=(2 * d, d)) * np.linspace(1, 0.01, d)
        gaussians.append((x.mean(0), np.cov(x, rowvar=False)))
    (mu1, sigma1), (mu2, sigma2) = gaussians

    def by_scipy() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            root = scipy.linalg.sqrtm(sigma1 @ sigma2)
        traces = np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(root).real
        return float(np.square(mu1 - mu2).sum() + traces)

    ours_s, ours = timed(lambda: frechet_distance(mu1, sigma1, mu2, sigma2))
    theirs_s, theirs = timed(by_scipy)
    print(
        f"Frechet distance, {d:,} dimensions: {ours_s:.1f} s; with scipy.linalg.sqrtm "
        f"{theirs_s:.1f} s: ratio {ours_s / theirs_s:.2f}; values {ours:.9g} and {theirs:.9g}"
    )

    sizes = (arguments.samples, arguments.reference)
    features = [random.normal(size=(n, d)).astype(np.float32) for n in sizes]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for arithmetic in ("float32", "guided_diffusion"):
        seconds, _ = timed(lambda: precision_recall(*features, arithmetic=arithmetic))  # noqa: B023
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
        print(
            f"precision and recall, {sizes[0]:,} samples, {sizes[1]:,} reference images, "
            f"{arithmetic}: {seconds:.1f} s, {peak:.2f} GiB above the features"
        )


if __name__ == "__main__":
    main()
