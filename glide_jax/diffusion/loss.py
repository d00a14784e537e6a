"""The training loss: squared error of the prediction plus a small part of the variational bound."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from glide_jax.diffusion.parameterization import Parameterization
from glide_jax.diffusion.process import Gaussian, p_reverse, q_posterior, split_output
from glide_jax.diffusion.schedule import Schedule, Table


class HybridLoss(NamedTuple):
    """The loss of each example and its two parts; all (b,) float32."""

    loss: jax.Array
    """weight mse + T/1000 vb; without vb for a fixed variance."""
    mse: jax.Array
    """Mean squared error of eps, unweighted, for every parameterization."""
    vb: jax.Array
    """One step's term of the variational bound, in bits per dimension."""


def hybrid_loss(
    parameterization: Parameterization,
    x_0: Float[Array, "b h w c"],
    t: Int[Array, "b"],
    eps: Float[Array, "b h w c"],
    x_t: Float[Array, "b h w c"],
    out: Float[Array, "b h w 2*c"],
    weights: Table | None = None,
    *,
    learned_variance: bool = True,
) -> HybridLoss:
    """L_hybrid = L_simple + 0.001 L_vlb. Eq. 16, arXiv 2102.09672.

    L_vlb is a sum over T steps; one t is a sample of it, hence vb's weight T/1000. The bound trains
    the variance only: gradients stop at the predicted mean.

    The squared error is that of eps, so weights mean the same for every parameterization. It is
    computed from the error of the prediction itself: where alpha_bar is 1e-8, float32 rounds eps by
    as much as an error of 1e-3 in v.

    Args:
        parameterization: the meaning of the prediction.
        x_0: images in [-1, 1].
        t: rows, in [0, T), usually uniform.
        eps: standard normal noise.
        x_t: the noised images, `q_sample(schedule, x_0, t, eps)`.
        out: the network's output for x_t, [prediction | variance fraction].
        weights: (T,) weights of eps's squared error; None: `parameterization.weights`, the plain
            squared error of the prediction, as in the paper. See `min_snr_weights`.
        learned_variance: False for a fixed variance, whose loss is L_simple alone.

    Returns:
        Loss and parts of each example, computed in float32 for any network dtype.
    """
    schedule = parameterization.schedule
    predicted, variance_fraction = split_output(out)
    error = jnp.square(parameterization.target(x_0, t, eps) - predicted)
    mse = _table_at(1 / parameterization.weights, t) * _mean(error)
    eps_hat = jax.lax.stop_gradient(parameterization.eps(predicted, x_t, t))
    vb = variational_bound(
        schedule, x_0, x_t, t, jnp.concatenate([eps_hat, variance_fraction], axis=-1)
    )
    weighted = _table_at(parameterization.weights if weights is None else weights, t) * mse
    loss = weighted + schedule.steps / 1000 * vb if learned_variance else weighted
    return HybridLoss(loss, mse, vb)


def min_snr_weights(schedule: Schedule, gamma: float = 5.0) -> Table:
    """Weights that make eps's squared error min(SNR, gamma) times that of x_0. arXiv 2303.09556.

    With SNR = alpha_bar / (1 - alpha_bar), an error of 1 in x_0 is one of sqrt(SNR) in eps and of
    sqrt(SNR + 1) in v. The same loss is, with these weights of the squared error of

        x_0:  min(SNR, gamma)
        eps:  min(SNR, gamma) / SNR  =  min(1, gamma / SNR)
        v:    min(SNR, gamma) / (SNR + 1)

    `hybrid_loss` takes the weights of eps. Steps with little noise count less than with weights
    of 1. Steps with hardly any image left get almost no weight for v, unlike with
    `Velocity.weights`; the last step of a zero-terminal-SNR schedule, where sampling starts, gets
    none.

    Args:
        schedule: s rows.
        gamma: the largest weight of x_0's error, above 0.
    """
    return np.minimum(1, gamma * (1 / schedule.alpha_bar - 1))


def variational_bound(
    schedule: Schedule,
    x_0: Float[Array, "b h w c"],
    x_t: Float[Array, "b h w c"],
    t: Int[Array, "b"],
    out: Float[Array, "b h w 2*c"],
) -> Float[Array, "b"]:
    """One step's term of the bound on -log p(x_0). Eqs. 5 and 6, arXiv 2102.09672.

        t > 0:  KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))
        t = 0:  -log p(x_0 | x_1)

    Args:
        schedule: s rows.
        x_0: images in [-1, 1].
        x_t: the images noised to row t.
        t: rows, in [0, s).
        out: a denoiser's output for x_t, [eps | variance fraction].

    Returns:
        Bits per dimension. The sum over all rows, plus the tiny KL of q(x_T | x_0) to the normal
        distribution, bounds the code length of x_0.
    """
    p = p_reverse(schedule, x_t, t, out)
    kl = _mean(kl_divergence(q_posterior(schedule, x_0, x_t, t), p))
    nll = -_mean(discretized_log_likelihood(x_0, p))
    return jnp.where(t == 0, nll, kl) / math.log(2)


def kl_divergence(q: Gaussian, p: Gaussian) -> Float[Array, "b h w c"]:
    """KL(q || p) of normal distributions, elementwise, in nats.

    log(sigma_p / sigma_q) + (sigma_q^2 + (mu_q - mu_p)^2) / (2 sigma_p^2) - 1/2
    """
    difference = q.log_variance - p.log_variance
    return 0.5 * (
        jnp.expm1(difference) - difference + jnp.square(q.mean - p.mean) * jnp.exp(-p.log_variance)
    )


def discretized_log_likelihood(
    x_0: Float[Array, "b h w c"], p: Gaussian
) -> Float[Array, "b h w c"]:
    """Log probability, in nats, of x_0's 8-bit level. Eq. 13, arXiv 2006.11239.

    Each of the 256 levels is an interval of width 2/255 around its value; the outermost two extend
    to infinity.

    Args:
        x_0: images in [-1, 1].
        p: the distribution of pixel values.

    Returns:
        Log probabilities, clipped at log(1e-12), below which there is no gradient.
    """
    centered = x_0 - p.mean
    inv_sigma = jnp.exp(-0.5 * p.log_variance)
    below_upper = _normal_cdf(inv_sigma * (centered + 1 / 255))
    below_lower = _normal_cdf(inv_sigma * (centered - 1 / 255))
    probability = jnp.where(
        x_0 < -0.999,
        below_upper,
        jnp.where(x_0 > 0.999, 1 - below_lower, below_upper - below_lower),
    )
    return jnp.log(jnp.maximum(probability, 1e-12))


def _normal_cdf(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    # An approximation within 3e-4, as in the released models' training: exact values would change
    # the bound at t = 0 by as much.
    return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _mean(x: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    return x.mean(axis=(1, 2, 3))


def _table_at(table: Table, t: Int[Array, "b"]) -> Float[Array, "b"]:
    return jnp.asarray(table, jnp.float32)[t]
