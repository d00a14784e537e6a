"""Guidance: fixed points and invariants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.diffusion.guidance import classifier, classifier_free

CAPTION, EMPTY = 0.7, -0.4
X_T = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5, 2)), jnp.float32)
T = jnp.array([0, 500, 999])


def denoiser(condition):
    """A denoiser whose every output depends on x_t, t and the condition of its example."""

    def denoise(x_t, t):
        emb = condition[:, None, None, None] + t[:, None, None, None] / 1000
        return jnp.concatenate([jnp.sin(x_t + emb), x_t * emb], axis=-1)

    return denoise


conditional = denoiser(jnp.full(3, CAPTION))(X_T, T)
unconditional = denoiser(jnp.full(3, EMPTY))(X_T, T)
both = denoiser(jnp.array([CAPTION] * 3 + [EMPTY] * 3))


def test_scale_1_is_conditional():
    np.testing.assert_allclose(classifier_free(both, 1.0)(X_T, T), conditional, atol=1e-6)


def test_scale_0_is_unconditional_in_eps():
    out = classifier_free(both, 0.0)(X_T, T)
    np.testing.assert_array_equal(out[..., :2], unconditional[..., :2])


def test_eps_is_extrapolated_and_the_variance_is_the_conditional_one():
    out = classifier_free(both, 3.0)(X_T, T)
    expected = 3 * conditional[..., :2] - 2 * unconditional[..., :2]
    np.testing.assert_allclose(out[..., :2], expected, atol=1e-5)
    np.testing.assert_array_equal(out[..., 2:], conditional[..., 2:])


def test_one_pass_of_twice_the_batch():
    batches = []

    def counted(x_t, t):
        batches.append((x_t.shape, t.shape))
        return both(x_t, t)

    classifier_free(counted, 2.0)(X_T, T)
    assert batches == [((6, 4, 5, 2), (6,))]


def test_one_compiled_program_serves_every_scale():
    traces = []

    @jax.jit
    def guided(scale, x_t):
        traces.append(1)
        return classifier_free(both, scale)(x_t, T)

    for scale in (0.5, 3.0, 7.5):
        expected = classifier_free(both, scale)(X_T, T)
        np.testing.assert_allclose(guided(scale, X_T), expected, rtol=1e-5, atol=1e-6)
    assert len(traces) == 1


def test_outside_its_interval_guidance_is_off():
    """Ends included, example by example, and for traced ends."""
    free = classifier_free(both, 3.0)(X_T, T)
    np.testing.assert_array_equal(classifier_free(both, 3.0, interval=(0, 999))(X_T, T), free)
    off = classifier_free(both, 3.0, interval=(1, 499))(X_T, T)
    np.testing.assert_allclose(off, conditional, atol=1e-6)

    @jax.jit
    def guided(low, high):
        return classifier_free(both, 3.0, interval=(low, high))(X_T, T)

    middle = guided(1, 998)
    np.testing.assert_allclose(middle[1], free[1], atol=1e-6)
    np.testing.assert_allclose(middle[::2], conditional[::2], atol=1e-6)
    np.testing.assert_allclose(guided(500, 500), middle, atol=1e-6)
    np.testing.assert_allclose(guided(500, 999)[1:], free[1:], atol=1e-6)


def test_rescale_restores_the_standard_deviation_of_the_conditional():
    free = np.asarray(classifier_free(both, 8.0)(X_T, T))
    none = classifier_free(both, 8.0, rescale=0.0)(X_T, T)
    full = np.asarray(classifier_free(both, 8.0, rescale=1.0)(X_T, T))
    part = classifier_free(both, 8.0, rescale=0.7)(X_T, T)
    np.testing.assert_allclose(none, free, atol=1e-6)
    for i in range(3):
        spread = float(conditional[i, ..., :2].std())
        assert free[i, ..., :2].std() != pytest.approx(spread, rel=0.1)
        assert full[i, ..., :2].std() == pytest.approx(spread, rel=1e-5)
    ratio = full[..., :2] / free[..., :2]  # one number for an image
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1, :1], ratio.shape), rtol=1e-4)
    np.testing.assert_allclose(part, 0.7 * full + 0.3 * free, atol=1e-5)
    np.testing.assert_array_equal(full[..., 2:], conditional[..., 2:])


def test_rescale_of_a_zero_prediction_is_finite():
    """The output of an untrained network is 0."""

    def silent(x_t, t):
        return jnp.zeros((*x_t.shape[:-1], 2 * x_t.shape[-1]))

    np.testing.assert_array_equal(classifier_free(silent, 3.0, rescale=0.7)(X_T, T), 0)


def test_interval_and_rescale_together_are_conditional_outside():
    out = classifier_free(both, 8.0, interval=(400, 600), rescale=1.0)(X_T, T)
    np.testing.assert_allclose(out[::2], conditional[::2], atol=1e-5)


def test_classifier_is_the_gradient_of_each_example():
    def log_prob(x_t, t):
        return -0.5 * (x_t**2).sum(axis=(1, 2, 3)) * t

    expected = -2.5 * X_T * T[:, None, None, None]
    np.testing.assert_allclose(classifier(log_prob, 2.5)(X_T, T), expected, rtol=1e-6)
    np.testing.assert_allclose(
        jax.jit(lambda scale: classifier(log_prob, scale)(X_T, T))(2.5), expected, rtol=1e-6
    )


def test_guidance_is_float32_for_any_network_dtype():
    def half(x_t, t):
        return both(x_t, t).astype(jnp.bfloat16)

    assert classifier_free(half, 3.0)(X_T, T).dtype == jnp.float32
