"""Converts OpenAI's published weights to run folders, and models trained here back.

    python -m glide_jax.convert base.pt upsample.pt --to runs/released
    python -m glide_jax.convert runs/mine --to base.pt

What each file is shows in its tensors. The first command makes a folder for each model inside
--to: base, upsample, base-inpaint, upsample-inpaint, and clip, of two files. The second writes
the averaged weights under the original's names, for PyTorch: .pt, .safetensors or .npz.
"""

import dataclasses
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from glide_jax.config import ClipConfig, Config, DataConfig
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.tokenizers.build import load_tokenizer
from glide_jax.data.tokenizers.clip_bpe import ClipTokenizer
from glide_jax.errors import UserError
from glide_jax.models.clip import clip_network
from glide_jax.models.glide import glide_network
from glide_jax.models.network import Network
from glide_jax.pretrained.defaults import RELEASED
from glide_jax.pretrained.names import (
    CLIP_IMAGE,
    CLIP_TEXT,
    DENOISER,
    Rules,
    from_original,
    to_original,
)
from glide_jax.pretrained.sizes import (
    CLIP_IMAGE_FILE,
    CLIP_TEXT_FILE,
    Shapes,
    Unseen,
    clip_sizes,
    denoiser_sizes,
    kind_of,
)
from glide_jax.pretrained.weight_files import FORMATS, Tensors, read_tensors, write_tensors
from glide_jax.runs.checkpoint import Checkpoints
from glide_jax.runs.folder import Run

CLIP = "clip"
LOGIT_SCALE = math.log(100)
"""Of the released CLIP; its files do not hold it."""


# From files to run folders -----------------------------------------------------------------------


def files_to_runs(
    files: Sequence[Path], to: Path, tokenizer: str, clip_tokenizer: str, unseen: Unseen
) -> None:
    """Converts each file as it comes; CLIP's two when both have come.

    Raises:
        UserError: a file cannot be used, or a folder cannot be written. What was converted before
            that stays.
    """
    if to.suffix in FORMATS:
        raise UserError(f"--to {to}: files become a folder, so give its name")
    seen: dict[str, Path] = {}
    clip: dict[str, Tensors] = {}
    for file in files:
        tensors = read_tensors(file)
        with _named(str(file)):
            kind = kind_of(_shapes(tensors))
        if kind in seen:
            raise UserError(f"{seen[kind]} and {file} are both {kind} models: give one of them")
        seen[kind] = file
        if kind in (CLIP_TEXT_FILE, CLIP_IMAGE_FILE):
            clip[kind] = tensors
        else:
            with _named(str(file)):
                config, params = denoiser_of(tensors, kind, unseen)
            write_run(to / kind, config, params, tokenizer)
    if clip:
        lacking = {CLIP_TEXT_FILE, CLIP_IMAGE_FILE} - set(clip)
        if lacking:
            raise UserError(
                f"CLIP is two files, and the {lacking.pop()} encoder is not among those given "
                f"({', '.join(str(seen[kind]) for kind in clip)} is): give both"
            )
        with _named(f"{seen[CLIP_TEXT_FILE]} and {seen[CLIP_IMAGE_FILE]}"):
            config, params = clip_of(clip[CLIP_TEXT_FILE], clip[CLIP_IMAGE_FILE], unseen)
        write_run(to / CLIP, config, params, clip_tokenizer)


def denoiser_of(tensors: Tensors, kind: str, unseen: Unseen) -> tuple[Config, Tensors]:
    """Configuration and parameters of a base model or an upsampler."""
    model = denoiser_sizes(_shapes(tensors), unseen)
    diffusion, sample = RELEASED[kind]
    params = from_original(tensors, network_shapes(glide_network(model)), DENOISER)
    return Config(model=model, diffusion=diffusion, sample=sample), params


