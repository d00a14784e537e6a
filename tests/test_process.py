"""Forward and reverse process against the properties of Gaussians."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glide_jax.diffusion.process import (
    eps_from_x_0,
    learned_log_variance,
    p_reverse,
    q_posterior,
    q_sample,
    split_output,
    x_0_from_eps,
)
from glide_jax.diffusion.schedule import SCHEDULES, Schedule

SCHEDULE = {name: Schedule.create(name) for name in SCHEDULES}
names = st.sampled_from(sorted(SCHEDULES))
rows = st.integers(0, 999)


def normal(seed, shape=(3, 4, 5, 2)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("name", SCHEDULES)
def test_q_sample_moments(name):
    x_0 = jnp.broadcast_to(jnp.array([-1.0, 0.3, 1.0])[:, None, None, None], (3, 100, 100, 1))
    t = jnp.array([0, 400, 999])
    x_t = np.asarray(q_sample(SCHEDULE[name], x_0, t, normal(0, x_0.shape)))
    alpha_bar = SCHEDULE[name].alpha_bar[np.asarray(t)]
    for i in range(3):
        sigma = np.sqrt(1 - alpha_bar[i])
        mean = np.sqrt(alpha_bar[i]) * float(x_0[i, 0, 0, 0])
        assert abs(x_t[i].mean() - mean) < 5 * sigma / 100  # five standard errors
        assert abs(x_t[i].std() - sigma) < 5 * sigma / np.sqrt(2 * 10_000)


@pytest.mark.parametrize("name", SCHEDULES)
def test_q_sample_is_the_chain_of_single_steps(name):
    """sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps_t, from x_0: mean and variance at every row."""
    schedule = SCHEDULE[name]
    mean, variance = 1.0, 0.0
    means, variances = [], []
    for beta in schedule.betas:
        mean *= np.sqrt(1 - beta)
        variance = (1 - beta) * variance + beta
        means.append(mean)
        variances.append(variance)
    t = jnp.arange(1000)
    ones, zeros = jnp.ones((1000, 1, 1, 1)), jnp.zeros((1000, 1, 1, 1))
    np.testing.assert_allclose(q_sample(schedule, ones, t, zeros).ravel(), means, rtol=1e-6)
    np.testing.assert_allclose(
        q_sample(schedule, zeros, t, ones).ravel(), np.sqrt(variances), rtol=1e-6
    )


@settings(max_examples=25)
@given(names, rows, st.integers(0, 9))
def test_eps_and_x_0_round_trip(name, row, seed):
    schedule, x_0, eps = SCHEDULE[name], jnp.tanh(normal(seed)), normal(seed + 100)
    t = jnp.full(3, row)
    x_t = q_sample(schedule, x_0, t, eps)
    # x_0 is known to float32's precision times the factor with which errors in x_t grow.
    error = 1e-6 * schedule.sqrt_recip_alpha_bar[row]
    np.testing.assert_allclose(x_0_from_eps(schedule, x_t, t, eps), x_0, rtol=0, atol=5 * error)
    error = 1e-6 / np.sqrt(1 - schedule.alpha_bar[row])
    np.testing.assert_allclose(eps_from_x_0(schedule, x_t, t, x_0), eps, rtol=0, atol=5 * error)


@settings(max_examples=25)
@given(names, st.integers(1, 999), st.integers(0, 9))
def test_posterior_is_bayes_rule(name, row, seed):
    """Up to a constant, q(x_{t-1} | x_t, x_0) is q(x_t | x_{t-1}) q(x_{t-1} | x_0)."""
    schedule, x_0, x_t = SCHEDULE[name], jnp.tanh(normal(seed)), normal(seed + 100)
    q = q_posterior(schedule, x_0, x_t, jnp.full(3, row))
    mean, variance = np.asarray(q.mean, float), np.exp(np.asarray(q.log_variance, float))
    beta, prev = schedule.betas[row], schedule.alpha_bar[row - 1]

    def log_density(x):
        forward = (np.asarray(x_t) - np.sqrt(1 - beta) * x) ** 2 / beta
        return -0.5 * (forward + (x - np.sqrt(prev) * np.asarray(x_0)) ** 2 / (1 - prev))

    # A normal density falls by exactly 1/2 at one standard deviation either side of its mean.
    for side in (-1, 1):
        drop = log_density(mean) - log_density(mean + side * np.sqrt(variance))
        np.testing.assert_allclose(drop, 0.5, atol=2e-3)


def test_posterior_at_row_0_is_x_0():
    x_0, x_t = normal(0), normal(1)
    q = q_posterior(SCHEDULE["linear"], x_0, x_t, jnp.zeros(3, jnp.int32))
    np.testing.assert_array_equal(q.mean, x_0)
    assert np.isfinite(q.log_variance).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_learned_variance_lies_between_beta_and_posterior(name):
    schedule = SCHEDULE[name]
    t = jnp.arange(1, 1000)

    def variance(v):
        v = jnp.full((999, 1, 1, 1), v)
        return np.exp(np.asarray(learned_log_variance(schedule, v, t)).ravel())

    np.testing.assert_allclose(variance(1.0), schedule.betas[1:], rtol=1e-5)
    np.testing.assert_allclose(variance(-1.0), schedule.posterior_variance[1:], rtol=1e-5)
    geometric = np.sqrt(schedule.betas * schedule.posterior_variance)[1:]
    np.testing.assert_allclose(variance(0.0), geometric, rtol=1e-5)


def test_p_with_the_true_eps_is_the_posterior():
    schedule, x_0, eps, v = (
        SCHEDULE["linear"],
        jnp.tanh(normal(0)),
        normal(1),
        -jnp.ones((3, 4, 5, 2)),
    )
    t = jnp.array([1, 30, 600])
    x_t = q_sample(schedule, x_0, t, eps)
    p = p_reverse(schedule, x_t, t, jnp.concatenate([eps, v], axis=-1))
    q = q_posterior(schedule, x_0, x_t, t)
    np.testing.assert_allclose(p.mean, q.mean, atol=1e-5)
    np.testing.assert_allclose(p.log_variance, jnp.broadcast_to(q.log_variance, (3, 4, 5, 2)))


def test_output_is_split_in_float32():
    out = jnp.concatenate([jnp.zeros((1, 2, 2, 3)), jnp.ones((1, 2, 2, 3))], axis=-1)
    eps, v = split_output(out.astype(jnp.bfloat16))
    assert eps.dtype == v.dtype == jnp.float32
    assert (eps == 0).all() and (v == 1).all()


def test_a_respaced_row_has_the_noise_of_its_original_step():
    whole, respaced = SCHEDULE["linear"], Schedule.create("linear", 1000, "10")
    x_0, eps, rows = jnp.tanh(normal(0)), normal(1), jnp.array([0, 3, 9])
    t = jnp.asarray(respaced.timestep_map, jnp.int32)[rows]
    np.testing.assert_array_equal(t, [0, 333, 999])
    ours, expected = q_sample(respaced, x_0, rows, eps), q_sample(whole, x_0, t, eps)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
