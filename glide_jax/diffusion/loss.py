"""What training minimizes: noise prediction plus a little of the variational bound."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from glide_jax.diffusion.process import Gaussian, p_reverse, q_posterior, q_sample, split_output
from glide_jax.diffusion.schedule import Schedule, Table
from glide_jax.shapes import Denoiser


class HybridLoss(NamedTuple):
    """A loss for each example and what it is made of; all (b,) float32."""

    loss: jax.Array
    """weight mse + T/1000 vb."""
    mse: jax.Array
    """Mean squared error of eps, not weighted, also where the network predicts v."""
    vb: jax.Array
    """This step's term of the variational bound, in bits per dimension."""


def hybrid_loss(
    schedule: Schedule,
    network: Denoiser,
    x_0: Float[Array, "b h w c"],
    t: Int[Array, "b"],
    eps: Float[Array, "b h w c"],
    weights: Table | None = None,
    prediction: Literal["eps", "v"] = "eps",
) -> HybridLoss:
    """L_hybrid = L_simple + 0.001 L_vlb. Eq. 16, arXiv 2102.09672.

    L_vlb is a sum over T steps of which one, t, is drawn: hence vb's weight T/1000. The bound
    teaches the variance only; the mean, which eps decides, is held fixed in it.

    Errors are those of eps whatever the network predicts, so that the same weights mean the same:
    |eps - eps_hat|^2 = alpha_bar |v - v_hat|^2. They are computed in what is predicted: where
    alpha_bar is 1e-8, float32 rounds eps by as much as an error of 1e-3 in v.

    Args:
        schedule: s rows.
        network: with its text closed over; it is given original step indices.
        x_0: images in [-1, 1].
        t: rows, in [0, s), usually uniform.
        eps: standard normal noise.
        weights: of each row's mean squared error; None is 1 everywhere, as in the paper. See
            `velocity_weights` and `min_snr_weights`.
        prediction: what the first half of the network's output is.

    Returns:
        Loss and parts, one for each example, computed in float32 whatever the network's type.
    """
    x_t = q_sample(schedule, x_0, t, eps)
    out = network(x_t, jnp.asarray(schedule.timestep_map, jnp.int32)[t])
    predicted, variance_fraction = split_output(out)
    if prediction == "eps":
        eps_hat = predicted
        mse = _mean(jnp.square(eps - eps_hat))
    else:
        # eps = sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x_t and v = sqrt(alpha_bar) eps
        # - sqrt(1 - alpha_bar) x_0 are sums of q_sample's form.
        eps_hat = q_sample(schedule, predicted, t, x_t)
        v = q_sample(schedule, eps, t, -x_0)
        mse = jnp.asarray(schedule.alpha_bar, jnp.float32)[t] * _mean(jnp.square(v - predicted))
    frozen_mean = jnp.concatenate([jax.lax.stop_gradient(eps_hat), variance_fraction], axis=-1)
    vb = variational_bound(schedule, x_0, x_t, t, frozen_mean)
    weighted = mse if weights is None else jnp.asarray(weights, jnp.float32)[t] * mse
    return HybridLoss(weighted + schedule.steps / 1000 * vb, mse, vb)


def velocity_weights(schedule: Schedule) -> Table:
    """Weights that make eps's squared error that of v: 1 / alpha_bar_t. See `denoiser_of_velocity`.

    Measured in x_0 they are 1 / (1 - alpha_bar_t), "SNR + 1" (sec. 4, arXiv 2202.00512): even the
    noisiest steps count, where a caption is all there is to go by.
    """
    return 1 / schedule.alpha_bar


def correction_weights(schedule: Schedule, deviation: float) -> Table:
    """Weights that make eps's squared error that of a network's correction. See `velocity_around`.

    An error of 1 in the correction is one of deviation / total in v, and of sqrt(alpha_bar_t) times
    that in eps: every step counts the same, as in sec. 5, arXiv 2206.00364.
    """
    return (schedule.alpha_bar * deviation**2 + 1 - schedule.alpha_bar) / (
        schedule.alpha_bar * deviation**2
    )


def min_snr_weights(schedule: Schedule, gamma: float = 5.0) -> Table:
    """Weights that make eps's squared error min(SNR, gamma) times that of x_0. arXiv 2303.09556.

    With SNR = alpha_bar / (1 - alpha_bar), an error of 1 in x_0 is one of sqrt(SNR) in eps and of
    sqrt(SNR + 1) in v. So, with these weights of the squared error of

        x_0:  min(SNR, gamma)
        eps:  min(SNR, gamma) / SNR  =  min(1, gamma / SNR)
        v:    min(SNR, gamma) / (SNR + 1)

    it is one and the same loss. `hybrid_loss` takes eps's, whatever the network predicts. Steps
    with little noise count less than with weights of 1. Unlike with `velocity_weights` v is hardly
    taught where hardly any image is left: the last step of a zero-terminal-SNR schedule, where
    samplers start, not at all.

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
        x_t: the same, noised to row t.
        t: rows, in [0, s).
        out: the denoiser's output at x_t.

    Returns:
        Bits per dimension. Summed over all rows, with the tiny KL of q(x_T | x_0) to the normal
        distribution, they bound the code length of x_0.
    """
    p = p_reverse(schedule, x_t, t, out)
    kl = _mean(kl_divergence(q_posterior(schedule, x_0, x_t, t), p))
    nll = -_mean(discretized_log_likelihood(x_0, p))
    return jnp.where(t == 0, nll, kl) / math.log(2)


def kl_divergence(q: Gaussian, p: Gaussian) -> Float[Array, "b h w c"]:
    """KL(q || p) of two normal distributions, value by value, in nats.

    log(sigma_p / sigma_q) + (sigma_q^2 + (mu_q - mu_p)^2) / (2 sigma_p^2) - 1/2
    """
    difference = q.log_variance - p.log_variance
    return 0.5 * (
        jnp.expm1(difference) - difference + jnp.square(q.mean - p.mean) * jnp.exp(-p.log_variance)
    )


def discretized_log_likelihood(
    x_0: Float[Array, "b h w c"], p: Gaussian
) -> Float[Array, "b h w c"]:
    """Log probability, in nats, of the 8-bit level that x_0 lies in. Eq. 13, arXiv 2006.11239.

    Each of the 256 levels is an interval of width 2/255 around its value; the outermost two reach
    to infinity.

    Args:
        x_0: images in [-1, 1].
        p: the distribution that the levels are cut from.

    Returns:
        At least log(1e-12), where gradients end.
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
    # An approximation within 3e-4: the released models were trained with it, and exact values
    # change the bound at t = 0 by as much.
    return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _mean(x: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    return x.mean(axis=(1, 2, 3))
