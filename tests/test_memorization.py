"""Nearest training images, and whether samples copy them."""

import json

import numpy as np
import pytest
from PIL import Image

from glide_jax.errors import UserError
from glide_jax.evaluate import memorization as command
from glide_jax.evaluation.metrics.nearest import memorization, nearest_neighbors

RANDOM = np.random.default_rng(0)
SETS = ["--images", "x", "--train", "y", "--reference", "z"]


def test_neighbors_do_not_depend_on_batches():
    queries, rows = RANDOM.normal(size=(7, 5)), RANDOM.normal(size=(50, 5))
    distances = np.linalg.norm(queries[:, None] - rows, axis=-1)
    for sizes in ((50,), (3, 20, 27), (1,) * 50):
        batches = np.split(rows, np.cumsum(sizes)[:-1])
        found = nearest_neighbors(queries, iter(batches), k=4)
        np.testing.assert_array_equal(found.indices, np.argsort(distances, 1)[:, :4])
        np.testing.assert_allclose(found.distances, np.sort(distances, 1)[:, :4], rtol=1e-7)


def test_copies_are_told_from_fresh_samples():
    train, fresh, held_out = (RANDOM.normal(size=(500, 4)) for _ in range(3))
    copies = train[:100] + RANDOM.normal(0, 0.01, (100, 4))

    def measured(samples):
        of_samples, of_held_out = (
            nearest_neighbors(x, [train]).distances[:, 0] for x in (samples, held_out)
        )
        return memorization(of_samples, of_held_out)

    honest, copying = measured(fresh), measured(copies)
    assert abs(honest.z) < 3
    assert honest.nearer == pytest.approx(0.5, abs=0.05)
    assert honest.suspicious.value < 0.03
    assert copying.z > 10
    assert copying.nearer > 0.95
    assert copying.suspicious.value > 0.9


def test_the_command_shows_the_copied_images(efficientnet, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "load_extractor", lambda *_: efficientnet)
    monkeypatch.setattr(command, "use_all_cores", lambda *_: None)
    pixels = RANDOM.integers(0, 256, (12, 3, 3, 3), np.uint8)
    for i, image in enumerate(pixels):
        name = ("train", "held_out", "samples")[i // 4]
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        image = pixels[i - 8] if i == 9 else image  # sample 1 is training image 1
        Image.fromarray(image).resize((32, 32)).save(folder / f"{i % 4}.png")
        (folder / f"{i % 4}.txt").write_text(f"{name} {i % 4}", encoding="utf-8")
    out, grid, plot = (tmp_path / name for name in ("found.json", "grid.png", "plot.png"))
    flags = ["--images", tmp_path / "samples", "--train", tmp_path / "train"]
    flags += ["--reference", tmp_path / "held_out", "--rows", 2]
    command.main([*map(str, flags), "--out", str(out), "--grid", str(grid), "--plot", str(plot)])
    found = json.loads(out.read_bytes())
    assert np.argmin(found["distances"]) == 1
    assert found["distances"][1] < 1e-3 < min(found["held_out_distances"])
    assert found["suspicious"] >= 0.25
    printed = capsys.readouterr().out
    assert "4 samples, 4 held-out images" in printed
    assert "without memorization" in printed
    assert Image.open(grid).width > 4 * 128
    assert Image.open(plot).size[0] > 100


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ([], "give either --images or --checkpoint"),
        (["--images", "x"], "--images: give --train, and held-out images as --reference"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, why):
    with pytest.raises(UserError, match=why):
        command.main(flags)
