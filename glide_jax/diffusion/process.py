"""The forward process q, which adds noise, and the reverse process p, which removes it.

    q(x_t | x_0)           the noised image                    q_sample
    q(x_{t-1} | x_t, x_0)  one step back, given x_0            q_posterior
    p(x_{t-1} | x_t)       one step back, given a prediction   p_reverse

In this file `t` is a row of the schedule's tables, one for each example: the original step index,
unless the schedule is respaced. Tables are float64; their rows are cast to float32. Examples have
any shape: images (b, h, w, c), embeddings (b, d).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from glide_jax.diffusion.schedule import Schedule, Table


class Gaussian(NamedTuple):
    """Independent normal distributions, one for each value; float32."""

    mean: jax.Array
    """(b, *x)."""
    log_variance: jax.Array
    """(b, *x), or ones for *x: one for all values of an example."""


def q_sample(
    schedule: Schedule,
    x_0: Float[Array, "b *x"],
    t: Int[Array, "b"],
    eps: Float[Array, "b *x"],
) -> Float[Array, "b *x"]:
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps. Eq. 9, arXiv 2102.09672.

    Args:
        schedule: s rows.
        x_0: images in [-1, 1].
        t: rows, in [0, s); row 0 has the least noise.
        eps: standard normal noise.

    Returns:
        x_t.
    """
    signal = table_at(np.sqrt(schedule.alpha_bar), t, x_0.ndim) * x_0
    return signal + table_at(np.sqrt(1 - schedule.alpha_bar), t, x_0.ndim) * eps


def x_0_from_eps(
    schedule: Schedule,
    x_t: Float[Array, "b *x"],
    t: Int[Array, "b"],
    eps: Float[Array, "b *x"],
) -> Float[Array, "b *x"]:
    """x_0 = x_t / sqrt(alpha_bar_t) - sqrt(1 / alpha_bar_t - 1) eps: `q_sample` solved for x_0.

    Args:
        schedule: s rows.
        x_t: noised images.
        t: rows, in [0, s).
        eps: the noise in x_t.

    Returns:
        x_0, not clipped. The error of eps times sqrt(1 / alpha_bar_t - 1) is that of x_0: at the
        last step of squaredcos_cap_v2, 20,000 times as large.
    """
    return (
        table_at(schedule.sqrt_recip_alpha_bar, t, x_t.ndim) * x_t
        - table_at(schedule.sqrt_recipm1_alpha_bar, t, x_t.ndim) * eps
    )


def eps_from_x_0(
    schedule: Schedule,
    x_t: Float[Array, "b *x"],
    t: Int[Array, "b"],
    x_0: Float[Array, "b *x"],
) -> Float[Array, "b *x"]:
    """eps = (x_t / sqrt(alpha_bar_t) - x_0) / sqrt(1 / alpha_bar_t - 1): `q_sample` solved for eps.

    Args:
        schedule: s rows.
        x_t: noised images.
        t: rows, in [0, s).
        x_0: images.

    Returns:
        eps.
    """
    return (table_at(schedule.sqrt_recip_alpha_bar, t, x_t.ndim) * x_t - x_0) / table_at(
        schedule.sqrt_recipm1_alpha_bar, t, x_t.ndim
    )


def q_posterior(
    schedule: Schedule,
    x_0: Float[Array, "b *x"],
    x_t: Float[Array, "b *x"],
    t: Int[Array, "b"],
) -> Gaussian:
    """q(x_{t-1} | x_t, x_0) = N(mu~, beta~). Eqs. 10 to 12, arXiv 2102.09672.

        mu~    = sqrt(alpha_bar_{t-1}) beta_t / (1 - alpha_bar_t) x_0
               + sqrt(alpha_t) (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) x_t
        beta~  = (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t

    Args:
        schedule: s rows.
        x_0: images.
        x_t: noised images.
        t: rows, in [0, s).

    Returns:
        The distribution. Its log variance is one value an example, clipped at row 0, where beta~ is
        0.
    """
    mean = (
        table_at(schedule.posterior_mean_x_0, t, x_t.ndim) * x_0
        + table_at(schedule.posterior_mean_x_t, t, x_t.ndim) * x_t
    )
    return Gaussian(mean, table_at(schedule.posterior_log_variance_clipped, t, x_t.ndim))


def learned_log_variance(
    schedule: Schedule, variance_fraction: Float[Array, "b *x"], t: Int[Array, "b"]
) -> Float[Array, "b *x"]:
    """log sigma^2 = f log beta_t + (1 - f) log beta~_t, f = (v + 1)/2. Eq. 15, arXiv 2102.09672.

    beta is the optimal variance for data of white noise, beta~ for a data set of one image; real
    data lie between.

    Args:
        schedule: s rows.
        variance_fraction: v, the second half of the output: -1 is beta~, 1 is beta; not clipped.
        t: rows, in [0, s).

    Returns:
        The log variance of p(x_{t-1} | x_t).
    """
    ndim = variance_fraction.ndim
    log_posterior_variance = table_at(schedule.posterior_log_variance_clipped, t, ndim)
    log_beta = table_at(np.log(schedule.betas), t, ndim)
    return log_variance_between(log_posterior_variance, log_beta, variance_fraction)


def log_variance_between(
    log_posterior_variance: Array, log_beta: Array, variance_fraction: Float[Array, "b *x"]
) -> Float[Array, "b *x"]:
    """`learned_log_variance` of given log beta~_t and log beta_t."""
    f = (variance_fraction + 1) / 2
    return f * log_beta + (1 - f) * log_posterior_variance


def p_reverse(
    schedule: Schedule,
    x_t: Float[Array, "b *x"],
    t: Int[Array, "b"],
    out: Float[Array, "b *x2"],
) -> Gaussian:
    """p(x_{t-1} | x_t): the posterior's mean for the predicted x_0, with the learned variance.

    Args:
        schedule: s rows.
        x_t: noised images.
        t: rows, in [0, s).
        out: a denoiser's output, [eps | variance fraction].

    Returns:
        Mean and log variance, both (b, *x). x_0 is not clipped.
    """
    eps, variance_fraction = split_output(out)
    x_0 = x_0_from_eps(schedule, x_t, t, eps)
    mean = q_posterior(schedule, x_0, x_t, t).mean
    return Gaussian(mean, learned_log_variance(schedule, variance_fraction, t))


def split_output(
    out: Float[Array, "b *x2"],
) -> tuple[Float[Array, "b *x"], Float[Array, "b *x"]]:
    """An output split into (prediction, variance fraction), in float32 for any network dtype."""
    predicted, variance_fraction = jnp.split(out.astype(jnp.float32), 2, axis=-1)
    return predicted, variance_fraction


def table_at(table: Table, t: Int[Array, "b"], ndim: int = 4) -> Float[Array, "b *ones"]:
    """The table's value at each example's row, in float32, to broadcast over (b, *x).

    Args:
        table: a value for each row.
        t: rows.
        ndim: dimensions of (b, *x): 4 for images, 2 for embeddings.
    """
    return jnp.asarray(table, jnp.float32)[t].reshape(-1, *[1] * (ndim - 1))
