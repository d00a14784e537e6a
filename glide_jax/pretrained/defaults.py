"""How OpenAI's notebooks draw with the models they released, and the noise these learned from."""

import dataclasses
from typing import NamedTuple

from glide_jax.config import DiffusionConfig, SampleConfig


class ReleasedDefaults(NamedTuple):
    """Of one released model."""

    diffusion: DiffusionConfig
    """The noise process that it was trained with."""
    sample: SampleConfig
    """The notebooks' settings."""


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
}
"""By what a model is for; a CLIP draws nothing, and sees the base model's noise."""
