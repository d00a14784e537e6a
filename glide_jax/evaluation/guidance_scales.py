"""Scales of classifier-free and CLIP guidance: flags, sampling settings and curves.

Shared by the commands that sample at several scales.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glide_jax.diffusion.samplers import SAMPLERS
from glide_jax.errors import UserError
from glide_jax.sampling.flags import SamplingFlags


@dataclass(frozen=True, kw_only=True)
class ScaleFlags(SamplingFlags):
    """Flags of commands that sample at several guidance scales."""

    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    """Classifier-free guidance scales; 1 is none."""
    clip_scales: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
    """CLIP guidance scales, if there is a CLIP; 0 is none."""
    clip_sampler: str = "ddpm"
    """Sampler for CLIP guidance; docs/samplers.md says why ddpm."""

    def check_scales(self) -> None:
        """Raises UserError for flags that the scales replace."""
        if self.clip_sampler not in SAMPLERS:
            raise UserError(
                f"--clip-sampler {self.clip_sampler}: must be one of {', '.join(SAMPLERS)}"
            )
        for flag, scales in (("--scales", self.scales), ("--clip-scales", self.clip_scales)):
            if not all(0 <= scale < float("inf") for scale in scales):
                raise UserError(f"{flag}: scales are numbers from 0 on")
        if not self.scales and not self.clip_scales:
            raise UserError("give --scales or --clip-scales")
        for name, instead in (("guidance_scale", "scales"), ("clip_guidance_scale", "clip_scales")):
            if getattr(self, name) is not None:
                flags = (f"--{flag.replace('_', '-')}" for flag in (name, instead))
                raise UserError("{}: give {} instead".format(*flags))

    def by_scale(self) -> dict[float, dict[str, Any]]:
        """The sampling settings of each scale of classifier-free guidance."""
        return {scale: {"guidance_scale": scale} for scale in self.scales}

    def by_clip_scale(self) -> dict[float, dict[str, Any]]:
        """The sampling settings of each scale of CLIP guidance."""
        common = {"guidance_scale": 1.0, "sampler": self.clip_sampler}
        return {scale: common | {"clip_guidance_scale": scale} for scale in self.clip_scales}


def draw_curve(
    axes: Any,
    label: str,
    scales: Sequence[float],
    x: Sequence[float],
    y: Sequence[float],
    errors: tuple[Sequence[float], Sequence[float]] | None = None,
) -> None:
    """Draws a line through the points of all scales, each with its scale beside it.

    Args:
        axes: of matplotlib.
        label: of the curve.
        scales: one per point.
        x, y: of the points.
        errors: standard errors in x and y; 0 for none.
    """
    x_error, y_error = errors or (None, None)
    axes.errorbar(
        x, y, yerr=y_error, xerr=x_error, marker="o", label=label, elinewidth=0.8, capsize=2
    )
    for scale, point in zip(scales, zip(x, y, strict=True), strict=True):
        axes.annotate(f"{scale:g}", point, textcoords="offset points", xytext=(5, 4))
    axes.grid(alpha=0.3)