def clip_of(text: Tensors, image: Tensors, unseen: Unseen) -> tuple[Config, Tensors]:
    """Configuration and parameters of a noised CLIP."""
    model = clip_sizes(_shapes(text), _shapes(image), unseen)
    shapes = network_shapes(clip_network(model))
    params: Tensors = {"logit_scale": np.array(LOGIT_SCALE, np.float32)}
    for name, tensors, rules in (("text", text, CLIP_TEXT), ("image", image, CLIP_IMAGE)):
        converted = from_original(tensors, tower(shapes, name), rules)
        params |= {f"{name}.{parameter}": value for parameter, value in converted.items()}
    diffusion, sample = RELEASED[CLIP]
    return Config(model=model, diffusion=diffusion, sample=sample), params


def write_run(folder: Path, config: Config, params: Tensors, tokenizer_name: str) -> None:
    """Writes a run folder: all of it or nothing.

    Raises:
        UserError: it is there already, or cannot be written, or the tokenizer cannot be had.
    """
    folder = folder.absolute()
    if folder.exists():
        raise UserError(f"{folder} is there already: remove it, or give another --to")
    is_clip = isinstance(config.model, ClipConfig)
    flag = "--clip-tokenizer" if is_clip else "--tokenizer"
    vocab_size, kind = config.model.text.vocab_size, ClipTokenizer if is_clip else Tokenizer
    try:
        tokenizer = load_tokenizer(tokenizer_name, vocab_size, kind)
    except UserError as error:
        raise UserError(f"{error}; name another folder or hub name with {flag}") from None
    config = dataclasses.replace(config, data=DataConfig(tokenizer=tokenizer_name))
    # Beside the set, so that no half of a model is ever found in it.
    unfinished = folder.parent.with_name(f"{folder.parent.name}.{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    Run.create(unfinished, config, tokenizer)
    checkpoints = Checkpoints(unfinished, max_checkpoints=1)
    checkpoints.save_ema({name: np.asarray(x, order="C") for name, x in params.items()})
    checkpoints.close()
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished.rename(folder)
    count = sum(value.size for value in params.values())
    print(f"{folder}: {count:,} parameters")


# From a run folder to files ----------------------------------------------------------------------


def run_to_files(run_dir: Path, to: Path) -> None:
    """Writes a run's averaged weights under the original's names.

    A CLIP becomes two files, as the original's: clip.pt means clip_text_enc.pt and
    clip_image_enc.pt.

    Raises:
        UserError: not a run folder, or the file is there already or cannot be written.
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
            raise UserError(f"{file} is there already: remove it, or give another --to")
    params = {name: np.asarray(value) for name, value in run.weights().items()}
    for file, (name, rules) in parts.items():
        part = tower(params, name) if name else params
        write_tensors(file, to_original(part, rules))
        print(f"{file}: {sum(value.size for value in part.values()):,} parameters")
    for line in untold(config, params):
        print(line)


def untold(config: Config, params: Tensors) -> list[str]:
    """What the PyTorch code must be told beside the weights, a line each."""
    model = config.model
    if isinstance(model, ClipConfig):
        return [
            f"not in the files: logit_scale {math.exp(params['logit_scale']):g}, "
            f"{model.text.heads} text heads, {model.image.heads} image heads"
        ]
    lines = [
        f"not in the file: {model.text.heads} text heads, heads of {model.unet.head_width} "
        f"channels, {model.unet.resolution_px} px, {config.diffusion.schedule} schedule"
    ]
    if config.diffusion.prediction != "eps":
        lines.append(
            "this model predicts velocity, which the original code does not know: it takes the "
            "output for noise"
        )
    return lines


# Both --------------------------------------------------------------------------------------------


def network_shapes(network: Network[Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by name."""
    return {name: tuple(shape.shape) for name, shape in network.shapes.items()}


def tower(values: dict[str, Any], name: str) -> dict[str, Any]:
    """What belongs to one of CLIP's towers, by names without the tower's."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): x for key, x in values.items() if key.startswith(prefix)}


def _shapes(tensors: Tensors) -> Shapes:
    return {name: tensor.shape for name, tensor in tensors.items()}


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Errors within name the file, and where to tell what it does not."""
    try:
        yield
    except UserError as error:
        # The config refuses sizes that do not fit together: one that no file tells is wrong.
        hint = " (--help lists the sizes that files do not tell)" if "config:" in str(error) else ""
        raise UserError(f"{where}: {error}{hint}") from None
