"""Noise schedules: float64 NumPy tables of all T steps, or respaced to fewer."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int64

from glide_jax.config import DiffusionConfig
from glide_jax.errors import UserError

Table = Float64[np.ndarray, "s"]
"""One value for each step."""


def betas(name: str, T: int) -> Table:
    """Variance of the noise added in each step.

    Args:
        name: a key of SCHEDULES.
        T: number of steps.

    Returns:
        (T,), in (0, 1).

    Raises:
        UserError: unknown name, or T out of the schedule's range.
    """
    if name not in SCHEDULES:
        raise UserError(f"diffusion.schedule '{name}' is unknown: use {' or '.join(SCHEDULES)}")
    return SCHEDULES[name](T)


def linear(T: int) -> Table:
    """From 1e-4 to 0.02 in 1000 steps (sec. 4, arXiv 2006.11239), times 1000/T for other T.

    Raises:
        UserError: T <= 20, which would raise the last beta to 1.
    """
    if T <= 20:
        raise UserError(f"diffusion.steps ({T}) must be above 20 with the linear schedule")
    return np.linspace(1e-4, 0.02, T) * (1000 / T)


def squaredcos_cap_v2(T: int) -> Table:
    """beta_t = min(1 - f(t/T) / f((t-1)/T), 0.999) with f(u) = cos^2((u + 0.008)/1.008 * pi/2).

    Eq. 17, arXiv 2102.09672, for t = 1..T.
    """
    if T < 1:
        raise UserError(f"diffusion.steps ({T}) must be at least 1")
    f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


SCHEDULES = {"linear": linear, "squaredcos_cap_v2": squaredcos_cap_v2}

TERMINAL_ROOT = 1e-4
"""Last sqrt(alpha_bar) of a zero-terminal-SNR schedule: the image's amplitude in pure noise.

Not 0, because samplers compute x_0 from eps: at 1e-4 float32 still resolves x_0 to 4e-4, a
twentieth of an 8-bit level. For the network it is as good as 0: even the mean of a 64 px image, its
most visible feature, is a ninetieth of the noise in the mean of its 12,288 values."""


def rescale_to_zero_terminal_snr(alpha_bar: Table) -> Table:
    """Remove the image from the last step. Algorithm 1, arXiv 2305.08891.

    Shifts and scales sqrt(alpha_bar), keeping its first value, so that its last is TERMINAL_ROOT,
    in place of the paper's 0. Schedules that end below it are unchanged: squaredcos_cap_v2 with
    1000 steps ends at half of it.

    Raises:
        UserError: a single step, whose first value is also its last.
    """
    root = np.sqrt(alpha_bar)
    if len(root) < 2:
        raise UserError("diffusion.steps (1) must be at least 2 with diffusion.zero_terminal_snr")
    if root[-1] <= TERMINAL_ROOT:
        return alpha_bar
    scale = (root[0] - TERMINAL_ROOT) / (root[0] - root[-1])
    return (TERMINAL_ROOT + (root - root[-1]) * scale) ** 2


def respace(respacing: str, T: int) -> Int64[np.ndarray, "s"]:
    """Steps, of all T, that a sampler visits; for all spacings but `karras`.

    - "250": 250 steps, evenly from the first to the last, rounded to integers.
    - "10,10,3,2,2": the T steps in five equal sections, each evenly spaced. A section of one keeps
      its first step.
    - "ddim50": every T/50-th step from 0; the stride must be an integer (arXiv 2010.02502).
    - "fast27": "10,10,3,2,2" with the last step, T-1, moved to T-3, with slightly less noise:
      GLIDE's spacing for its upsampler.

    Returns:
        (s,) original step indices in [0, T), ascending.

    Raises:
        UserError: not a respacing, or more steps than T.
    """
    if respacing.startswith("ddim"):
        return _strided(respacing, T)
    sections = "10,10,3,2,2" if respacing == "fast27" else respacing
    counts = [_count(text, respacing) for text in sections.split(",")]
    size, longer = divmod(T, len(counts))
    sizes = [size + (i < longer) for i in range(len(counts))]
    start, kept_of_section = 0, []
    for count, size in zip(counts, sizes, strict=True):
        if count > size:
            raise UserError(f"steps '{respacing}': cannot keep {count} of {size} diffusion steps")
        # A cumulative sum, as in the released code: a multiplication rounds some halves the other
        # way.
        stride = (size - 1) / max(count - 1, 1)
        positions = np.cumsum([0.0, *[stride] * (count - 1)])
        kept_of_section.append(start + np.round(positions).astype(np.int64))
        start += size
    kept = np.concatenate(kept_of_section)
    if respacing == "fast27":
        kept[-1] = T - 3
    return kept


SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
"""Range of Karras's noise levels. Table 1, arXiv 2206.00364."""
RHO = 7.0
"""Density of Karras's noise levels toward low noise. Table 1, arXiv 2206.00364."""


