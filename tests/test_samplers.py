"""Samplers against denoisers that are known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glide_jax.diffusion.samplers import (
    SAMPLERS,
    initial_noise,
    per_image_noise,
    sample,
    trajectory,
)
from glide_jax.diffusion.schedule import SCHEDULES, Schedule
from glide_jax.errors import UserError

SHAPE = (8, 6, 3)
RNG = np.random.default_rng(0)
X_T = jnp.asarray(RNG.normal(size=(4, *SHAPE)), jnp.float32)
X_0 = jnp.asarray(np.tanh(RNG.normal(size=(4, *SHAPE))), jnp.float32)


def recorded(noise):
    """Noise drawn beforehand, (s, b, h, w, c): a loop without a generator compiles faster."""
    noise = jnp.asarray(noise, jnp.float32)
    return lambda k: noise[k]


STEP_NOISE = RNG.normal(size=(60, 4, *SHAPE))
NOISE = recorded(STEP_NOISE)
MANY = RNG.normal(size=(101, 16, 32, 32, 1))  # x_T and 100 steps for 16,384 pixels
WHOLE = {name: Schedule.create(name) for name in SCHEDULES}


def column(table, t):
    return jnp.asarray(table, jnp.float32)[t][:, None, None, None]


def exact_eps(name, x_0, v=-1.0):
    """The denoiser of a data set that holds x_0 alone."""

    def denoise(x_t, t):
        alpha_bar = WHOLE[name].alpha_bar
        eps = (x_t - column(np.sqrt(alpha_bar), t) * x_0) / column(np.sqrt(1 - alpha_bar), t)
        return jnp.concatenate([eps, jnp.full_like(eps, v)], axis=-1)

    return denoise


def gaussian_mixture(schedule, weights, means, stds):
    """The exact denoiser of independent pixels from a mixture of normal distributions.

    x_t is a mixture too, with means sqrt(alpha_bar) m and variances alpha_bar s^2 + 1 - alpha_bar,
    so E[eps | x_t] and Var[x_0 | x_t] are known. The variance of x_{t-1} given x_t is then
    beta~ + (x_0's coefficient)^2 Var[x_0 | x_t]; v is chosen to say so.
    """
    row_of = np.zeros(1000, np.int32)
    row_of[schedule.timestep_map] = np.arange(schedule.steps)
    weights, means, stds = (jnp.asarray(value) for value in (weights, means, stds))

    def denoise(x_t, t):
        row = jnp.asarray(row_of)[t]
        alpha_bar, noise = column(schedule.alpha_bar, row), column(1 - schedule.alpha_bar, row)
        x = x_t[..., None]
        variance = alpha_bar[..., None] * stds**2 + noise[..., None]
        off = x - jnp.sqrt(alpha_bar)[..., None] * means
        share = jax.nn.softmax(jnp.log(weights) - 0.5 * (off**2 / variance + jnp.log(variance)))
        mean_each = means + jnp.sqrt(alpha_bar)[..., None] * stds**2 / variance * off
        variance_each = stds**2 * noise[..., None] / variance
        mean = (share * mean_each).sum(-1)
        spread = (share * (variance_each + (mean_each - mean[..., None]) ** 2)).sum(-1)
        eps = (x_t - jnp.sqrt(alpha_bar) * mean) / jnp.sqrt(noise)
        best = column(schedule.posterior_variance, row) + (
            column(schedule.posterior_mean_x_0, row) ** 2 * spread
        )
        low = column(schedule.posterior_log_variance_clipped, row)
        high = column(np.log(schedule.betas), row)
        v = 2 * (jnp.log(best) - low) / jnp.where(high > low, high - low, 1) - 1
        return jnp.concatenate([eps, v], axis=-1)

    return denoise


@settings(max_examples=8)
@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.one_of(
        st.integers(1, 60).map(str),
        st.sampled_from(["fast27", "ddim50", "10,10,3,2,2"]),
        st.lists(st.integers(1, 9), min_size=1, max_size=5).map(lambda n: ",".join(map(str, n))),
    ),
)
def test_exact_eps_walks_ddim_straight_back_to_x_0(name, respacing):
    """Not only x_0 at the end: with eta 0 every x_t on the way is q_sample of the same eps."""
    schedule = Schedule.create(name, 1000, respacing)
    last = schedule.alpha_bar[-1]
    x_T = jnp.float32(np.sqrt(last)) * X_0 + jnp.float32(np.sqrt(1 - last)) * X_T
    x, _ = trajectory(exact_eps(name, X_0), schedule, x_T, NOISE, sampler="ddim")
    np.testing.assert_allclose(x[-1], X_0, atol=2e-4)
    alpha_bar = schedule.alpha_bar[::-1, None, None, None, None][1:]
    on_the_way = np.sqrt(alpha_bar) * np.asarray(X_0) + np.sqrt(1 - alpha_bar) * np.asarray(X_T)
    np.testing.assert_allclose(x[:-1], on_the_way, atol=5e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("respacing", ["1", "2", "25", "fast27", "ddim50"])
def test_exact_eps_gives_x_0(sampler, respacing):
    schedule = Schedule.create("squaredcos_cap_v2", 1000, respacing)
    denoise = exact_eps("squaredcos_cap_v2", X_0)
    x_0 = sample(denoise, schedule, X_T, NOISE, sampler=sampler, eta=0.6)
    np.testing.assert_allclose(x_0, X_0, atol=1e-3)


def test_ddpm_of_a_gaussian_is_exact_in_any_number_of_steps():
    """p(x_{t-1} | x_t) is then normal, so the right mean and variance at each step leave no error.

    The last step returns the mean, which lacks the variance of x_0 given the last x_t.
    """
    mean, std = -0.2, 0.15
    for steps in ("5", "40"):
        schedule = Schedule.create("linear", 1000, steps)
        denoise = gaussian_mixture(schedule, [1.0], [mean], [std])
        x_T = jnp.asarray(MANY[-1], jnp.float32)
        x_0 = sample(denoise, schedule, x_T, recorded(MANY[:40]), sampler="ddpm", clip=False)
        left = (
            std**2
            * (1 - schedule.alpha_bar[0])
            / (schedule.alpha_bar[0] * std**2 + 1 - schedule.alpha_bar[0])
        )
        assert abs(x_0.mean() - mean) < 0.004  # three and a half standard errors
        assert abs(x_0.var() / (std**2 - left) - 1) < 0.03


@pytest.mark.parametrize(("sampler", "eta"), [*((name, 0.0) for name in SAMPLERS), ("ddim", 0.7)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_moments_of_a_gaussian_mixture_come_back(sampler, eta, name):
    weights, means, stds = np.array([0.3, 0.7]), np.array([-0.5, 0.4]), np.array([0.05, 0.15])
    schedule = Schedule.create(name, 1000, "100")
    x_0 = np.asarray(
        sample(
            gaussian_mixture(schedule, weights, means, stds),
            schedule,
            jnp.asarray(MANY[-1], jnp.float32),
            recorded(MANY[:100]),
            sampler=sampler,
            eta=eta,
        )
    )
    mean = weights @ means
    std = np.sqrt(weights @ (stds**2 + means**2) - mean**2)
    left, right = x_0[x_0 < -0.25], x_0[x_0 > -0.25]
    assert abs(x_0.mean() - mean) < 0.02
    assert abs(x_0.std() - std) < 0.02
    assert abs(left.size / x_0.size - weights[0]) < 0.02
    assert abs(left.mean() - means[0]) < 0.01 and abs(right.mean() - means[1]) < 0.02
    assert abs(left.std() - stds[0]) < 0.01 and abs(right.std() - stds[1]) < 0.015


def wavy(x_t, t):
    """A denoiser of no data set, that never agrees with itself from step to step."""
    phase = t[:, None, None, None] / 100
    return jnp.concatenate([jnp.sin(3 * x_t + phase), jnp.cos(2 * x_t - phase)], axis=-1)


TEN = Schedule.create("squaredcos_cap_v2", 1000, "10")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(sampler):
    def draw(keys):
        x_T, noise = initial_noise(keys, SHAPE), per_image_noise(keys, SHAPE)
        return sample(wavy, TEN, x_T, noise, sampler=sampler, eta=0.7)

    keys = jax.random.split(jax.random.key(1), 3)
    together, alone = draw(keys), draw(keys[1:2])
    np.testing.assert_allclose(alone[0], together[1], atol=1e-5)
    assert jnp.abs(together[0] - together[1]).max() > 0.1


def test_noise_differs_between_images_steps_and_the_start():
    keys, shape = jax.random.split(jax.random.key(0), 4), (40, 40, 3)
    noise = per_image_noise(keys, shape)
    draws = jnp.stack([initial_noise(keys, shape), noise(jnp.int32(0)), noise(jnp.int32(1))])
    assert abs(draws.mean()) < 0.02 and abs(draws.std() - 1) < 0.02
    correlation = np.corrcoef(draws.reshape(12, -1)) - np.eye(12)
    assert np.abs(correlation).max() < 0.07  # a standard error is 0.014


def test_noise_is_used_as_the_sampler_says():
    def run(scale_first_nine, scale_last, sampler, eta):
        scale = np.array([scale_first_nine] * 9 + [scale_last]).reshape(10, 1, 1, 1, 1)
        noise = recorded(scale * STEP_NOISE[:10])
        return np.asarray(sample(wavy, TEN, X_T, noise, sampler=sampler, eta=eta))

    for sampler, eta in (("ddpm", 0.0), ("ddim", 0.7)):
        base = run(1, 1, sampler, eta)
        np.testing.assert_array_equal(run(1, 50, sampler, eta), base)
        assert np.abs(run(0.5, 1, sampler, eta) - base).max() > 0.01
    np.testing.assert_array_equal(run(9, 1, "ddim", 0.0), run(1, 1, "ddim", 0.0))
    np.testing.assert_array_equal(run(1, 1, "ddpm", 0.3), run(1, 1, "ddpm", 0.0))


def test_ddim_with_eta_1_is_ancestral_with_the_smallest_variance():
    def smallest(x_t, t):
        eps, v = jnp.split(wavy(x_t, t), 2, axis=-1)
        return jnp.concatenate([eps, -jnp.ones_like(v)], axis=-1)

    ddim, _ = trajectory(smallest, TEN, X_T, NOISE, sampler="ddim", eta=1.0)
    ddpm, _ = trajectory(smallest, TEN, X_T, NOISE, sampler="ddpm")
    np.testing.assert_allclose(ddim, ddpm, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trajectory_ends_where_sample_does(sampler):
    x, x_0 = trajectory(wavy, TEN, X_T, NOISE, sampler=sampler)
    assert x.shape == x_0.shape == (10, 4, *SHAPE)
    np.testing.assert_allclose(
        sample(wavy, TEN, X_T, NOISE, sampler=sampler), x[-1], rtol=0, atol=1e-6
    )
    # The last step's coefficients are 1 and 0: what is left is their rounding to float32.
    np.testing.assert_allclose(x[-1], x_0[-1], rtol=0, atol=1e-6)
    assert jnp.abs(x_0).max() <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_known_pixels_stay(sampler):
    mask = (jnp.arange(SHAPE[1]) < 3)[None, None, :, None]

    def run(image):
        return trajectory(
            wavy,
            TEN,
            X_T,
            NOISE,
            sampler=sampler,
            on_x_0=lambda x_0: jnp.where(mask, image, x_0),
        )

    x, x_0 = run(X_0)
    known = jnp.broadcast_to(mask, x_0[0].shape)
    np.testing.assert_array_equal(x[-1][known], X_0[known])
    np.testing.assert_array_equal(x_0[:, known], jnp.broadcast_to(X_0[known], (10, known.sum())))
    # The hook comes before the clipping, so that it may bring values back into range itself.
    assert jnp.abs(run(2 * X_0)[1]).max() == 1


def test_clipping_can_be_off():
    x_0 = sample(
        exact_eps("squaredcos_cap_v2", 3 * X_0), TEN, X_T, NOISE, sampler="ddim", clip=False
    )
    np.testing.assert_allclose(x_0, 3 * X_0, atol=1e-3)


@pytest.mark.parametrize("jit", [False, True])
def test_progress_counts_every_step(jit):
    steps = []

    def run(x_T):
        return sample(wavy, TEN, x_T, NOISE, sampler="ddpm", on_step=steps.append)

    (jax.jit(run) if jit else run)(X_T).block_until_ready()
    jax.effects_barrier()
    assert sorted(steps) == list(range(10))


def test_bfloat16_networks_are_sampled_in_float32():
    def half(x_t, t):
        return wavy(x_t, t).astype(jnp.bfloat16)

    assert sample(half, TEN, X_T, NOISE, sampler="ddpm").dtype == jnp.float32


def test_bad_settings_are_named():
    with pytest.raises(UserError, match="sampler 'euler' is unknown: use ddpm or ddim"):
        sample(wavy, TEN, X_T, NOISE, sampler="euler")
    with pytest.raises(UserError, match=r"eta \(1.5\) must be in \[0, 1\]"):
        sample(wavy, TEN, X_T, NOISE, sampler="ddim", eta=1.5)
