"""From noise to pictures: one loop, and a step function for each sampler.

At each row of the schedule, last to first, the loop asks the denoiser for eps and makes it a
prediction of x_0; the sampler says what x_{t-1} then is. To add one: a function of the schedule
and eta that returns its coefficients and its step, and a line in SAMPLERS.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from glide_jax.diffusion.process import (
    eps_from_x_0,
    learned_log_variance,
    q_posterior,
    split_output,
    x_0_from_eps,
)
from glide_jax.diffusion.schedule import Schedule, Table
from glide_jax.errors import UserError
from glide_jax.shapes import Denoiser

Noise = Callable[[jax.Array], jax.Array]
"""`k -> (b, h, w, c)`: standard normal noise for the k-th step taken, k = 0 first; k is traced."""
OnX0 = Callable[[jax.Array], jax.Array]
"""A change to each predicted x_0, (b, h, w, c) to the same: known pixels put back, for example."""
OnStep = Callable[[int], None]
"""Told k when the k-th step is under way, from another thread and not strictly in order."""


class StepInput(NamedTuple):
    """What a sampler knows at a step; arrays are (b, h, w, c) float32 unless said otherwise."""

    row: jax.Array
    """(b,): the schedule's row, the same for every example."""
    x_t: jax.Array
    x_0: jax.Array
    """The predicted picture, after hook and clipping."""
    eps: jax.Array
    """The noise that leads from this x_0 to x_t."""
    v: jax.Array
    """The denoiser's variance fraction."""
    noise: jax.Array
    """Fresh standard normal noise."""


Coefficients = dict[str, Table]
"""A sampler's numbers, float64, by name; its step gets those of one row, as float32."""
Step = Callable[[dict[str, jax.Array], StepInput], jax.Array]
"""`(coefficients, input) -> x_{t-1}`."""
Sampler = Callable[[Schedule, float], tuple[Coefficients, Step]]
"""`(schedule, eta) -> (coefficients, step)`."""


def ddpm(schedule: Schedule, eta: float) -> tuple[Coefficients, Step]:
    """Ancestral sampling: x_{t-1} ~ N(mu~(x_t, x_0), learned variance). Sec. 3.1, arXiv 2102.09672.

    Args:
        schedule: s rows.
        eta: not used.
    """
    coefficients = {"noise": np.where(np.arange(schedule.steps) > 0, 1.0, 0.0)}

    def step(c: dict[str, jax.Array], at: StepInput) -> jax.Array:
        mean = q_posterior(schedule, at.x_0, at.x_t, at.row).mean
        sigma = jnp.exp(0.5 * learned_log_variance(schedule, at.v, at.row))
        return mean + c["noise"] * sigma * at.noise

    return coefficients, step


