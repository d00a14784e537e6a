"""Guided trajectories of small random models against the released code, step by step."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden_models import load_golden, load_golden_clip

from glide_jax.diffusion.guidance import classifier_free
from glide_jax.diffusion.loop import Hooks, trajectory
from glide_jax.diffusion.samplers import sampler_plan
from glide_jax.diffusion.schedule import Schedule
from glide_jax.models.clip import clip_network, similarity_gradient
from glide_jax.models.glide import glide_network

GOLDEN = np.load(Path(__file__).parent / "golden" / "sampling.npz")
TEN = Schedule.create("squaredcos_cap_v2", 1000, str(GOLDEN["respacing"]))


def conditioned(file, guided, **condition):
    """A golden model's denoiser for the golden captions, plus empty ones if guided."""
    config, params, _ = load_golden(file)
    model = glide_network(config).bind(params)
    kinds = ("", "uncond_") if guided else ("",)
    tokens, mask = (
        jnp.asarray(np.concatenate([GOLDEN[kind + name] for kind in kinds]))
        for name in ("tokens", "mask")
    )
    text = jax.jit(model.encode_text)(tokens.astype(jnp.int32), mask)
    channels = model.condition(**{name: jnp.asarray(c) for name, c in condition.items()})
    if channels is not None:
        channels = jnp.concatenate([channels] * len(kinds))
    denoise = model.denoiser(text, channels)
    return classifier_free(denoise, float(GOLDEN["guidance_scale"])) if guided else denoise


def check(run, denoise, plan, x_T=None, noise="step_noise", hooks=Hooks()):  # noqa: B008
    """Each step's x_{t-1} and x_0 within 1e-3 of the run's largest magnitude."""
    noise = jnp.asarray(GOLDEN[noise])
    x_T = GOLDEN["noise"] if x_T is None else x_T
    x, x_0 = trajectory(denoise, plan, jnp.asarray(x_T), lambda k: noise[k], hooks)
    for ours, theirs in ((x, GOLDEN[f"{run}/x"]), (x_0, GOLDEN[f"{run}/pred_x0"])):
        error = np.abs(ours - theirs).max(axis=(1, 2, 3, 4)) / np.abs(theirs).max()
        assert error.max() < 1e-3, f"per step, over the largest magnitude: {error}"


@pytest.fixture(scope="module")
def guided():
    return conditioned("unet_base.npz", guided=True)


@pytest.mark.parametrize(
    ("run", "sampler", "eta"),
    [("cfg_ddpm", "ddpm", 0.0), ("cfg_ddim", "ddim", 0.0), ("cfg_ddim_eta0.7", "ddim", 0.7)],
)
def test_classifier_free(guided, run, sampler, eta):
    np.testing.assert_array_equal(TEN.timestep_map, GOLDEN["timestep_map"])
    check(run, guided, sampler_plan(sampler, TEN, eta))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_clip(sampler):
    """DDIM's values grow to thousands, since x_0 is not clipped again."""
    config, params, _ = load_golden_clip()
    clip = clip_network(config).bind(params)
    tokens = jnp.asarray(GOLDEN["clip_tokens"], jnp.int32)
    mask = np.arange(tokens.shape[1]) < GOLDEN["clip_lengths"][:, None]
    text = jax.jit(clip.encode_text)(tokens, jnp.asarray(mask))
    gradient = similarity_gradient(clip, text, float(GOLDEN["clip_guidance_scale"]))
    denoise = conditioned("unet_base.npz", guided=False)
    check(f"clip_{sampler}", denoise, sampler_plan(sampler, TEN), hooks=Hooks(gradient=gradient))


def test_inpainting():
    known, mask = jnp.asarray(GOLDEN["inpaint_image"]), jnp.asarray(GOLDEN["inpaint_mask"])
    denoise = conditioned("unet_base_inpaint.npz", guided=True, known=known, mask=mask)
    hooks = Hooks(on_x_0=lambda x_0: jnp.where(mask == 1, known, x_0))
    check("inpaint_ddpm", denoise, sampler_plan("ddpm", TEN), hooks=hooks)


def test_upsampling():
    schedule = Schedule.create("linear", 1000, "fast27")
    np.testing.assert_array_equal(schedule.timestep_map, GOLDEN["up_timestep_map"])
    denoise = conditioned("unet_upsample.npz", guided=False, low_res=GOLDEN["low_res"])
    x_T = GOLDEN["noise"] * np.float32(GOLDEN["upsample_temp"])
    check("up_ddim", denoise, sampler_plan("ddim", schedule), x_T, "up_step_noise")
