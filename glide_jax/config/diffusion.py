"""The noise process and its training."""

from dataclasses import dataclass
from typing import Annotated, Literal

from glide_jax.config.bounds import NOT_NEGATIVE, Between
from glide_jax.config.checks import Settings

MAX_DIFFUSION_STEPS = 100_000


@dataclass(frozen=True)
class DiffusionConfig(Settings):
    """Noise process and training loss (defaults: GLIDE)."""

    schedule: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    """Noise schedule: cosine (base models) or linear (upsamplers)."""
    steps: Annotated[int, Between(2, MAX_DIFFUSION_STEPS)] = 1000
    """Diffusion steps, T."""
    prediction: Literal["eps", "v"] = "eps"
    """Prediction target and space of the loss: noise (GLIDE) or velocity (arXiv 2202.00512)."""
    zero_terminal_snr: bool = False
    """Rescale the schedule to a signal-to-noise ratio of 0 at the last step, where sampling starts
    (arXiv 2305.08891). Requires prediction v."""
    low_res_std: Annotated[float, Between(0, 2)] = 0.0
    """Upsamplers: RMS difference between images in [-1, 1] and their upsampled low-resolution
    images. Above 0, the network predicts a correction to the upsampled image instead of the image
    (`parameterization.Correction`). Requires prediction v. 0: GLIDE."""
    timesteps: Literal["uniform", "rising", "loss-second-moment"] = "uniform"
    """Distribution of t in training: uniform (GLIDE); rising, proportional to t, for the noisy
    steps, where the caption matters most; or importance sampling by the RMS of recent losses at
    t (sec. 3.3, arXiv 2102.09672)."""
    weighting: Literal["simple", "min-snr"] = "simple"
    """Weight of the squared error at each t: constant (GLIDE), or the signal-to-noise ratio clamped
    at min_snr_gamma (arXiv 2303.09556)."""
    min_snr_gamma: Annotated[float, NOT_NEGATIVE] = 5.0
    """Clamp of the signal-to-noise ratio in weighting min-snr."""

    def _check(self) -> None:
        self.require(
            self.min_snr_gamma > 0, "min_snr_gamma", f"must be above 0, not {self.min_snr_gamma}"
        )
        self.require(
            self.prediction == "v" or not self.zero_terminal_snr,
            "zero_terminal_snr",
            "needs diffusion.prediction v: at SNR 0, noise does not determine the image",
        )
        self.require(
            self.prediction == "v" or not self.low_res_std,
            "low_res_std",
            "needs diffusion.prediction v",
        )
