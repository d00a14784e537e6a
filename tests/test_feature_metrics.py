"""Metrics on features against values of the implementations that they are named after.

golden/evaluation/features.npz has the features, feature_metrics.npz what guided-diffusion,
pytorch-fid, clean-fid, torch-fidelity, edm2, k-diffusion and dgm-eval compute from them.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from glide_jax.errors import UserError
from glide_jax.evaluation.metrics import kernel, precision_recall
from glide_jax.evaluation.metrics.estimate import groups_of, mean_estimate
from glide_jax.evaluation.metrics.frechet import frechet_distance, frechet_distance_k_diffusion
from glide_jax.evaluation.metrics.inception_score import (
    inception_score,
    inception_score_torch_fidelity,
)
from glide_jax.evaluation.metrics.kernel import (
    kid,
    kid_k_diffusion,
    kid_torch_fidelity,
    squared_mmd,
)
from glide_jax.evaluation.metrics.precision_recall import manifold

GOLDEN = Path(__file__).parent / "golden" / "evaluation"
FEATURES = dict(np.load(GOLDEN / "features.npz"))
VALUES = dict(np.load(GOLDEN / "feature_metrics.npz"))
CASES = sorted(name.removeprefix("ref/") for name in FEATURES if name.startswith("ref/"))


def pair(case):
    """Samples and reference."""
    return (FEATURES[f"{kind}/{case}"].astype(np.float32) for kind in ("sample", "ref"))


def gaussian(features):
    x = features.astype(np.float64)
    return x.mean(0), np.cov(x, rowvar=False)


def of(case, pattern):
    """The golden values whose names match: by match."""
    names = (name.removeprefix(f"{case}/") for name in VALUES if name.startswith(f"{case}/"))
    found = {m: VALUES[f"{case}/{m[0]}"] for name in names if (m := re.fullmatch(pattern, name))}
    assert found
    return found.items()


@pytest.mark.parametrize("case", CASES)
def test_frechet_distance(case):
    samples, reference = pair(case)
    x, y = gaussian(samples), gaussian(reference)
    scale = np.trace(x[1]) + np.trace(y[1])
    found, reversed_order = frechet_distance(*x, *y), frechet_distance(*y, *x)
    for name, value in of(case, r"fid_(?!k_diffusion).*"):
        close = {"rtol": 1e-6, "atol": 1e-12 * scale, "err_msg": name[0]}
        np.testing.assert_allclose(found, value, **close)
        np.testing.assert_allclose(reversed_order, value, **close)
    # It takes magnitudes of float32 eigenvalues. Those of singular covariances should be zero, and
    # are rounding that differs by machine and library: they add up to half a percent of the value.
    singular = any(np.linalg.matrix_rank(sigma) < len(sigma) for _, sigma in (x, y))
    np.testing.assert_allclose(
        frechet_distance_k_diffusion(samples, reference),
        VALUES[f"{case}/fid_k_diffusion"],
        rtol=5e-3 if singular else 1e-5,
        atol=1e-6 * scale,
    )


def test_frechet_distance_of_nearly_equal_gaussians():
    """Of the same axes, with standard deviations over six orders of magnitude."""
    axes, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(60, 60)))
    deviations = np.logspace(0, -6, 60)
    sigma = (axes * deviations**2) @ axes.T
    found = frechet_distance(np.zeros(60), sigma, np.zeros(60), 1.01 * sigma)
    expected = np.square((1.01**0.5 - 1) * deviations).sum()
    assert found == pytest.approx(expected, rel=1e-6)


def test_kid_of_one_array_is_that_of_equal_arrays():
    x = np.random.default_rng(0).normal(size=(30, 4))
    assert kid(x, x).value == pytest.approx(kid(x, x.copy()).value, rel=1e-12)


def test_bad_features_are_refused():
    good, bad = np.ones((9, 3)), np.ones((9, 3))
    bad[4, 1] = np.nan
    for metric in (kid, precision_recall.precision_recall, lambda x, _: inception_score(x)):
        with pytest.raises(UserError, match="the features of image 4 are not finite"):
            metric(bad, good)
    for metric in (kid, kid_torch_fidelity, precision_recall.precision_recall):
        with pytest.raises(UserError, match="features of 2 and 3 dimensions do not compare"):
            metric.__wrapped__(good, good[:, :2])  # without the check of annotations


def test_inception_score_of_certain_classes():
    """A class whose probability rounds to 0 everywhere counts as 0."""
    assert np.isfinite(inception_score(np.array([[0.0, -1e5]] * 3)).value)


def test_frechet_distance_of_gaussians_that_share_axes():
    """With diagonal covariances it is the sum of squares of differences of mean and deviation."""
    mu, a, b = np.array([[1.0, 2, 0], [2.0, 0, 4], [0.5, 3, 0]])
    found = frechet_distance(mu, np.diag(a**2), 0 * mu, np.diag(b**2))
    assert found == pytest.approx((mu**2).sum() + ((a - b) ** 2).sum(), rel=1e-12)
    assert frechet_distance(mu, np.diag(0 * a), mu, np.diag(0 * a)) == 0


@pytest.mark.parametrize("case", CASES)
def test_kid(case, monkeypatch):
    samples, reference = pair(case)
    size = int(VALUES[f"{case}/kid_subset_size"])
    found = kid_torch_fidelity(samples, reference, subset_size=size)
    np.testing.assert_allclose(found, VALUES[f"{case}/kid_torch_fidelity"], rtol=1e-5, atol=1e-6)
    exact = VALUES[f"{case}/kid_torch_fidelity_float64"]
    np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-14)
    for name, value in of(case, r"kid_all_first_(\d+)"):
        first = int(name[1])
        mmd = squared_mmd(samples[:first], reference[:first])
        np.testing.assert_allclose(mmd, value, rtol=1e-5, atol=1e-6)
    for name, value in of(case, r"kid_clean_fid_seed(\d+)_(\d+)x(\d+)"):
        seed, subsets, _ = map(int, name.groups())
        clean, _ = kid_torch_fidelity(samples, reference, subsets, size, seed)
        np.testing.assert_allclose(clean, value, rtol=1e-5, atol=1e-6)
    of_all, of_parts = VALUES[f"{case}/kid_k_diffusion"]
    np.testing.assert_allclose(kid_k_diffusion(samples, reference, 100), of_parts, rtol=1e-5)
    for tile in (2048, 37):
        monkeypatch.setattr(kernel, "TILE", tile)
        np.testing.assert_allclose(kid(samples, reference).value, of_all, rtol=1e-5)
    with pytest.raises(UserError, match="KID over subsets of 1,000 images needs as many"):
        kid_torch_fidelity(samples, reference)


def values(found):
    return np.array([estimate.value for estimate in found])


@pytest.mark.parametrize("case", CASES)
def test_precision_recall_density_coverage(case, monkeypatch):
    samples, reference = pair(case)
    for tile in (2000, 130):
        monkeypatch.setattr(precision_recall, "TILE", tile)
        of_adm = precision_recall.precision_recall(samples, reference)
        golden = VALUES[f"{case}/precision_recall_guided_diffusion"]
        np.testing.assert_allclose(values(of_adm)[:2], golden, atol=1e-12)
    found = precision_recall.precision_recall(samples, reference, arithmetic="float32")
    for name in ("guided_diffusion_fp32", "torch_fidelity"):
        golden = VALUES[f"{case}/precision_recall_{name}"]
        np.testing.assert_allclose(values(found)[:2], golden, atol=1e-7)
    for name, golden in of(case, r"prdc_k(\d+)"):
        found = precision_recall.precision_recall(samples, reference, int(name[1]), "float64")
        np.testing.assert_allclose(values(found), golden, atol=1e-12)
    radii = VALUES[f"{case}/radii_ref"][:, 0]
    found = manifold(reference, 3, "float32").radii
    np.testing.assert_allclose(found, radii, rtol=1e-5, atol=1e-5 * radii.max())


def test_float16_overflow_takes_float32(monkeypatch):
    """As guided-diffusion does for a whole block of distances."""
    random = np.random.default_rng(0)
    samples, reference = (random.normal(0, 50, (40, 8)).astype(np.float32) for _ in range(2))
    squares = np.square(samples).sum(1).max()
    assert 65504 / 4.1 < squares < 65504  # distances overflow, norms do not
    found, exact = (
        values(precision_recall.precision_recall(samples, reference, arithmetic=arithmetic))
        for arithmetic in ("guided_diffusion", "float32")
    )
    np.testing.assert_array_equal(found, exact)


def test_inception_score():
    logits = FEATURES["logits"].astype(np.float32)
    for name, value in of("is", r"guided_diffusion_split(\d+)"):
        np.testing.assert_allclose(inception_score(logits, int(name[1])).value, value, rtol=1e-6)
    for name, value in of("is", r"torch_fidelity_(\d+)(_\w+)?"):
        found = inception_score_torch_fidelity(logits, int(name[1]), name[2] != "_in_order")
        np.testing.assert_allclose(found, value, rtol=1e-9, atol=1e-12)


def test_standard_errors_are_those_of_repeated_samples():
    """Of independent sets of samples, within the spread of an error estimated from 10 groups."""
    random = np.random.default_rng(0)
    reference = random.normal(0, 1, (300, 4))
    metrics = {
        "kid": lambda x: kid(x, random.normal(0, 1, (300, 4))),
        "is": lambda x: inception_score(2 * x),
        "mean": lambda x: mean_estimate(x[:, 0]),
        "precision": lambda x: precision_recall.precision_recall(x, reference).precision,
    }
    for name, metric in metrics.items():
        found = [metric(random.normal(0, 1, (200, 4))) for _ in range(40)]
        spread = np.std([estimate.value for estimate in found], ddof=1)
        claimed = np.sqrt(np.mean([estimate.standard_error**2 for estimate in found]))
        assert 0.6 < claimed / spread < 1.6, (name, claimed, spread)


def test_few_images():
    assert mean_estimate(np.ones(1)).standard_error is None
    assert [len(group) for group in groups_of(5)] == [3, 2]
    assert kid(np.zeros((2, 3)), np.ones((2, 3))).standard_error is None
    with pytest.raises(UserError, match="KID needs at least 2 reference images, not 1"):
        kid(np.zeros((2, 3)), np.ones((1, 3)))
    with pytest.raises(UserError, match="k = 3 need more than 3 images in each set, not 3"):
        manifold(np.zeros((3, 2)), 3)
