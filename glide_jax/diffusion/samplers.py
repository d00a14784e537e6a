"""The samplers: each is what to do with one prediction, and float64 tables of its coefficients.

All but ancestral sampling solve the probability flow, which is simplest in x_t / sqrt(alpha_bar_t):

    d (x_t / sqrt(alpha_bar_t)) = eps(x_t, t) d sigma,   sigma = sqrt(1 / alpha_bar_t - 1)

(Eq. 14, arXiv 2010.02502). DDIM without noise takes eps for constant over a step: Euler's method.
The others correct DDIM's step by what earlier predictions tell of how eps changes. To add one: a
function of the schedule and eta that returns a `Plan`, and a line in SAMPLERS.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, Int64

from glide_jax.diffusion.process import learned_log_variance, q_posterior
from glide_jax.diffusion.schedule import Schedule, Table
from glide_jax.errors import UserError


class Prediction(NamedTuple):
    """What the denoiser said, after thresholding and hooks; (b, h, w, c) float32."""

    x_0: jax.Array
    """The image."""
    eps: jax.Array
    """The noise that leads from this x_0 to x_t."""


class StepInput(NamedTuple):
    """What a sampler knows at a call; arrays are (b, h, w, c) float32 unless said otherwise."""

    row: jax.Array
    """(b,): the schedule's row, the same for every example."""
    x_t: jax.Array
    x_0: jax.Array
    """See `Prediction`."""
    eps: jax.Array
    """See `Prediction`."""
    v: jax.Array
    """The denoiser's variance fraction."""
    noise: jax.Array
    """Fresh standard normal noise."""
    past: tuple[Prediction, ...]
    """Predictions of earlier calls, the latest first; zeros where there were none."""
    gradient: jax.Array | None
    """For a plan that `shifts_mean`, and if there is one."""


Coefficients = dict[str, jax.Array]
"""One call's, by name."""
Step = Callable[[Coefficients, StepInput], jax.Array]
"""`(coefficients, input) -> the next x_t`."""


class Plan(NamedTuple):
    """A sampler ready for a schedule: e calls of the denoiser, in tables in the order of calls."""

    step_of_call: Int64[np.ndarray, "e"]
    """k, counting steps from 0: a step may take several calls."""
    rows: Int64[np.ndarray, "e"]
    """The schedule's row that each call's x_t is at."""
    coefficients: dict[str, Float64[np.ndarray, "e"]]
    step: Step
    history: int = 0
    """How many earlier predictions the step looks at."""
    shifts_mean: bool = False
    """Whether the step itself uses the gradient of guidance. For all others it goes into eps."""


Sampler = Callable[[Schedule, float], Plan]
"""`(schedule, eta) -> plan`."""


def _a_call_a_step(
    by_row: dict[str, Table], step: Step, history: int = 0, shifts_mean: bool = False
) -> Plan:
    """The plan that visits every row once, last to first; tables are given as the schedule's."""
    steps = len(next(iter(by_row.values())))
    backwards = {name: table[::-1] for name, table in by_row.items()}
    k = np.arange(steps)
    return Plan(k, k[::-1], backwards, step, history, shifts_mean)


def ddpm(schedule: Schedule, eta: float) -> Plan:
    """Ancestral sampling: x_{t-1} ~ N(mu~(x_t, x_0), learned variance). Sec. 3.1, arXiv 2102.09672.

    Guidance by a gradient shifts the mean by variance * gradient: algorithm 1, arXiv 2105.05233.

    Args:
        schedule: s rows.
        eta: not used, nor by any other but `ddim`.
    """

    def step(c: Coefficients, at: StepInput) -> jax.Array:
        mean = q_posterior(schedule, at.x_0, at.x_t, at.row).mean
        log_variance = learned_log_variance(schedule, at.v, at.row)
        if at.gradient is not None:
            mean += jnp.exp(log_variance) * at.gradient
        return mean + c["noise"] * jnp.exp(0.5 * log_variance) * at.noise

    noise = np.where(np.arange(schedule.steps) > 0, 1.0, 0.0)
    return _a_call_a_step({"noise": noise}, step, shifts_mean=True)


