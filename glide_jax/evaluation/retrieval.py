"""Does a CLIP find an image's caption among others, and through how much noise?

python -m glide_jax.evaluation.retrieval --checkpoint runs/scenes_clip32 --out retrieval.png
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Float

from glide_jax.cli import ShardingFlags, keep_compiled_programs
from glide_jax.data.sources import open_source
from glide_jax.data.transforms import load_pixels, to_float
from glide_jax.diffusion.schedule import Schedule
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.images import new_figure, save_figure
from glide_jax.runs.folder import Run
from glide_jax.sampling.clip import ClipStage
from glide_jax.storage import require_local


def top_1(image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "n d"], among: int) -> float:
    """The share of images whose own caption is nearest, in groups of `among`.

    Args:
        image, text: embeddings of length 1; row i of both belong together. Rows that do not fill
            a group are left out.
        among: captions to choose from.
    """
    groups = len(image) // among
    image, text = (x[: groups * among].reshape(groups, among, -1) for x in (image, text))
    nearest = np.einsum("gid,gjd->gij", image, text).argmax(-1)
    return float((nearest == np.arange(among)).mean())


@dataclass(frozen=True)
class Arguments(ShardingFlags):
    """Lets a CLIP choose each held-out image's caption among those of other images.

    Prints how often it is right at each noise level.
    """

    checkpoint: str | Path
    """Run folder of a CLIP."""
    n: int = 512
    """Images: the first of the split, in groups of `among`."""
    among: int = 64
    """Captions to choose from."""
    split: str = ""
    """Of the model's own data set; its validation split unless given."""
    caption_index: int = 1
    """Which of a record's captions, from 0; of scenes, 1 says everything."""
    t: tuple[int, ...] = (0, 100, 200, 300, 400, 500, 600, 700, 800, 900)
    """Steps whose noise the images are given; 0 is none."""
    seed: int = 0
    """Of the noise."""
    out: Path | None = None
    """PNG file for the curve."""


def main(arguments: Arguments) -> None:
    """The command. Raises UserError."""
    require_local(arguments.out)
    if not 2 <= arguments.among <= arguments.n:
        raise UserError(f"--among {arguments.among}: must be from 2 to --n ({arguments.n})")
    keep_compiled_programs()
    run = Run.open(arguments.checkpoint)
    config, clip = run.config, ClipStage.load(run, fsdp=arguments.fsdp)
    levels = [t for t in arguments.t if t < clip.config.steps]
    source = open_source(config.data, arguments.split or config.data.validation_split)
    records = [source[i] for i in range(min(arguments.n, len(source)))]
    if len(records) < arguments.among:
        raise UserError(
            f"there are {len(records)} records, too few to choose among {arguments.among}: give a "
            "smaller --among"
        )
    fewest = min(len(r.captions) for r in records)
    if not 0 <= arguments.caption_index < fewest:
        raise UserError(
            f"--caption-index {arguments.caption_index}: some records have {fewest} captions"
        )
    px = clip.config.resolution_px
    x_0 = to_float(np.stack([load_pixels(r.image, px, name=r.name) for r in records]))
    captions = [r.captions[arguments.caption_index] for r in records]
    text = np.asarray(clip.encode_text(captions))
    rng = np.random.default_rng(arguments.seed)
    eps = rng.standard_normal(x_0.shape, np.float32)
    alpha_bar = Schedule.of(config.diffusion).alpha_bar

    shares = []
    for t in levels:
        x_t = x_0 if t == 0 else np.sqrt(alpha_bar[t]) * x_0 + np.sqrt(1 - alpha_bar[t]) * eps
        shares.append(top_1(clip.encode_images(x_t.astype(np.float32), t), text, arguments.among))
        print(f"t = {t:3d}: {shares[-1]:.1%} right among {arguments.among}", flush=True)
    if arguments.out is not None:
        _plot(levels, shares, arguments)
        print(arguments.out)


def _plot(levels: list[int], shares: list[float], arguments: Arguments) -> None:
    figure = new_figure(6.0, 4.0)
    axes = figure.add_subplot()
    axes.plot(levels, [100 * share for share in shares], marker="o")
    axes.axhline(100 / arguments.among, color="gray", linestyle=":", label="chance")
    axes.set(
        xlabel="noise level t",
        ylabel=f"right caption among {arguments.among} (%)",
        ylim=(0, 102),
        title="Caption retrieval by noised CLIP",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    assert arguments.out is not None
    save_figure(arguments.out, figure)


if __name__ == "__main__":
    with exit_on_user_error():
        main(tyro.cli(Arguments, prog="python -m glide_jax.evaluation.retrieval"))
