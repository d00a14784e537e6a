"""Conditions of sampling beside prompts and seeds, one row per image."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from glide_jax.data.transforms import to_float
from glide_jax.errors import UserError
from glide_jax.shapes import TextStates


class Known(NamedTuple):
    """Images to inpaint, with the mask of their known pixels."""

    pixels: UInt8[np.ndarray, "b h w 3"]
    mask: Bool[np.ndarray, "b h w 1"]
    """True where `pixels` are known, False where the model inpaints."""

    def put_back(self, images: UInt8[np.ndarray, "b h w 3"]) -> UInt8[np.ndarray, "b h w 3"]:
        """`images` with the known pixels in place."""
        return np.where(self.mask, self.pixels, images)


class Conditions(NamedTuple):
    """What conditions sampling beside the captions, one row per sample; None for none."""

    low_res: UInt8[np.ndarray, "b h2 w2 3"] | Float[np.ndarray, "b h2 w2 3"] | None = None
    """Low-resolution images, for an upsampler: 8-bit levels, or floats in [-1, 1]."""
    known: Known | None = None
    """Images to inpaint."""
    start: UInt8[np.ndarray, "b h w 3"] | None = None
    """Images to start from, noised, instead of from noise alone (SDEdit, arXiv 2108.01073)."""
    embedding: Float[np.ndarray, "b d"] | None = None
    """CLIP image embeddings, for unCLIP's decoder; None for captions alone."""
    states: TextStates | None = None
    """The captions as a CLIP sees them, for a decoder that reads them; the prompts are ignored."""
    negative_states: TextStates | None = None
    """One row: what guidance leads such a decoder away from, usually the empty caption."""
    noise: Float[np.ndarray, "b h w 3"] | None = None
    """x_T to start from, instead of the seeds' own; from `Stage.invert` or `Stage.noise`."""

    def images(self, count: int, px: int, low_res_px: int) -> dict[str, np.ndarray | None]:
        """The images as float32, by their names in `Inputs`.

        Args:
            count: b.
            px: side of the model's images.
            low_res_px: side of an upsampler's low-resolution images; 0 for another model.

        Raises:
            UserError: another number of images, or another size.
        """

        def image(pixels: np.ndarray | None, side_px: int) -> np.ndarray | None:
            if pixels is None:
                return None
            expected = (count, side_px, side_px, 3)
            if pixels.shape != expected:
                raise UserError(f"images have shape {pixels.shape}, but must have {expected}")
            return pixels if pixels.dtype == np.float32 else to_float(pixels)

        known = self.known
        return {
            "low_res": image(self.low_res, low_res_px or px),
            "known": image(None if known is None else known.pixels, px),
            "mask": None if known is None else known.mask.astype(np.float32),
            "start": image(self.start, px),
            "noise": self.noise,
        }
