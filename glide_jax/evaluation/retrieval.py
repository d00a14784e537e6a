"""Caption retrieval with a CLIP: its accuracy on held-out images at several noise levels.

python -m glide_jax.evaluation.retrieval --checkpoint runs/scenes_clip32 --out retrieval.png
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from glide_jax.cli import ShardingFlags, parse_flags
from glide_jax.compilation import keep_compiled_programs
from glide_jax.config.bounds import SEED, Between
from glide_jax.config.diffusion import MAX_DIFFUSION_STEPS
from glide_jax.data.transforms import to_float
from glide_jax.diffusion.schedule import Schedule
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.evaluation.held_out import held_out_images
from glide_jax.evaluation.metrics.retrieval import retrieval_accuracy
from glide_jax.images import new_figure, require_figure, save_figure
from glide_jax.runs.folder import Run
from glide_jax.sampling.arguments import MAX_IMAGES
from glide_jax.sampling.clip import ClipScorer


@dataclass(frozen=True, kw_only=True)
class Arguments(ShardingFlags):
    """Prints how often a CLIP picks a held-out image's own caption among those of other images."""

    checkpoint: str | Path
    """Run folder of a CLIP."""
    n: Annotated[int, Between(2, MAX_IMAGES)] = 512
    """Number of images: the first of the split."""
    among: Annotated[int, Between(2, MAX_IMAGES)] = 64
    """Captions to choose from."""
    split: str = ""
    """Split of the model's own data set; empty: its validation split."""
    caption_index: Annotated[int, Between(0, 1000)] = 1
    """Which of a record's captions, from 0; caption 1 of the scenes data set is complete."""
    t: Annotated[tuple[int, ...], Between(0, MAX_DIFFUSION_STEPS)] = tuple(range(0, 1000, 100))
    """Noise levels of the images, as diffusion steps; 0 is none."""
    seed: Annotated[int, SEED] = 0
    """Seed of the noise."""
    out: Path | None = None
    """PNG file for a plot."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises UserError."""
    arguments: Arguments = parse_flags(Arguments, "python -m glide_jax.evaluation.retrieval", argv)
    require_figure("--out", arguments.out)
    if not 2 <= arguments.among <= arguments.n:
        raise UserError(f"--among {arguments.among}: must be from 2 to --n ({arguments.n})")
    keep_compiled_programs()
    run = Run.open(arguments.checkpoint)
    clip = ClipScorer.load(run, fsdp=arguments.fsdp)
    px = clip.config.resolution_px
    images, all_captions = held_out_images(run.config, arguments.split, arguments.n, px)
    captions = chosen_captions(all_captions, arguments)
    x_0 = to_float(images)
    eps = np.random.default_rng(arguments.seed).standard_normal(x_0.shape, np.float32)
    alpha_bar = Schedule.of(run.config.diffusion).alpha_bar
    text = np.asarray(clip.encode_text(captions))
    levels = [t for t in arguments.t if t < clip.config.steps]
    accuracies = []
    for t in levels:
        x_t = x_0 if t == 0 else np.sqrt(alpha_bar[t]) * x_0 + np.sqrt(1 - alpha_bar[t]) * eps
        image = clip.encode_images(x_t.astype(np.float32), t)
        accuracies.append(retrieval_accuracy(image, text, arguments.among))
        print(
            f"t = {t:3d}: accuracy {accuracies[-1]:.1%} among {arguments.among} captions",
            flush=True,
        )
    if arguments.out is not None:
        plot(levels, accuracies, arguments.among, arguments.out)
        print(arguments.out)


def chosen_captions(records: Sequence[Sequence[str]], arguments: Arguments) -> list[str]:
    """One of each record's captions. Raises UserError if there are too few records or captions."""
    if len(records) < arguments.among:
        raise UserError(
            f"there are {len(records)} records, too few for --among {arguments.among}: give a "
            "smaller --among"
        )
    fewest = min(map(len, records))
    if not 0 <= arguments.caption_index < fewest:
        raise UserError(
            f"--caption-index {arguments.caption_index}: some records have {fewest} captions"
        )
    return [captions[arguments.caption_index] for captions in records]


def plot(levels: Sequence[int], accuracies: Sequence[float], among: int, out: Path) -> None:
    """Writes a plot of accuracy over noise level. Raises UserError."""
    figure = new_figure(6.0, 4.0)
    axes = figure.add_subplot()
    axes.plot(levels, [100 * accuracy for accuracy in accuracies], marker="o")
    axes.axhline(100 / among, color="gray", linestyle=":", label="chance")
    axes.set(
        xlabel="noise level t",
        ylabel=f"accuracy among {among} captions (%)",
        ylim=(0, 102),
        title="Caption retrieval by noised CLIP",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(out, figure)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
