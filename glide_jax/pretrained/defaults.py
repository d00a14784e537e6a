"""Noise processes and sampling settings of the models that OpenAI and Kakao Brain released."""

import dataclasses
from typing import NamedTuple

from glide_jax.config import DiffusionConfig, SampleConfig


class ReleasedDefaults(NamedTuple):
    """Settings of one released model."""

    diffusion: DiffusionConfig
    """Noise process of its training."""
    sample: SampleConfig
    """Sampling settings of OpenAI's notebooks, and of Karlo's code."""


_UPSAMPLER_NOISE = DiffusionConfig(schedule="linear")
_UPSAMPLER = SampleConfig(sampler="ddim", steps="fast27", guidance_scale=1.0, temperature=0.997)

RELEASED: dict[str, ReleasedDefaults] = {
    "base": ReleasedDefaults(DiffusionConfig(), SampleConfig()),
    "base-inpaint": ReleasedDefaults(DiffusionConfig(), SampleConfig(guidance_scale=5.0)),
    "upsample": ReleasedDefaults(_UPSAMPLER_NOISE, _UPSAMPLER),
    "upsample-inpaint": ReleasedDefaults(
        _UPSAMPLER_NOISE, dataclasses.replace(_UPSAMPLER, sampler="ddpm")
    ),
    "clip": ReleasedDefaults(DiffusionConfig(), SampleConfig()),
    "prior": ReleasedDefaults(DiffusionConfig(), SampleConfig(steps="25", guidance_scale=4.0)),
    "decoder": ReleasedDefaults(DiffusionConfig(), SampleConfig(steps="50", guidance_scale=8.0)),
    "karlo-upsample": ReleasedDefaults(
        DiffusionConfig(), SampleConfig(steps="7", guidance_scale=1.0)
    ),
}
"""By role; karlo-upsample is Karlo's super-resolution. A CLIP is trained with the base model's
noise process, and does not sample."""
