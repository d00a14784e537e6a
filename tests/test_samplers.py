"""Samplers against the algorithms of their papers, and on distributions that are known exactly."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.diffusion.guidance import classifier
from glide_jax.diffusion.loop import Hooks, per_image_noise, sample, trajectory
from glide_jax.diffusion.samplers import SAMPLERS, sampler_plan
from glide_jax.diffusion.schedule import SCHEDULES, Schedule

BENCHMARK = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "samplers.py"))
SEVEN = Schedule.create("squaredcos_cap_v2", 1000, "7")
MANY = jnp.asarray(  # x_T and 100 steps for 16,384 pixels
    np.random.default_rng(0).normal(size=(101, 16, 32, 32, 1)), jnp.float32
)
X_T = np.random.default_rng(0).normal(size=(2, 4, 4, 1))


@pytest.mark.parametrize(
    ("sampler", "least", "most"),
    [("ddim", 0.8, 1.2), ("heun", 1.8, 3.0), ("plms", 1.7, 4.0), ("dpmpp_2m", 1.8, 3.0)],
)
def test_order_of_convergence(sampler, least, most):
    """By the benchmark: the exact solution for a mixture's pixels is its quantiles."""
    few, many = (
        BENCHMARK["error"](sampler, Schedule.create("linear", 1000, f"karras{steps}"))
        for steps in (12, 36)
    )
    assert least < np.log(few / many) / np.log(3) < most, (few, many)


def noise(k):
    return MANY[k]


def denoise(x_t, t):
    """A denoiser that changes slowly from step to step."""
    eps = jnp.sin(x_t) + jnp.cos(t / 300)[:, None, None, None]
    return jnp.concatenate([eps, eps], axis=-1)


def eps_at(x_t, row):
    """As `denoise`."""
    return np.sin(x_t) + np.cos(SEVEN.timestep_map[row] / 300)


def alpha_sigma(row):
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar); row -1 is the image."""
    alpha_bar = np.append(SEVEN.alpha_bar, 1.0)[row]
    return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)


def euler(x, row, eps):
    """A step in x / alpha against sigma / alpha, to the row before."""
    (alpha, noise), (alpha_prev, noise_prev) = alpha_sigma(row), alpha_sigma(row - 1)
    return alpha_prev * (x / alpha + (noise_prev / alpha_prev - noise / alpha) * eps)


def by_euler():
    x = X_T
    for row in range(6, -1, -1):
        x = euler(x, row, eps_at(x, row))
        yield x


def by_heun():
    x = X_T
    for row in range(6, -1, -1):
        eps = eps_at(x, row)
        end = euler(x, row, eps)
        if row not in (0, 6):
            end = euler(x, row, (eps + eps_at(end, row - 1)) / 2)
        x = end
        yield x


def by_plms():
    x, seen = X_T, []
    for row in range(6, -1, -1):
        seen.insert(0, eps_at(x, row))
        weights = {
            1: [1],
            2: [3 / 2, -1 / 2],
            3: [23 / 12, -16 / 12, 5 / 12],
        }.get(len(seen), [55 / 24, -59 / 24, 37 / 24, -9 / 24])
        if row == 0:
            weights = [1]
        x = euler(x, row, sum(w * eps for w, eps in zip(weights, seen, strict=False)))
        yield x


def by_dpmpp_2m():
    x, before, h_before = X_T, X_T, 1.0
    for row in range(6, -1, -1):
        alpha, noise = alpha_sigma(row)
        alpha_prev, noise_prev = alpha_sigma(row - 1)
        x_0 = guess = (x - noise * eps_at(x, row)) / alpha
        if row > 0:
            h = np.log(alpha_prev / noise_prev) - np.log(alpha / noise)
            if row not in (1, 6):
                ratio = h_before / h
                guess = (1 + 1 / (2 * ratio)) * x_0 - before / (2 * ratio)
            x = noise_prev / noise * x - alpha_prev * np.expm1(-h) * guess
            h_before = h
        else:
            x = x_0
        before = x_0
        yield x


@pytest.mark.parametrize(
    ("sampler", "reference"),
    [("ddim", by_euler), ("heun", by_heun), ("plms", by_plms), ("dpmpp_2m", by_dpmpp_2m)],
)
def test_every_step_is_that_of_the_paper(sampler, reference):
    """In NumPy and float64. The first: DDIM is Euler's method."""
    plan, x_T = sampler_plan(sampler, SEVEN), jnp.asarray(X_T, jnp.float32)
    ours, _ = trajectory(denoise, plan, x_T, jnp.zeros_like, Hooks(threshold=None))
    for mine, expected in zip(ours, reference(), strict=True):
        np.testing.assert_allclose(mine, expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_plans_visit_every_row(sampler, steps):
    schedule = Schedule.create("linear", 1000, str(steps))
    plan = sampler_plan(sampler, schedule)
    calls = max(2 * steps - 2, 1) if sampler == "heun" else steps
    assert plan.calls == len(plan.rows) == len(plan.step_of_call) == calls
    assert sorted(set(plan.rows)) == sorted(set(plan.step_of_call)) == list(range(steps))
    assert (np.diff(plan.rows) <= 0).all() and (np.diff(plan.step_of_call) >= 0).all()
    assert all(len(table) == calls for table in plan.coefficients.values())
    assert all(np.isfinite(table).all() for table in plan.coefficients.values())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_program_holds_one_denoiser(sampler):
    """Also with two calls a step: compiling a large network twice takes too long."""
    program = jax.make_jaxpr(
        lambda x_T: sample(denoise, sampler_plan(sampler, SEVEN), x_T, jnp.zeros_like)
    )(jnp.asarray(X_T, jnp.float32))
    assert str(program).count(" = sin ") == 1


def test_ddpm_of_a_gaussian_is_exact_in_any_number_of_steps():
    """p(x_{t-1} | x_t) is then normal, so the exact mean and variance at each step leave no error.

    The last step returns the mean, which lacks the variance of x_0 given the last x_t.
    """
    mean, std = -0.2, 0.15
    for steps in ("5", "40"):
        schedule = Schedule.create("linear", 1000, steps)
        denoise = BENCHMARK["gaussian_mixture"](schedule, *np.array([[1.0], [mean], [std]]))
        x_T = MANY[-1]
        x_0 = sample(denoise, sampler_plan("ddpm", schedule), x_T, noise, Hooks(threshold=None))
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
            BENCHMARK["gaussian_mixture"](schedule, weights, means, stds),
            sampler_plan(sampler, schedule, eta),
            MANY[-1],
            noise,
        )
    )
    mean = weights @ means
    std = np.sqrt(weights @ (stds**2 + means**2) - mean**2)
    left, right = x_0[x_0 < -0.25], x_0[x_0 > -0.25]
    assert abs(x_0.mean() - mean) < 0.02
    assert abs(x_0.std() - std) < 0.02
    assert abs(left.size / x_0.size - weights[0]) < 0.02
    assert abs(left.mean() - means[0]) < 0.01 and abs(right.mean() - means[1]) < 0.02
    assert abs(left.std() - stds[0]) < 0.015 and abs(right.std() - stds[1]) < 0.015


