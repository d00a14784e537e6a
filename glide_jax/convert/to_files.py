"""Run folders to files with the original's parameter names, for the original PyTorch code."""

import math
from pathlib import Path

import numpy as np

from glide_jax.config import AnyModel, ClipConfig, Config, PriorConfig
from glide_jax.errors import UserError
from glide_jax.pretrained.names import CLIP_IMAGE, CLIP_TEXT, DENOISER, Rules, to_original, tower
from glide_jax.pretrained.unclip_names import (
    CLIP_STATISTICS,
    KARLO_DECODER,
    KARLO_PRIOR,
    KARLO_SR,
)
from glide_jax.pretrained.vision_names import OPENAI_CLIP
from glide_jax.pretrained.weight_files import Tensors, write_tensors
from glide_jax.runs.folder import Run


def run_to_files(run_dir: Path, to: Path) -> None:
    """Write a run's EMA parameters under the original's names.

    A noised CLIP is written to two files, as the original's: `to` = clip.pt stands for
    clip_text_enc.pt and clip_image_enc.pt. A prior's statistics of CLIP's embeddings are in a file
    of their own, as Karlo's: prior_stats.pt beside prior.pt, prior_stats.th beside prior.ckpt.

    Args:
        run_dir: a run folder.
        to: the file; its suffix is one of FORMATS.

    Raises:
        UserError: `run_dir` is not a run folder, its model has parameters that the original's
            layout lacks, or a file already exists or cannot be written.
    """
    run = Run.open(run_dir)
    model = run.config.model
    files = file_names(model, to)
    for file in files:
        if file.exists():
            raise UserError(f"{file} already exists: remove it, or give another --to")
    params = {name: np.asarray(value) for name, value in run.weights().items()}
    try:
        originals = original_tensors(model, params)
    except KeyError as error:
        raise UserError(
            f"{run_dir} has {error.args[0]}, which the original's layout does not have"
        ) from None
    for file, tensors in zip(files, originals, strict=True):
        write_tensors(file, tensors)
        print(f"{file}: {sum(tensor.size for tensor in tensors.values()):,} parameters")
    for line in unstored_settings(run.config, params):
        print(line)


def file_names(model: AnyModel, to: Path) -> list[Path]:
    """The files that a model is written to."""
    if isinstance(model, PriorConfig):
        suffix = ".th" if to.suffix == ".ckpt" else to.suffix
        return [to, to.with_name(f"{to.stem}_stats{suffix}")]
    if isinstance(model, ClipConfig) and model.architecture == "glide":
        return [to.with_name(f"{to.stem}_{tower}_enc{to.suffix}") for tower in ("text", "image")]
    return [to]


def original_tensors(model: AnyModel, params: Tensors) -> list[Tensors]:
    """The tensors of each of `file_names`. Raises KeyError if they do not have a parameter."""
    if isinstance(model, ClipConfig) and model.architecture == "glide":
        towers = (("text", CLIP_TEXT), ("image", CLIP_IMAGE))
        return [to_original(tower(params, name), rules) for name, rules in towers]
    tensors = to_original(params, _rules(model))
    if isinstance(model, PriorConfig):
        statistics = tower(tensors, CLIP_STATISTICS)
        rest = {k: x for k, x in tensors.items() if not k.startswith(f"{CLIP_STATISTICS}.")}
        return [rest, statistics]
    return [tensors]


def _rules(model: AnyModel) -> Rules:
    if isinstance(model, PriorConfig):
        return KARLO_PRIOR
    if isinstance(model, ClipConfig):
        return OPENAI_CLIP
    if model.last_step_network:
        return KARLO_SR
    return KARLO_DECODER if model.image_embedding_width else DENOISER


def unstored_settings(config: Config, params: Tensors) -> list[str]:
    """Settings that the PyTorch code needs beside the files, one line each."""
    if isinstance(config.model, PriorConfig):
        return [
            "the files do not contain these settings, set them in PyTorch: "
            f"{config.model.heads} heads, {config.diffusion.schedule} schedule"
        ]
    if isinstance(config.model, ClipConfig):
        clip = config.model
        heads = f"{clip.text.heads} text heads, {clip.image.heads} image heads"
        if clip.architecture == "glide":
            heads = f"logit_scale {math.exp(params['logit_scale']):g}, {heads}"
        return [f"the files do not contain these settings, set them in PyTorch: {heads}"]
    model = config.denoiser
    text = f"{model.text.heads} text heads, " if model.text.encoder == "transformer" else ""
    lines = [
        "the file does not contain these settings, set them in PyTorch: "
        f"{text}heads of {model.unet.head_width} channels, "
        f"{model.unet.resolution_px} px, {config.diffusion.schedule} schedule"
    ]
    if config.diffusion.prediction != "eps":
        lines.append(
            "this model predicts v, which the original code does not support: it would read "
            "the output as eps, and sample noise"
        )
    return lines
