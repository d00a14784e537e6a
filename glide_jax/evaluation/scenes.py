"""Does a drawn scene show what its caption asks for? Read back from the pixels, by no network.

    python -m glide_jax.evaluation.scenes --checkpoint runs/scenes_tiny --n 64

Objects are saturated on muted ground, and their eight colours lie apart in hue, which light,
shadow and texture leave alone. So a pixel belongs to an object if it is colourful for its
lightness, its colour is the palette's nearest in hue, and an object is a connected region of one
colour. So far only colours are judged; `Found` is what judges of shape, size and place start from.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Bool, Float32, UInt8
from scipy import ndimage

from glide_jax.command_line import keep_compiled_programs
from glide_jax.data.scene_graph import COLOURS, SHAPES, SPLITS, make
from glide_jax.data.scene_workers import encoded_scene
from glide_jax.data.transforms import load_pixels
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.pictures import save_grid
from glide_jax.pipeline import Glide
from glide_jax.stage import MAX_BATCH
from glide_jax.training.checkpoint import load_run_config
from glide_jax.training.sharding import use_all_cores

COLOURFUL = 0.12
"""Least chroma of an object's pixel, in units of its lightness. In real pictures 0.10 to 0.14 do
equally well: grounds stay below, and the dullest colour, a cyan in the dark, has 0.16."""
DARKEST = 0.35
"""Lightness below which chroma is not asked to shrink any more: dark noise looks colourful."""
MIN_SHARE, MAX_SHARE = 0.015, 0.65
"""Share of the picture that one object covers. Real ones: 0.027 (a small moon) to 0.15, and to
0.6 (a square) in close-ups."""


@dataclass(frozen=True)
class Found:
    """An object seen in a picture."""

    colour: str
    mask: Bool[np.ndarray, "h w"]

    @property
    def share(self) -> float:
        """How much of the picture it covers, 0..1."""
        return float(self.mask.mean())


def find_objects(picture: UInt8[np.ndarray, "h w 3"]) -> list[Found]:
    """Regions of one palette colour, each at least MIN_SHARE of the picture."""
    lab = oklab(picture)
    chroma_ab = lab[..., 1:]
    colourful = np.linalg.norm(chroma_ab, axis=-1) > COLOURFUL * lab[..., 0].clip(DARKEST)
    palette = oklab(np.array([list(COLOURS.values())], np.uint8))[0, :, 1:]
    nearest = np.argmax(chroma_ab @ (palette / np.linalg.norm(palette, axis=1)[:, None]).T, axis=-1)
    found = []
    for index, colour in enumerate(COLOURS):
        regions, _ = ndimage.label(colourful & (nearest == index))
        areas = np.bincount(regions.ravel())
        areas[0] = 0  # what is in no region
        for label in np.flatnonzero(areas >= MIN_SHARE * regions.size):
            found.append(Found(colour, regions == label))
    return found


def colours_right(
    pictures: UInt8[np.ndarray, "n h w 3"], captions: Sequence[str]
) -> Bool[np.ndarray, "n"]:
    """Which pictures show the colours their captions ask for.

    A picture is right if it has as many objects as its caption names, neither more nor fewer, and
    if the colours that the caption gives are among theirs, as often as it gives them. Where the
    caption leaves an object's colour open, any will do.

    Args:
        pictures: 8-bit sRGB; tested from 32 to 256 px.
        captions: in the words of the data set, one a picture.

    Raises:
        ValueError: a caption names neither a shape nor a colour, so nothing can be right or wrong.
    """
    return np.array(
        [_colours_right(find_objects(p), c) for p, c in zip(pictures, captions, strict=True)], bool
    )


def _colours_right(objects: list[Found], caption: str) -> bool:
    words = re.findall(r"[a-z]+", caption.lower())
    asked = Counter(word for word in words if word in COLOURS)
    count = max(sum(word in SHAPES for word in words), asked.total())
    if not count:
        raise ValueError(f"no shape and no colour in {caption!r}")
    seen = Counter(found.colour for found in objects)
    return asked <= seen and seen.total() == count and all(f.share <= MAX_SHARE for f in objects)


def oklab(rgb: UInt8[np.ndarray, "*size 3"]) -> Float32[np.ndarray, "*size 3"]:
    """sRGB levels to OKLab: lightness, and two axes whose angle is hue and whose length is chroma.

    Björn Ottosson, "A perceptual color space for image processing", 2020.
    """
    level = rgb.astype(np.float32) / 255
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _RGB_TO_LMS.T) @ _LMS_TO_LAB.T


_RGB_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ],
    np.float32,
)
_LMS_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ],
    np.float32,
)


@dataclass(frozen=True)
class Arguments:
    """Draws pictures for captions of the scenes data set and counts those with the right colours.

    Prints the share that is right, and the captions of those that are not.
    """

    checkpoint: Path | None = None
    """Run folder of the model that draws."""
    real: bool = False
    """Judge the data set's own pictures instead: the best share the judge lets anyone reach."""
    n: int = 64
    """Captions: the first of each of the split's first n records."""
    split: str = "validation"
    """train, validation or novel (shapes in colours they never have in training)."""
    closeups: bool | None = None
    """Whether captions and real pictures are close-ups. Follows the model's own data set."""
    size_px: int = 64
    """Side of real pictures; a model has its own."""
    guidance_scale: float | None = None
    """1 is no guidance. This and the next two default to the run's own settings."""
    steps: str | None = None
    """A number of steps, or a respacing such as 10,10,3,2,2."""
    sampler: str | None = None
    """ddpm or ddim."""
    seed: int = 0
    """Of the first picture; the next has seed + 1, and so on."""
    out: Path | None = None
    """PNG file for a grid of the pictures, eight in a row."""


