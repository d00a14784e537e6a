"""How close an upsampler comes to the images that it is given shrunk, next to bicubic resizing.

python -m glide_jax.evaluation.upsampling --checkpoint runs/scenes_upsample128 --n 64
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Float, UInt8
from PIL import Image

from glide_jax.cli import ShardingFlags, keep_compiled_programs
from glide_jax.data.records import Source
from glide_jax.data.sources import open_source
from glide_jax.data.transforms import load_pixels
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.images import save_grid
from glide_jax.parallel.sharding import use_all_cores
from glide_jax.sampling.pipeline import Glide
from glide_jax.storage import require_local

Images = UInt8[np.ndarray, "n h w 3"]


def psnr(images: Images, reference: Images) -> Float[np.ndarray, "n"]:
    """Peak signal-to-noise ratio of each image: 20 log10(255 / root mean square error), in dB.

    Equal images have infinity.
    """
    error = np.square(images.astype(np.float64) - reference).mean((1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / error)


def resized(images: Images, px: int, how: Image.Resampling) -> UInt8[np.ndarray, "n {px} {px} 3"]:
    """Images made `px` square by one of Pillow's filters."""
    return np.stack([np.asarray(Image.fromarray(p).resize((px, px), how)) for p in images])


@dataclass(frozen=True)
class Arguments(ShardingFlags):
    """Shrinks held-out images, enlarges them again, and compares them with what they were.

    Prints the mean PSNR of the upsampler's images and of bicubic resizing.
    """

    checkpoint: str | Path
    """Run folder of an upsampler, or a folder of models that has one."""
    n: int = 64
    """Images: the first of the split."""
    split: str = ""
    """Of the model's own data set; its validation split unless given."""
    steps: str | None = None
    """A respacing; this and the next two default to the run's own settings."""
    sampler: str | None = None
    """A key of glide_jax.diffusion.samplers.SAMPLERS."""
    low_res_noise: int | None = None
    """See `SampleConfig`."""
    batch_size: int = 4
    """Images at a time."""
    seed: int = 0
    """Of the first image; the next has seed + 1, and so on."""
    out: Path | None = None
    """PNG file for a grid: shrunk, bicubic, drawn, and as it was."""


def main(arguments: Arguments) -> None:
    """The command. Raises UserError."""
    require_local(arguments.out)
    if arguments.n < 1:
        raise UserError(f"--n {arguments.n}: must be at least 1")
    keep_compiled_programs()
    use_all_cores(arguments.batch_size)
    glide = Glide.load(arguments.checkpoint, fsdp=arguments.fsdp)
    config = glide.config("upsample")
    model = config.denoiser
    source = open_source(config.data, arguments.split or config.data.validation_split)
    whole, captions = _held_out(source, model.resolution_px, arguments.n)
    small = resized(whole, model.low_res_px, Image.Resampling.BOX)
    bicubic = resized(small, model.resolution_px, Image.Resampling.BICUBIC)
    drawn = glide.upsample(
        small,
        captions,
        seed=[arguments.seed + i for i in range(len(whole))],
        batch_size=arguments.batch_size,
        progress=True,
        steps=arguments.steps,
        sampler=arguments.sampler,
        low_res_noise=arguments.low_res_noise,
    )
    ours, theirs = psnr(drawn, whole).mean(), psnr(bicubic, whole).mean()
    print(f"upsampler {ours:.2f} dB, bicubic {theirs:.2f} dB: {ours - theirs:+.2f} dB")
    print(f"mean PSNR of {len(whole)} images, {model.low_res_px} to {model.resolution_px} px")
    if arguments.out is not None:
        shown = resized(small, model.resolution_px, Image.Resampling.NEAREST)
        rows = np.stack([shown, bicubic, drawn, whole], 1).reshape(-1, *whole.shape[1:])
        labels = [c for caption in captions for c in (caption, "bicubic", "drawn", "as it was")]
        save_grid(arguments.out, rows, labels, columns=8)
        print(arguments.out)


def _held_out(source: Source, px: int, n: int) -> tuple[Images, list[str]]:
    records = [source[i] for i in range(min(n, len(source)))]
    images = np.stack([load_pixels(r.image, px, name=r.name) for r in records])
    return images, [r.captions[0] for r in records]


if __name__ == "__main__":
    with exit_on_user_error():
        main(tyro.cli(Arguments, prog="python -m glide_jax.evaluation.upsampling"))
