"""Samplers: the step from x_t to x_{t-1}, and float64 tables of its coefficients.

All but ancestral sampling solve the probability flow, which is simplest in x_t / sqrt(alpha_bar_t):

    d (x_t / sqrt(alpha_bar_t)) = eps(x_t, t) d sigma,   sigma = sqrt(1 / alpha_bar_t - 1)

(Eq. 14, arXiv 2010.02502). DDIM without noise keeps eps constant over a step: Euler's method. The
others correct DDIM's step by the change of eps over earlier predictions. A new sampler is a
function `(schedule, eta) -> SamplerPlan` and a line in SAMPLERS. Steps are functions of this module
that read all of their coefficients from tables: plans of one sampler share a compiled program.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, Int64

from glide_jax.diffusion.process import log_variance_between
from glide_jax.diffusion.schedule import Schedule, Table
from glide_jax.errors import UserError


class Prediction(NamedTuple):
    """A denoiser's prediction after thresholding and hooks; (b, *x) float32."""

    x_0: jax.Array
    """The image."""
    eps: jax.Array
    """The noise between this x_0 and x_t."""


class StepInput(NamedTuple):
    """Input of a sampler's step; arrays are (b, *x) float32 unless noted."""

    x_t: jax.Array
    x_0: jax.Array
    """See `Prediction`."""
    eps: jax.Array
    """See `Prediction`."""
    variance_fraction: jax.Array
    """The second half of the denoiser's output."""
    noise: jax.Array | None
    """Fresh standard normal noise, for solvers that draw it."""
    past: tuple[Prediction, ...]
    """Predictions of earlier calls, latest first; zeros before the first call."""
    gradient: jax.Array | None
    """The guidance gradient, for solvers with `shifts_mean`; None without guidance."""


Coefficients = dict[str, jax.Array]
"""The coefficients of one call, by name."""
Step = Callable[[Coefficients, StepInput], jax.Array]
"""`(coefficients, input) -> next x_t`."""


class Solver(NamedTuple):
    """What a sampler compiles: equal for all plans of the sampler that draw noise, or do not."""

    step: Step
    history: int = 0
    """Number of earlier predictions that the step uses."""
    draws_noise: bool = False
    """Whether the step adds noise."""
    shifts_mean: bool = False
    """Whether the step itself applies the guidance gradient. Otherwise the loop adds it to eps."""


class SamplerPlan(NamedTuple):
    """A sampler resolved for a schedule: e denoiser calls, as tables in the order of calls."""

    solver: Solver
    schedule: Schedule
    step_of_call: Int64[np.ndarray, "e"]
    """Index k of each call's step, from 0; a step may take several calls."""
    rows: Int64[np.ndarray, "e"]
    """The schedule's row of each call's x_t."""
    coefficients: dict[str, Float64[np.ndarray, "e"]]
    """Of the step, by name."""

    @property
    def calls(self) -> int:
        """Number of denoiser calls: at least one a step."""
        return len(self.rows)


Sampler = Callable[[Schedule, float], SamplerPlan]
"""`(schedule, eta) -> plan`."""


def sampler_plan(sampler: str, schedule: Schedule, eta: float = 0.0) -> SamplerPlan:
    """The plan of a sampler, by name.

    Args:
        sampler: a key of SAMPLERS.
        schedule: the steps to visit.
        eta: see `ddim`; other samplers ignore it.

    Raises:
        UserError: unknown sampler, or eta out of range.
    """
    if sampler not in SAMPLERS:
        *names, last = SAMPLERS
        raise UserError(f"sampler '{sampler}' is unknown: use {', '.join(names)} or {last}")
    return SAMPLERS[sampler](schedule, eta)


def _one_call_a_step(solver: Solver, schedule: Schedule, by_row: dict[str, Table]) -> SamplerPlan:
    """The plan that visits every row once, last to first, with coefficient tables by row."""
    backwards = {name: table[::-1] for name, table in by_row.items()}
    k = np.arange(schedule.steps)
    return SamplerPlan(solver, schedule, k, k[::-1], backwards)


