"""Metrics of images with a reference image each, by python -m glide_jax.evaluate."""

import json

import numpy as np
import pytest
from PIL import Image

from glide_jax.errors import UserError
from glide_jax.evaluate import __main__ as command
from glide_jax.evaluate import paired
from glide_jax.evaluation.metrics.image_quality import psnr, ssim
from glide_jax.evaluation.npz_images import write_npz
from glide_jax.evaluation.perceptual import PerceptualDistance

N, PX = 5, 16


class Difference(PerceptualDistance):
    """A stand-in for LPIPS: the mean difference of levels."""

    title, settings = "AlexNet", {"network": "lpips-alex"}

    def __init__(self):
        pass

    def __call__(self, a, b):
        return np.abs(a.astype(float) - b).mean((1, 2, 3))


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command: values by name, and the settings."""
    monkeypatch.setattr(command, "use_all_cores", lambda *_: None)
    monkeypatch.setattr(paired, "load_lpips", lambda *_: Difference())

    def run(*flags):
        out = tmp_path / "results.json"
        command.main([*map(str, flags), "--out", str(out), "--batch-size", "2"])
        values = json.loads(out.read_bytes())
        return {each["name"]: each["value"] for each in values["results"]}, values["settings"]

    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders of images, of references in another format and of masks, and their arrays."""
    root = tmp_path_factory.mktemp("pairs")
    random = np.random.default_rng(0)
    reference = random.integers(0, 256, (N + 1, PX, PX, 3), np.uint8)
    images = reference[:N] ^ random.integers(0, 16, (N, 1, 1, 1), np.uint8)
    kept = np.ones((N, PX, PX, 1), bool)
    kept[:, :3] = False
    kept[0] = False  # nothing is kept of the first
    images = np.where(kept, images, 0)
    masks = np.where(kept, 255, 0).astype(np.uint8).repeat(3, 3)
    sets = {"images": images, "reference": reference, "masks": masks}
    for name, pixels in sets.items():
        suffix = "webp" if name == "reference" else "png"
        (root / name / "in").mkdir(parents=True)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(root / name / "in" / f"{i}.{suffix}", lossless=True)
        write_npz(root / f"{name}.npz", iter(pixels), len(pixels))
    return root, sets, kept


def test_images_are_compared_by_name(run, place):
    root, sets, kept = place
    x, y = sets["images"], sets["reference"][:N]
    flags = ("--metrics", "psnr,lpips,ssim", "--lpips", "x")
    for suffix in ("", ".npz"):
        places = [root / f"{name}{suffix}" for name in ("images", "reference", "masks")]
        pair = ("--images", places[0], "--reference", places[1])
        found, settings = run(*pair, *flags)
        expected = [psnr(x, y).mean(), ssim(x, y).mean(), Difference()(x, y).mean()]
        np.testing.assert_allclose(list(found.values()), expected)
        assert list(found) == ["PSNR", "SSIM", "LPIPS (AlexNet)"]
        assert settings["reference"] == str(places[1]) and settings["n"] == str(N)
        assert settings["lpips.network"] == "lpips-alex"
        found, settings = run(*pair, *flags, "--masks", places[2])
        composite = Difference()(np.where(kept, x, y), y).mean()
        expected = [metric(x[1:], y[1:], kept[1:]).mean() for metric in (psnr, ssim)]
        np.testing.assert_allclose(list(found.values()), [*expected, composite])
        assert settings["masks"] == str(places[2])


def test_equal_images_have_no_finite_psnr(run, place, capsys):
    root, _, _ = place
    folder = root / "reference"
    found, _ = run("--images", folder, "--reference", folder, "--metrics", "psnr,ssim")
    assert found == {"PSNR": None, "SSIM": 1}
    assert "PSNR  inf\n" in capsys.readouterr().out


def test_pairs_that_do_not_match_are_refused(run, place, tmp_path):
    root, _, _ = place
    for name, size in (("small", 8), ("hidden", PX)):
        (tmp_path / name / "in").mkdir(parents=True)
        for i in range(N):
            Image.new("RGB", (size, size)).save(tmp_path / name / "in" / f"{i}.png")
    np.savez(tmp_path / "stats.npz", mu=np.zeros(2), sigma=np.eye(2))
    images, reference, small = root / "images", root / "reference", tmp_path / "small"
    for flags, why in (
        ((images, "--metrics", "psnr"), "psnr: give --images, and as --reference images of the"),
        ((images, "--reference", tmp_path / "stats.npz", "--metrics", "psnr"), "psnr need a ref"),
        ((reference, "--reference", images, "--metrics", "ssim"), "images: no image in/5, which"),
        ((images, "--reference", small, "--metrics", "psnr"), "in/0 is 16x16 px in"),
        ((small, "--reference", small, "--metrics", "ssim"), "no image has 11x11 kept pixels"),
        ((images, "--reference", reference, "--metrics", "lpips"), "lpips needs --lpips"),
        ((images, "--reference", reference, "--metrics", "kid", "--masks", images), "--masks: add"),
        (
            (images, "--reference", reference, "--metrics", "psnr", "--masks", tmp_path / "hidden"),
            "no image has kept pixels, which psnr needs",
        ),
    ):
        with pytest.raises(UserError) as error:
            run("--images", *flags)
        assert why in str(error.value)
        assert "\n" not in str(error.value)
