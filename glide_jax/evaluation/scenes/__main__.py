"""Accuracy of a base model's images on captions of the built-in data set.

    python -m glide_jax.evaluation.scenes --checkpoint runs/scenes_tiny --n 64
    python -m glide_jax.evaluation.scenes --real --n 1000 --size-px 32

With --real, scores the data set's own images: the accuracy of a perfect model. docs/results.md has
measured numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import UInt8

from glide_jax.cli import parse_flags
from glide_jax.compilation import keep_compiled_programs
from glide_jax.config.bounds import Between
from glide_jax.errors import UserError, exit_on_user_error, memory_advice
from glide_jax.evaluation.scenes.flags import CaptionFlags, has_closeups, require_scenes
from glide_jax.evaluation.scenes.score import score_images
from glide_jax.images import save_grid
from glide_jax.parallel.sharding import use_all_cores
from glide_jax.sampling.flags import LESS_MEMORY, SamplingFlags
from glide_jax.sampling.pipeline import Glide
from glide_jax.sampling.stage import MAX_BATCH
from glide_jax.storage import require_file

MAX_LISTED = 20
"""Captions of wrong images that the command prints."""


@dataclass(frozen=True, kw_only=True)
class Arguments(SamplingFlags, CaptionFlags):
    """Generates images for captions of the scenes data set, and prints how accurate they are.

    Prints the accuracy of each attribute that captions state, of exact matches, and captions of
    wrong images.
    """

    checkpoint: str | Path | None = None
    """Run folder of a base model, or a folder of models with one."""
    real: bool = False
    """Score the data set's own images instead: the upper bound of this measure."""
    closeups: bool | None = None
    """Whether the scenes are close-ups. Default: as in the model's own data set."""
    size_px: Annotated[int, Between(1, 4096)] = 64
    """Side of real images."""
    out: Path | None = None
    """PNG file for a grid of the images, eight per row."""


@memory_advice(LESS_MEMORY)
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises UserError."""
    arguments: Arguments = parse_flags(Arguments, "python -m glide_jax.evaluation.scenes", argv)
    require_file("--out", arguments.out, (".png",))
    arguments.check()
    if arguments.real == (arguments.checkpoint is not None):
        raise UserError("give --checkpoint RUN to score a model, or --real: one of the two")
    keep_compiled_programs()
    use_all_cores(arguments.batch_size or min(arguments.n, MAX_BATCH))
    closeup = bool(arguments.closeups)
    if arguments.checkpoint is None:
        captions = arguments.captions(closeup)
        images = arguments.images(arguments.size_px, closeup)
    else:
        glide = Glide.load(arguments.checkpoint, fsdp=arguments.fsdp)
        require_scenes(glide.config("base"))
        if arguments.closeups is None:
            closeup = has_closeups(glide.config("base").data)
        captions = arguments.captions(closeup)
        images = generated_images(glide, arguments, captions)
    report(images, captions, arguments.out)


def generated_images(
    glide: Glide, arguments: Arguments, captions: Sequence[str]
) -> UInt8[np.ndarray, "n h w 3"]:
    """The base model's images, each with a seed of its own."""
    return glide.generate(
        captions,
        upsample=False,
        seed=[arguments.seed + index for index in range(arguments.n)],
        batch_size=arguments.batch_size,
        progress=True,
        **arguments.settings,
    ).images


def report(images: UInt8[np.ndarray, "n h w 3"], captions: Sequence[str], out: Path | None) -> None:
    """Prints the scores, and writes a grid of the images. Raises UserError."""
    scores = score_images(images, captions)
    wrong = {
        i: ", ".join(scores.wrong(i)) for i, exact in enumerate(scores.exact_match) if not exact
    }
    for index in list(wrong)[:MAX_LISTED]:
        print(f"wrong {wrong[index]}: {captions[index]}")
    if len(wrong) > MAX_LISTED:
        print(f"and {len(wrong) - MAX_LISTED} more")
    print(scores)
    if out is not None:
        labels = [f"{c} (wrong {wrong[i]})" if i in wrong else c for i, c in enumerate(captions)]
        save_grid(out, images, labels, columns=8)
        print(out)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
