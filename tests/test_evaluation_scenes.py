import re

import numpy as np
import pytest

from glide_jax.data.drawing import draw
from glide_jax.data.scene_graph import COLOURS, Scene, Thing, make
from glide_jax.data.scene_workers import encoded_scene
from glide_jax.data.transforms import load_pixels
from glide_jax.errors import UserError
from glide_jax.evaluation.scenes import Arguments, colours_right, find_objects, main, oklab

N = 200
SCENES, CAPTIONS = zip(*(make("validation", index) for index in range(N)), strict=True)


@pytest.fixture(scope="module", params=[32, 64])
def real(request):
    """The first pictures of the validation split, as a model of this size sees them."""
    files = (encoded_scene("validation", index).image for index in range(N))
    return np.stack([load_pixels(file, request.param) for file in files])


def two(first: str, second: str, size_px: int = 64) -> np.ndarray:
    """A star of one colour left of a ring of another."""
    things = (
        Thing("star", first, "large", "plain", 0.26, 0.5, 0.4, 0.0),
        Thing("ring", second, "large", "plain", 0.74, 0.5, 0.4, 0.0),
    )
    return draw(Scene("fog", 0.0, things, "left of"), size_px)


@pytest.mark.parametrize("which", range(4))
def test_real_pictures_are_right(real, which):
    assert colours_right(real, [captions[which] for captions in CAPTIONS]).mean() >= 0.98


def test_pictures_are_wrong_for_captions_of_other_colours(real):
    colours = [sorted(thing.colour for thing in scene.things) for scene in SCENES]
    other = [(index + 1) % N for index in range(N)]
    differ = np.array([colours[i] != colours[o] for i, o in enumerate(other)])
    assert differ.sum() > 150
    assert not colours_right(real, [CAPTIONS[o][0] for o in other])[differ].any()


def test_blank_pictures_and_noise_are_wrong():
    rng = np.random.default_rng(0)
    named = [captions[0] for captions in CAPTIONS]
    flat = [np.full((64, 64, 3), rgb, np.uint8) for rgb in ((0,) * 3, (255,) * 3, (128,) * 3)]
    full = [np.full((64, 64, 3), rgb, np.uint8) for rgb in COLOURS.values()]
    for picture in flat + full:
        assert not colours_right(np.stack([picture] * 20), named[:20]).any()
    for size_px in (32, 64):
        noise = rng.integers(0, 256, (N, size_px, size_px, 3)).astype(np.uint8)
        assert colours_right(noise, named).mean() < 0.02


@pytest.mark.parametrize("size_px", [32, 64, 128, 256])
@pytest.mark.parametrize(
    ("colours", "caption", "right"),
    [
        (("red", "blue"), "a red star left of a blue ring", True),
        (("red", "blue"), "A blue ring, right of a RED star", True),
        (("red", "blue"), "a red star left of a green ring", False),
        (("red", "blue"), "a red star", False),
        (("red", "blue"), "a star left of a blue ring", True),
        (("red", "blue"), "a star left of a green ring", False),
        (("red", "blue"), "a star and a ring", True),
        (("red", "blue"), "a star, a ring and a circle", False),
        (("red", "red"), "a red star left of a red ring", True),
        (("red", "red"), "a red star left of a pink ring", False),
        (("red", "red"), "a red star", False),
        (("red", "blue"), "a red star left of a red ring", False),
    ],
)
def test_a_caption_binds_the_colours_it_names(size_px, colours, caption, right):
    assert colours_right(two(*colours, size_px)[None], [caption]).tolist() == [right]


def test_a_caption_that_asks_for_nothing_cannot_be_judged():
    with pytest.raises(ValueError, match="no shape and no colour"):
        colours_right(two("red", "blue")[None], ["hello"])


def test_objects_are_found_where_they_are():
    left, right = sorted(find_objects(two("green", "cyan")), key=lambda found: found.colour)[::-1]
    assert (left.colour, right.colour) == ("green", "cyan")
    assert left.mask[:, :32].sum() == left.mask.sum() > 0.03 * left.mask.size
    assert right.mask[:, 32:].sum() == right.mask.sum() == round(right.share * right.mask.size)


def test_oklab_agrees_with_its_publication():
    # White, black and the primaries, from Ottosson's definition and common converters.
    known = {
        (255, 255, 255): (1.0, 0.0, 0.0),
        (0, 0, 0): (0.0, 0.0, 0.0),
        (255, 0, 0): (0.6280, 0.2249, 0.1258),
        (0, 255, 0): (0.8664, -0.2339, 0.1795),
        (0, 0, 255): (0.4520, -0.0325, -0.3115),
    }
    np.testing.assert_allclose(
        oklab(np.array(list(known), np.uint8)), np.array(list(known.values())), atol=2e-4
    )


def test_the_command_judges_real_pictures(tmp_path, capsys):
    out = tmp_path / "grid.png"
    main(Arguments(real=True, n=8, size_px=32, out=out))
    assert "colours right: 8 of 8 (100.0%)" in capsys.readouterr().out
    assert out.is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (Arguments(), "--checkpoint RUN"),
        (Arguments(real=True, n=0), "--n 0"),
        (Arguments(real=True, split="test"), "--split test"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(arguments, message):
    with pytest.raises(UserError, match=message):
        main(arguments)


def test_the_command_judges_a_models_pictures(trained_run, tmp_path, capsys):
    out = tmp_path / "grid.png"
    main(Arguments(checkpoint=trained_run, n=3, steps="2", out=out))
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"colours right: \d of 3 \(.*%\)", said[-2])
    assert out.stat().st_size > 1000
