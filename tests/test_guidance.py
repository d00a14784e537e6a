"""Classifier-free guidance at its fixed points, and what it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np

from glide_jax.diffusion.guidance import classifier_free

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


def test_float32_whatever_the_network_uses():
    def half(x_t, t):
        return both(x_t, t).astype(jnp.bfloat16)

    assert classifier_free(half, 3.0)(X_T, T).dtype == jnp.float32
