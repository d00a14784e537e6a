"""PSNR, SSIM and LPIPS of an upsampler on held-out images, compared with bicubic resizing.

python -m glide_jax.evaluation.upsampling --checkpoint runs/scenes_upsample128 --n 64

LPIPS needs the weights of its trunk: --lpips alexnet-owt-7be5be79.pth, torchvision's file.
Images are reduced to the low resolution with a box filter, as in training, and upsampled again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from glide_jax.cli import parse_flags
from glide_jax.config.bounds import Between
from glide_jax.errors import exit_on_user_error, memory_advice
from glide_jax.evaluation.held_out import held_out_images
from glide_jax.evaluation.perceptual import LpipsFlags, PerceptualDistance, load_lpips
from glide_jax.evaluation.quality import image_quality
from glide_jax.images import resized, save_grid
from glide_jax.parallel.sharding import use_all_cores
from glide_jax.sampling.arguments import MAX_BATCH_SIZE, MAX_IMAGES
from glide_jax.sampling.flags import LESS_MEMORY
from glide_jax.sampling.pipeline import Glide
from glide_jax.storage import require_file


@dataclass(frozen=True, kw_only=True)
class Arguments(LpipsFlags):
    """Prints mean PSNR, SSIM and LPIPS of upsampled held-out images and of bicubic resizing."""

    checkpoint: str | Path
    """Run folder of an upsampler, or a folder of models with one."""
    n: Annotated[int, Between(1, MAX_IMAGES)] = 64
    """Number of images: the first of the split."""
    split: str = ""
    """Split of the model's own data set; empty: its validation split."""
    batch_size: Annotated[int | None, Between(1, MAX_BATCH_SIZE)] = 4
    """Images per batch."""
    out: Path | None = None
    """PNG file for a grid: low resolution, bicubic, upsampled, original."""


@memory_advice(LESS_MEMORY)
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises UserError."""
    arguments: Arguments = parse_flags(Arguments, "python -m glide_jax.evaluation.upsampling", argv)
    require_file("--out", arguments.out, (".png",))
    use_all_cores(arguments.batch_size or arguments.n)
    glide = Glide.load(arguments.checkpoint, fsdp=arguments.fsdp)
    config = glide.config("upsample")
    model = config.denoiser
    distance = load_lpips(arguments.lpips_trunk, arguments.lpips) if arguments.lpips else None
    if distance is not None:  # before sampling
        distance.require_size(model.resolution_px, model.resolution_px)
    split, n = arguments.split, arguments.n
    original, all_captions = held_out_images(config, split, n, model.resolution_px)
    captions = [of_image[0] for of_image in all_captions]
    low_res = resized(original, model.low_res_px, Image.Resampling.BOX)
    bicubic = resized(low_res, model.resolution_px, Image.Resampling.BICUBIC)
    upsampled = glide.upsample(
        low_res,
        captions,
        seed=[arguments.seed + i for i in range(len(captions))],
        batch_size=arguments.batch_size,
        progress=True,
        **arguments.settings,
    ).images
    print("\n".join(comparison(upsampled, bicubic, original, distance)))
    print(f"means of {len(captions)} images, {model.low_res_px} to {model.resolution_px} px")
    if arguments.out is not None:
        shown = resized(low_res, model.resolution_px, Image.Resampling.NEAREST)
        rows = np.stack([shown, bicubic, upsampled, original], 1)
        labels = [c for caption in captions for c in (caption, "bicubic", "upsampled", "original")]
        save_grid(arguments.out, rows.reshape(-1, *original.shape[1:]), labels, columns=8)
        print(arguments.out)


def comparison(
    upsampled: UInt8[np.ndarray, "n h w 3"],
    bicubic: UInt8[np.ndarray, "n h w 3"],
    original: UInt8[np.ndarray, "n h w 3"],
    distance: PerceptualDistance | None = None,
) -> list[str]:
    """A line per metric: mean PSNR, SSIM (higher is better) and, with a distance, LPIPS (lower).

    Images smaller than its windows have no SSIM.
    """
    ours, theirs = (
        {name: values.mean() for name, values in image_quality(images, original, distance).items()}
        for images in (upsampled, bicubic)
    )
    decibels, base = ours.pop("PSNR"), theirs.pop("PSNR")
    return [
        f"upsampler {decibels:.2f} dB, bicubic {base:.2f} dB: {decibels - base:+.2f} dB",
        *(
            f"{name}: upsampler {ours[name]:.4f}, bicubic {theirs[name]:.4f}: "
            f"{ours[name] - theirs[name]:+.4f}"
            for name in ours
        ),
    ]


if __name__ == "__main__":
    with exit_on_user_error():
        main()
