"""Accuracy of inpainting on the built-in data set.

    python -m glide_jax.evaluation.scenes.inpainting --checkpoint runs/scenes_base32_inpaint --n 200

Each test image is a held-out scene with one object hidden; its caption states another object in
that place. The result is correct if `reader` detects that object there. PSNR, SSIM and, with
--lpips, LPIPS compare the kept pixels with the given ones: samplers put these back, so any
difference is a fault.
"""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Bool, UInt8

from glide_jax.cli import parse_flags
from glide_jax.data.scenes.graph import HELD_OUT, SEEN, Thing, captions_of, make
from glide_jax.data.scenes.rendering import render
from glide_jax.errors import exit_on_user_error, memory_advice
from glide_jax.evaluation.perceptual import LpipsFlags, load_lpips
from glide_jax.evaluation.quality import defined, image_quality
from glide_jax.evaluation.scenes.flags import SCENES, SplitFlags, require_scenes
from glide_jax.evaluation.scenes.reader import Reading, read_scenes
from glide_jax.images import save_grid
from glide_jax.parallel.sharding import use_all_cores
from glide_jax.sampling.conditions import Conditions, Known
from glide_jax.sampling.flags import LESS_MEMORY
from glide_jax.sampling.pipeline import Glide
from glide_jax.sampling.stage import MAX_BATCH
from glide_jax.storage import require_file

REACH = 1.35
"""Half the side of a hole, in radii of the object that it hides; includes the shadow."""
HIDDEN_GRAY = 128
"""Gray level of hidden pixels in the grid."""


@dataclass(frozen=True)
class Case:
    """An image with a hole, and the object that the caption states there."""

    image: UInt8[np.ndarray, "h w 3"]
    known: Bool[np.ndarray, "h w 1"]
    """False in the hole."""
    caption: str
    """Of the complete image."""
    expected: Thing
    """The object to inpaint."""


def make_case(split: str, index: int, size_px: int) -> Case:
    """Hides one object of a scene, and states one of another color and shape in its place."""
    scene, _ = make(split, index)
    rng = random.Random(f"inpainting/{split}/{index}")
    place = rng.randrange(len(scene.things))
    hidden = scene.things[place]
    present = {(thing.shape, thing.color) for thing in scene.things}
    pairs = [pair for pair in (HELD_OUT if split == "novel" else SEEN) if pair not in present]
    shape, color = rng.choice(pairs)
    expected = dataclasses.replace(hidden, shape=shape, color=color)
    things = tuple(expected if i == place else thing for i, thing in enumerate(scene.things))
    caption = captions_of(dataclasses.replace(scene, things=things), rng)[0]

    centers = (np.arange(size_px) + 0.5) / size_px
    reach = REACH * hidden.diameter / 2
    hole = (abs(centers - hidden.y) < reach)[:, None] & (abs(centers - hidden.x) < reach)
    return Case(render(scene, size_px), ~hole[:, :, None], caption, expected)


def is_correct(reading: Reading, expected: Thing) -> bool:
    """Whether an object of the expected shape and color is detected in the expected place."""
    reach = expected.diameter / 2
    return any(
        (detected.shape, detected.color) == (expected.shape, expected.color)
        and abs(detected.x - expected.x) < reach
        and abs(detected.y - expected.y) < reach
        for detected in reading.objects
    )


@dataclass(frozen=True, kw_only=True)
class Arguments(LpipsFlags, SplitFlags):
    """Inpaints another object in the place of a hidden one, and prints the accuracy."""

    checkpoint: str | Path
    """Run folder of a base model, preferably for inpainting, or a folder of models."""
    n: Annotated[int, SCENES] = 200
    """Number of scenes: the first of the split."""
    out: Path | None = None
    """PNG file for a grid of inputs and results, four pairs per row."""


@memory_advice(LESS_MEMORY)
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises UserError."""
    arguments: Arguments = parse_flags(
        Arguments, "python -m glide_jax.evaluation.scenes.inpainting", argv
    )
    require_file("--out", arguments.out, (".png",))
    arguments.check()
    use_all_cores(arguments.batch_size or min(arguments.n, MAX_BATCH))
    glide = Glide.load(arguments.checkpoint, fsdp=arguments.fsdp)
    role = "base-inpaint" if glide.has("base-inpaint") else "base"
    require_scenes(glide.config(role))
    px = glide.config(role).denoiser.resolution_px
    distance = load_lpips(arguments.lpips_trunk, arguments.lpips) if arguments.lpips else None
    if distance is not None:  # before sampling
        distance.require_size(px, px)
    cases = [make_case(arguments.split, index, px) for index in range(arguments.n)]
    known = Known(np.stack([c.image for c in cases]), np.stack([c.known for c in cases]))
    settings = glide.settings(role, **arguments.settings)
    inpainted = glide.stage(role).sample(
        [case.caption for case in cases],
        [arguments.seed + index for index in range(arguments.n)],
        settings,
        Conditions(known=known),
        clip=glide.clip if settings.clip_guidance_scale else None,
        batch_size=arguments.batch_size,
        progress=True,
    )
    readings = read_scenes(inpainted)
    correct = [
        is_correct(reading, case.expected) for reading, case in zip(readings, cases, strict=True)
    ]
    print(f"inpainting accuracy {sum(correct)} of {len(cases)} ({np.mean(correct):.1%})")
    quality = defined(image_quality(inpainted, known.pixels, distance, known.mask))
    shown = ", ".join(f"{title} {values.mean():.4g}" for title, values in quality.items())
    print(f"kept pixels: {shown}")
    if arguments.out is not None:
        save_pairs(arguments.out, cases, inpainted, correct)
        print(arguments.out)


def save_pairs(
    out: Path,
    cases: Sequence[Case],
    inpainted: UInt8[np.ndarray, "n h w 3"],
    correct: Sequence[bool],
) -> None:
    """Writes a grid of the inputs and results. Raises UserError."""
    given = [np.where(c.known, c.image, HIDDEN_GRAY).astype(np.uint8) for c in cases]
    pairs = np.stack([np.stack(given), inpainted], 1).reshape(-1, *inpainted.shape[1:])
    labels = [
        label
        for case, ok in zip(cases, correct, strict=True)
        for label in (case.caption, "inpainted" if ok else "inpainted (wrong)")
    ]
    save_grid(out, pairs, labels, columns=8)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