def karras(respacing: str, sigma: Float64[np.ndarray, "T"]) -> Int64[np.ndarray, "s"]:
    """Steps at Karras's noise levels, dense at low noise: "karras20" is 20 steps.

        sigma_i = (sigma_max^(1/rho) + i / (s - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho

    for i = 0 .. s-1, Eq. 5, arXiv 2206.00364, each at its nearest step. Levels with the same
    nearest step move to neighbors.

    Args:
        respacing: "karras" and a number.
        sigma: (T,) noise levels, sqrt(1/alpha_bar - 1). sigma_min and sigma_max are clipped to
            their range.

    Returns:
        (s,) original step indices in [0, T), ascending.

    Raises:
        UserError: not a respacing, or more steps than T.
    """
    count, T = _count(respacing.removeprefix("karras"), respacing), len(sigma)
    if count > T:
        raise UserError(f"steps '{respacing}': cannot keep {count} of {T} diffusion steps")
    low, high = np.clip([SIGMA_MIN, SIGMA_MAX], sigma[0], sigma[-1]) ** (1 / RHO)
    levels = np.linspace(high, low, count)[::-1] ** RHO
    nearest = np.abs(sigma - levels[:, None]).argmin(axis=1)
    position = np.arange(count)
    distinct = np.maximum.accumulate(nearest - position) + position
    return np.minimum(distinct, T - count + position)


def _strided(respacing: str, T: int) -> Int64[np.ndarray, "s"]:
    count = _count(respacing.removeprefix("ddim"), respacing)
    for stride in range(1, T + 1):
        if len(range(0, T, stride)) == count:
            return np.arange(0, T, stride)
    raise UserError(
        f"steps '{respacing}': no integer stride keeps {count} of {T} diffusion steps; "
        f"use '{count}', which rounds"
    )


def _count(text: str, respacing: str) -> int:
    count = int(text) if text.strip().isdecimal() else 0
    if count < 1:
        raise UserError(
            f"steps '{respacing}' is not a respacing: use a number of steps, sections such as "
            "'10,10,3,2,2', 'ddim50', 'karras20' or 'fast27'"
        )
    return count


def _betas_of(alpha_bar: Table) -> Table:
    return 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])


