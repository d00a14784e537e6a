"""How much noise each step holds: float64 NumPy tables, whole or respaced to fewer steps."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int64

from glide_jax.config import DiffusionConfig
from glide_jax.errors import UserError

Table = Float64[np.ndarray, "s"]
"""One value a step."""


def betas(name: str, T: int) -> Table:
    """Variance of the noise that each step adds.

    Args:
        name: a key of SCHEDULES.
        T: number of steps.

    Returns:
        (T,), in (0, 1).

    Raises:
        UserError: unknown name, or a T for which the schedule is not defined.
    """
    if name not in SCHEDULES:
        raise UserError(f"diffusion.schedule '{name}' is unknown: use {' or '.join(SCHEDULES)}")
    return SCHEDULES[name](T)


def linear(T: int) -> Table:
    """From 1e-4 to 0.02 in 1000 steps (sec. 4, arXiv 2006.11239), times 1000/T for other T.

    Raises:
        UserError: T <= 20, where the last beta would reach 1.
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
"""What "zero" is as the last sqrt(alpha_bar): the amplitude of the image in pure noise.

Not 0, where the eps that denoisers hand to samplers would say nothing about x_0: at 1e-4 float32
still tells it to 4e-4, a twentieth of an 8-bit level. It is as good as 0: even the mean of a 64 px
image, which noise hides least, is a ninetieth of the noise in the mean of its 12,288 values."""


def rescaled_to_zero_terminal_snr(alpha_bar: Table) -> Table:
    """Leaves nothing of the image in the last step. Algorithm 1, arXiv 2305.08891.

    sqrt(alpha_bar) is shifted and scaled so that its first value stays and its last becomes
    TERMINAL_ROOT, which stands for the paper's 0. A schedule that ends below that is left as it is,
    as squaredcos_cap_v2 with 1000 steps, which ends at half of it.

    Raises:
        UserError: a single step, which cannot keep its image and have none.
    """
    root = np.sqrt(alpha_bar)
    if len(root) < 2:
        raise UserError("diffusion.steps (1) must be at least 2 with diffusion.zero_terminal_snr")
    if root[-1] <= TERMINAL_ROOT:
        return alpha_bar
    scale = (root[0] - TERMINAL_ROOT) / (root[0] - root[-1])
    return (TERMINAL_ROOT + (root - root[-1]) * scale) ** 2


def respace(respacing: str, T: int) -> Int64[np.ndarray, "s"]:
    """Which of T steps a sampler visits, if it does not depend on their noise.

    - "250": that many, evenly from the first to the last, rounded to whole steps.
    - "10,10,3,2,2": the T steps cut in five equal sections, each spaced like that. A section
      of one keeps its first step.
    - "ddim50": every T/50-th step from 0; the stride must come out whole (arXiv 2010.02502).
    - "fast27": "10,10,3,2,2" with the last step, T-1, moved to T-3, where the noise is a little
      weaker: GLIDE's choice for its upsampler.

    Returns:
        (s,) original step indices in [0, T), ascending.

    Raises:
        UserError: cannot be read, or asks for more steps than there are.
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
        # Added up one by one, as the released code does: multiplying instead rounds some halves
        # the other way.
        stride = (size - 1) / max(count - 1, 1)
        positions = np.cumsum([0.0, *[stride] * (count - 1)])
        kept_of_section.append(start + np.round(positions).astype(np.int64))
        start += size
    kept = np.concatenate(kept_of_section)
    if respacing == "fast27":
        kept[-1] = T - 3
    return kept


SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
"""Between these lie Karras's noise levels. Table 1, arXiv 2206.00364."""
RHO = 7.0
"""How much closer they lie where there is little noise. The same."""