def ddpm(schedule: Schedule, eta: float) -> SamplerPlan:
    """Ancestral sampling: x_{t-1} ~ N(mu~(x_t, x_0), learned variance). Sec. 3.1, arXiv 2102.09672.

    A guidance gradient shifts the mean by variance * gradient: algorithm 1, arXiv 2105.05233.

    Args:
        schedule: s rows.
        eta: unused; only `ddim` uses it.
    """
    tables = {
        "x_0": schedule.posterior_mean_x_0,
        "x_t": schedule.posterior_mean_x_t,
        "log_beta": np.log(schedule.betas),
        "log_posterior_variance": schedule.posterior_log_variance_clipped,
        "noise": np.where(np.arange(schedule.steps) > 0, 1.0, 0.0),
    }
    solver = Solver(_ddpm_step, draws_noise=True, shifts_mean=True)
    return _one_call_a_step(solver, schedule, tables)


def _ddpm_step(c: Coefficients, at: StepInput) -> jax.Array:
    mean = c["x_0"] * at.x_0 + c["x_t"] * at.x_t
    log_variance = log_variance_between(
        c["log_posterior_variance"], c["log_beta"], at.variance_fraction
    )
    if at.gradient is not None:
        mean += jnp.exp(log_variance) * at.gradient
    assert at.noise is not None
    return mean + c["noise"] * jnp.exp(0.5 * log_variance) * at.noise


