"""Published checkpoint files to run folders."""

import dataclasses
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from glide_jax.config import ClipConfig, Config, DataConfig, Unknown
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.tokenizers.build import load_tokenizer
from glide_jax.data.tokenizers.clip_bpe import ClipTokenizer
from glide_jax.errors import UserError
from glide_jax.hub import local_file
from glide_jax.models.clip import clip_network
from glide_jax.models.glide import glide_network
from glide_jax.pretrained.defaults import RELEASED
from glide_jax.pretrained.names import CLIP_IMAGE, CLIP_TEXT, DENOISER, from_original, tower
from glide_jax.pretrained.sizes import (
    CLIP_IMAGE_FILE,
    CLIP_TEXT_FILE,
    Shapes,
    UnstoredSettings,
    clip_sizes,
    denoiser_sizes,
    kind_of,
)
from glide_jax.pretrained.weight_files import FORMATS, Tensors, read_tensors
from glide_jax.runs.checkpoint import Checkpoints
from glide_jax.runs.folder import Run

CLIP = "clip"
"""Name of the run folder of a CLIP."""
LOGIT_SCALE = math.log(100)
"""Of the released CLIP; its files do not contain it."""


def files_to_runs(
    files: Sequence[Path],
    to: Path,
    tokenizer: str,
    clip_tokenizer: str,
    unstored: UnstoredSettings,
) -> None:
    """Convert files to run folders: each denoiser when it is read, CLIP after all files.

    Args:
        files: of one set of models, at most one of each kind; local or hf:// URLs.
        to: folder for the run folders.
        tokenizer: of denoisers; a local folder or a name on the Hugging Face hub.
        clip_tokenizer: of CLIP; the same.
        unstored: settings that the tensors do not determine.

    Raises:
        UserError: a file cannot be converted, or a folder cannot be written. Run folders that are
            already complete remain.
    """
    if to.suffix in FORMATS:
        raise UserError(f"--to {to}: files are converted to a folder, so give a folder's name")
    seen: dict[str, Path] = {}
    clip: dict[str, Tensors] = {}
    for place in files:
        file = local_file(place)
        tensors = read_tensors(file)
        with _naming(str(file)):
            kind = kind_of(_shapes(tensors))
        if kind in seen:
            raise UserError(f"{seen[kind]} and {file} are both {kind} models: give one of them")
        seen[kind] = file
        if kind in (CLIP_TEXT_FILE, CLIP_IMAGE_FILE):
            clip[kind] = tensors
        else:
            with _naming(str(file)):
                config, params = denoiser_of(tensors, kind, unstored)
            write_run(to / kind, config, params, tokenizer)
    if clip:
        missing = {CLIP_TEXT_FILE, CLIP_IMAGE_FILE} - set(clip)
        if missing:
            (given,) = (str(seen[kind]) for kind in clip)
            raise UserError(
                f"a CLIP is two files: {given} is given, the {missing.pop()} encoder is missing"
            )
        with _naming(f"{seen[CLIP_TEXT_FILE]} and {seen[CLIP_IMAGE_FILE]}"):
            config, params = clip_of(clip[CLIP_TEXT_FILE], clip[CLIP_IMAGE_FILE], unstored)
        write_run(to / CLIP, config, params, clip_tokenizer)


def denoiser_of(tensors: Tensors, kind: str, unstored: UnstoredSettings) -> tuple[Config, Tensors]:
    """Configuration and parameters of a base model or an upsampler."""
    model = denoiser_sizes(_shapes(tensors), unstored)
    diffusion, sample = RELEASED[kind]
    params = from_original(tensors, glide_network(model).shapes, DENOISER)
    return Config(model=model, diffusion=diffusion, sample=sample), params


def clip_of(text: Tensors, image: Tensors, unstored: UnstoredSettings) -> tuple[Config, Tensors]:
    """Configuration and parameters of a noised CLIP, from its two files."""
    model = clip_sizes(_shapes(text), _shapes(image), unstored)
    shapes = clip_network(model).shapes
    params: Tensors = {"logit_scale": np.array(LOGIT_SCALE, np.float32)}
    for name, tensors, rules in (("text", text, CLIP_TEXT), ("image", image, CLIP_IMAGE)):
        converted = from_original(tensors, tower(shapes, name), rules)
        params |= {f"{name}.{parameter}": value for parameter, value in converted.items()}
    diffusion, sample = RELEASED[CLIP]
    return Config(model=model, diffusion=diffusion, sample=sample), params


def write_run(folder: Path, config: Config, params: Tensors, tokenizer_name: str) -> None:
    """Write a complete run folder or none.

    Raises:
        UserError: the folder already exists or cannot be written, or there is no such tokenizer.
    """
    folder = folder.absolute()
    if folder.exists():
        raise UserError(f"{folder} already exists: remove it, or give another --to")
    is_clip = isinstance(config.model, ClipConfig)
    flag = "--clip-tokenizer" if is_clip else "--tokenizer"
    vocab_size, kind = config.model.text.vocab_size, ClipTokenizer if is_clip else Tokenizer
    try:
        tokenizer = load_tokenizer(tokenizer_name, vocab_size, kind)
    except UserError as error:
        raise UserError(f"{error}; name another folder or hub name with {flag}") from None
    config = dataclasses.replace(config, data=DataConfig(Unknown(), tokenizer=tokenizer_name))
    # Beside the set's folder, which then never contains an incomplete run.
    unfinished = folder.parent.with_name(f"{folder.parent.name}.{folder.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    Run.create(unfinished, config, tokenizer)
    checkpoints = Checkpoints(unfinished, max_checkpoints=1)
    checkpoints.save_ema({name: np.asarray(x, order="C") for name, x in params.items()})
    checkpoints.close()
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished.rename(folder)
    count = sum(value.size for value in params.values())
    print(f"{folder}: {count:,} parameters")


def _shapes(tensors: Tensors) -> Shapes:
    return {name: tensor.shape for name, tensor in tensors.items()}


@contextmanager
def _naming(file: str) -> Iterator[None]:
    """Put the file's name before the message of a UserError."""
    try:
        yield
    except UserError as error:
        # Sizes that the config refuses together: a wrong one must be an unstored setting.
        hint = " (--help lists the settings that files do not store)"
        message = f"{error}{hint}" if "config:" in str(error) else str(error)
        raise UserError(f"{file}: {message}") from None
