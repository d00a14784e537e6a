"""OpenAI CLIP, DINOv2 and LPIPS against values of their released code, names both ways."""

import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.rule_weights import rule_weight
from helpers.vision_configs import small_clip_config, small_dinov2_config

from glide_jax.errors import UserError
from glide_jax.evaluation.crops import CROPS
from glide_jax.evaluation.feature_networks import NETWORKS, read_params
from glide_jax.evaluation.features import FeatureExtractor
from glide_jax.evaluation.metrics.clip_score import clip_score
from glide_jax.evaluation.perceptual import HEADS, heads, load_lpips, lpips_diversity
from glide_jax.evaluation.resizing import axis_weights, network_input
from glide_jax.models.dinov2 import dinov2
from glide_jax.models.lpips import lpips
from glide_jax.models.openai_clip import openai_clip
from glide_jax.pretrained.names import from_original, original_names, original_shape, to_original
from glide_jax.pretrained.vision_names import DINOV2, LPIPS, OPENAI_CLIP
from glide_jax.pretrained.weight_files import write_tensors

GOLDEN = Path(__file__).parent / "golden" / "evaluation"
RELEASED = json.loads((GOLDEN / "vit_state_dicts.json").read_text(encoding="utf-8"))
OF_ARCHIVES = {"input_resolution", "context_length", "vocab_size"}


def golden(name):
    """Arrays, weights and constructor arguments."""
    file = dict(np.load(GOLDEN / f"{name}.npz"))
    weights = {k[2:]: x.astype(np.float32) for k, x in file.items() if k.startswith("w/")}
    return file, weights, json.loads(str(file["meta"])) if "meta" in file else {}


