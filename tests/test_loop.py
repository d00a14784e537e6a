"""The sampling loop with denoisers that are known exactly."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glide_jax.diffusion.guidance import classifier_free
from glide_jax.diffusion.loop import (
    Calls,
    Hooks,
    advance,
    begin,
    dynamic_threshold,
    initial_noise,
    invert,
    per_image_noise,
    sample,
    trajectory,
)
from glide_jax.diffusion.process import q_sample
from glide_jax.diffusion.samplers import SAMPLERS, sampler_plan
from glide_jax.diffusion.schedule import SCHEDULES, Schedule
from glide_jax.errors import UserError

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "samplers.py"
gaussian_mixture = runpy.run_path(str(BENCHMARK))["gaussian_mixture"]
SHAPE = (8, 6, 3)
RNG = np.random.default_rng(0)
X_T = jnp.asarray(RNG.normal(size=(4, *SHAPE)), jnp.float32)
X_0 = jnp.asarray(np.tanh(RNG.normal(size=(4, *SHAPE))), jnp.float32)


def recorded(noise):
    """Precomputed noise, (s, b, h, w, c): a loop without a generator compiles faster."""
    noise = jnp.asarray(noise, jnp.float32)
    return lambda k: noise[k]


STEP_NOISE = RNG.normal(size=(60, 4, *SHAPE))
NOISE = recorded(STEP_NOISE)
FULL = {name: Schedule.create(name) for name in SCHEDULES}


def column(table, t):
    return jnp.asarray(table, jnp.float32)[t][:, None, None, None]


def exact_eps(name, x_0, v=-1.0):
    """The denoiser of a data set of x_0 alone."""

    def denoise(x_t, t):
        alpha_bar = FULL[name].alpha_bar
        eps = (x_t - column(np.sqrt(alpha_bar), t) * x_0) / column(np.sqrt(1 - alpha_bar), t)
        return jnp.concatenate([eps, jnp.full_like(eps, v)], axis=-1)

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
    alpha_bar = schedule.alpha_bar[::-1]  # from the first call to the last
    first, after = alpha_bar[0], alpha_bar[1:, None, None, None, None]
    x_T = jnp.float32(np.sqrt(first)) * X_0 + jnp.float32(np.sqrt(1 - first)) * X_T
    x, _ = trajectory(exact_eps(name, X_0), sampler_plan("ddim", schedule), x_T, NOISE)
    np.testing.assert_allclose(x[-1], X_0, atol=2e-4)
    on_the_way = np.sqrt(after) * np.asarray(X_0) + np.sqrt(1 - after) * np.asarray(X_T)
    error = np.abs(x[:-1] - on_the_way).max((1, 2, 3, 4), initial=0)
    # float32 rounds x_t and sqrt(1 - alpha_bar) eps by half an ulp in each of a few operations; the
    # division by sqrt(alpha_bar) amplifies that in x_0 (20,000 times at t = 999 of
    # squaredcos_cap_v2), and the next x_t has it times its own sqrt(alpha_bar). It stays in eps.
    rounding = np.finfo(np.float32).epsneg * float(jnp.abs(X_T).max())
    amplified = np.cumsum(np.sqrt(alpha_bar[1:] / alpha_bar[:-1]))
    assert (error <= 4 * rounding * amplified).all(), error / (rounding * amplified)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("respacing", ["1", "karras1", "2", "4", "fast27"])
def test_exact_eps_gives_x_0(sampler, respacing):
    schedule = Schedule.create("squaredcos_cap_v2", 1000, respacing)
    denoise = exact_eps("squaredcos_cap_v2", X_0)
    x_0 = sample(denoise, sampler_plan(sampler, schedule, 0.6), X_T, NOISE)
    np.testing.assert_allclose(x_0, X_0, atol=1e-3)


def wavy(x_t, t):
    """A denoiser of no data set, whose prediction changes at every step."""
    phase = t[:, None, None, None] / 100
    return jnp.concatenate([jnp.sin(3 * x_t + phase), jnp.cos(2 * x_t - phase)], axis=-1)


TEN = Schedule.create("squaredcos_cap_v2", 1000, "10")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(sampler):
    def samples(keys):
        x_T, noise = initial_noise(keys, SHAPE), per_image_noise(keys, SHAPE)
        return sample(wavy, sampler_plan(sampler, TEN, 0.7), x_T, noise)

    keys = jax.random.split(jax.random.key(1), 3)
    together, alone = samples(keys), samples(keys[1:2])
    np.testing.assert_allclose(alone[0], together[1], atol=1e-5)
    assert jnp.abs(together[0] - together[1]).max() > 0.1


def test_noise_differs_between_images_steps_and_the_start():
    keys, shape = jax.random.split(jax.random.key(0), 4), (40, 40, 3)
    noise = per_image_noise(keys, shape)
    draws = jnp.stack([initial_noise(keys, shape), noise(jnp.int32(0)), noise(jnp.int32(1))])
    assert abs(draws.mean()) < 0.02 and abs(draws.std() - 1) < 0.02
    correlation = np.corrcoef(draws.reshape(12, -1)) - np.eye(12)
    assert np.abs(correlation).max() < 0.07  # a standard error is 0.014


def test_only_stochastic_steps_use_noise():
    def run(scale_first_nine, scale_last, sampler, eta):
        scale = np.array([scale_first_nine] * 9 + [scale_last]).reshape(10, 1, 1, 1, 1)
        noise = recorded(scale * STEP_NOISE[:10])
        return np.asarray(sample(wavy, sampler_plan(sampler, TEN, eta), X_T, noise))

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

    ddim, _ = trajectory(smallest, sampler_plan("ddim", TEN, 1.0), X_T, NOISE)
    ddpm, _ = trajectory(smallest, sampler_plan("ddpm", TEN), X_T, NOISE)
    np.testing.assert_allclose(ddim, ddpm, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trajectory_ends_where_sample_does(sampler):
    plan = sampler_plan(sampler, TEN)
    x, x_0 = trajectory(wavy, plan, X_T, NOISE)
    assert x.shape == x_0.shape == (10, 4, *SHAPE)
    np.testing.assert_allclose(sample(wavy, plan, X_T, NOISE), x[-1], rtol=0, atol=1e-6)
    # The last step's coefficients are 1 and 0, up to their rounding to float32.
    np.testing.assert_allclose(x[-1], x_0[-1], rtol=0, atol=1e-6)
    assert jnp.abs(x_0).max() <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_known_pixels_stay(sampler):
    mask = (jnp.arange(SHAPE[1]) < 3)[None, None, :, None]

    def run(image):
        hooks = Hooks(on_x_0=lambda x_0: jnp.where(mask, image, x_0))
        return trajectory(wavy, sampler_plan(sampler, TEN), X_T, NOISE, hooks)

    x, x_0 = run(X_0)
    known = jnp.broadcast_to(mask, x_0[0].shape)
    np.testing.assert_array_equal(x[-1][known], X_0[known])
    np.testing.assert_array_equal(x_0[:, known], jnp.broadcast_to(X_0[known], (10, known.sum())))
    # The hook comes last: a threshold that scales images does not change known pixels.
    np.testing.assert_array_equal(run(2 * X_0)[1][:, known], 2 * x_0[:, known])


def test_thresholding_can_be_off():
    denoise = exact_eps("squaredcos_cap_v2", 3 * X_0)
    x_0 = sample(denoise, sampler_plan("ddim", TEN), X_T, NOISE, Hooks(threshold=None))
    np.testing.assert_allclose(x_0, 3 * X_0, atol=1e-3)


def test_dynamic_threshold_scales_only_images_that_leave_the_range():
    """Against NumPy's percentile, image by image."""
    x_0 = np.array(3 * X_0)
    x_0[0] /= 3.1
    ours = np.asarray(dynamic_threshold(0.9)(jnp.asarray(x_0)))
    np.testing.assert_array_equal(ours[0], x_0[0])
    for image, thresholded in zip(x_0[1:], ours[1:], strict=True):
        s = np.percentile(np.abs(image), 90)
        assert s > 1
        np.testing.assert_allclose(thresholded, np.clip(image, -s, s) / s, rtol=1e-5)
    static = np.asarray(dynamic_threshold(0.0)(jnp.asarray(0.9 * x_0)))
    assert static.max() <= 1 and static.min() >= -1


