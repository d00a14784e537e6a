"""Sampling settings: changes to a run's own, and whether its model can be sampled with them."""

import dataclasses
import operator
import typing
from typing import Any

import numpy as np

from glide_jax.config import ClipConfig, Config, DiffusionConfig, PriorConfig, SampleConfig
from glide_jax.diffusion.samplers import sampler_plan
from glide_jax.diffusion.schedule import Schedule
from glide_jax.errors import UserError, shown


def require_usable(config: Config, settings: SampleConfig) -> None:
    """Raises UserError if a run's model cannot be sampled with these settings."""
    schedule = Schedule.of(config.diffusion, settings.steps)
    sampler_plan(settings.sampler, schedule, settings.eta)
    if isinstance(config.model, PriorConfig):
        for name in ("clip_guidance_scale", "dynamic_threshold", "low_res_noise"):
            if getattr(settings, name):
                raise UserError(f"{name} is for images, but a prior samples embeddings")
        return
    if settings.low_res_noise and not config.denoiser.low_res_noise:
        raise UserError(
            "low_res_noise needs an upsampler conditioned on the noise level: this model is not "
            "(model.low_res_noise)"
        )
    if not 0 <= settings.low_res_noise < config.diffusion.steps:
        raise UserError(
            f"low_res_noise ({settings.low_res_noise}) must be a step of the schedule, 0 to "
            f"{config.diffusion.steps - 1}"
        )


def require_guide(config: Config, clip: ClipConfig, noise: DiffusionConfig) -> None:
    """Checks that a CLIP was trained on the images that it would see when it guides a model.

    Args:
        config: of the model to guide.
        clip: of the CLIP.
        noise: the CLIP's noise process.

    Raises:
        UserError: another resolution or other noise.
    """
    ours = config.denoiser.resolution_px, Schedule.of(config.diffusion).alpha_bar
    theirs = clip.resolution_px, Schedule.of(noise).alpha_bar[: clip.steps]
    if not (ours[0] == theirs[0] and np.array_equal(ours[1], theirs[1])):
        raise UserError(
            f"this CLIP is for {_noise(theirs[0], noise, clip.steps)}, but the model to guide has "
            f"{_noise(ours[0], config.diffusion, config.diffusion.steps)}: train a CLIP for it"
        )


def _noise(px: int, diffusion: DiffusionConfig, steps: int) -> str:
    """Resolution and noise of the images that a model or a CLIP sees, in words."""
    if steps == 1:
        return f"{px} px images without noise"
    snr = ", zero terminal SNR" if diffusion.zero_terminal_snr else ""
    return f"{px} px and {steps} diffusion steps of {diffusion.schedule}{snr}"


def changed_settings(settings: SampleConfig, **changes: Any) -> SampleConfig:
    """`settings` with these changes; None changes nothing.

    Raises:
        UserError: an unknown setting, or a value of the wrong type or out of range.
    """
    hints = typing.get_type_hints(SampleConfig)
    types = {one.name: hints[one.name] for one in dataclasses.fields(SampleConfig)}
    given = {}
    for name, value in changes.items():
        if name not in types:
            raise UserError(f"unknown setting {name}: choose from {', '.join(types)}")
        if value is not None:
            try:
                given[name] = _cast(types[name], value)
            except (TypeError, ValueError, OverflowError):
                raise UserError(f"{name} cannot be {shown(value)}") from None
    return dataclasses.replace(settings, **given)


def _cast(kind: Any, value: Any) -> Any:
    """A value as this type, if nothing is lost: neither 1.5 nor "1" is an int.

    Raises:
        TypeError, ValueError, OverflowError: it cannot be.
    """
    is_text = isinstance(value, (str, bytes))
    if typing.get_origin(kind) is tuple and not is_text:
        return tuple(_cast(part, v) for part, v in zip(typing.get_args(kind), value, strict=True))
    if isinstance(value, (bool, np.bool_)) or (is_text and kind is not str):
        raise TypeError
    if kind is str:  # steps=50 is "50"
        return value if isinstance(value, str) else str(operator.index(value))
    return operator.index(value) if kind is int else float(value)
