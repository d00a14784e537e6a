"""Scales of classifier-free and CLIP guidance: flags, sampling settings and curves.

Shared by the commands that sample at several scales.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from glide_jax.diffusion.samplers import SAMPLERS
from glide_jax.errors import UserError
from glide_jax.sampling.flags import SamplingFlags

MARKER_PT, LINE_PT, FONT_PT = 6, 2, 9
"""Sizes of points, of the lines through them, and of the scales beside them."""
_ANGLES = np.radians([45, 135, 225, 315, 0, 180, 90, 270])
OFFSETS_PT = np.concatenate(
    [distance * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1) for distance in (11, 16, 22)]
)
"""Of a scale from its point, the best first."""


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


class Curve(NamedTuple):
    """Points of a kind of guidance, one per scale."""

    label: str
    scales: Sequence[float]
    x: Sequence[float]
    y: Sequence[float]
    x_errors: Sequence[float] | None = None
    """Standard errors; 0 for none."""
    y_errors: Sequence[float] | None = None


def draw_curves(axes: Any, curves: Sequence[Curve]) -> None:
    """Draws a line through the points of each curve. `label_scales` adds the scales.

    Args:
        axes: of matplotlib.
        curves: in the order of their colors.
    """
    for curve in curves:
        axes.errorbar(
            curve.x,
            curve.y,
            yerr=curve.y_errors,
            xerr=curve.x_errors,
            marker="o",
            markersize=MARKER_PT,
            label=curve.label,
            elinewidth=0.8,
            capsize=2,
        )
    axes.margins(0.08)  # for labels
    axes.grid(alpha=0.3)


def label_scales(axes: Any, curves: Sequence[Curve]) -> None:
    """Writes each point's scale beside it, in its curve's color, where it covers nothing.

    Args:
        axes: of a figure that is complete but for this.
        curves: as of `draw_curves`.
    """
    from matplotlib import patheffects  # an optional dependency of commands that plot

    axes.figure.draw_without_rendering()  # sets the limits and sizes of the axes
    px_per_pt = axes.figure.dpi / 72
    points = [
        axes.transData.transform(list(zip(curve.x, curve.y, strict=True))) / px_per_pt
        for curve in curves
    ]
    centers = np.concatenate(points)
    taken = [centers, *(_along(of_curve) for of_curve in points)]
    sides = [np.full_like(taken[0], MARKER_PT), *(np.full_like(x, LINE_PT) for x in taken[1:])]
    for curve, of_curve, drawn in zip(curves, points, axes.containers, strict=True):
        for scale, x, y, point in zip(*curve[1:4], of_curve, strict=True):
            text = f"{scale:g}"
            size = np.array([0.65 * len(text), 1.0]) * FONT_PT
            places = point + OFFSETS_PT
            covered = _covered(places, size, np.concatenate(taken), np.concatenate(sides))
            # A label is misread if another point than its own is nearer.
            to_nearest = np.linalg.norm(places[:, None] - centers, axis=-1).min(1)
            distance = np.linalg.norm(OFFSETS_PT, axis=1)
            cost = covered + FONT_PT * (distance - to_nearest) + distance
            place = places[np.argmin(cost.round())]
            taken.append(place[None])
            sides.append(size[None])
            label = axes.annotate(
                text,
                (x, y),
                textcoords="offset points",
                xytext=place - point,
                ha="center",
                va="center",
                fontsize=FONT_PT,
                color=drawn[0].get_color(),
            )
            label.set_path_effects([patheffects.withStroke(linewidth=2, foreground="white")])


def _along(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "m 2"]:
    """Points on the lines between points, LINE_PT apart."""
    lines = [
        a + (b - a) * np.arange(0, 1, LINE_PT / (LINE_PT + float(np.hypot(*(b - a)))))[:, None]
        for a, b in pairwise(points)
    ]
    return np.concatenate([points[:1], *lines])


def _covered(
    places: Float[np.ndarray, "k 2"],
    size: Float[np.ndarray, "2"],
    taken: Float[np.ndarray, "n 2"],
    sides: Float[np.ndarray, "n 2"],
) -> Float[np.ndarray, "k"]:
    """The area of taken boxes that a box covers, for each of its places. Places are centers."""
    overlap = (size + sides) / 2 - abs(places[:, None] - taken)  # k n 2
    return np.maximum(overlap, 0).prod(-1).sum(-1)