def test_the_sampler_uses_the_thresholded_x_0():
    plan = sampler_plan("ddim", TEN)
    _, half = trajectory(wavy, plan, X_T, NOISE, Hooks(threshold=lambda x_0: x_0 / 2))
    _, none = trajectory(wavy, plan, X_T, NOISE, Hooks(threshold=None))
    np.testing.assert_allclose(half[0], none[0] / 2, rtol=1e-5)
    assert jnp.abs(half[-1] - none[-1] / 2).max() > 0.1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_starting_in_the_middle_gives_x_0(sampler):
    """SDEdit, from the true image."""
    part = Schedule.create("squaredcos_cap_v2", 1000, "12").first(5)
    assert part.timestep_map.tolist() == [0, 91, 182, 272, 363]
    x_t = q_sample(part, X_0, jnp.full(4, 4), X_T)
    denoise = exact_eps("squaredcos_cap_v2", X_0)
    x_0 = sample(denoise, sampler_plan(sampler, part), x_t, NOISE)
    np.testing.assert_allclose(x_0, X_0, atol=1e-4)


def test_starting_in_the_middle_continues_the_trajectory():
    x, _ = trajectory(wavy, sampler_plan("ddim", TEN), X_T, NOISE)
    rest, _ = trajectory(wavy, sampler_plan("ddim", TEN.first(4)), x[5], NOISE)
    np.testing.assert_allclose(rest, x[6:], atol=1e-5)
    for rows in (0, 11):
        with pytest.raises(UserError, match=f"cannot take {rows} of 10 steps"):
            TEN.first(rows)


