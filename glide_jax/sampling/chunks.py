"""A sampler's plan as runs of a compiled program: what is compiled, and what its arguments are."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from glide_jax.config import SampleConfig
from glide_jax.diffusion.loop import Calls
from glide_jax.diffusion.samplers import SamplerPlan, Solver
from glide_jax.diffusion.schedule import Schedule

CHUNK_CALLS = 10
"""Rows of a chunk's tables: its largest number of denoiser calls."""


class Values(NamedTuple):
    """Settings whose values never recompile: arguments of both programs, scalars."""

    temperature: Float[Array, ""]
    low_res_noise: Int[Array, ""]
    start_alpha: Float[Array, ""]
    """sqrt(alpha_bar_t) of the first x_t, for images to start from."""
    start_noise: Float[Array, ""]
    """sqrt(1 - alpha_bar_t) of the first x_t."""
    guidance_scale: Float[Array, ""]
    guidance_rescale: Float[Array, ""]
    clip_guidance_scale: Float[Array, ""]
    dynamic_threshold: Float[Array, ""]

    @classmethod
    def of(cls, settings: SampleConfig, schedule: Schedule) -> "Values":
        """The values of these settings and of the rows to visit, on the host."""
        last = schedule.alpha_bar[-1]
        values: dict[str, Any] = {
            "temperature": np.float32(settings.temperature),
            "low_res_noise": np.int32(settings.low_res_noise),
            "start_alpha": np.float32(np.sqrt(last)),
            "start_noise": np.float32(np.sqrt(1 - last)),
            "guidance_scale": np.float32(settings.guidance_scale),
            "guidance_rescale": np.float32(settings.guidance_rescale),
            "clip_guidance_scale": np.float32(settings.clip_guidance_scale),
            "dynamic_threshold": np.float32(settings.dynamic_threshold),
        }
        return cls(**values)


@dataclass(frozen=True)
class Recipe:
    """What `Programs.advance` is compiled for."""

    solver: Solver
    threshold: Literal["static", "dynamic", "none"]
    """Of predicted images; none in inversion."""
    guided: bool
    """Whether the denoiser sees twice the batch, for classifier-free guidance."""


class Chunk(NamedTuple):
    """A run of `Programs.advance`: consecutive calls, all with or all without guidance."""

    recipe: Recipe
    table: Calls
    """CHUNK_CALLS rows, on the host, of which the first `calls` are run."""
    calls: int


def chunks(
    plan: SamplerPlan, settings: SampleConfig, *, captioned: bool = True, inverts: bool = False
) -> list[Chunk]:
    """The chunks of a plan: about a tenth of its calls each, cut at the guidance interval's ends.

    So calls outside of the interval (arXiv 2404.07724) do not compute the unconditional half.

    Args:
        plan: of the sampler, or of its inversion.
        settings: of sampling.
        captioned: whether the model reads captions; without them there is nothing to guide.
        inverts: the plan is that of an inversion, without guidance and threshold.
    """
    table, (low, high) = Calls.of(plan), settings.guidance_interval
    t = np.asarray(table.t)
    guides = captioned and not inverts and settings.guidance_scale != 1
    guided = (low <= t) & (t <= high) & guides
    threshold: Any = "dynamic" if settings.dynamic_threshold > 0 else "static"
    size = min(-(-plan.calls // 10), CHUNK_CALLS)
    parts, first = [], 0
    while first < plan.calls:
        same = guided[first : first + size] == guided[first]
        count = len(same) if same.all() else int(np.argmin(same))
        recipe = Recipe(plan.solver, "none" if inverts else threshold, bool(guided[first]))
        parts.append(Chunk(recipe, table.part(first, count, CHUNK_CALLS), count))
        first += count
    return parts
