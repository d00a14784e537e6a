"""Does a drawn scene show what its caption asks for? Read back from the pixels.

    python -m glide_jax.evaluation.scenes --checkpoint runs/scenes_tiny --n 64
    python -m glide_jax.evaluation.scenes --real --n 1000 --size-px 32

`scene_reader` says what an image shows, `captions` what a caption asks for, and this module
compares the two. With `--real` it judges the data set's own images: what a perfect model would
score. docs/results.md has the measured figures.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import UInt8

from glide_jax.cli import ShardingFlags, keep_compiled_programs
from glide_jax.config import Scenes
from glide_jax.data.scenes.graph import make
from glide_jax.data.scenes.workers import encoded_scene
from glide_jax.data.transforms import load_pixels
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.evaluation.scenes.score import require_scenes, score_images
from glide_jax.images import save_grid
from glide_jax.parallel.sharding import use_all_cores
from glide_jax.sampling.pipeline import Glide
from glide_jax.sampling.stage import MAX_BATCH
from glide_jax.storage import require_local

MOST_LISTED = 20
"""Captions of wrong images that the command prints."""


@dataclass(frozen=True)
class Arguments(ShardingFlags):
    """Draws images for captions of the scenes data set and counts what they show of them.

    Prints the share that is right of each thing captions ask for, and captions of wrong images.
    """

    checkpoint: str | Path | None = None
    """Run folder of the model that draws."""
    real: bool = False
    """Judge the data set's own images instead: the best share the judge lets anyone reach."""
    n: int = 64
    """Captions: one of each of the split's first n records."""
    split: str = "validation"
    """train, validation or novel (shapes in colors they never have in training)."""
    caption_index: int = 0
    """Which of a record's four captions: 0 gives colors and relation, 1 says everything."""
    closeups: bool | None = None
    """Whether captions and real images are close-ups. Follows the model's own data set."""
    size_px: int = 64
    """Side of real images; a model has its own."""
    guidance_scale: float | None = None
    """1 is no guidance. This and the next two default to the run's own settings."""
    steps: str | None = None
    """A number of steps, or a respacing such as 10,10,3,2,2."""
    sampler: str | None = None
    """A key of glide_jax.diffusion.samplers.SAMPLERS."""
    seed: int = 0
    """Of the first image; the next has seed + 1, and so on."""
    out: Path | None = None
    """PNG file for a grid of the images, eight in a row."""


def main(arguments: Arguments) -> None:
    """The command. Raises UserError."""
    require_local(arguments.out)
    require_scenes(arguments.n, arguments.split)
    if arguments.real == (arguments.checkpoint is not None):
        raise UserError("give --checkpoint RUN to judge a model, or --real: one of the two")
    if arguments.caption_index not in range(4):
        raise UserError(f"--caption-index {arguments.caption_index}: must be 0, 1, 2 or 3")
    keep_compiled_programs()
    use_all_cores(min(arguments.n, MAX_BATCH))
    glide = (
        None
        if arguments.checkpoint is None
        else Glide.load(arguments.checkpoint, fsdp=arguments.fsdp)
    )
    closeup = bool(arguments.closeups)
    if glide is not None and arguments.closeups is None:
        source = glide.config("base").data.source
        closeup = isinstance(source, Scenes) and source.subset == "closeups"
    indices = range(arguments.n)
    each = (make(arguments.split, index, closeup=closeup)[1] for index in indices)
    captions = [captions[arguments.caption_index] for captions in each]
    if glide is None:
        files = (encoded_scene(arguments.split, i, closeup=closeup).image for i in indices)
        images = np.stack([load_pixels(file, arguments.size_px) for file in files])
    else:
        images = _generated(glide, arguments, captions)
    verdicts = score_images(images, captions)
    wrong = {i: ", ".join(verdicts.wrong(i)) for i in indices if not verdicts.all_right[i]}
    for index in list(wrong)[:MOST_LISTED]:
        print(f"wrong in {wrong[index]}: {captions[index]}")
    if len(wrong) > MOST_LISTED:
        print(f"and {len(wrong) - MOST_LISTED} more")
    print(verdicts)
    if arguments.out is not None:
        marked = [f"{c} (wrong in {wrong[i]})" if i in wrong else c for i, c in enumerate(captions)]
        save_grid(arguments.out, images, marked, columns=8)
        print(arguments.out)


def _generated(
    glide: Glide, arguments: Arguments, captions: list[str]
) -> UInt8[np.ndarray, "n h w 3"]:
    return glide.generate(
        captions,
        upsample=False,
        guidance_scale=arguments.guidance_scale,
        steps=arguments.steps,
        sampler=arguments.sampler,
        seed=[arguments.seed + index for index in range(arguments.n)],
        progress=True,
    )


if __name__ == "__main__":
    with exit_on_user_error():
        main(tyro.cli(Arguments, prog="python -m glide_jax.evaluation.scenes"))
