"""How OpenAI's notebooks draw with the models they released, and the noise these learned from."""

import dataclasses
from typing import NamedTuple

from glide_jax.config import DiffusionConfig, SampleConfig


class Drawing(NamedTuple):
    """Of one released model."""

    diffusion: DiffusionConfig
    """The noise process that it was trained with."""
    sample: SampleConfig
    """The notebooks' settings."""


_UPSAMPLER_NOISE = DiffusionConfig(schedule="linear")
_UPSAMPLER = SampleConfig(sampler="ddim", steps="fast27", guidance_scale=1.0, temperature=0.997)

DRAWING: dict[str, Drawing] = {
    "base": Drawing(DiffusionConfig(), SampleConfig()),
    "base-inpaint": Drawing(DiffusionConfig(), SampleConfig(guidance_scale=5.0)),
    "upsample": Drawing(_UPSAMPLER_NOISE, _UPSAMPLER),
    "upsample-inpaint": Drawing(_UPSAMPLER_NOISE, dataclasses.replace(_UPSAMPLER, sampler="ddpm")),
    "clip": Drawing(DiffusionConfig(), SampleConfig()),
}
"""By what a model is for; a CLIP draws nothing, and sees the base model's noise."""
