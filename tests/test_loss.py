"""The loss against the released code, and the properties of a bound on a likelihood."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glide_jax.diffusion.loss import (
    discretized_log_likelihood,
    hybrid_loss,
    kl_divergence,
    min_snr_weights,
    variational_bound,
)
from glide_jax.diffusion.parameterization import Correction, Noise, Velocity
from glide_jax.diffusion.process import (
    Gaussian,
    eps_from_x_0,
    q_posterior,
    q_sample,
)
from glide_jax.diffusion.schedule import SCHEDULES, Schedule

GOLDEN = np.load(Path(__file__).parent / "golden" / "losses.npz")
SHAPE = (4, 6, 5, 3)


def golden(name, kind):
    inputs = [jnp.asarray(GOLDEN[f"{name}/{kind}/{f}"]) for f in ("x0", "noise", "t", "model_out")]
    return [*inputs, {f: GOLDEN.get(f"{name}/{kind}/{f}") for f in ("loss", "mse", "vb")}]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", ["MSE", "RESCALED_MSE"])
def test_golden_hybrid(name, kind):
    x_0, eps, t, out, expected = golden(name, kind)
    loss, mse, vb = loss_of(Schedule.create(name), out, x_0, t, eps)
    # The two kinds differ in vb's weight, 1 and T/1000: the same for T = 1000.
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(mse, expected["mse"], rtol=1e-5)
    np.testing.assert_allclose(vb, expected["vb"], rtol=1e-4)


def test_a_fixed_variance_has_no_loss():
    x_0, eps, t, out, expected = golden("linear", "MSE")
    schedule = Schedule.create("linear")
    found = loss_in(Noise(schedule), out, x_0, t, eps, learned_variance=False)
    np.testing.assert_allclose(found.loss, expected["mse"], rtol=1e-5)
    np.testing.assert_allclose(found.vb, expected["vb"], rtol=1e-4)


@partial(jax.jit, static_argnums=0)
def bound_of(schedule, x_0, t, eps, out):
    return variational_bound(schedule, x_0, q_sample(schedule, x_0, t, eps), t, out)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("kind", "weight"), [("KL", 1), ("RESCALED_KL", 1000)])
def test_golden_bound(name, kind, weight):
    x_0, eps, t, out, expected = golden(name, kind)
    schedule = Schedule.create(name)
    vb = bound_of(schedule, x_0, t, eps, out)
    np.testing.assert_allclose(weight * vb, expected["loss"], rtol=1e-4)


@partial(jax.jit, static_argnums=0)
def loss_of(schedule, out, x_0, t, eps):
    """`hybrid_loss` of a network that predicts eps."""
    return loss_in(Noise(schedule), out, x_0, t, eps)


def loss_in(parameterization, out, x_0, t, eps, weights=None, **options):
    @jax.jit  # one program instead of one for every operation
    def loss(x_0, t, eps, out):
        x_t = q_sample(parameterization.schedule, x_0, t, eps)
        return hybrid_loss(parameterization, x_0, t, eps, x_t, out, weights, **options)

    return loss(x_0, t, eps, out)


def batch():
    """x_0 on 8-bit levels, eps, and the output of an untrained network."""
    rng = np.random.default_rng(0)
    x_0 = rng.integers(0, 256, SHAPE) / 127.5 - 1
    arrays = x_0, rng.normal(size=SHAPE), rng.normal(size=(*SHAPE[:3], 6))
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


def test_weight_follows_the_number_of_steps():
    x_0, eps, out = batch()
    t = jnp.array([0, 1, 100, 249])
    loss = loss_of(Schedule.create("linear", 250), out, x_0, t, eps)
    np.testing.assert_allclose(loss.loss, loss.mse + 0.25 * loss.vb, rtol=1e-6)


def test_velocity_weights_measure_the_error_of_the_velocity():
    x_0, eps, out = batch()
    schedule = Schedule.create("squaredcos_cap_v2")
    t = jnp.array([0, 100, 500, 900])
    alpha_bar = schedule.alpha_bar[np.asarray(t)][:, None, None, None]
    v = np.sqrt(alpha_bar) * eps - np.sqrt(1 - alpha_bar) * x_0
    expected = np.mean((v - out[..., :3]) ** 2, (1, 2, 3))
    velocity = Velocity(schedule)
    as_eps = velocity.denoiser(lambda x_t, t: out)(q_sample(schedule, x_0, t, eps), t)
    loss = loss_in(Noise(schedule), as_eps, x_0, t, eps, velocity.weights)
    np.testing.assert_allclose(loss.loss - loss.vb, expected, rtol=1e-3, atol=1e-5)


ENDS_IN_NOISE = [Schedule.create(name, 1000, zero_terminal_snr=True) for name in SCHEDULES]


def loss_of_velocity(schedule, out, x_0, t, eps):
    return loss_in(Velocity(schedule), out, x_0, t, eps)


def true_velocity(schedule, x_0, t, eps):
    """In float64."""
    alpha_bar = schedule.alpha_bar[np.asarray(t)][:, None, None, None]
    return np.sqrt(alpha_bar) * np.float64(eps) - np.sqrt(1 - alpha_bar) * np.float64(x_0)


@pytest.mark.parametrize("schedule", ENDS_IN_NOISE)
@pytest.mark.parametrize("error", [1e-2, 1.0])
def test_loss_of_a_velocity_is_exact_down_to_no_signal(schedule, error):
    x_0, eps, out = batch()
    t = jnp.array([0, 500, 998, 999])
    v = true_velocity(schedule, x_0, t, eps)
    v_hat = jnp.asarray(v + error * np.asarray(out[..., :3]), jnp.float32)
    out = jnp.concatenate([v_hat, out[..., 3:]], axis=-1)
    expected = np.mean((v - np.float64(v_hat)) ** 2, (1, 2, 3))
    weights = Velocity(schedule).weights

    @jax.jit
    def losses(out):
        return loss_of_velocity(schedule, out, x_0, t, eps)

    loss = losses(out)
    # v, up to 4, is rounded to 2.4e-7: against an error of 0.01 a share of 5e-5 of its square, and
    # less on average.
    rtol = 1e-6 / error + 2e-6
    np.testing.assert_allclose(weights[np.asarray(t)] * loss.mse, expected, rtol=rtol)
    np.testing.assert_allclose(loss.loss, weights[np.asarray(t)] * loss.mse + loss.vb, rtol=1e-6)
    gradient = jax.grad(lambda out: losses(out).loss.sum())(out)
    of_squares = 2 * (np.float64(v_hat) - v) / v[0].size
    np.testing.assert_allclose(gradient[..., :3], of_squares, rtol=1e-4, atol=1e-6 / v[0].size)
    assert np.isfinite(gradient).all() and np.isfinite(loss.vb).all()


@pytest.mark.parametrize("schedule", ENDS_IN_NOISE)
def test_a_perfect_velocity_has_no_loss_down_to_no_signal(schedule):
    x_0, eps, _ = batch()
    t = jnp.array([1, 500, 998, 999])
    v = jnp.asarray(true_velocity(schedule, x_0, t, eps), jnp.float32)
    out = jnp.concatenate([v, -jnp.ones(SHAPE)], axis=-1)
    loss = loss_of_velocity(schedule, out, x_0, t, eps)
    np.testing.assert_allclose(loss.loss, 0, atol=1e-5)


def test_a_velocity_has_the_loss_of_its_denoiser():
    """At t where float32 still resolves eps's error."""
    x_0, eps, out = batch()
    schedule, t = Schedule.create("linear", zero_terminal_snr=True), jnp.array([0, 1, 300, 700])
    velocity = Velocity(schedule)
    as_eps = velocity.denoiser(lambda x_t, t: out)(q_sample(schedule, x_0, t, eps), t)
    expected = loss_in(Noise(schedule), as_eps, x_0, t, eps, velocity.weights)
    for ours, theirs in zip(loss_of_velocity(schedule, out, x_0, t, eps), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["x_0", "eps", "v"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_clamps_the_weight_of_the_error_of_x_0(prediction, gamma):
    """min(SNR, gamma) |x_0 - x_0_hat|^2 of each network's x_0, in float64."""
    x_0, eps, out = batch()
    schedule, t = Schedule.create("linear"), jnp.array([20, 200, 400, 800])
    alpha_bar = schedule.alpha_bar[np.asarray(t)][:, None, None, None]
    signal, noise = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    x_t = signal * np.float64(x_0) + noise * np.float64(eps)
    predicted = np.float64(out[..., :3])
    x_0_hat = {
        "x_0": predicted,
        "eps": (x_t - noise * predicted) / signal,
        "v": signal * x_t - noise * predicted,
    }[prediction]
    snr = (signal**2 / noise**2).ravel()
    assert snr[0] > 5 and snr[-1] < 1
    expected = np.minimum(snr, gamma) * np.mean((x_0 - x_0_hat) ** 2, (1, 2, 3))

    if prediction == "x_0":
        eps_hat = eps_from_x_0(schedule, jnp.float32(x_t), t, out[..., :3])
        out = jnp.concatenate([eps_hat, out[..., 3:]], axis=-1)
    kind = Velocity if prediction == "v" else Noise
    loss = loss_in(kind(schedule), out, x_0, t, eps, min_snr_weights(schedule, gamma))
    np.testing.assert_allclose(loss.loss - loss.vb, expected, rtol=1e-3)


@pytest.mark.parametrize("schedule", ENDS_IN_NOISE)
def test_min_snr_weights_are_finite_and_rise_to_one(schedule):
    weights = min_snr_weights(schedule)
    assert (weights > 0).all() and (np.diff(weights) >= 0).all() and weights[-1] == 1
    # The weight of v's error is 0 in pure noise, and largest where SNR is gamma.
    of_v = weights / Velocity(schedule).weights
    assert of_v[-1] < 1e-7 and abs(of_v.max() - 5 / 6) < 1e-2


def test_bound_trains_only_the_variance():
    x_0, eps, out = batch()
    schedule, t = Schedule.create("squaredcos_cap_v2"), jnp.array([0, 1, 500, 999])

    def total(part):
        return jax.grad(lambda out: getattr(loss_of(schedule, out, x_0, t, eps), part).sum())(out)

    np.testing.assert_array_equal(total("vb")[..., :3], 0)
    np.testing.assert_array_equal(total("mse")[..., 3:], 0)
    assert (jnp.abs(total("vb")[..., 3:]).sum((1, 2, 3)) > 0).all()
    np.testing.assert_allclose(total("loss")[..., :3], total("mse")[..., :3])
    assert np.isfinite(total("loss")).all()


def test_a_perfect_denoiser_has_no_loss_above_row_0():
    x_0, eps, _ = batch()
    out = jnp.concatenate([eps, -jnp.ones(SHAPE)], axis=-1)
    t = jnp.array([1, 10, 300, 900])
    loss = loss_of(Schedule.create("linear"), out, x_0, t, eps)
    np.testing.assert_array_equal(loss.mse, 0)
    np.testing.assert_allclose(loss.vb, 0, atol=1e-5)


def test_loss_is_float32_for_any_network_dtype():
    x_0, eps, out = batch()
    schedule, t = Schedule.create("linear"), jnp.array([0, 5, 500, 999])
    half = out.astype(jnp.bfloat16)
    loss = loss_of(schedule, half, x_0, t, eps)
    same = loss_of(schedule, half.astype(jnp.float32), x_0, t, eps)
    for part, expected in zip(loss, same, strict=True):
        assert part.dtype == jnp.float32
        np.testing.assert_array_equal(part, expected)


@settings(max_examples=25)
@given(st.floats(-1.3, 1.3), st.floats(-9, 2))
def test_levels_are_a_distribution(mean, log_variance):
    levels = jnp.arange(256).reshape(1, 16, 16, 1) / 127.5 - 1
    p = Gaussian(jnp.full(levels.shape, mean), jnp.full(levels.shape, log_variance))
    probability = np.exp(discretized_log_likelihood(levels, p))
    assert abs(probability.sum() - 1) < 1e-4
    assert (probability > 0).all()


@settings(max_examples=25)
@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(-3, 3), st.floats(-3, 3))
def test_kl_is_the_integral(mean_q, mean_p, log_variance_q, log_variance_p):
    def gaussian(mean, log_variance):
        return Gaussian(jnp.full((1, 1, 1, 1), mean), jnp.full((1, 1, 1, 1), log_variance))

    def log_density(x, mean, log_variance):
        return -0.5 * ((x - mean) ** 2 * np.exp(-log_variance) + log_variance + np.log(2 * np.pi))

    x = mean_q + np.exp(log_variance_q / 2) * np.linspace(-10, 10, 4001)
    log_q = log_density(x, mean_q, log_variance_q)
    expected = np.trapezoid(np.exp(log_q) * (log_q - log_density(x, mean_p, log_variance_p)), x)
    kl = kl_divergence(gaussian(mean_q, log_variance_q), gaussian(mean_p, log_variance_p))
    np.testing.assert_allclose(kl.item(), expected, rtol=1e-4, atol=1e-5)


def test_bound_is_kl_of_the_posterior_where_the_mean_is_off():
    """For v = -1 both variances are beta~, and KL = (difference of means)^2 / (2 beta~)."""
    x_0, eps, out = batch()
    schedule, t = Schedule.create("linear"), jnp.array([1, 20, 300, 999])
    x_t = q_sample(schedule, x_0, t, eps)
    eps_hat = eps + 0.1 * out[..., :3]
    frozen = jnp.concatenate([eps_hat, -jnp.ones(SHAPE)], axis=-1)
    x_0_hat = x_0 - schedule.sqrt_recipm1_alpha_bar[np.asarray(t)].reshape(4, 1, 1, 1).astype(
        np.float32
    ) * (eps_hat - eps)
    off = q_posterior(schedule, x_0_hat, x_t, t).mean - q_posterior(schedule, x_0, x_t, t).mean
    nats = np.mean(np.square(off), (1, 2, 3)) / (2 * schedule.posterior_variance[np.asarray(t)])
    vb = variational_bound(schedule, x_0, x_t, t, frozen)
    np.testing.assert_allclose(vb, nats / np.log(2), rtol=1e-2)


@pytest.mark.parametrize("std", [0.07, 0.5])
def test_correction_weights_measure_the_error_of_the_correction(std):
    schedule = Schedule.create("linear")
    t = jnp.array([0, 17, 500, 999])
    rng = np.random.default_rng(0)
    guess, rho, eps = (jnp.asarray(rng.normal(size=(4, 5, 5, 3)), jnp.float32) for _ in range(3))
    alpha_bar = schedule.alpha_bar[np.asarray(t)][:, None, None, None]
    a, s = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    target = (a * std * eps - s * rho) / np.sqrt(a**2 * std**2 + s**2)
    out = jnp.concatenate([jnp.float32(target + 0.5), 0 * guess], -1)
    ours = Correction(schedule, guess, std)
    found = loss_in(ours, out, guess + std * rho, t, eps)
    np.testing.assert_allclose(found.loss - schedule.steps / 1000 * found.vb, 0.25, rtol=1e-3)

    # The loss of the velocity that the correction adds up to, with the same weights.
    x_t = q_sample(schedule, guess + std * rho, t, eps)
    v = ours.velocity(out[..., :3], x_t, t)
    as_v = jnp.concatenate([v, out[..., 3:]], -1)
    expected = loss_in(Velocity(schedule), as_v, guess + std * rho, t, eps, ours.weights)
    for part, of_v in zip(found, expected, strict=True):
        np.testing.assert_allclose(part, of_v, rtol=1e-3)
