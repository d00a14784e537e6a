"""Defaults of sampling."""

from dataclasses import dataclass
from typing import Annotated

from glide_jax.config.bounds import ANY_NUMBER, FRACTION, NOT_NEGATIVE, Between
from glide_jax.config.checks import Settings
from glide_jax.config.diffusion import MAX_DIFFUSION_STEPS

MAX_STEPS_CHARS = 200


@dataclass(frozen=True)
class SampleConfig(Settings):
    """Sampling defaults of a model (defaults here: GLIDE's base model)."""

    sampler: str = "ddpm"
    """Sampler: ddpm, ddim, heun, plms or dpmpp_2m."""
    steps: str = "100"
    """Respacing: a number of steps, steps per section (10,10,3,2,2), ddim50, karras20 or fast27."""
    guidance_scale: Annotated[float, ANY_NUMBER] = 3.0
    """Classifier-free guidance scale; 1: no guidance, 0: unconditional."""
    eta: Annotated[float, ANY_NUMBER] = 0.0
    """Noise of DDIM; 0: deterministic, 1: ancestral."""
    temperature: Annotated[float, ANY_NUMBER] = 1.0
    """Standard deviation of the initial noise (released upsampler: 0.997)."""
    guidance_interval: Annotated[tuple[int, int], Between(-(2**31), 2**31 - 1)] = (0, 1_000_000)
    """Lowest and highest timestep t with guidance (arXiv 2404.07724); other steps cost half."""
    guidance_rescale: Annotated[float, FRACTION] = 0.0
    """Rescale a guided prediction (eps or v) toward the standard deviation of the conditional one,
    in [0, 1] (arXiv 2305.08891)."""
    clip_guidance_scale: Annotated[float, ANY_NUMBER] = 0.0
    """Scale of guidance by a noised CLIP; 0: none. Use sampler ddpm, see docs/samplers.md."""
    dynamic_threshold: Annotated[float, FRACTION] = 0.0
    """Dynamic thresholding of x_0 at this quantile, such as 0.995 (sec. 2.3, arXiv 2205.11487);
    0: clip to [-1, 1]."""
    embedding_threshold: Annotated[float, NOT_NEGATIVE] = 10.0
    """Priors: limit of each value of a predicted embedding, normalized to a standard deviation of 1
    (Karlo: 10, diffusers: 5)."""
    low_res_noise: Annotated[int, Between(0, MAX_DIFFUSION_STEPS)] = 0
    """Upsamplers: noise-conditioning augmentation, as the timestep of the noise added to the
    low-resolution image. Hides artifacts of the base model. Requires model.low_res_noise. As a
    flag, for commands that sample an upsampler alone, such as sample.py upsample."""

    def _check(self) -> None:
        self.require(len(self.steps) <= MAX_STEPS_CHARS, "steps", "is no respacing: it is too long")
        low, high = self.guidance_interval
        self.require(low <= high, "guidance_interval", f"({low} {high}) must be low, then high")
        threshold = self.embedding_threshold
        self.require(threshold > 0, "embedding_threshold", f"must be above 0, not {threshold:g}")
        threshold = self.dynamic_threshold
        self.require(0 <= threshold < 1, "dynamic_threshold", f"must be in [0, 1), not {threshold}")
