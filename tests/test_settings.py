"""Sampling settings: changes to them, and the CLIP that guides a model."""

import dataclasses
from unittest.mock import Mock

import numpy as np
import pytest
from helpers import model_set, tiny

from glide_jax import Glide
from glide_jax.config import Config, DiffusionConfig, ModelConfig, SampleConfig, UNetConfig
from glide_jax.errors import UserError
from glide_jax.runs.folder import Run
from glide_jax.sampling.settings import changed_settings, require_guide


def test_values_are_cast_where_nothing_is_lost():
    changed = changed_settings(
        SampleConfig(), steps=50, guidance_scale=np.float32(2), guidance_interval=[np.int64(1), 9]
    )
    assert changed == SampleConfig(steps="50", guidance_scale=2.0, guidance_interval=(1, 9))
    assert changed_settings(changed, steps=None) == changed


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("guidance_interval", "12"),
        ("guidance_interval", (1.5, 2)),
        ("guidance_interval", (1, 2, 3)),
        ("guidance_interval", 5),
        ("low_res_noise", 1.5),
        ("low_res_noise", "1"),
        ("guidance_scale", "3"),
        ("guidance_scale", True),
        pytest.param("guidance_scale", 10**400, id="scale of many digits"),
        ("steps", 2.5),
        pytest.param("steps", 10**5000, id="steps of many digits"),
        ("sampler", ["ddim"]),
    ],
)
def test_values_of_other_types_are_refused_by_name(setting, value):
    with pytest.raises(UserError, match=f"^{setting} cannot be ") as error:
        changed_settings(SampleConfig(), **{setting: value})
    assert len(str(error.value)) < 100


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *((name, float("inf")) for name in ("guidance_scale", "clip_guidance_scale", "eta")),
        ("temperature", float("nan")),
        ("guidance_scale", 1e300),  # infinite in float32
        ("guidance_interval", (0, 2**40)),
        ("steps", "9" * 5000),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(setting, value):
    with pytest.raises(UserError, match=rf"sample\.{setting} ") as error:
        changed_settings(SampleConfig(), **{setting: value})
    assert len(str(error.value)) < 100


PX = model_set.SMALL_PX
CLIP = model_set.clip_config().clip
V = {"prediction": "v"}


def guided(**diffusion):
    unet = UNetConfig(PX, channels=32, channel_mult=(1,), attention_px=(), head_width=32)
    return Config(model=ModelConfig(unet=unet), diffusion=DiffusionConfig(**diffusion))


@pytest.mark.parametrize(
    ("model", "clip", "message"),
    [
        ({}, {}, None),
        (V | {"timesteps": "rising"}, {}, None),
        ({"schedule": "linear"}, {}, "1000 diffusion steps of squaredcos.* has .* of linear"),
        (V | {"schedule": "linear", "zero_terminal_snr": True}, {"schedule": "linear"}, "terminal"),
        ({"steps": 500}, {}, "is for 8 px and 1000 diffusion steps .* has 8 px and 500"),
    ],
)
def test_a_clip_guides_models_of_its_noise_only(model, clip, message):
    if message is None:
        require_guide(guided(**model), CLIP, DiffusionConfig(**clip))
        return
    with pytest.raises(UserError, match=message):
        require_guide(guided(**model), CLIP, DiffusionConfig(**clip))


def test_a_clip_of_clean_images_guides_nothing():
    with pytest.raises(UserError, match="this CLIP is for 8 px images without noise"):
        require_guide(guided(), dataclasses.replace(CLIP, steps=1), DiffusionConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "dream"}, "sampler 'dream' is unknown"),
        ({"clip_guidance_scale": 1.0}, "no clip model is given"),
    ],
)
@pytest.mark.parametrize("role", ["base", "upsample"])
def test_settings_of_all_models_are_refused_before_one_is_loaded(
    role, settings, message, monkeypatch
):
    configs = {"base": tiny.get_config(), "upsample": model_set.upsampler_config(inpaint=False)}
    config = configs[role]
    configs[role] = dataclasses.replace(
        config, sample=dataclasses.replace(config.sample, **settings)
    )
    glide = Glide({name: Mock(spec=Run, config=config) for name, config in configs.items()})
    monkeypatch.setattr(glide, "_load", Mock(side_effect=AssertionError))
    with pytest.raises(UserError, match=message):
        glide.generate("a red star")