def ddim(schedule: Schedule, eta: float) -> tuple[Coefficients, Step]:
    """DDIM. Eqs. 12 and 16, arXiv 2010.02502.

        x_{t-1} = sqrt(alpha_bar_{t-1}) x_0 + sqrt(1 - alpha_bar_{t-1} - sigma^2) eps + sigma noise
        sigma^2 = eta^2 (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t

    Args:
        schedule: s rows.
        eta: 0 is deterministic, 1 is ancestral sampling with the variance beta~.

    Raises:
        UserError: eta is not in [0, 1].
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta ({eta}) must be in [0, 1]")
    sigma = eta * np.sqrt(schedule.posterior_variance)
    coefficients = {
        "x_0": np.sqrt(schedule.alpha_bar_prev),
        "eps": np.sqrt(np.maximum(1 - schedule.alpha_bar_prev - sigma**2, 0)),
        "noise": sigma,
    }

    def step(c: dict[str, jax.Array], at: StepInput) -> jax.Array:
        return c["x_0"] * at.x_0 + c["eps"] * at.eps + c["noise"] * at.noise

    return coefficients, step


SAMPLERS: dict[str, Sampler] = {"ddpm": ddpm, "ddim": ddim}


def sample(
    denoise: Denoiser,
    schedule: Schedule,
    x_T: Float[Array, "b h w c"],
    noise: Noise,
    *,
    sampler: str,
    eta: float = 0.0,
    clip: bool = True,
    on_x_0: OnX0 | None = None,
    on_step: OnStep | None = None,
) -> Float[Array, "b h w c"]:
    """Draws pictures.

    Args:
        denoise: given original step indices, also when the schedule is respaced.
        schedule: the steps to visit.
        x_T: where to start: standard normal noise, or a picture noised to the last row.
        noise: for each step; not used at the last, nor by DDIM with eta 0.
        sampler: a key of SAMPLERS.
        eta: see `ddim`; other samplers ignore it.
        clip: keep each predicted x_0 in [-1, 1].
        on_x_0: changes each predicted x_0, before clipping.
        on_step: progress, called from inside the compiled loop.

    Returns:
        x_0; in [-1, 1] if clipped.

    Raises:
        UserError: unknown sampler, or eta out of range.
    """
    step, rows = _loop(denoise, schedule, noise, sampler, eta, clip, on_x_0, on_step)
    x_0, _ = jax.lax.scan(lambda x_t, row: (step(x_t, row)[0], None), x_T, rows)
    return x_0


def trajectory(
    denoise: Denoiser,
    schedule: Schedule,
    x_T: Float[Array, "b h w c"],
    noise: Noise,
    *,
    sampler: str,
    eta: float = 0.0,
    clip: bool = True,
    on_x_0: OnX0 | None = None,
    on_step: OnStep | None = None,
) -> tuple[Float[Array, "s b h w c"], Float[Array, "s b h w c"]]:
    """As `sample`, but returns x_{t-1} and the predicted x_0 of every step, first step first."""
    step, rows = _loop(denoise, schedule, noise, sampler, eta, clip, on_x_0, on_step)

    def recorded_step(x_t: jax.Array, row: _Row) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        x_prev, x_0 = step(x_t, row)
        return x_prev, (x_prev, x_0)

    _, steps = jax.lax.scan(recorded_step, x_T, rows)
    return steps


def initial_noise(
    keys: Key[Array, "b"], shape: tuple[int, int, int]
) -> Float[Array, "b {shape[0]} {shape[1]} {shape[2]}"]:
    """x_T for each image from its own key, so that an image does not depend on its batch.

    Args:
        keys: a key for each image, as for `per_image_noise`.
        shape: (h, w, c).

    Returns:
        Standard normal noise.
    """
    return _normal(keys, 0, shape)


def per_image_noise(keys: Key[Array, "b"], shape: tuple[int, int, int]) -> Noise:
    """Noise for each image and step from the image's own key, whatever its batch.

    Args:
        keys: a key for each image; may be the same as for `initial_noise`, which draws from
            other parts of it.
        shape: (h, w, c).

    Returns:
        For `sample`'s `noise`.
    """
    return lambda k: _normal(keys, k + 1, shape)


def _normal(
    keys: Key[Array, "b"], index: int | Int[Array, ""], shape: tuple[int, int, int]
) -> Float[Array, "b {shape[0]} {shape[1]} {shape[2]}"]:
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)


class _Row(NamedTuple):
    """What changes from step to step: stacked over steps, then scanned."""

    k: jax.Array
    row: jax.Array
    t: jax.Array
    coefficients: dict[str, jax.Array]


def _loop(
    denoise: Denoiser,
    schedule: Schedule,
    noise: Noise,
    sampler: str,
    eta: float,
    clip: bool,
    on_x_0: OnX0 | None,
    on_step: OnStep | None,
) -> tuple[Callable[[jax.Array, _Row], tuple[jax.Array, jax.Array]], _Row]:
    """The body of the scan, `(x_t, row) -> (x_{t-1}, x_0)`, and the rows to scan."""
    if sampler not in SAMPLERS:
        raise UserError(f"sampler '{sampler}' is unknown: use {' or '.join(SAMPLERS)}")
    coefficients, sampler_step = SAMPLERS[sampler](schedule, eta)
    rows = np.arange(schedule.steps)[::-1]
    scanned = _Row(
        k=jnp.arange(schedule.steps),
        row=jnp.asarray(rows, jnp.int32),
        t=jnp.asarray(schedule.timestep_map[rows], jnp.int32),
        coefficients={
            name: jnp.asarray(table[rows], jnp.float32) for name, table in coefficients.items()
        },
    )

    def step(x_t: jax.Array, now: _Row) -> tuple[jax.Array, jax.Array]:
        b = x_t.shape[0]
        row = jnp.full(b, now.row)
        eps, v = split_output(denoise(x_t, jnp.full(b, now.t)))
        x_0 = x_0_from_eps(schedule, x_t, row, eps)
        if on_x_0 is not None:
            x_0 = on_x_0(x_0)
        if clip:
            x_0 = jnp.clip(x_0, -1, 1)
        eps = eps_from_x_0(schedule, x_t, row, x_0)
        inputs = StepInput(row, x_t, x_0, eps, v, noise(now.k))
        if on_step is not None:
            jax.debug.callback(lambda k: on_step(int(k)), now.k)
        return sampler_step(now.coefficients, inputs), x_0

    return step, scanned
