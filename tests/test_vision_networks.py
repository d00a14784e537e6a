"""OpenAI CLIP, DINOv2 and LPIPS against values of their released code, names both ways."""

import json
import zlib
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from glide_jax.errors import UserError
from glide_jax.evaluation.crops import CROPS
from glide_jax.evaluation.metrics.clip_score import clip_score
from glide_jax.evaluation.perceptual import HEADS, heads, load_lpips, lpips_diversity
from glide_jax.models.dinov2 import PIXEL_MEAN as DINO_MEAN
from glide_jax.models.dinov2 import PIXEL_STD as DINO_STD
from glide_jax.models.dinov2 import dinov2
from glide_jax.models.lpips import lpips
from glide_jax.models.openai_clip import PIXEL_MEAN, PIXEL_STD, openai_clip
from glide_jax.pretrained.names import from_original, original_names, original_shape, to_original
from glide_jax.pretrained.vision_names import (
    DINOV2,
    LPIPS,
    OPENAI_CLIP,
    dinov2_config,
    openai_clip_config,
)
from glide_jax.pretrained.weight_files import write_tensors

GOLDEN = Path(__file__).parent / "golden" / "evaluation"
RELEASED = json.loads((GOLDEN / "vit_state_dicts.json").read_text(encoding="utf-8"))
OF_ARCHIVES = {"input_resolution", "context_length", "vocab_size"}


def golden(name):
    """Arrays, weights and constructor arguments."""
    file = dict(np.load(GOLDEN / f"{name}.npz"))
    weights = {k[2:]: x.astype(np.float32) for k, x in file.items() if k.startswith("w/")}
    return file, weights, json.loads(str(file["meta"])) if "meta" in file else {}


def shapes_of(tensors):
    return {name: tuple(np.shape(x)) for name, x in tensors.items()}