def assert_close(found, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("name", RELEASED)
def test_all_released_names_and_shapes(name):
    theirs = {k: tuple(shape) for k, shape in RELEASED[name].items() if k not in OF_ARCHIVES}
    spec = NETWORKS[re.sub(r"(vit)(\w)(\d+)", r"\1-\2-\3", name.lower().replace("_", "-"))]
    (rules,), shapes = spec.names, spec.network().shapes
    names = original_names(shapes, rules)
    assert theirs == {
        names[ours]: original_shape(ours, shape.shape, rules) for ours, shape in shapes.items()
    }


@pytest.fixture
def small_network(monkeypatch):
    """Extractor of a golden file's network in a released one's place: of `name`, by `resize`."""

    def extractor(name, network, params, resize=""):
        monkeypatch.setitem(NETWORKS, name, replace(NETWORKS[name], network=lambda: network))
        return FeatureExtractor(name, params, "", resize, 4, jax.devices()[:1])

    return extractor


def golden_images():
    """Images that other golden values are about, by key."""
    file = np.load(GOLDEN / "inception.npz")
    return {k.removeprefix("images/"): file[k] for k in file.files if k.startswith("images/")}


def assert_features(extractor, file, prefix):
    """Compares features of the images that a golden file has values of."""
    keys = [key for key in golden_images() if f"{prefix}/{key}" in file]
    assert keys
    for key in keys:
        images, expected = golden_images()[key], file[f"{prefix}/{key}"]
        assert_close(extractor(images)["pool"], expected[: len(images)])


def test_clip_towers_and_scores(small_network):
    file, weights, meta = golden("clip_tiny")
    network = openai_clip(small_clip_config(meta))
    params = from_original(weights, network.shapes, OPENAI_CLIP)
    for name, tensor in to_original(params, OPENAI_CLIP).items():
        np.testing.assert_array_equal(tensor, weights[name])

    assert_features(small_network("clip-vit-b-32", network, params), file, "image_features")
    encode_text = jax.jit(lambda params, tokens: network.bind(params).encode_text(tokens))
    text = np.asarray(encode_text(params, file["tokens"].astype(np.int32)))
    assert_close(text, file["text_features"])
    image = next(x for k, x in file.items() if k.startswith("image_features/"))  # of the scores
    unit_image, unit_text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    logits = np.exp(np.asarray(params["logit_scale"])) * unit_image @ unit_text.T
    assert_close(logits, file["logits_per_image"])
    for rule in ("glide", "hessel"):
        expected = file[f"clip_score_{rule}"].mean()
        assert clip_score(image, text, rule).value == pytest.approx(expected, rel=1e-5)
    expected = file["clip_score_torchmetrics"]
    assert clip_score(image, text, "torchmetrics").value == pytest.approx(expected, rel=1e-5)
    assert clip_score(-image, text, "torchmetrics").value == 0
    assert clip_score(-image, text, "hessel").value < 2.5


@pytest.mark.parametrize(
    ("golden_name", "network", "resize"),
    [
        ("clip", "clip-vit-b-16", "clip"),
        ("dinov2_edm2_pil", "dinov2-vit-l-14", "pil"),
        ("dinov2_edm2_torch", "dinov2-vit-l-14", "edm2"),
    ],
)
def test_preprocessing(golden_name, network, resize):
    file, spec = np.load(GOLDEN / "preprocess.npz"), NETWORKS[network]
    preprocessing, side = spec.resizing[resize], spec.input_px
    for key, images in golden_images().items():
        axes = (None, None)
        if on_host := preprocessing.resize.on_host:
            images = np.stack([on_host(image, side) for image in images])
        else:
            weights, size = preprocessing.resize.weights, images.shape[1:3]
            axes = [axis_weights(weights, length, side, length)[None] for length in size]
        x = np.asarray(network_input(images, *axes, preprocessing))
        tolerance = 1e-5 * 255 / np.array(preprocessing.std)  # of the levels
        rows, means = file[f"{golden_name}/{key}"], file[f"{golden_name}_mean/{key}"]
        assert (np.abs(x[: len(rows), file["rows"]] - rows[: len(x)]) <= tolerance).all()
        assert (np.abs(x.mean((1, 2), np.float64) - means[: len(x)]) <= tolerance).all()


def test_crops():
    file = np.load(GOLDEN / "crops.npz")
    crops = {
        "adm_center_crop": "adm",
        "edm2_dhariwal": "adm",
        "edm2_center_crop": "edm2",
        "torchvision_bicubic": "torchvision",
        "squeeze_bicubic": "squeeze",
    }
    names = [name for name in file.files if name.count("/") == 2]
    assert names
    for name in names:
        rule, image, px = name.split("/")
        found = CROPS[crops[rule]](file[f"image/{image}"], int(px))
        np.testing.assert_array_equal(found, file[name], err_msg=name)


def test_dinov2(small_network):
    file, weights, meta = golden("dinov2_tiny")
    config = small_dinov2_config(meta)
    network = dinov2(config)
    params = from_original(weights, network.shapes, DINOV2)
    for name, tensor in to_original(params, DINOV2).items():
        np.testing.assert_array_equal(tensor, weights[name])
    module = network.bind(jax.device_put(params))
    for name in file:
        if name.startswith("pos_embed_"):
            height, width = map(int, name.removeprefix("pos_embed_").split("x"))
            assert_close(module.positions(height, width), file[name])
    np.testing.assert_array_equal(
        module.positions(config.grid, config.grid), params["position_embedding"]
    )
    for resize, prefix in (("pil", "features/edm2_pil"), ("edm2", "features/edm2_torch")):
        extractor = small_network("dinov2-vit-l-14", network, params, resize)
        assert_features(extractor, file, prefix)


@pytest.mark.parametrize("trunk", ["alex", "vgg"])
def test_lpips(trunk, tmp_path):
    file, _, _ = golden("lpips")
    features = {k: v for k, v in lpips(trunk).shapes.items() if k.startswith("features.")}
    tensors = {}
    for ours, theirs in original_names(features, LPIPS).items():
        shape = original_shape(ours, features[ours].shape, LPIPS)
        value = rule_weight(f"{trunk}.{theirs}", shape, int(file["seed"]))
        tensors[theirs] = value * np.float32(2**0.5 if value.ndim == 4 else 1)
    for i, head in enumerate(sorted(heads(trunk))):
        np.testing.assert_array_equal(heads(trunk)[head], file[f"heads/{trunk}/{i}"])
    path = tmp_path / "trunk.pth"
    write_tensors(path, tensors | {"classifier.1.weight": np.zeros((2, 2), np.float32)})
    distance = load_lpips(trunk, path, batch_size=2)  # the last batch is padded
    assert_close(distance(file["a"], file["b"]), file[f"distance/{trunk}"])
    parts = jax.jit(lambda params, a, b: lpips(trunk).bind(params)(a, b)[1])
    pixels = (file[name][:1] / np.float32(127.5) - 1 for name in ("a", "b"))
    params = from_original(tensors, features, LPIPS) | heads(trunk)
    assert_close(parts(params, *pixels), file[f"per_layer/{trunk}"][:, :1])
    if trunk == "alex":
        same = np.stack([file["a"], file["a"]], 1)
        assert lpips_diversity(same, distance).value == pytest.approx(0, abs=1e-7)
        a, b, expected = file["a"], file["b"], file["distance/alex"]
        captions = [[a[0], b[0]], [a[1]], [a[2], b[2], a[2]]]  # the second has no pair
        found = lpips_diversity(captions, distance)
        expected = np.array([expected[0], expected[2] * 2 / 3])
        assert found.value == pytest.approx(expected.mean(), rel=1e-5)
        assert found.standard_error == pytest.approx(expected.std(ddof=1) / 2**0.5, rel=1e-4)
        for images, why in (
            ([[a[0]], []], "needs several images of a caption"),
            ([[a[0], b[0]], [a[0], b[0, :40]]], "images of one size, not 64x64 and 64x40 px: crop"),
            ([[*a[:2, :24]]], "alex needs images of at least 31 px a side, not 64x24"),
        ):
            with pytest.raises(UserError, match=why):
                lpips_diversity(images, distance)
        with pytest.raises(UserError, match="is not torchvision's file of vgg: the weights lack"):
            load_lpips("vgg", path)
        with pytest.raises(UserError, match="download https://"):
            load_lpips("vgg", "")


def test_license_of_the_heads_is_shipped():
    license_text = HEADS.with_suffix(".LICENSE").read_text(encoding="utf-8")
    assert "Redistributions in binary form must reproduce the above copyright" in license_text


@pytest.mark.parametrize(
    ("network", "tensors", "why"),
    [
        (
            "clip-vit-b-32",
            ["visual.layer1.0.conv1.weight"],
            "its tensors are visual.layer1",
        ),
        ("clip-vit-b-32", ["logit_scale", "visual.layer1.0.conv1.weight"], "the weights lack "),
        ("dinov2-vit-s-14", ["a"], "its tensors are a"),
        ("dinov2-vit-s-14", [*RELEASED["dinov2_vits14"], "register_tokens"], "register_tokens"),
    ],
)
def test_other_networks_are_refused(network, tensors, why, monkeypatch):
    shapes = RELEASED["dinov2_vits14"]
    zeros = {name: np.broadcast_to(np.float32(0), shapes.get(name, (1,))) for name in tensors}
    monkeypatch.setattr("glide_jax.evaluation.feature_networks.read_tensors", lambda _: zeros)
    with pytest.raises(UserError, match=f"^x.pt is not a file of {network}: .*{why}"):
        read_params(network, Path("x.pt"))


def test_a_file_of_another_size_is_named(monkeypatch):
    shapes = {k: tuple(s) for k, s in RELEASED["clip_ViT-B-32"].items() if k not in OF_ARCHIVES}
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    monkeypatch.setattr("glide_jax.evaluation.feature_networks.read_tensors", lambda _: tensors)
    with pytest.raises(UserError) as error:
        read_params("clip-vit-b-16", Path("ViT-B-32.pt"))
    message = "ViT-B-32.pt is not a file of clip-vit-b-16: its tensors are those of clip-vit-b-32"
    assert str(error.value) == message