def main(arguments: Arguments) -> None:
    """The command. Raises UserError."""
    if arguments.n < 1:
        raise UserError(f"--n {arguments.n}: must be at least 1")
    if arguments.split not in SPLITS:
        raise UserError(f"--split {arguments.split}: must be one of {', '.join(SPLITS)}")
    if arguments.real == (arguments.checkpoint is not None):
        raise UserError("give --checkpoint RUN to judge a model, or --real: one of the two")
    closeup = bool(arguments.closeups)
    if arguments.checkpoint is not None and arguments.closeups is None:
        closeup = load_run_config(arguments.checkpoint).data.name == "closeups"
    indices = range(arguments.n)
    captions = [make(arguments.split, index, closeup=closeup)[1][0] for index in indices]
    if arguments.real:
        files = (encoded_scene(arguments.split, i, closeup=closeup).image for i in indices)
        pictures = np.stack([load_pixels(file, arguments.size_px) for file in files])
    else:
        pictures = _generated(arguments, captions)
    right = colours_right(pictures, captions)
    for caption in np.array(captions)[~right]:
        print(f"wrong: {caption}")
    print(f"colours right: {right.sum()} of {arguments.n} ({right.mean():.1%})")
    if arguments.out is not None:
        marked = [c if ok else f"{c} (wrong)" for c, ok in zip(captions, right, strict=True)]
        save_grid(arguments.out, pictures, marked, columns=8)
        print(arguments.out)


def _generated(arguments: Arguments, captions: list[str]) -> UInt8[np.ndarray, "n h w 3"]:
    assert arguments.checkpoint is not None
    keep_compiled_programs()
    use_all_cores(min(arguments.n, MAX_BATCH))
    return Glide.load(arguments.checkpoint).generate(
        captions,
        guidance_scale=arguments.guidance_scale,
        steps=arguments.steps,
        sampler=arguments.sampler,
        seed=[arguments.seed + index for index in range(arguments.n)],
        progress=True,
    )


if __name__ == "__main__":
    with exit_on_user_error():
        main(tyro.cli(Arguments, prog="python -m glide_jax.evaluation.scenes"))
