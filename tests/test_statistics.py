"""Statistics in one pass, their files, and what does not compare."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from glide_jax.errors import UserError
from glide_jax.evaluation.metrics.estimate import jackknife_error
from glide_jax.evaluation.metrics.frechet import frechet_distance
from glide_jax.evaluation.statistics import RunningStatistics, Statistics, frechet
from glide_jax.evaluation.statistics_files import has_statistics, read_statistics, write_statistics

SETTINGS = {"network": "inception", "weights": "ab" * 32, "resize": "tf1"}
RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(3, 1, (900, 6)) @ RANDOM.normal(0, 1, (6, 6))


def running(features, *sizes, settings=SETTINGS):
    """Statistics of features that arrive in batches of these sizes, then all the rest."""
    found = RunningStatistics(settings)
    for batch in np.split(features, np.cumsum(sizes)):
        found.add(batch)
    return found


def test_batches_do_not_change_statistics():
    x = FEATURES
    for sizes in ((), (1, 2, 3, 700), (450,), (899,)):
        found = running(x.astype(np.float32), *sizes).statistics()
        y = x.astype(np.float32).astype(np.float64)
        np.testing.assert_allclose(found.mu, y.mean(0), rtol=1e-12)
        np.testing.assert_allclose(found.sigma, np.cov(y, rowvar=False), rtol=1e-11)
        assert found.n == len(x)
    far = running(x + 1e6).statistics()
    np.testing.assert_allclose(far.sigma, np.cov(x, rowvar=False), rtol=1e-8)


def test_groups_are_left_out_one_at_a_time():
    parts = list(running(FEATURES).without_each_group())
    assert len(parts) == 10
    kept = np.delete(FEATURES, np.s_[3::10], axis=0)
    np.testing.assert_allclose(parts[3].mu, kept.mean(0), rtol=1e-12)
    np.testing.assert_allclose(parts[3].sigma, np.cov(kept, rowvar=False), rtol=1e-10)


def test_standard_error_of_the_frechet_distance():
    """That of repeated samples, within the spread of an error estimated from 10 groups."""
    reference = running(RANDOM.normal(0, 1, (500, 6))).statistics()
    found = [frechet(running(RANDOM.normal(0.3, 1, (500, 6))), reference) for _ in range(40)]
    spread = np.std([estimate.value for estimate in found], ddof=1)
    claimed = np.sqrt(np.mean([estimate.standard_error**2 for estimate in found]))
    assert 0.6 < claimed / spread < 1.6
    assert frechet(reference, reference).standard_error is None


def test_the_jackknife_to_first_order_is_close():
    reference = running(RANDOM.normal(0, 1, (500, 20))).statistics()
    for n in (200, 500):
        samples = running(RANDOM.normal(0.1, 1.2, (n, 20)))
        found = frechet(samples, reference)
        parts = list(samples.without_each_group())
        pairs = [(part.mu, part.sigma, reference.mu, reference.sigma) for part in parts]
        exact = jackknife_error([frechet_distance(*pair) for pair in pairs])
        assert found.standard_error == pytest.approx(exact, rel=0.2)
        whole = samples.statistics()
        expected = frechet_distance(whole.mu, whole.sigma, reference.mu, reference.sigma)
        assert found.value == pytest.approx(expected, rel=1e-12)


def test_bad_features():
    x = np.ones((5, 3))
    x[4, 1] = np.nan
    found = running(np.ones((7, 3)))
    with pytest.raises(UserError, match="the features of image 11 are not finite"):
        found.add(x)
    with pytest.raises(UserError, match="a covariance needs at least 2 images, not 1"):
        running(np.ones((1, 3))).statistics()


def test_statistics_that_do_not_compare(caplog):
    ours = running(FEATURES).statistics()
    for name, other in (
        ("network", "dinov2-vit-l-14"),
        ("resize", "clean"),
        ("weights", "cd" * 32),
    ):
        theirs = running(FEATURES, settings=SETTINGS | {name: other}).statistics()
        with pytest.raises(
            UserError, match=f"do not compare: {name} is {SETTINGS[name][:12]}.* and "
        ):
            frechet(ours, theirs)
    with pytest.raises(UserError, match="the samples' have 6 dimensions, the reference's 5;"):
        frechet(ours, running(FEATURES[:, :5]).statistics())
    assert not caplog.messages
    frechet(ours, Statistics(ours.mu, ours.sigma))
    blurred = running(FEATURES, settings=SETTINGS | {"blur": "1"}).statistics()
    frechet(blurred, Statistics(ours.mu, ours.sigma))
    assert caplog.messages == [
        f"the statistics do not say their network, weights, resize{more}: assumed equal"
        for more in ("", ", blur")
    ]
    with pytest.raises(UserError, match=r"blur is 1 for the samples and not.*--blur-radius"):
        frechet(blurred, ours)


def test_few_images_are_warned_of(caplog):
    reference = running(FEATURES).statistics()
    frechet(running(FEATURES[:12]), reference)
    assert not caplog.messages
    frechet(running(FEATURES[:6]), reference)
    assert caplog.messages[0].startswith(
        "6 samples for 6 dimensions, so the covariance is singular: the Frechet distance is far too"
    )


def test_files_keep_statistics(tmp_path):
    pool, spatial = running(FEATURES).statistics(), running(FEATURES[:, :4]).statistics()
    path = tmp_path / "new" / "stats.npz"
    write_statistics(path, {"pool": pool, "spatial": spatial})
    for output, expected in (("pool", pool), ("spatial", spatial)):
        found = read_statistics(path, output)
        np.testing.assert_array_equal(found.mu, expected.mu)
        np.testing.assert_array_equal(found.sigma, expected.sigma)
        assert (found.n, found.settings) == (900, SETTINGS)
    with np.load(path) as file:  # what guided-diffusion and pytorch-fid read
        assert {"mu", "sigma", "mu_s", "sigma_s"} <= set(file.files)
    write_statistics(tmp_path / "stats.pkl", {"pool": pool})
    np.testing.assert_array_equal(read_statistics(tmp_path / "stats.pkl").mu, pool.mu)
    assert pickle.loads((tmp_path / "stats.pkl").read_bytes()).keys() == {"fid"}


def test_files_of_others(tmp_path):
    mu, sigma = FEATURES.mean(0), np.cov(FEATURES, rowvar=False)
    np.savez(tmp_path / "pytorch_fid.npz", mu=mu, sigma=sigma)
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    np.savez(tmp_path / "adm.npz", arr_0=np.zeros((2, 4, 4, 3)), mu=mu, sigma=sigma, mu_s=mu[:2])
    edm2 = {"fid": {"mu": mu, "sigma": sigma}, "fd_dinov2": {"mu": mu[:3], "sigma": sigma[:3, :3]}}
    (tmp_path / "edm2.pkl").write_bytes(pickle.dumps(edm2))
    for name in ("pytorch_fid.npz", "adm.npz", "edm2.pkl"):
        assert has_statistics(tmp_path / name)
        found = read_statistics(tmp_path / name)
        np.testing.assert_array_equal(found.sigma, sigma)
        assert found.n is None
    assert not has_statistics(tmp_path / "images.npz")
    found = read_statistics(tmp_path / "edm2.pkl", network="dinov2-vit-l-14")
    assert found.mu.shape == (3,)
    assert found.settings == {"network": "dinov2-vit-l-14", "resize": "edm2"}


def test_damaged_files_are_refused(tmp_path):
    good = {"mu": np.zeros(3), "sigma": np.eye(3)}
    path = tmp_path / "x.npz"

    def refused(name, **options):
        with pytest.raises(UserError) as error:
            read_statistics(tmp_path / name, **options)
        return str(error.value).removeprefix(str(tmp_path / name))

    assert refused("none.npz") == ": no such file"
    assert "ends in .npz or .pkl" in refused("x.csv")
    for change, why in (
        ({"sigma": np.eye(4)}, ": mu and sigma have shapes (3,) and (4, 4)"),
        ({"mu": np.array([0, np.nan, 0])}, ": mu is not finite"),
        ({"mu": np.zeros(3, np.int64)}, ": mu is not an array of floating-point numbers"),
        ({"settings": "{"}, ": its settings are damaged"),
        ({"settings": "1"}, ": its settings are damaged"),
        ({"n": np.zeros(2)}, ": its settings are damaged"),
    ):
        np.savez(path, **good | change)
        assert refused("x.npz") == why
    np.savez(path, **good)
    assert refused("x.npz", output="spatial") == " has no mu_s: it has mu, sigma"
    path.write_bytes(path.read_bytes()[:400])
    assert refused("x.npz").startswith(" is not a valid .npz file of statistics")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"fid": good})[:200])
    assert refused("x.pkl").startswith(" is not a valid .pkl file of statistics")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"other": good}))
    assert refused("x.pkl") == " has no statistics for the pool features of inception: it has other"
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"fid": Path}))
    assert refused("x.pkl").startswith(" is refused: it contains pathlib.Path, not only arrays")
    with pytest.raises(UserError, match="EDM2's format has no name for efficientnet-lite0"):
        of_another = Statistics(**good, settings={"network": "efficientnet-lite0"})
        write_statistics(tmp_path / "y.pkl", {"pool": of_another})
    with pytest.raises(UserError, match="of inception are of images resized by tf1, not clean"):
        of_another = Statistics(**good, settings=SETTINGS | {"resize": "clean"})
        write_statistics(tmp_path / "y.pkl", {"pool": of_another})
