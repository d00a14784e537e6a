"""The Frechet distance between Gaussians fitted to two sets of features.

With the pooled features of the FID Inception it is the FID (arXiv 1706.08500).
"""

import numpy as np
import scipy.linalg
from jaxtyping import Float

Mean = Float[np.ndarray, "d"]
Covariance = Float[np.ndarray, "d d"]


def frechet_distance(mu1: Mean, sigma1: Covariance, mu2: Mean, sigma2: Covariance) -> float:
    """|mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)), Eq. 6 of arXiv 1706.08500.

    The trace of the square root is the sum of the square roots of the eigenvalues of
    sigma1 sigma2, which are those of the symmetric A^T sigma2 A with sigma1 = A A^T. It needs no
    offset on the diagonal and has no imaginary part, also if a covariance is singular (fewer images
    than dimensions). It agrees with guided-diffusion, pytorch-fid, clean-fid, torch-fidelity and
    edm2 to 1e-6 of their values; equal Gaussians give 0 to rounding.

    Args:
        mu1, mu2: means.
        sigma1, sigma2: covariances, symmetric and positive semidefinite.
    """
    return frechet_distance_to(mu1, square_root_factor(sigma1), mu2, sigma2)


def square_root_factor(sigma: Covariance) -> Float[np.ndarray, "d r"]:
    """A with sigma = A A^T, without the directions in which sigma is zero to rounding."""
    values, vectors = scipy.linalg.eigh(sigma, check_finite=False)
    positive = values > values[-1] * len(sigma) * np.finfo(np.float64).eps
    return vectors[:, positive] * np.sqrt(values[positive])


def frechet_distance_to(
    mu1: Mean, factor1: Float[np.ndarray, "d r"], mu2: Mean, sigma2: Covariance
) -> float:
    """`frechet_distance` with the `square_root_factor` of sigma1, for many distances to one."""
    product = factor1.T @ sigma2 @ factor1
    values = scipy.linalg.eigvalsh(product, check_finite=False) if product.size else np.zeros(1)
    # Rounding turns zeros into values of both signs, whose square roots would add up.
    values = np.where(values > values[-1] * len(mu1) * np.finfo(np.float64).eps, values, 0)
    mean = np.square(mu1 - mu2).sum()
    traces = np.square(factor1).sum() + np.trace(sigma2)
    return float(mean + traces - 2 * np.sqrt(values).sum())


def frechet_distance_k_diffusion(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """The Frechet distance between features as k-diffusion computes it, in float32.

    Covariances get 1e-8 on the diagonal, and eigenvalues that rounding made negative count by their
    magnitude. With fewer images than dimensions it is up to 0.5% too small.
    """

    def square_root(matrix: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(matrix)
        return (vectors * np.sqrt(np.abs(values))) @ vectors.T

    x, y = x.astype(np.float32), y.astype(np.float32)
    offset = np.float32(1e-8) * np.eye(x.shape[1], dtype=np.float32)
    cov_x, cov_y = (np.cov(z, rowvar=False, dtype=np.float32) + offset for z in (x, y))
    root = square_root(cov_x)
    trace = np.trace(cov_x + cov_y - 2 * square_root(root @ cov_y @ root))
    return float(np.square(x.mean(0) - y.mean(0)).sum() + trace)
