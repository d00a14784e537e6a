"""Parameterizations: conversions that undo each other, and the papers' formulas."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glide_jax.config import DiffusionConfig
from glide_jax.diffusion.parameterization import Correction, Noise, Parameterization, Velocity
from glide_jax.diffusion.process import q_sample
from glide_jax.diffusion.schedule import SCHEDULES, Schedule

SCHEDULE = {name: Schedule.create(name) for name in SCHEDULES}
SHAPE = (3, 4, 5, 2)


def normal(seed, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


GUESS = jnp.tanh(normal(99))


def noise(schedule):
    return Noise(schedule)


def velocity(schedule):
    return Velocity(schedule)


def correction(schedule):
    return Correction(schedule, GUESS, 0.3)


every_kind = pytest.mark.parametrize("kind", [noise, velocity, correction])
any_case = given(st.sampled_from(sorted(SCHEDULES)), st.integers(0, 999), st.integers(0, 9))


@every_kind
@settings(max_examples=25)
@any_case
def test_the_target_converts_back_to_eps_and_x_0(kind, name, row, seed):
    schedule, t = SCHEDULE[name], jnp.full(3, row)
    ours = kind(schedule)
    x_0, eps = jnp.tanh(normal(seed)), normal(seed + 100)
    x_t = q_sample(schedule, x_0, t, eps)
    target = ours.target(x_0, t, eps)
    np.testing.assert_allclose(ours.eps(target, x_t, t), eps, rtol=0, atol=1e-5)
    # Only from eps does x_0's error grow with the noise.
    growth = schedule.sqrt_recip_alpha_bar[row] if kind is noise else 1
    np.testing.assert_allclose(ours.x_0(target, x_t, t), x_0, rtol=0, atol=1e-5 * growth)


@every_kind
@settings(max_examples=25)
@any_case
def test_the_target_of_converted_predictions_is_the_prediction(kind, name, row, seed):
    """Of any prediction, not only of a perfect one."""
    schedule, t = SCHEDULE[name], jnp.full(3, row)
    ours = kind(schedule)
    predicted, x_t = normal(seed), normal(seed + 100)
    eps, x_0 = ours.eps(predicted, x_t, t), ours.x_0(predicted, x_t, t)
    np.testing.assert_allclose(ours.target(x_0, t, eps), predicted, rtol=0, atol=1e-4)


@every_kind
@settings(max_examples=25)
@any_case
def test_eps_and_x_0_of_a_prediction_make_up_x_t(kind, name, row, seed):
    schedule, t = SCHEDULE[name], jnp.full(3, row)
    ours = kind(schedule)
    predicted, x_t = normal(seed), normal(seed + 100)
    eps, x_0 = ours.eps(predicted, x_t, t), ours.x_0(predicted, x_t, t)
    np.testing.assert_allclose(q_sample(schedule, x_0, t, eps), x_t, rtol=0, atol=2e-5)


@every_kind
@settings(max_examples=25)
@any_case
def test_weights_are_the_squared_error_of_the_prediction_for_one_of_eps(kind, name, row, seed):
    schedule, t = SCHEDULE[name], jnp.full(3, row)
    ours = kind(schedule)
    predicted, x_t = normal(seed), normal(seed + 100)
    error = 10.0 * schedule.sqrt_recip_alpha_bar[row]
    difference = ours.eps(predicted + error, x_t, t) - ours.eps(predicted, x_t, t)
    np.testing.assert_allclose(ours.weights[row] * difference**2, error**2, rtol=1e-4)


@every_kind
def test_a_denoiser_predicts_eps_and_keeps_the_variance_fraction(kind):
    schedule, t = SCHEDULE["linear"], jnp.array([0, 400, 999])
    ours = kind(schedule)
    predicted, x_t = normal(0), normal(1)
    seen = []

    def network(x, t):
        seen.append((x, t))
        return jnp.concatenate([predicted, 0.3 + 0 * predicted], -1)

    out = ours.denoiser(network)(x_t, t)
    ((x, seen_t),) = seen
    np.testing.assert_array_equal(seen_t, t)
    np.testing.assert_array_equal(x, ours.network_input(x_t, t))
    np.testing.assert_allclose(out[..., :2], ours.eps(predicted, x_t, t), rtol=1e-6)
    np.testing.assert_allclose(out[..., 2:], 0.3, rtol=1e-6)


def test_a_run_has_the_parameterization_of_its_config():
    assert isinstance(Parameterization.of(DiffusionConfig()), Noise)
    v = DiffusionConfig("linear", 500, "v", zero_terminal_snr=True)
    ours = Parameterization.of(v)
    assert isinstance(ours, Velocity)
    np.testing.assert_array_equal(ours.schedule.betas, Schedule.of(v).betas)
    ours = Parameterization.of(DiffusionConfig(prediction="v", low_res_std=0.07), GUESS)
    assert isinstance(ours, Correction) and ours.std == 0.07 and ours.guess is GUESS


def test_velocity_is_the_papers():
    """App. D, arXiv 2202.00512."""
    schedule = SCHEDULE["squaredcos_cap_v2"]
    t = jnp.array([0, 17, 500, 999])
    x_0, eps = normal(0, (4, 5, 5, 3)), normal(1, (4, 5, 5, 3))
    x_t = q_sample(schedule, x_0, t, eps)
    alpha_bar = schedule.alpha_bar[np.asarray(t)][:, None, None, None].astype(np.float32)
    v = np.sqrt(alpha_bar) * eps - np.sqrt(1 - alpha_bar) * x_0
    np.testing.assert_allclose(Velocity(schedule).target(x_0, t, eps), v, atol=1e-5)
    out_v = jnp.concatenate([v, 0.3 + 0 * v], -1)
    out = Velocity(schedule).denoiser(lambda x_t, t: out_v)(x_t, t)
    np.testing.assert_allclose(out[..., :3], eps, rtol=0, atol=1e-5)  # terms as large as 4
    np.testing.assert_allclose(out[..., 3:], 0.3, rtol=1e-6)


@pytest.mark.parametrize("std", [0.07, 0.5])
def test_a_correction_is_the_velocity_of_the_difference_from_the_guess(std):
    schedule = SCHEDULE["linear"]
    t = jnp.array([0, 17, 500, 999])
    guess, rho, eps = (normal(seed, (4, 5, 5, 3)) for seed in range(3))
    x_0 = guess + std * rho
    x_t = q_sample(schedule, x_0, t, eps)
    alpha_bar = schedule.alpha_bar[np.asarray(t)][:, None, None, None]
    a, s = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    total = np.sqrt(a**2 * std**2 + s**2)
    ours = Correction(schedule, guess, std)

    # rho and eps make z, and the prediction is its velocity.
    z = ours.network_input(x_t, t)
    np.testing.assert_allclose(z, (a * std * rho + s * eps) / total, atol=1e-4)
    correction = (a * std * eps - s * rho) / total
    np.testing.assert_allclose(ours.target(x_0, t, eps), correction, atol=1e-4)
    v = ours.velocity(jnp.float32(correction), x_t, t)
    np.testing.assert_allclose(v, a * eps - s * x_0, atol=1e-4)

    # Without a correction: the mean of x_0 given x_t, for normal rho.
    v = ours.velocity(jnp.zeros_like(x_t), x_t, t)
    gain = a * std**2 / total**2
    expected = guess + gain * (np.asarray(x_t) - a * np.asarray(guess))
    np.testing.assert_allclose(a * np.asarray(x_t) - s * np.asarray(v), expected, atol=1e-4)
