"""The two directions of diffusion: q adds noise, p takes it away.

    q(x_t | x_0)           an image with noise            q_sample
    q(x_{t-1} | x_t, x_0)  a step back, knowing x_0        q_posterior
    p(x_{t-1} | x_t)       a step back, guessing x_0       p_reverse

`t` is here the row of the schedule's tables, one for each example: the original step index, unless
the schedule is respaced. Rows become float32 as they are taken; the tables are float64.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from glide_jax.diffusion.schedule import Schedule, Table
from glide_jax.shapes import Denoiser


class Gaussian(NamedTuple):
    """An independent normal distribution for each value, float32."""

    mean: jax.Array
    """(b, h, w, c)."""
    log_variance: jax.Array
    """(b, h, w, c), or (b, 1, 1, 1) where all values of an example share it."""


def q_sample(
    schedule: Schedule,
    x_0: Float[Array, "b h w c"],
    t: Int[Array, "b"],
    eps: Float[Array, "b h w c"],
) -> Float[Array, "b h w c"]:
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps. Eq. 9, arXiv 2102.09672.

    Args:
        schedule: s rows.
        x_0: images in [-1, 1].
        t: rows, in [0, s); row 0 has the least noise.
        eps: standard normal noise.

    Returns:
        x_t.
    """
    image = _at(np.sqrt(schedule.alpha_bar), t) * x_0
    return image + _at(np.sqrt(1 - schedule.alpha_bar), t) * eps


def x_0_from_eps(
    schedule: Schedule,
    x_t: Float[Array, "b h w c"],
    t: Int[Array, "b"],
    eps: Float[Array, "b h w c"],
) -> Float[Array, "b h w c"]:
    """x_0 = x_t / sqrt(alpha_bar_t) - sqrt(1 / alpha_bar_t - 1) eps: `q_sample` solved for x_0.

    Args:
        schedule: s rows.
        x_t: noised images.
        t: rows, in [0, s).
        eps: their noise.

    Returns:
        x_0, not clipped. An error in eps grows by sqrt(1 / alpha_bar_t - 1): 20,000 times at the
        last step of squaredcos_cap_v2.
    """
    return (
        _at(schedule.sqrt_recip_alpha_bar, t) * x_t - _at(schedule.sqrt_recipm1_alpha_bar, t) * eps
    )


def eps_from_x_0(
    schedule: Schedule,
    x_t: Float[Array, "b h w c"],
    t: Int[Array, "b"],
    x_0: Float[Array, "b h w c"],
) -> Float[Array, "b h w c"]:
    """eps = (x_t / sqrt(alpha_bar_t) - x_0) / sqrt(1 / alpha_bar_t - 1): solved for eps.

    Args:
        schedule: s rows.
        x_t: noised images.
        t: rows, in [0, s).
        x_0: the images without noise.

    Returns:
        eps.
    """
    return (_at(schedule.sqrt_recip_alpha_bar, t) * x_t - x_0) / _at(
        schedule.sqrt_recipm1_alpha_bar, t
    )


def denoiser_of_velocity(schedule: Schedule, network: Denoiser) -> Denoiser:
    """The denoiser that a network is which predicts velocity instead of noise.

    v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0, app. D, arXiv 2202.00512, so
    eps = sqrt(alpha_bar_t) v + sqrt(1 - alpha_bar_t) x_t, and x_0's error is v's, however strong
    the noise is; a network that predicts eps must get the last steps right to 1 in 20,000.

    Args:
        schedule: the whole one, T rows: t is the original step index.
        network: `(x_t, t) -> [v | variance fraction]`.
    """

    def denoise(x_t: jax.Array, t: jax.Array) -> jax.Array:
        v, variance_fraction = split_output(network(x_t, t))
        eps = (
            _at(np.sqrt(schedule.alpha_bar), t) * v + _at(np.sqrt(1 - schedule.alpha_bar), t) * x_t
        )
        return jnp.concatenate([eps, variance_fraction], axis=-1)

    return denoise