def karras(respacing: str, sigma: Float64[np.ndarray, "T"]) -> Int64[np.ndarray, "s"]:
    """Karras's noise levels, dense where there is little noise: "karras20" takes 20 steps.

        sigma_i = (sigma_max^(1/rho) + i / (s - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho

    for i = 0 .. s-1, Eq. 5, arXiv 2206.00364, each at the nearest step; levels that would share one
    move to neighbors.

    Args:
        respacing: "karras" and a number.
        sigma: the noise level of each of T steps, sqrt(1/alpha_bar - 1). sigma_min and sigma_max
            are the schedule's own where it does not reach as far as 0.002 and 80.

    Returns:
        (s,) original step indices in [0, T), ascending.

    Raises:
        UserError: cannot be read, or asks for more steps than there are.
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
        f"steps '{respacing}': no whole stride makes {count} of {T} diffusion steps; "
        f"'{count}' spaces them by rounding"
    )


def _count(text: str, respacing: str) -> int:
    count = int(text) if text.strip().isdecimal() else 0
    if count < 1:
        raise UserError(
            f"steps '{respacing}' is not a number of steps, sections as '10,10,3,2,2', "
            "'ddim50', 'karras20' or 'fast27'"
        )
    return count


def _betas_of(alpha_bar: Table) -> Table:
    return 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])


@dataclass(frozen=True, eq=False)
class Schedule:
    """The tables of a noise process, a row a step; row 0 is the step nearest to the image.

    Letters as in arXiv 2006.11239: alpha_t = 1 - beta_t, alpha_bar_t = alpha_1 ... alpha_t,
    q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I).

    Hashed by identity, so it can be closed over or be a static argument of a jitted function.
    """

    betas: Table
    timestep_map: Int64[np.ndarray, "s"]
    """The original step index of each row: the `t` that a denoiser is given."""

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
        """A named schedule, or the part of it that a sampler visits.

        Kept steps keep their alpha_bar; their betas follow, 1 - alpha_bar_i / alpha_bar_{i-1}
        (Eq. 19, arXiv 2102.09672).

        Args:
            name: a key of SCHEDULES.
            steps: T.
            respacing: see `respace` and `karras`; None keeps every step.
            zero_terminal_snr: see `rescaled_to_zero_terminal_snr`. Samplers that start from noise
                then need a respacing that keeps the last step, T-1, the only one without image:
                a number of steps, as "50", does; "ddim50" starts at 980, "fast27" at 997 and
                karras at a noise of 80, with a little of an image that nobody drew.

        Raises:
            UserError: bad name, steps or respacing.
        """
        whole = cls(betas(name, steps), np.arange(steps))
        if zero_terminal_snr:
            alpha_bar = rescaled_to_zero_terminal_snr(whole.alpha_bar)
            whole = cls(_betas_of(alpha_bar), whole.timestep_map)
        if respacing is None:
            return whole
        if respacing.startswith("karras"):
            kept = karras(respacing, whole.sqrt_recipm1_alpha_bar)
        else:
            kept = respace(respacing, steps)
        return cls(_betas_of(whole.alpha_bar[kept]), kept)

    def first(self, rows: int) -> "Schedule":
        """The rows nearest to the image, for a sampler that starts in the middle.

        Raises:
            UserError: not in [1, steps].
        """
        if not 1 <= rows <= self.steps:
            raise UserError(f"cannot take {rows} of {self.steps} steps: at least 1, at most all")
        return Schedule(self.betas[:rows], self.timestep_map[:rows])

    @property
    def steps(self) -> int:
        """Number of rows."""
        return len(self.betas)

    @cached_property
    def alpha_bar(self) -> Table:
        """Share of x_0's variance that is left in x_t."""
        return np.cumprod(1 - self.betas)

    @cached_property
    def alpha_bar_prev(self) -> Table:
        """alpha_bar of the row before; 1 before the first."""
        return np.append(1.0, self.alpha_bar[:-1])

    @cached_property
    def sqrt_recip_alpha_bar(self) -> Table:
        """x_t's factor in x_0 = x_t / sqrt(alpha_bar) - sqrt(1/alpha_bar - 1) eps."""
        return np.sqrt(1 / self.alpha_bar)

    @cached_property
    def sqrt_recipm1_alpha_bar(self) -> Table:
        """eps's factor in the same."""
        return np.sqrt(1 / self.alpha_bar - 1)

    @cached_property
    def posterior_mean_x_0(self) -> Table:
        """x_0's factor in the mean of q(x_{t-1} | x_t, x_0). Eq. 7, arXiv 2006.11239."""
        return self.betas * np.sqrt(self.alpha_bar_prev) / (1 - self.alpha_bar)

    @cached_property
    def posterior_mean_x_t(self) -> Table:
        """x_t's factor in the same."""
        return (1 - self.alpha_bar_prev) * np.sqrt(1 - self.betas) / (1 - self.alpha_bar)

    @cached_property
    def posterior_variance(self) -> Table:
        """beta~, the variance of q(x_{t-1} | x_t, x_0); 0 at row 0. Eq. 7, arXiv 2006.11239."""
        return self.betas * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

    @cached_property
    def posterior_log_variance_clipped(self) -> Table:
        """Log of beta~, row 0 taking row 1's value: its own would be -inf.

        With a single row there is no such neighbor, and beta stands in; no sampler adds noise
        at row 0, so this only has to be finite.
        """
        first = self.posterior_variance[1] if self.steps > 1 else self.betas[0]
        return np.log(np.append(first, self.posterior_variance[1:]))