@dataclass(frozen=True, eq=False)
class Schedule:
    """Tables of a noise process, one row for each step; row 0 has the least noise.

    Letters as in arXiv 2006.11239: alpha_t = 1 - beta_t, alpha_bar_t = alpha_1 ... alpha_t,
    q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I).

    Hashed by identity: jitted functions can close over it or take it as a static argument.
    """

    betas: Table
    timestep_map: Int64[np.ndarray, "s"]
    """The original step index of each row: the denoiser's `t`."""

    @classmethod
    def of(cls, config: DiffusionConfig, respacing: str | None = None) -> "Schedule":
        """The schedule of a run.

        Args:
            config: the noise process.
            respacing: as for `create`; None keeps all T steps.

        Raises:
            UserError: a bad name, number of steps or respacing.
        """
        return cls.create(config.schedule, config.steps, respacing, config.zero_terminal_snr)

    @classmethod
    def create(
        cls,
        name: str,
        steps: int = 1000,
        respacing: str | None = None,
        zero_terminal_snr: bool = False,
    ) -> "Schedule":
        """A schedule by name, optionally respaced.

        Respaced steps keep their alpha_bar. Their betas are 1 - alpha_bar_i / alpha_bar_{i-1}
        (Eq. 19, arXiv 2102.09672).

        Args:
            name: a key of SCHEDULES.
            steps: T.
            respacing: see `respace` and `karras`; None keeps every step.
            zero_terminal_snr: see `rescale_to_zero_terminal_snr`. Sampling from noise then needs a
                respacing that keeps step T-1, the only one without a trace of the image. A number
                of steps, such as "50", keeps it; "ddim50" starts at 980, "fast27" at 997 and
                karras at sigma 80, where the model expects a faint image.

        Raises:
            UserError: a bad name, number of steps or respacing.
        """
        full = cls(betas(name, steps), np.arange(steps))
        if zero_terminal_snr:
            alpha_bar = rescale_to_zero_terminal_snr(full.alpha_bar)
            full = cls(_betas_of(alpha_bar), full.timestep_map)
        if respacing is None:
            return full
        if respacing.startswith("karras"):
            kept = karras(respacing, full.sqrt_recipm1_alpha_bar)
        else:
            kept = respace(respacing, steps)
        return cls(_betas_of(full.alpha_bar[kept]), kept)

    def first(self, rows: int) -> "Schedule":
        """The rows with the least noise, for sampling from a noised image (SDEdit).

        Raises:
            UserError: rows not in [1, steps].
        """
        if not 1 <= rows <= self.steps:
            raise UserError(f"cannot take {rows} of {self.steps} steps: use 1 to {self.steps}")
        return Schedule(self.betas[:rows], self.timestep_map[:rows])

    @property
    def steps(self) -> int:
        """Number of rows."""
        return len(self.betas)

    @cached_property
    def alpha_bar(self) -> Table:
        """Squared amplitude of x_0 in x_t; 1 - alpha_bar is the variance of its noise."""
        return np.cumprod(1 - self.betas)

    @cached_property
    def alpha_bar_prev(self) -> Table:
        """alpha_bar of the previous row; 1 before row 0."""
        return np.append(1.0, self.alpha_bar[:-1])

    @cached_property
    def sqrt_recip_alpha_bar(self) -> Table:
        """Coefficient of x_t in x_0 = x_t / sqrt(alpha_bar) - sqrt(1/alpha_bar - 1) eps."""
        return np.sqrt(1 / self.alpha_bar)

    @cached_property
    def sqrt_recipm1_alpha_bar(self) -> Table:
        """Coefficient of eps in x_0; sigma, the noise level in x_t / sqrt(alpha_bar)."""
        return np.sqrt(1 / self.alpha_bar - 1)

    @cached_property
    def posterior_mean_x_0(self) -> Table:
        """Coefficient of x_0 in the mean of q(x_{t-1} | x_t, x_0). Eq. 7, arXiv 2006.11239."""
        return self.betas * np.sqrt(self.alpha_bar_prev) / (1 - self.alpha_bar)

    @cached_property
    def posterior_mean_x_t(self) -> Table:
        """Coefficient of x_t in the mean of q(x_{t-1} | x_t, x_0)."""
        return (1 - self.alpha_bar_prev) * np.sqrt(1 - self.betas) / (1 - self.alpha_bar)

    @cached_property
    def posterior_variance(self) -> Table:
        """beta~, the variance of q(x_{t-1} | x_t, x_0); 0 at row 0. Eq. 7, arXiv 2006.11239."""
        return self.betas * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

    @cached_property
    def posterior_log_variance_clipped(self) -> Table:
        """Log of beta~, with row 1's value at row 0, whose own would be -inf.

        A single row uses beta instead. Samplers add no noise at row 0, so any finite value serves.
        """
        first = self.posterior_variance[1] if self.steps > 1 else self.betas[0]
        return np.log(np.append(first, self.posterior_variance[1:]))