def velocity_around(
    schedule: Schedule, network: Denoiser, guess: Float[Array, "b h w c"], deviation: float
) -> Denoiser:
    """What predicts velocity, made of a network that only corrects a guess of the image.

    Images are taken to be `guess + deviation * rho`, with rho of mean 0 and variance 1. Then
    z = (x_t - sqrt(alpha_bar_t) guess) / total has variance 1, where total^2 = alpha_bar_t
    deviation^2 + 1 - alpha_bar_t, and if rho is normal, the expected v given x_t is

        v_guess = -sqrt(1 - alpha_bar_t) guess
                  + sqrt(alpha_bar_t (1 - alpha_bar_t)) (1 - deviation^2) z / total.

    The network sees z in the place of x_t, and v = v_guess + deviation / total network(z, t). So it
    never has to copy the guess, and its input and what it has to predict, rho's own velocity, are
    of variance 1 at every t: the preconditioning of sec. 5, arXiv 2206.00364, about a guess.

    Args:
        schedule: the whole one, T rows: t is the original step index.
        network: `(z, t) -> [correction | variance fraction]`.
        guess: of each image, such as an upsampler's smaller one enlarged.
        deviation: of images from their guesses, root mean square, above 0.
    """
    image, noise = np.sqrt(schedule.alpha_bar), np.sqrt(1 - schedule.alpha_bar)
    total = np.sqrt(schedule.alpha_bar * deviation**2 + 1 - schedule.alpha_bar)

    def denoise(x_t: jax.Array, t: jax.Array) -> jax.Array:
        z = (x_t - _at(image, t) * guess) / _at(total, t)
        correction, variance_fraction = split_output(network(z, t))
        v = _at(image * noise * (1 - deviation**2) / total, t) * z - _at(noise, t) * guess
        v = v + _at(deviation / total, t) * correction
        return jnp.concatenate([v, variance_fraction], axis=-1)

    return denoise


def q_posterior(
    schedule: Schedule,
    x_0: Float[Array, "b h w c"],
    x_t: Float[Array, "b h w c"],
    t: Int[Array, "b"],
) -> Gaussian:
    """q(x_{t-1} | x_t, x_0) = N(mu~, beta~). Eqs. 10 to 12, arXiv 2102.09672.

        mu~    = sqrt(alpha_bar_{t-1}) beta_t / (1 - alpha_bar_t) x_0
               + sqrt(alpha_t) (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) x_t
        beta~  = (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t

    Args:
        schedule: s rows.
        x_0: images.
        x_t: the same, noised.
        t: rows, in [0, s).

    Returns:
        The log variance (b, 1, 1, 1) is clipped at row 0, where beta~ is 0.
    """
    mean = _at(schedule.posterior_mean_x_0, t) * x_0 + _at(schedule.posterior_mean_x_t, t) * x_t
    return Gaussian(mean, _at(schedule.posterior_log_variance_clipped, t))


def learned_log_variance(
    schedule: Schedule, v: Float[Array, "b h w c"], t: Int[Array, "b"]
) -> Float[Array, "b h w c"]:
    """log sigma^2 = f log beta_t + (1 - f) log beta~_t, f = (v + 1)/2. Eq. 15, arXiv 2102.09672.

    beta is the best variance if x_0 is white noise, beta~ if it is a single known image; the
    truth lies between.

    Args:
        schedule: s rows.
        v: the network's variance fraction: -1 is beta~, 1 is beta; not clipped.
        t: rows, in [0, s).

    Returns:
        The log variance of p(x_{t-1} | x_t).
    """
    f = (v + 1) / 2
    log_beta = _at(np.log(schedule.betas), t)
    return f * log_beta + (1 - f) * _at(schedule.posterior_log_variance_clipped, t)


def p_reverse(
    schedule: Schedule,
    x_t: Float[Array, "b h w c"],
    t: Int[Array, "b"],
    out: Float[Array, "b h w 2*c"],
) -> Gaussian:
    """p(x_{t-1} | x_t): the posterior's mean at the predicted x_0, and the learned variance.

    Args:
        schedule: s rows.
        x_t: noised images.
        t: rows, in [0, s).
        out: a denoiser's output, [eps | variance fraction].

    Returns:
        Mean and log variance, both (b, h, w, c). x_0 is not clipped.
    """
    eps, v = split_output(out)
    x_0 = x_0_from_eps(schedule, x_t, t, eps)
    return Gaussian(q_posterior(schedule, x_0, x_t, t).mean, learned_log_variance(schedule, v, t))


def split_output(
    out: Float[Array, "b h w _"],
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """A denoiser's output as (eps, variance fraction), in float32 whatever the network used."""
    eps, v = jnp.split(out.astype(jnp.float32), 2, axis=-1)
    return eps, v


def _at(table: Table, t: Int[Array, "b"]) -> Float[Array, "b 1 1 1"]:
    return jnp.asarray(table, jnp.float32)[t][:, None, None, None]
