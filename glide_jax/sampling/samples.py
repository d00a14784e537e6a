"""`Samples`: the result of every sampling method of `Glide`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from glide_jax.config import SampleConfig
from glide_jax.images import save_grid, to_pil
from glide_jax.sampling.arguments import MAX_IMAGES, require_whole
from glide_jax.storage import expand_home


@dataclass(frozen=True, eq=False)
class Samples:
    """Images, each with its prompt and seed.

    `np.asarray(samples)` is the array of the images. Length, indices, iteration, shape, ndim and
    dtype are the array's; arithmetic and methods need `samples.images`.
    """

    images: UInt8[np.ndarray, "b h w 3"] = field(repr=False)
    """8-bit sRGB."""
    prompts: Sequence[str]
    """One per image."""
    seeds: Sequence[int]
    """One per image: the same prompt, seed and settings give the same image."""
    settings: SampleConfig
    """Settings of the first model. An upsampler that follows it uses its own run's."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(b, h, w, 3)."""
        return self.images.shape

    @property
    def ndim(self) -> int:
        """4."""
        return self.images.ndim

    @property
    def dtype(self) -> np.dtype:
        """uint8."""
        return self.images.dtype

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        return iter(self.images)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.images[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.images, dtype, copy=copy)

    def to_pil(self) -> list[Image.Image]:
        """The images as Pillow's."""
        return to_pil(self.images)

    def save_grid(self, path: str | Path, columns: int = 4) -> None:
        """Writes a PNG of the images in rows, with their prompts as captions.

        Raises:
            UserError: the file cannot be written, or columns is not a number of at least 1.
        """
        require_whole("columns", columns, 1, MAX_IMAGES)
        save_grid(Path(expand_home(path)), self.images, self.prompts, columns)