def ddim(schedule: Schedule, eta: float) -> Plan:
    """DDIM. Eqs. 12 and 16, arXiv 2010.02502.

        x_{t-1} = sqrt(alpha_bar_{t-1}) x_0 + sqrt(1 - alpha_bar_{t-1} - s^2) eps + s noise
        s^2 = eta^2 (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t

    Args:
        schedule: s rows.
        eta: 0 is deterministic, 1 is ancestral sampling with the variance beta~.

    Raises:
        UserError: eta is not in [0, 1].
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta ({eta}) must be in [0, 1]")

    def step(c: Coefficients, at: StepInput) -> jax.Array:
        return _ddim_step(c, at) + c["noise"] * at.noise

    s = eta * np.sqrt(schedule.posterior_variance)
    return _a_call_a_step(_ddim_tables(schedule, s) | {"noise": s}, step)


def _ddim_step(c: Coefficients, at: StepInput) -> jax.Array:
    return c["x_0"] * at.x_0 + c["eps"] * at.eps


def _ddim_tables(schedule: Schedule, s: Table | float = 0.0) -> dict[str, Table]:
    return {
        "x_0": np.sqrt(schedule.alpha_bar_prev),
        "eps": np.sqrt(np.maximum(1 - schedule.alpha_bar_prev - s**2, 0)),
    }


def heun(schedule: Schedule, eta: float) -> Plan:
    """Heun's second-order method in sigma: a step of DDIM, then its mean with one from its end.

    Algorithm 1, arXiv 2206.00364, without noise. Two calls a step:

        x_{t-1}  = DDIM's step from x_t, where eps was predicted
        x_{t-1} += sqrt(alpha_bar_{t-1}) (sigma_{t-1} - sigma_t) / 2 (eps(x_{t-1}) - eps)

    The last step, to sigma 0, is DDIM's, and so is the first: squaredcos_cap_v2 starts at a sigma
    of 20,000, from where eps's change over the step says nothing about eps on the way.
    """
    sigma, k = schedule.sqrt_recipm1_alpha_bar, np.arange(schedule.steps)
    visit = np.repeat(k, np.where(k < 2, 1, 2))
    corrects = np.append(np.diff(visit) == 0, False)  # the first of two calls at the same row
    rows = schedule.steps - 1 - visit
    half_step = np.sqrt(schedule.alpha_bar) * np.diff(sigma, append=sigma[-1]) / 2
    coefficients = {name: table[rows] * ~corrects for name, table in _ddim_tables(schedule).items()}
    coefficients |= {"x_t": 1.0 * corrects, "change": half_step[rows] * corrects}

    def step(c: Coefficients, at: StepInput) -> jax.Array:
        change = at.past[0].eps - at.eps
        return _ddim_step(c, at) + c["x_t"] * at.x_t + c["change"] * change

    return Plan(visit - corrects, rows, coefficients, step, history=1)


def plms(schedule: Schedule, eta: float) -> Plan:
    """Pseudo linear multistep, PNDM: DDIM's step with eps extrapolated. arXiv 2202.09778.

        eps' = (55 eps_t - 59 eps_{t+1} + 37 eps_{t+2} - 9 eps_{t+3}) / 24

    Adams and Bashforth's weights for evenly spaced t, of lower order while there are fewer
    predictions. The last step, a single t long however few the others are, is DDIM's.
    """
    sigma = schedule.sqrt_recipm1_alpha_bar
    weights = np.array([[0, 0, 0], [-12, 0, 0], [-32, 10, 0], [-59, 37, -9]]) / 24
    weights = weights[np.minimum(np.arange(schedule.steps), 3)[::-1]]  # by row
    weights[0] = 0
    # All weights sum to 1, so eps' - eps is a sum over what earlier predictions differ by.
    change = -np.sqrt(schedule.alpha_bar_prev) * np.diff(sigma, prepend=0.0) * weights.T
    changes = {f"change_{i}": table for i, table in enumerate(change, start=1)}

    def step(c: Coefficients, at: StepInput) -> jax.Array:
        x = _ddim_step(c, at)
        for i, earlier in enumerate(at.past, start=1):
            x += c[f"change_{i}"] * (earlier.eps - at.eps)
        return x

    return _a_call_a_step(_ddim_tables(schedule) | changes, step, history=3)


def dpmpp_2m(schedule: Schedule, eta: float) -> Plan:
    """DPM-Solver++(2M): x_0 extrapolated along l = -log sigma. Algorithm 2, arXiv 2211.01095.

        x_{t-1} = sqrt(1 - alpha_bar_{t-1}) / sqrt(1 - alpha_bar_t) x_t
                + sqrt(alpha_bar_{t-1}) (1 - exp(l_t - l_{t-1})) x_0'
        x_0'    = x_0 + (l_{t-1} - l_t) / (2 (l_t - l_{t+1})) (x_0 - x_0 of t+1)

    With x_0' = x_0 that is DDIM's step, which is taken first, where there is no earlier prediction,
    and for the last two rows: from row 1 to 0 l rises much more than before, and then without end.
    """
    ascent = np.diff(np.log(schedule.sqrt_recipm1_alpha_bar), prepend=-np.inf)  # of l, by row
    share = np.zeros(schedule.steps)
    share[2:-1] = -np.expm1(-ascent[2:-1]) * ascent[2:-1] / (2 * ascent[3:])
    tables = _ddim_tables(schedule) | {"change": np.sqrt(schedule.alpha_bar_prev) * share}

    def step(c: Coefficients, at: StepInput) -> jax.Array:
        return _ddim_step(c, at) + c["change"] * (at.x_0 - at.past[0].x_0)

    return _a_call_a_step(tables, step, history=1)


SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "heun": heun,
    "plms": plms,
    "dpmpp_2m": dpmpp_2m,
}


def inverse_ddim(schedule: Schedule) -> Plan:
    """DDIM run backwards: the probability flow from an image to its noise, by Euler's method.

    x_{t+1} / sqrt(alpha_bar_{t+1}) = x_t / sqrt(alpha_bar_t) + (sigma_{t+1} - sigma_t) eps(x_t, t):
    Eq. 13, arXiv 2010.02502. The image, at sigma 0, is taken for row 0's x_t.
    """
    k = np.arange(schedule.steps)
    root = np.sqrt(schedule.alpha_bar)
    coefficients = {
        "x_t": root / np.sqrt(schedule.alpha_bar_prev),
        "eps": root * np.diff(schedule.sqrt_recipm1_alpha_bar, prepend=0.0),
    }
    return Plan(
        k, np.maximum(k - 1, 0), coefficients, lambda c, at: c["x_t"] * at.x_t + c["eps"] * at.eps
    )
