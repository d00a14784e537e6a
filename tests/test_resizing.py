"""Resizing rules against the implementations that they are named after."""

from pathlib import Path

import jax
import numpy as np
import pytest

from glide_jax.evaluation.feature_networks import NETWORKS
from glide_jax.evaluation.resizing import axis_weights, resize_squares

GOLDEN = np.load(Path(__file__).parent / "golden" / "evaluation" / "inception.npz")
CASES = [name.split("/")[1:] for name in GOLDEN.files if name.startswith("resized/")]
TOLERANCE = 1e-5
"""Of 255."""


def resized(images, rule, side):
    resize = NETWORKS["inception"].resizing[rule].resize
    _, h, w, _ = images.shape
    axes = (axis_weights(resize.weights, length, side, length)[None] for length in (h, w))
    x = np.asarray(jax.jit(resize_squares)(images.astype(np.float32), *axes))
    return x.clip(0, 255) if resize.clip else x


@pytest.mark.parametrize(("rule", "key"), CASES)
def test_resizing_agrees_with_the_originals(rule, key):
    expected = GOLDEN[f"resized/{rule}/{key}"]
    found = resized(GOLDEN[f"images/{key}"][: len(expected)], rule, 299)
    assert np.abs(found[:, GOLDEN["rows"]] - expected).max() <= TOLERANCE * 255
    means = found.mean((1, 2), dtype=np.float64)
    assert np.abs(means - GOLDEN[f"resized_mean/{rule}/{key}"]).max() <= TOLERANCE * 255


@pytest.mark.parametrize("rule", NETWORKS["inception"].resizing)
def test_images_of_the_networks_size_stay_as_they_are(rule):
    images = np.random.default_rng(0).integers(0, 256, (1, 17, 17, 3), np.uint8)
    np.testing.assert_allclose(resized(images, rule, 17), images, atol=1e-4)


@pytest.mark.parametrize("rule", NETWORKS["inception"].resizing)
@pytest.mark.parametrize("length", [1, 2, 5, 40])
def test_weights_are_averages_and_ignore_margins(rule, length):
    weights = NETWORKS["inception"].resizing[rule].resize.weights
    padded = axis_weights(weights, length, 9, length + 3)
    np.testing.assert_allclose(padded.sum(1), 1, atol=1e-6)
    assert not padded[:, length:].any()
