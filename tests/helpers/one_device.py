"""A mesh of one device, and the comparison of gradients with those of more devices."""

import jax
import numpy as np

from glide_jax.parallel import sharding


def one_device_mesh():
    return sharding.local_mesh(given=jax.devices()[:1])


def assert_same_gradient(ours, expected):
    """Compare gradients and metrics by name."""
    (grads, metrics), (expected_grads, expected_metrics) = ours, expected
    assert metrics.keys() == expected_metrics.keys()
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    scale = max(np.abs(g).max() for g in expected_grads.values())
    for name, g in expected_grads.items():
        # Sums in another order: rounding errors are relative to the terms, not to their sum.
        tolerance = 2e-4 * np.abs(g).max() + 1e-6 * scale
        np.testing.assert_allclose(grads[name], g, rtol=0, atol=tolerance, err_msg=name)
