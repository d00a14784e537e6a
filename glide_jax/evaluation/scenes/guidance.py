"""What guidance buys and what it costs: images that are all right, and how much they differ.

python -m glide_jax.evaluation.scenes.guidance --checkpoint demo --n 128 --out guidance.png
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from jaxtyping import UInt8

from glide_jax.cli import ShardingFlags, keep_compiled_programs
from glide_jax.config import Scenes
from glide_jax.data.scenes.graph import make
from glide_jax.diffusion.samplers import SAMPLERS
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.evaluation.scenes.score import require_scenes, score_images
from glide_jax.images import new_figure, save_figure
from glide_jax.parallel.sharding import use_all_cores
from glide_jax.sampling.pipeline import Glide
from glide_jax.sampling.stage import MAX_BATCH
from glide_jax.storage import require_local

SEEDS = 2
"""Images of each caption, whose difference is the diversity."""


def diversity(images: UInt8[np.ndarray, "n seeds h w 3"]) -> float:
    """Root mean square difference of a caption's images from their mean, in levels of 0..255.

    The mean over captions. 0: the seed changes nothing.
    """
    values = images.astype(np.float64)
    variance = values.var(axis=1, ddof=1).mean(axis=(1, 2, 3))
    return float(np.sqrt(variance).mean())


@dataclass(frozen=True)
class Arguments(ShardingFlags):
    """Draws the same captions at several scales of guidance, classifier-free and by CLIP.

    Prints the share of images that show all that their caption asks for, and the diversity.
    """

    checkpoint: str | Path
    """Folder of a base model and a CLIP, or a run folder of a base model alone."""
    n: int = 128
    """Captions: of the first records of the split."""
    split: str = "validation"
    """train, validation or novel."""
    caption_index: int = 0
    """Which of a record's four captions."""
    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    """Of classifier-free guidance; 1 is none."""
    clip_scales: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
    """Of CLIP guidance, if there is a CLIP; 0 is none."""
    clip_sampler: str = "ddpm"
    """For these; docs/samplers.md says why ddpm."""
    steps: str | None = None
    """A number of steps, or another respacing; defaults to the run's own."""
    seed: int = 0
    """Of the first image."""
    out: Path | None = None
    """PNG file for the plot."""


Row = tuple[float, float, float]
"""Scale, share all right, diversity."""


def main(arguments: Arguments) -> None:
    """The command. Raises UserError."""
    require_local(arguments.out)
    require_scenes(arguments.n, arguments.split)
    if arguments.caption_index not in range(4):
        raise UserError(f"--caption-index {arguments.caption_index}: must be 0, 1, 2 or 3")
    if arguments.clip_sampler not in SAMPLERS:
        raise UserError(
            f"--clip-sampler {arguments.clip_sampler}: must be one of {', '.join(SAMPLERS)}"
        )
    keep_compiled_programs()
    use_all_cores(MAX_BATCH)
    glide = Glide.load(arguments.checkpoint, fsdp=arguments.fsdp)
    source = glide.config("base").data.source
    closeup = isinstance(source, Scenes) and source.subset == "closeups"
    captions = [
        make(arguments.split, index, closeup=closeup)[1][arguments.caption_index]
        for index in range(arguments.n)
    ]

    def measured(scale: float, **settings: Any) -> Row:
        images = glide.generate(
            captions,
            n=SEEDS,
            seed=arguments.seed,
            upsample=False,
            steps=arguments.steps,
            progress=True,
            **settings,
        )
        repeated = [caption for caption in captions for _ in range(SEEDS)]
        share = float(score_images(images, repeated).all_right.mean())
        row = scale, share, diversity(images.reshape(-1, SEEDS, *images.shape[1:]))
        print(f"{scale:8g}  {row[1]:8.1%}  {row[2]:9.1f}", flush=True)
        return row

    curves = {}
    print("classifier-free guidance\n   scale  all right  diversity")
    sampler = glide.settings("base").sampler
    curves[f"classifier-free guidance, {sampler}"] = [
        measured(scale, guidance_scale=scale) for scale in arguments.scales
    ]
    if glide.has("clip"):
        print("CLIP guidance\n   scale  all right  diversity")
        curves[f"CLIP guidance, {arguments.clip_sampler}"] = [
            measured(s, guidance_scale=1.0, clip_guidance_scale=s, sampler=arguments.clip_sampler)
            for s in arguments.clip_scales
        ]
    if arguments.out is not None:
        _plot(curves, arguments.out)
        print(arguments.out)


def _plot(curves: dict[str, list[Row]], out: Path) -> None:
    figure = new_figure(6.5, 4.5)
    axes = figure.add_subplot()
    for name, rows in curves.items():
        scales, shares, spread = np.array(rows).T
        axes.plot(spread, 100 * shares, marker="o", label=name)
        for scale, x, y in zip(scales, spread, 100 * shares, strict=True):
            axes.annotate(f"{scale:g}", (x, y), textcoords="offset points", xytext=(5, 4))
    axes.set(
        xlabel="diversity: difference of a caption's images (levels of 0..255)",
        ylabel="all that the caption asks for is right (%)",
        ylim=(0, 102),
        title="Fidelity and diversity by guidance scale",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(out, figure)


if __name__ == "__main__":
    with exit_on_user_error():
        main(tyro.cli(Arguments, prog="python -m glide_jax.evaluation.scenes.guidance"))
