"""Run folders to files with the original's parameter names, for the original PyTorch code."""

import math
from pathlib import Path

import numpy as np

from glide_jax.config import ClipConfig, Config
from glide_jax.errors import UserError
from glide_jax.pretrained.names import CLIP_IMAGE, CLIP_TEXT, DENOISER, Rules, to_original, tower
from glide_jax.pretrained.weight_files import FORMATS, Tensors, write_tensors
from glide_jax.runs.folder import Run


def run_to_files(run_dir: Path, to: Path) -> None:
    """Write a run's EMA parameters under the original's names.

    A CLIP is written to two files, as the original's: `to` = clip.pt stands for clip_text_enc.pt
    and clip_image_enc.pt.

    Raises:
        UserError: `run_dir` is not a run folder, or a file already exists or cannot be written.
    """
    if to.suffix not in FORMATS:
        raise UserError(f"--to {to}: the name must end in {', '.join(FORMATS)}")
    run = Run.open(run_dir)
    config = run.config
    parts: dict[Path, tuple[str, Rules]] = {to: ("", DENOISER)}
    if isinstance(config.model, ClipConfig):
        parts = {
            to.with_name(f"{to.stem}_text_enc{to.suffix}"): ("text", CLIP_TEXT),
            to.with_name(f"{to.stem}_image_enc{to.suffix}"): ("image", CLIP_IMAGE),
        }
    for file in parts:
        if file.exists():
            raise UserError(f"{file} already exists: remove it, or give another --to")
    params = {name: np.asarray(value) for name, value in run.weights().items()}
    for file, (name, rules) in parts.items():
        part = tower(params, name) if name else params
        write_tensors(file, to_original(part, rules))
        print(f"{file}: {sum(value.size for value in part.values()):,} parameters")
    for line in unstored_settings(config, params):
        print(line)


def unstored_settings(config: Config, params: Tensors) -> list[str]:
    """Settings that the PyTorch code needs beside the files, one line each."""
    if isinstance(config.model, ClipConfig):
        clip = config.model
        return [
            "the files do not contain these settings, set them in PyTorch: "
            f"logit_scale {math.exp(params['logit_scale']):g}, {clip.text.heads} text heads, "
            f"{clip.image.heads} image heads"
        ]
    model = config.denoiser
    lines = [
        "the file does not contain these settings, set them in PyTorch: "
        f"{model.text.heads} text heads, heads of {model.unet.head_width} channels, "
        f"{model.unet.resolution_px} px, {config.diffusion.schedule} schedule"
    ]
    if config.diffusion.prediction != "eps":
        lines.append(
            "this model predicts v, which the original code does not support: it would read "
            "the output as eps, and sample noise"
        )
    return lines