def ddim(schedule: Schedule, eta: float) -> SamplerPlan:
    """DDIM. Eqs. 12 and 16, arXiv 2010.02502.

        x_{t-1} = sqrt(alpha_bar_{t-1}) x_0 + sqrt(1 - alpha_bar_{t-1} - s^2) eps + s noise
        s^2 = eta^2 (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t

    Args:
        schedule: s rows.
        eta: in [0, 1]; 0 is deterministic, 1 is ancestral sampling with variance beta~.

    Raises:
        UserError: eta is not in [0, 1].
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta ({eta}) must be in [0, 1]")
    if eta == 0:
        return _one_call_a_step(Solver(_ddim_step), schedule, _ddim_tables(schedule))
    s = eta * np.sqrt(schedule.posterior_variance)
    solver = Solver(_noisy_ddim_step, draws_noise=True)
    return _one_call_a_step(solver, schedule, _ddim_tables(schedule, s) | {"noise": s})


def _ddim_step(c: Coefficients, at: StepInput) -> jax.Array:
    return c["x_0"] * at.x_0 + c["eps"] * at.eps


def _noisy_ddim_step(c: Coefficients, at: StepInput) -> jax.Array:
    assert at.noise is not None
    return _ddim_step(c, at) + c["noise"] * at.noise


def _ddim_tables(schedule: Schedule, s: Table | float = 0.0) -> dict[str, Table]:
    return {
        "x_0": np.sqrt(schedule.alpha_bar_prev),
        "eps": np.sqrt(np.maximum(1 - schedule.alpha_bar_prev - s**2, 0)),
    }


def heun(schedule: Schedule, eta: float) -> SamplerPlan:
    """Heun's second-order method in sigma: DDIM's step, with eps averaged over both of its ends.

    Algorithm 1, arXiv 2206.00364, without noise. Two calls a step:

        x_{t-1}  = DDIM's step from x_t, with eps = eps(x_t)
        x_{t-1} += sqrt(alpha_bar_{t-1}) (sigma_{t-1} - sigma_t) / 2 (eps(x_{t-1}) - eps)

    The last step, to sigma 0, is DDIM's. So is the first: squaredcos_cap_v2 starts at a sigma of
    20,000, too far for a linear change of eps over the step.
    """
    sigma, k = schedule.sqrt_recipm1_alpha_bar, np.arange(schedule.steps)
    visit = np.repeat(k, np.where(k < 2, 1, 2))
    corrects = np.append(np.diff(visit) == 0, False)  # the first of two calls at the same row
    rows = schedule.steps - 1 - visit
    half_step = np.sqrt(schedule.alpha_bar) * np.diff(sigma, append=sigma[-1]) / 2
    coefficients = {name: table[rows] * ~corrects for name, table in _ddim_tables(schedule).items()}
    coefficients |= {"x_t": 1.0 * corrects, "change": half_step[rows] * corrects}
    solver = Solver(_heun_step, history=1)
    return SamplerPlan(solver, schedule, visit - corrects, rows, coefficients)


def _heun_step(c: Coefficients, at: StepInput) -> jax.Array:
    change = at.past[0].eps - at.eps
    return _ddim_step(c, at) + c["x_t"] * at.x_t + c["change"] * change


def plms(schedule: Schedule, eta: float) -> SamplerPlan:
    """Pseudo linear multistep (PNDM): DDIM's step with extrapolated eps. arXiv 2202.09778.

        eps' = (55 eps_t - 59 eps_{t+1} + 37 eps_{t+2} - 9 eps_{t+3}) / 24

    Adams-Bashforth weights for evenly spaced t, of lower order in the first three steps. The last
    step spans a single t for any number of steps, unlike the others, and is DDIM's.
    """
    sigma = schedule.sqrt_recipm1_alpha_bar
    weights = np.array([[0, 0, 0], [-12, 0, 0], [-32, 10, 0], [-59, 37, -9]]) / 24
    weights = weights[np.minimum(np.arange(schedule.steps), 3)[::-1]]  # by row
    weights[0] = 0
    # All weights sum to 1, so eps' - eps is a weighted sum of (earlier eps - eps).
    change = -np.sqrt(schedule.alpha_bar_prev) * np.diff(sigma, prepend=0.0) * weights.T
    changes = {f"change_{i}": table for i, table in enumerate(change, start=1)}
    tables = _ddim_tables(schedule) | changes
    return _one_call_a_step(Solver(_plms_step, history=3), schedule, tables)


def _plms_step(c: Coefficients, at: StepInput) -> jax.Array:
    x = _ddim_step(c, at)
    for i, earlier in enumerate(at.past, start=1):
        x += c[f"change_{i}"] * (earlier.eps - at.eps)
    return x


def dpmpp_2m(schedule: Schedule, eta: float) -> SamplerPlan:
    """DPM-Solver++(2M): extrapolated x_0, along l = -log sigma. Algorithm 2, arXiv 2211.01095.

        x_{t-1} = sqrt(1 - alpha_bar_{t-1}) / sqrt(1 - alpha_bar_t) x_t
                + sqrt(alpha_bar_{t-1}) (1 - exp(l_t - l_{t-1})) x_0'
        x_0'    = x_0 + (l_{t-1} - l_t) / (2 (l_t - l_{t+1})) (x_0 - x_0 of t+1)

    With x_0' = x_0 it is DDIM's step: for the first row, which has no earlier prediction, and for
    the last two, where l rises much more than before and then to infinity.
    """
    ascent = np.diff(np.log(schedule.sqrt_recipm1_alpha_bar), prepend=-np.inf)  # of l, by row
    share = np.zeros(schedule.steps)
    share[2:-1] = -np.expm1(-ascent[2:-1]) * ascent[2:-1] / (2 * ascent[3:])
    tables = _ddim_tables(schedule) | {"change": np.sqrt(schedule.alpha_bar_prev) * share}
    return _one_call_a_step(Solver(_dpmpp_2m_step, history=1), schedule, tables)


def _dpmpp_2m_step(c: Coefficients, at: StepInput) -> jax.Array:
    return _ddim_step(c, at) + c["change"] * (at.x_0 - at.past[0].x_0)


SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "heun": heun,
    "plms": plms,
    "dpmpp_2m": dpmpp_2m,
}


def inverse_ddim(schedule: Schedule) -> SamplerPlan:
    """Inverse DDIM: Euler's method along the probability flow from an image to its noise.

    x_{t+1} / sqrt(alpha_bar_{t+1}) = x_t / sqrt(alpha_bar_t) + (sigma_{t+1} - sigma_t) eps(x_t, t):
    Eq. 13, arXiv 2010.02502. The image, at sigma 0, stands for row 0's x_t.
    """
    k = np.arange(schedule.steps)
    root = np.sqrt(schedule.alpha_bar)
    coefficients = {
        "x_t": root / np.sqrt(schedule.alpha_bar_prev),
        "eps": root * np.diff(schedule.sqrt_recipm1_alpha_bar, prepend=0.0),
    }
    return SamplerPlan(Solver(_inverse_step), schedule, k, np.maximum(k - 1, 0), coefficients)


def _inverse_step(c: Coefficients, at: StepInput) -> jax.Array:
    return c["x_t"] * at.x_t + c["eps"] * at.eps
