"""Output of images."""

import numpy as np
import pytest
from PIL import Image

from glide_jax.errors import UserError
from glide_jax.images import draw_grid, resized, save_png, to_pil, to_uint8


def test_levels_round_to_the_nearest_and_clip():
    images = np.array([-2, -1, -1 + 1.4 / 127.5, 0, 1, 3], np.float32).reshape(1, 1, 2, 3)
    assert to_uint8(images).ravel().tolist() == [0, 0, 1, 128, 255, 255]
    levels = np.arange(255, dtype=np.uint8).reshape(1, 5, 17, 3)
    np.testing.assert_array_equal(to_uint8(levels.astype(np.float32) / 127.5 - 1), levels)


def test_a_png_keeps_its_metadata(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    save_png(tmp_path / "new" / "x.png", image, {"prompt": "ein Löwe 🦁", "mask": None})
    with Image.open(tmp_path / "new" / "x.png") as file:
        assert file.text == {"prompt": "ein Löwe 🦁"}
        np.testing.assert_array_equal(np.asarray(file), image)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save_png(tmp_path / "file" / "x.png", image)


def test_a_grid_has_every_image_with_its_caption():
    images = np.stack([np.full((8, 8, 3), level, np.uint8) for level in (50, 100, 150)])
    grid = draw_grid(images, ["one", "two", "two"], columns=2)
    assert {50, 100, 150} <= set(np.unique(grid[..., 0]))
    row_1, row_2 = grid[: len(grid) // 2], grid[len(grid) // 2 :]
    assert (row_1[..., 0] < 40).any()  # black letters
    assert (row_2[..., 0] < 40).any()  # the caption is repeated in a new row


def test_images_are_resized_with_the_given_filter():
    images = np.stack([np.full((4, 4, 3), level, np.uint8) for level in (10, 20)])
    images[:, :2, :2] += 40
    small = resized(images, 2, Image.Resampling.BOX)
    assert small[:, :, :, 0].tolist() == [[[50, 10], [10, 10]], [[60, 20], [20, 20]]]
    np.testing.assert_array_equal(resized(small, 4, Image.Resampling.NEAREST), images)


def test_pil_images_have_the_same_levels():
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    opened = to_pil(images)
    assert [image.size for image in opened] == [(5, 4)] * 2
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in opened]), images)