@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", "100"), ("ddim", "100"), ("heun", "25")])
def test_guidance_by_a_classifier_multiplies_its_probability(sampler, steps):
    """A normal distribution times a normal likelihood of x_0 is normal, with a known mean.

    Given x_t, x_0 is normal too, so log p(y | x_t) is known exactly.
    """
    name = "squaredcos_cap_v2"
    mean, std, y, deviation = -0.1, 0.2, 0.3, 0.25
    whole, schedule = Schedule.create(name), Schedule.create(name, 1000, steps)

    def log_prob(x_t, t):
        alpha_bar = jnp.asarray(whole.alpha_bar, jnp.float32)[t][:, None, None, None]
        shrink = jnp.sqrt(alpha_bar) * std**2 / (alpha_bar * std**2 + 1 - alpha_bar)
        x_0 = mean + shrink * (x_t - jnp.sqrt(alpha_bar) * mean)
        variance = std**2 * (1 - jnp.sqrt(alpha_bar) * shrink) + deviation**2
        return -0.5 * (jnp.square(y - x_0) / variance).sum(axis=(1, 2, 3))

    x_0 = sample(
        BENCHMARK["gaussian_mixture"](schedule, *np.array([[1.0], [mean], [std]])),
        sampler_plan(sampler, schedule),
        MANY[-1],
        noise,
        Hooks(threshold=None, gradient=classifier(log_prob)),
    )
    precisions = np.array([std**-2, deviation**-2])
    expected = precisions @ [mean, y] / precisions.sum()
    assert abs(x_0.mean() - expected) < 0.01
    assert abs(x_0.std() - precisions.sum() ** -0.5) < 0.01


@pytest.mark.parametrize(("sampler", "eta"), [*((name, 0.0) for name in SAMPLERS), ("ddim", 0.7)])
def test_only_stochastic_samplers_draw_random_numbers(sampler, eta):
    keys = jax.random.split(jax.random.key(0), 2)
    plan, draw = sampler_plan(sampler, SEVEN, eta), per_image_noise(keys, X_T.shape[1:])
    x_T = jnp.asarray(X_T, jnp.float32)
    program = jax.make_jaxpr(lambda x_T: sample(denoise, plan, x_T, draw))(x_T)
    assert ("random_bits" in str(program)) == (sampler == "ddpm" or eta > 0)
