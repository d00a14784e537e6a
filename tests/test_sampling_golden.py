"""Whole guided trajectories of a small random model, step by step with the original's."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import load_golden

from glide_jax.diffusion.guidance import classifier_free
from glide_jax.diffusion.samplers import trajectory
from glide_jax.diffusion.schedule import Schedule
from glide_jax.models.glide import glide_network

GOLDEN = np.load(Path(__file__).parent / "golden" / "sampling.npz")


@pytest.fixture(scope="module")
def guided():
    config, params, _ = load_golden("unet_base.npz")
    model = glide_network(config).bind(params)
    tokens = np.concatenate([GOLDEN["tokens"], GOLDEN["uncond_tokens"]])
    mask = np.concatenate([GOLDEN["mask"], GOLDEN["uncond_mask"]])
    text = jax.jit(model.encode_text)(jnp.asarray(tokens, jnp.int32), jnp.asarray(mask))
    return classifier_free(model.denoiser(text), float(GOLDEN["guidance_scale"]))


@pytest.mark.parametrize(
    ("run", "sampler", "eta"),
    [("cfg_ddpm", "ddpm", 0.0), ("cfg_ddim", "ddim", 0.0), ("cfg_ddim_eta0.7", "ddim", 0.7)],
)
def test_every_step_is_the_originals(guided, run, sampler, eta):
    schedule = Schedule.create("squaredcos_cap_v2", 1000, str(GOLDEN["respacing"]))
    np.testing.assert_array_equal(schedule.timestep_map, GOLDEN["timestep_map"])
    noise = jnp.asarray(GOLDEN["step_noise"])
    x, x_0 = trajectory(
        guided, schedule, jnp.asarray(GOLDEN["noise"]), lambda k: noise[k], sampler=sampler, eta=eta
    )
    for ours, theirs in ((x, GOLDEN[f"{run}/x"]), (x_0, GOLDEN[f"{run}/pred_x0"])):
        error = np.abs(ours - theirs).max(axis=(1, 2, 3, 4)) / np.abs(theirs).max()
        assert error.max() < 1e-3, f"per step, over the largest magnitude: {error}"