def assert_close(found, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("name", RELEASED)
def test_all_released_names_and_shapes(name):
    theirs = {k: tuple(shape) for k, shape in RELEASED[name].items() if k not in OF_ARCHIVES}
    is_clip = name.startswith("clip")
    rules = OPENAI_CLIP if is_clip else DINOV2
    network = openai_clip(openai_clip_config(theirs)) if is_clip else dinov2(dinov2_config(theirs))
    names = original_names(network.shapes, rules)
    assert theirs == {
        names[ours]: original_shape(ours, shape.shape, rules)
        for ours, shape in network.shapes.items()
    }


@pytest.fixture(scope="module")
def clip():
    _, weights, meta = golden("clip_tiny")
    network = openai_clip(openai_clip_config(shapes_of(weights), meta["head_width"]))
    params = from_original(weights, network.shapes, OPENAI_CLIP)
    for name, tensor in to_original(params, OPENAI_CLIP).items():
        np.testing.assert_array_equal(tensor, weights[name])

    params = jax.device_put(params)
    encode_image = jax.jit(lambda params, pixels: network.bind(params).encode_image(pixels))
    encode_text = jax.jit(lambda params, tokens: network.bind(params).encode_text(tokens))
    return partial(encode_image, params), partial(encode_text, params), params


def golden_images():
    """Images that other golden values are about, by key."""
    file = np.load(GOLDEN / "inception.npz")
    return {k.removeprefix("images/"): file[k] for k in file.files if k.startswith("images/")}


def clip_pixels(images):
    squares = np.stack([CROPS["torchvision"](image, 224) for image in images])
    return ((squares / 255 - PIXEL_MEAN) / PIXEL_STD).astype(np.float32)


def test_clip_towers_and_scores(clip):
    file, _, _ = golden("clip_tiny")
    encode_image, encode_text, params = clip
    text = np.asarray(encode_text(file["tokens"].astype(np.int32)))
    assert_close(text, file["text_features"])
    images = {k.partition("/")[2]: x for k, x in file.items() if k.startswith("image_features/")}
    for key, expected in images.items():
        if key in golden_images():
            pixels = clip_pixels(golden_images()[key])
            assert_close(encode_image(pixels), expected[: len(pixels)])
    image = next(iter(images.values()))  # of these are the logits and scores
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


def test_preprocessing_of_clip():
    file = np.load(GOLDEN / "preprocess.npz")
    for key, images in golden_images().items():
        pixels = clip_pixels(images)
        assert_close(pixels[:, file["rows"]], file[f"clip/{key}"][: len(images)])
        assert_close(pixels.mean((1, 2), np.float64), file[f"clip_mean/{key}"][: len(images)])


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


def test_dinov2():
    file, weights, meta = golden("dinov2_tiny")
    config = dinov2_config(shapes_of(weights), meta["dim"] // meta["heads"])
    network = dinov2(config)
    params = from_original(weights, network.shapes, DINOV2)
    for name, tensor in to_original(params, DINOV2).items():
        np.testing.assert_array_equal(tensor, weights[name])
    params = jax.device_put(params)
    module = network.bind(params)
    for name in file:
        if name.startswith("pos_embed_"):
            height, width = map(int, name.removeprefix("pos_embed_").split("x"))
            assert_close(module.positions(height, width), file[name])
    np.testing.assert_array_equal(
        module.positions(config.grid, config.grid), params["position_embedding"]
    )
    forward = jax.jit(lambda params, pixels: network.bind(params)(pixels))
    for key, images in golden_images().items():
        if f"features/edm2_pil/{key}" in file:
            squares = np.stack([CROPS["squeeze"](image, 224) for image in images])
            pixels = ((squares / 255 - DINO_MEAN) / DINO_STD).astype(np.float32)
            found = forward(params, pixels)["pool"]
            assert_close(found, file[f"features/edm2_pil/{key}"][: len(images)])


def rule_weight(name, shape, seed):
    """Weights of the golden values, by PyTorch's name."""
    random = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    if len(shape) == 1:
        bias = name.endswith("bias")
        return 0.1 * random.standard_normal(shape) if bias else random.uniform(0.5, 1.5, shape)
    return random.standard_normal(shape) * np.prod(shape[1:]) ** -0.5


@pytest.mark.parametrize("trunk", ["alex", "vgg"])
def test_lpips(trunk, tmp_path):
    file, _, _ = golden("lpips")
    features = {k: v for k, v in lpips(trunk).shapes.items() if k.startswith("features.")}
    tensors = {}
    for ours, theirs in original_names(features, LPIPS).items():
        shape = original_shape(ours, features[ours].shape, LPIPS)
        value = rule_weight(f"{trunk}.{theirs}", shape, int(file["seed"]))
        tensors[theirs] = (value * (2**0.5 if value.ndim == 4 else 1)).astype(np.float32)
    for i, head in enumerate(sorted(heads(trunk))):
        np.testing.assert_array_equal(heads(trunk)[head], file[f"heads/{trunk}/{i}"])
    path = tmp_path / "trunk.pth"
    write_tensors(path, tensors | {"classifier.1.weight": np.zeros((2, 2), np.float32)})
    distance = load_lpips(trunk, path, batch_size=2)  # the last batch is padded
    assert_close(distance(file["a"], file["b"]), file[f"distance/{trunk}"])
    if trunk == "alex":
        same = np.stack([file["a"], file["a"]], 1)
        assert lpips_diversity(same, distance).value == pytest.approx(0, abs=1e-7)
        other = np.stack([file["a"], file["b"]], 1)
        expected = file["distance/alex"].mean()
        assert lpips_diversity(other, distance).value == pytest.approx(expected, rel=1e-5)
        with pytest.raises(UserError, match="is not torchvision's file of vgg: the weights lack"):
            load_lpips("vgg", path)
        with pytest.raises(UserError, match="download https://"):
            load_lpips("vgg", "")


def test_license_of_the_heads_is_shipped():
    license_text = HEADS.with_suffix(".LICENSE").read_text(encoding="utf-8")
    assert "Redistributions in binary form must reproduce the above copyright" in license_text


def test_other_networks_are_refused():
    resnet = {"visual.layer1.0.conv1.weight": (64, 64, 1, 1)}
    for shapes, why in (
        (resnet, "a CLIP with a ResNet"),
        ({"a": (3,)}, "not OpenAI's CLIP"),
    ):
        with pytest.raises(UserError, match=why):
            openai_clip_config(shapes)
    for shapes, why in (
        ({"register_tokens": (1, 4, 384)}, "a DINOv2 with registers"),
        ({"a": (3,)}, "not DINOv2"),
    ):
        with pytest.raises(UserError, match=why):
            dinov2_config(shapes)