def test_ddim_returns_to_an_inverted_image():
    """More closely with more steps: both directions are of first order."""
    whole = FULL["linear"]
    denoise = gaussian_mixture(whole, *np.array([[0.3, 0.7], [-0.5, 0.4], [0.3, 0.3]]))
    errors, codes = [], []
    for steps in ("20", "40", "80"):
        schedule = Schedule.create("linear", 1000, steps)
        codes.append(invert(denoise, schedule, 0.5 * X_0))
        plan = sampler_plan("ddim", schedule)
        back = sample(denoise, plan, codes[-1], NOISE, Hooks(threshold=None))
        errors.append(float(jnp.abs(back - 0.5 * X_0).mean()))
    assert errors[0] / errors[2] > 3 and errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.03
    assert jnp.abs(codes[2] - codes[1]).mean() < jnp.abs(codes[1] - codes[0]).mean()


def test_inversion_in_one_step():
    one = Schedule.create("squaredcos_cap_v2", 1000, "karras1")
    denoise = exact_eps("squaredcos_cap_v2", X_0)
    x_T = invert(denoise, one, X_0)
    back = sample(denoise, sampler_plan("ddim", one), x_T, NOISE)
    np.testing.assert_allclose(back, X_0, atol=1e-4)


def test_classifier_free_guidance_and_a_gradient_add_up():
    """In eps, and x_0 follows out of range. The gradient takes original step indices."""
    seen = []

    def two_captions(x_t, t):
        caption = jnp.where(jnp.arange(len(t)) < len(t) // 2, 0, 90)
        return wavy(x_t, t + caption)

    def gradient(x_t, t):
        jax.debug.callback(lambda t: seen.append(int(t[0])), t)
        return 0.5 * jnp.cos(x_t)

    guided = classifier_free(two_captions, 2.0)

    def shifted(x_t, t):
        eps, v = jnp.split(guided(x_t, t), 2, axis=-1)
        noise = column(np.sqrt(1 - FULL["squaredcos_cap_v2"].alpha_bar), t)
        return jnp.concatenate([eps - noise * 0.5 * jnp.cos(x_t), v], axis=-1)

    def run(denoise, gradient=None):
        hooks = Hooks(threshold=None, gradient=gradient)
        return trajectory(denoise, sampler_plan("ddim", TEN), X_T, NOISE, hooks)

    for both, expected in zip(run(guided, gradient), run(shifted), strict=True):
        np.testing.assert_allclose(both, expected, rtol=1e-3, atol=1e-3)
    jax.effects_barrier()
    assert sorted(seen) == TEN.timestep_map.tolist()
    _, x_0 = trajectory(guided, sampler_plan("ddim", TEN), X_T, NOISE, Hooks(gradient=gradient))
    assert jnp.abs(x_0).max() > 1


def test_ddpm_adds_variance_times_gradient_to_the_mean_only():
    one = TEN.first(1)  # its step adds no noise; variance and v are known
    plan = sampler_plan("ddpm", one)
    plain_x, plain_x_0 = trajectory(wavy, plan, X_T, NOISE)
    hooks = Hooks(gradient=lambda x_t, t: jnp.full_like(x_t, 100.0))
    x, x_0 = trajectory(wavy, plan, X_T, NOISE, hooks)
    np.testing.assert_array_equal(x_0, plain_x_0)
    np.testing.assert_allclose((x - plain_x)[0], 100 * one.betas[0], rtol=2e-2)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampling_in_parts_changes_nothing(sampler):
    plan = sampler_plan(sampler, TEN)
    whole = jax.jit(lambda x_T: sample(wavy, plan, x_T, NOISE))(X_T)

    @jax.jit
    def part(state, calls, count):
        return advance(wavy, plan.solver, state, calls, NOISE, count=count)

    calls, state = Calls.of(plan), begin(X_T, plan.solver.history)
    for first in range(0, plan.calls, 4):  # the rows after the last call are not run
        count = min(plan.calls - first, 4)
        state = part(state, calls.part(first, count, length=4), count)
    np.testing.assert_allclose(state.x_t, whole, rtol=0, atol=1e-5)


def test_bfloat16_networks_are_sampled_in_float32():
    def half(x_t, t):
        return wavy(x_t, t).astype(jnp.bfloat16)

    assert sample(half, sampler_plan("ddpm", TEN), X_T, NOISE).dtype == jnp.float32


def test_bad_settings_are_named():
    with pytest.raises(
        UserError, match="sampler 'euler' is unknown: use ddpm, ddim, heun, plms or dpm"
    ):
        sampler_plan("euler", TEN)
    with pytest.raises(UserError, match=r"eta \(1.5\) must be in \[0, 1\]"):
        sampler_plan("ddim", TEN, 1.5)
    with pytest.raises(UserError, match=r"threshold \(99.5\) must be a fraction in \[0, 1\]"):
        dynamic_threshold(99.5)
