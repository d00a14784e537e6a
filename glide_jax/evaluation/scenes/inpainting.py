"""Does a model paint into a hole what the caption asks for there?

    python -m glide_jax.evaluation.scenes.inpainting --checkpoint runs/scenes_base32_inpaint --n 200

Of a held-out scene one object is hidden, and the caption asks for another in its place. Whether it
is there is read from the pixels by `scene_reader`.
"""

import dataclasses
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Bool, UInt8

from glide_jax.cli import ShardingFlags, keep_compiled_programs
from glide_jax.data.scenes.graph import HELD_OUT, SEEN, Thing, captions_of, make
from glide_jax.data.scenes.rendering import render
from glide_jax.errors import exit_on_user_error
from glide_jax.evaluation.scenes.reader import Reading, read_scenes
from glide_jax.evaluation.scenes.score import require_scenes
from glide_jax.images import save_grid
from glide_jax.parallel.sharding import use_all_cores
from glide_jax.sampling.pipeline import Glide
from glide_jax.sampling.stage import MAX_BATCH, Conditions, Known
from glide_jax.storage import require_local

REACH = 1.35
"""Half the side of a hole, in radii of the object that it hides, shadow included."""
HIDDEN_GRAY = 128
"""Level shown for hidden pixels."""


@dataclass(frozen=True)
class Case:
    """An image with a hole."""

    image: UInt8[np.ndarray, "h w 3"]
    known: Bool[np.ndarray, "h w 1"]
    """False in the hole."""
    caption: str
    """Of the whole image as it should be."""
    asked: Thing
    """What should be in the hole."""


def make_case(split: str, index: int, size_px: int) -> Case:
    """Hides one object of the scene with this index; another color and shape are asked for."""
    scene, _ = make(split, index)
    rng = random.Random(f"inpainting/{split}/{index}")
    place = rng.randrange(len(scene.things))
    hidden = scene.things[place]
    there = {(thing.shape, thing.color) for thing in scene.things}
    pairs = [pair for pair in (HELD_OUT if split == "novel" else SEEN) if pair not in there]
    shape, color = rng.choice(pairs)
    asked = dataclasses.replace(hidden, shape=shape, color=color)
    things = tuple(asked if i == place else thing for i, thing in enumerate(scene.things))
    caption = captions_of(dataclasses.replace(scene, things=things), rng)[0]

    centers = (np.arange(size_px) + 0.5) / size_px
    reach = REACH * hidden.diameter / 2
    hole = (abs(centers - hidden.y) < reach)[:, None] & (abs(centers - hidden.x) < reach)
    return Case(render(scene, size_px), ~hole[:, :, None], caption, asked)


def is_right(reading: Reading, asked: Thing) -> bool:
    """Whether an object of the asked shape and color has its center where it was asked for."""
    reach = asked.diameter / 2
    return any(
        (found.shape, found.color) == (asked.shape, asked.color)
        and abs(found.x - asked.x) < reach
        and abs(found.y - asked.y) < reach
        for found in reading.objects
    )


@dataclass(frozen=True)
class Arguments(ShardingFlags):
    """Hides an object in each of n held-out scenes and asks for another in its place.

    Prints how often the model paints it.
    """

    checkpoint: str | Path
    """Run folder of a base model, best made for inpainting, or a folder of models."""
    n: int = 200
    """Scenes: the first of the split."""
    split: str = "validation"
    """train, validation or novel."""
    guidance_scale: float | None = None
    """This and the next two default to the run's own settings."""
    steps: str | None = None
    """A number of steps, or another respacing."""
    sampler: str | None = None
    """A key of glide_jax.diffusion.samplers.SAMPLERS."""
    seed: int = 0
    """Of the first image; the next has seed + 1, and so on."""
    out: Path | None = None
    """PNG file for a grid of what was given and what was drawn, four pairs in a row."""


def main(arguments: Arguments) -> None:
    """The command. Raises UserError."""
    require_local(arguments.out)
    require_scenes(arguments.n, arguments.split)
    keep_compiled_programs()
    use_all_cores(min(arguments.n, MAX_BATCH))
    glide = Glide.load(arguments.checkpoint, fsdp=arguments.fsdp)
    role = "base-inpaint" if glide.has("base-inpaint") else "base"
    px = glide.config(role).denoiser.resolution_px
    cases = [make_case(arguments.split, index, px) for index in range(arguments.n)]
    known = Known(np.stack([c.image for c in cases]), np.stack([c.known for c in cases]))
    settings = glide.settings(
        role,
        guidance_scale=arguments.guidance_scale,
        steps=arguments.steps,
        sampler=arguments.sampler,
    )
    seeds = [arguments.seed + index for index in range(arguments.n)]
    captions = [case.caption for case in cases]
    drawn = glide.stage(role).draw(
        captions, seeds, settings, Conditions(known=known), progress=True
    )
    drawn = known.put_back(drawn)
    readings = read_scenes(drawn)
    right = [is_right(reading, case.asked) for reading, case in zip(readings, cases, strict=True)]
    print(f"painted as asked {sum(right)} of {len(cases)} ({np.mean(right):.1%})")
    if arguments.out is not None:
        given = np.where(known.mask, known.pixels, HIDDEN_GRAY).astype(np.uint8)
        pairs = np.stack([given, drawn], 1).reshape(-1, px, px, 3)
        labels = [
            label
            for caption, ok in zip(captions, right, strict=True)
            for label in (caption, "drawn" if ok else "drawn (wrong)")
        ]
        save_grid(arguments.out, pairs, labels, columns=8)
        print(arguments.out)


if __name__ == "__main__":
    with exit_on_user_error():
        main(tyro.cli(Arguments, prog="python -m glide_jax.evaluation.scenes.inpainting"))
