"""How well a data set fits a model: lines at the start of training, from a few of its records."""

import random
from collections.abc import Iterator, Sequence
from time import monotonic

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from glide_jax.config import AnyModel, Config, ModelConfig
from glide_jax.data.records import BadRecordError, Record, Source
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.transforms import load_pixels, to_float
from glide_jax.images import open_image
from glide_jax.training.low_res import area_average

RECORDS = 256
"""Records to read."""
LIMIT_S = 5.0
"""Time after which no further record is read: each may need the download of a shard."""
MAX_TRUNCATED = 0.1
"""Fraction of truncated captions above which a warning follows."""
MAX_SMALL = 0.1
"""Fraction of images smaller than the model above which a warning follows."""
MAX_RATIO = 1.5
"""Ratio of diffusion.low_res_std and the data's own above which a warning follows."""


def data_report(config: Config, source: Source, tokenizer: Tokenizer) -> list[str]:
    """Truncated captions, small images and the detail that an upsampler adds, with warnings.

    Broken records are left out: the loader counts them.

    Args:
        config: of the run.
        source: its training split.
        tokenizer: of the run.
    """
    captions: list[str] = []
    sides_px: list[int] = []
    images: list[np.ndarray] = []
    wants_pixels = isinstance(config.model, ModelConfig) and config.diffusion.low_res_std > 0
    for record in _some_records(source):
        try:
            if record.image:
                sides_px.append(min(open_image(record.image).size))
            if wants_pixels:
                px = config.model.resolution_px
                images.append(load_pixels(record.image, px, name=record.name))
        except Exception:  # nearly any type, depending on Pillow's decoder
            continue
        captions += record.captions
    if not captions:
        return []
    return [
        *_captions_report(config, captions, tokenizer),
        *(_sizes_report(config.model, sides_px) if sides_px else ()),
        *(_low_res_report(config, to_float(np.stack(images))) if images else ()),
    ]


def _some_records(source: Source) -> Iterator[Record]:
    """Records of a fixed random selection, as many as the time allows but at least one."""
    end = monotonic() + LIMIT_S
    for index in random.Random(0).sample(range(len(source)), min(RECORDS, len(source))):
        try:
            yield source[index]
        except BadRecordError:
            continue
        if monotonic() > end:
            return


def _captions_report(
    config: Config, captions: Sequence[str], tokenizer: Tokenizer
) -> Iterator[str]:
    length = config.model.text.length
    counts = [tokenizer.count(caption) for caption in captions]
    truncated = np.mean([count + tokenizer.reserved > length for count in counts])
    per_word = sum(counts) / max(sum(len(caption.split()) for caption in captions), 1)
    yield (
        f"captions: {per_word:.1f} tokens per word, {truncated:.0%} truncated at {length} tokens "
        f"(of {len(captions)} read)"
    )
    if truncated > MAX_TRUNCATED:
        yield (
            f"warning: the model does not see the end of {truncated:.0%} of the captions: give "
            "them in fewer words, or train from scratch with a larger --model.text.length or "
            "another --data.tokenizer"
        )


def _sizes_report(model: AnyModel, sides_px: Sequence[int]) -> Iterator[str]:
    small = np.mean([side < model.resolution_px for side in sides_px])
    yield (
        f"images: {small:.0%} smaller than {model.resolution_px} px, upsampled first "
        f"(of {len(sides_px)} read)"
    )
    if small > MAX_SMALL:
        yield (
            f"warning: {small:.0%} of the images are upsampled, which teaches the model blur: "
            "leave them out, for example with python -m glide_jax.prepare "
            f"--min-px {model.resolution_px}"
        )


def _low_res_report(config: Config, images: Float[np.ndarray, "b h w 3"]) -> Iterator[str]:
    std = config.diffusion.low_res_std
    measured = low_res_difference(images, config.denoiser.low_res_px)
    yield f"low_res_std: {measured:.2g} in the data, diffusion.low_res_std is {std:g}"
    if max(std / max(measured, 1e-6), measured / std) > MAX_RATIO:
        yield (
            f"warning: diffusion.low_res_std does not fit this data: train from scratch with "
            f"--diffusion.low-res-std {measured:.2g}"
        )


def low_res_difference(images: Float[np.ndarray, "b h w 3"], low_res_px: int) -> float:
    """RMS difference between images and their upsampled low-resolution images.

    Args:
        images: in [-1, 1].
        low_res_px: side of the low-resolution images.
    """
    low_res = area_average(jnp.asarray(images), low_res_px)
    guess = jax.image.resize(low_res, images.shape, "bilinear")  # as GlideModel.condition
    return float(jnp.sqrt(jnp.mean(jnp.square(images - guess))))
