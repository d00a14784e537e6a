"""Accuracy and diversity of a base model's images over the guidance scale.

python -m glide_jax.evaluation.scenes.guidance --checkpoint demo --n 128 --out guidance.png
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from glide_jax.cli import parse_flags
from glide_jax.errors import exit_on_user_error, memory_advice
from glide_jax.evaluation.guidance_scales import Curve, ScaleFlags, draw_curves, label_scales
from glide_jax.evaluation.metrics.image_quality import diversity
from glide_jax.evaluation.scenes.flags import SCENES, CaptionFlags, has_closeups, require_scenes
from glide_jax.evaluation.scenes.score import score_images
from glide_jax.images import new_figure, require_figure, save_figure
from glide_jax.parallel.sharding import use_all_cores
from glide_jax.sampling.flags import LESS_MEMORY
from glide_jax.sampling.pipeline import Glide
from glide_jax.sampling.samples import Samples
from glide_jax.sampling.stage import MAX_BATCH

SEEDS = 2
"""Images per caption, for the diversity."""


@dataclass(frozen=True, kw_only=True)
class Arguments(ScaleFlags, CaptionFlags):
    """Samples the same captions at several scales of classifier-free and of CLIP guidance.

    Prints the fraction of exact matches and the diversity at each scale.
    """

    checkpoint: str | Path
    """Folder with a base model and a CLIP, or the run folder of a base model alone."""
    n: Annotated[int, SCENES] = 128
    """Number of captions: of the first scenes of the split."""
    out: Path | None = None
    """PNG file for a plot."""


@dataclass(frozen=True)
class Point:
    """The result at one guidance scale."""

    scale: float
    exact_match: float
    """Fraction of images that match their caption exactly."""
    diversity: float
    """See `image_quality.diversity`."""


@memory_advice(LESS_MEMORY)
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises UserError."""
    arguments: Arguments = parse_flags(
        Arguments, "python -m glide_jax.evaluation.scenes.guidance", argv
    )
    require_figure("--out", arguments.out)
    arguments.check()
    arguments.check_scales()
    use_all_cores(arguments.batch_size or min(arguments.n * SEEDS, MAX_BATCH))
    glide = Glide.load(arguments.checkpoint, fsdp=arguments.fsdp)
    require_scenes(glide.config("base"))
    captions = arguments.captions(closeup=has_closeups(glide.config("base").data))
    common = {"seed": arguments.seed, "batch_size": arguments.batch_size, **arguments.settings}

    def curve(kind: str, by_scale: dict[float, dict[str, Any]]) -> list[Point]:
        print(f"{kind} guidance\n   scale  exact match  diversity")
        return [
            measured_point(
                at,
                glide.generate(captions, n=SEEDS, upsample=False, progress=True, **common | own),
            )
            for at, own in by_scale.items()
        ]

    sampler = glide.settings("base", **arguments.settings).sampler
    curves = {
        f"classifier-free guidance, {sampler}": curve("classifier-free", arguments.by_scale())
    }
    if glide.has("clip"):
        name = f"CLIP guidance, {arguments.clip_sampler}"
        curves[name] = curve("CLIP", arguments.by_clip_scale())
    if arguments.out is not None:
        plot(curves, arguments.out)
        print(arguments.out)


def measured_point(scale: float, samples: Samples) -> Point:
    """The point of one guidance scale, which is also printed.

    Args:
        scale: guidance scale.
        samples: SEEDS of each caption, one caption after another.
    """
    exact_match = float(score_images(samples.images, samples.prompts).exact_match.mean())
    images = samples.images.reshape(-1, SEEDS, *samples.shape[1:])
    point = Point(scale, exact_match, diversity(images))
    print(f"{scale:8g}  {point.exact_match:11.1%}  {point.diversity:9.1f}", flush=True)
    return point


def plot(points: dict[str, list[Point]], out: Path) -> None:
    """Writes a plot of exact matches over diversity. Raises UserError."""
    figure = new_figure(6.5, 4.5)
    axes = figure.add_subplot()
    curves = [
        Curve(
            name,
            [point.scale for point in some],
            [point.diversity for point in some],
            [100 * point.exact_match for point in some],
        )
        for name, some in points.items()
    ]
    draw_curves(axes, curves)
    axes.set(
        xlabel="diversity: standard deviation over seeds (levels of 0..255)",
        ylabel="exact match (%)",
        ylim=(0, 102),
        title="Accuracy and diversity by guidance scale",
    )
    axes.legend()
    label_scales(axes, curves)
    save_figure(out, figure)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
