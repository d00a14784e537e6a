"""The noise of each role, and guidance of the network's own prediction."""

from unittest.mock import create_autospec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.one_device import one_device_mesh

from glide_jax.config import DiffusionConfig, ModelConfig, SampleConfig, UNetConfig
from glide_jax.diffusion.loop import initial_noise
from glide_jax.models.glide import GlideModel
from glide_jax.sampling.chunks import Values, chunks
from glide_jax.sampling.programs import Conditioned, Programs

SCALE, PHI = 6.0, 0.7
T = 500


def programs(px, low_res_px=0, **diffusion):
    unet = UNetConfig(
        resolution_px=px, channels=32, channel_mult=(1,), attention_px=(), head_width=32
    )
    model = ModelConfig(unet=unet, low_res_px=low_res_px)
    return Programs(model, DiffusionConfig(**diffusion), one_device_mesh())


def first_noise(programs, count):
    """The first values of x_T of seeds 0 and 7."""
    px, seeds = programs.model.resolution_px, jnp.array([0, 7], jnp.uint32)
    return np.asarray(initial_noise(programs._keys(seeds), (px, px, 3))).reshape(2, -1)[:, :count]


def test_an_upsampler_has_other_noise_than_its_base_model():
    count = 8 * 8 * 3
    noise = {px: first_noise(programs(px), count) for px in (8, 16)}
    np.testing.assert_array_equal(noise[8], noise[16])  # base models: from the seed alone
    upsamplers = [first_noise(programs(px, low_res_px=8), count) for px in (16, 32)]
    for one, other in ((noise[8], upsamplers[0]), (noise[8], upsamplers[1]), upsamplers):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.2


def fixed_model(out):
    """A network of fixed predictions: of captions, then of empty captions."""
    model = create_autospec(GlideModel, instance=True)
    model.denoiser.return_value = lambda x_t, t: jnp.asarray(out)
    model.upsampled_low_res.side_effect = lambda condition: condition
    return model


def denoiser(programs, out, condition=None, **settings):
    """The programs' denoiser with a network of fixed predictions."""
    settings = SampleConfig(**settings)
    plan = programs.plan(settings)
    recipe = chunks(plan, settings)[0].recipe
    values = jax.device_put(Values.of(settings, plan.schedule))
    conditioned = Conditioned(None, None, condition)
    return programs._denoiser(fixed_model(out), conditioned, values, recipe)


@pytest.mark.parametrize("diffusion", [{}, {"prediction": "v"}])
def test_guidance_rescale_acts_on_the_networks_prediction(diffusion):
    """Eqs. 15 and 16, arXiv 2305.08891, of v for a model of v, before its conversion to eps."""
    rng = np.random.default_rng(0)
    x_t, caption, empty, fraction = rng.normal(size=(4, 2, 4, 4, 3)).astype(np.float32)
    out = np.concatenate([np.concatenate([caption, empty]), np.concatenate([fraction] * 2)], -1)
    ours = programs(8, **diffusion)
    denoise = denoiser(ours, out, guidance_scale=SCALE, guidance_rescale=PHI)
    guided = empty + SCALE * (caption - empty)
    std = [x.std((1, 2, 3), keepdims=True) for x in (caption, guided)]
    expected = PHI * guided * std[0] / std[1] + (1 - PHI) * guided
    if diffusion:
        u = np.array([0, T + 1]) / 1000  # Eq. 17, arXiv 2102.09672
        amplitude = np.divide(*np.cos((u + 0.008) / 1.008 * np.pi / 2)[::-1])
        expected = amplitude * expected + np.sqrt(1 - amplitude**2) * x_t
    found = denoise(jnp.asarray(x_t), jnp.full(2, T))
    np.testing.assert_allclose(found[..., :3], expected, atol=2e-4)
    np.testing.assert_array_equal(found[..., 3:], fraction)


def test_a_guided_correction_is_of_the_rows_own_guess():
    """Guidance doubles the network's batch; the guess of the image has the caption's rows."""
    rng = np.random.default_rng(0)
    x_t, caption, guess = jnp.asarray(rng.normal(size=(3, 2, 4, 4, 3)), jnp.float32)
    out = np.concatenate([np.concatenate([caption, caption])] * 2, -1)
    settings = {"prediction": "v", "low_res_std": 0.1}
    ours = programs(8, low_res_px=4, **settings)
    guided = denoiser(ours, out, guess)
    plain = denoiser(ours, out[:2], guess, guidance_scale=1.0)
    t = jnp.full(2, T)
    np.testing.assert_allclose(guided(x_t, t), plain(x_t, t), atol=1e-5)
