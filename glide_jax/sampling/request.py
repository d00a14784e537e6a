"""`Request`: one call of a sampling method of `Glide`, with a prompt and a seed per image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from glide_jax.errors import UserError
from glide_jax.sampling.stage import Conditions, Known
from glide_jax.sampling.user_images import Fit, square_image, square_known

Seed = int | np.integer | Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Request:
    """Prompts, seeds, the image to start from, and the options of `Glide`'s sampling methods."""

    prompts: Sequence[str]
    """One per image."""
    seeds: Sequence[int]
    """One per image."""
    settings: Mapping[str, Any]
    """Changes to the first model's `SampleConfig`."""
    n: int = 1
    keep: int | None = None
    negative_prompt: str = ""
    upsample: bool | None = None
    batch_size: int | None = None
    progress: bool = False
    image: UInt8[np.ndarray, "h w 3"] | None = None
    """The image to inpaint or to edit."""
    known: Bool[np.ndarray, "h w"] | None = None
    """The pixels of `image` to keep; None to edit all of it."""
    fit: Fit = "crop"
    strength: float | int = 1.0

    @classmethod
    def of(cls, prompts: str | Sequence[str], seed: Seed, *, n: int = 1, **rest: Any) -> "Request":
        """A request for n images of each prompt, with seeds seed, seed + 1, ...

        Args:
            prompts: one or several.
            seed: the first seed of all prompts, or one for each.
            n: images per prompt.
            rest: the other fields.

        Raises:
            UserError: no prompts, n below 1, another number of seeds than prompts, or a seed out of
                range.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            raise UserError("no prompts: give at least one")
        if n < 1:
            raise UserError(f"n ({n}) must be at least 1")
        first: list[int] = np.atleast_1d(seed).tolist()
        if np.ndim(seed) == 0:
            first = first * len(prompts)
        if len(first) != len(prompts):
            raise UserError(
                f"{len(first)} seeds for {len(prompts)} prompts: give one seed, or one per prompt"
            )
        seeds = [start + i for start in first for i in range(n)]
        if not all(0 <= seed < 2**32 for seed in seeds):
            raise UserError(f"seeds must be in [0, 2**32), not {min(seeds)} to {max(seeds)}")
        return cls(prompts=[p for p in prompts for _ in range(n)], seeds=seeds, n=n, **rest)

    def conditions(
        self, px: int, low_res: UInt8[np.ndarray, "b h2 w2 3"] | None = None
    ) -> Conditions:
        """Conditions of a model whose images are `px` square.

        Args:
            px: side of the model's images.
            low_res: images of the first model, for an upsampler that follows it.

        Raises:
            UserError: no pixel is left to inpaint.
        """
        if self.image is None:
            return Conditions(low_res=low_res)
        if self.known is not None:
            mask = square_known(self.known, px, self.fit)
            if mask.all():
                raise UserError("nothing to inpaint: all pixels of the square are known")
            pixels = square_image(self.image, px, self.fit)
            known = Known(self._repeated(pixels), self._repeated(mask[:, :, None]))
            return Conditions(low_res=low_res, known=known)
        if low_res is not None:  # only the first model starts from the image
            return Conditions(low_res=low_res)
        return Conditions(start=self._repeated(square_image(self.image, px, self.fit)))

    def _repeated(self, x: np.ndarray) -> np.ndarray:
        return np.broadcast_to(x, (len(self.prompts), *x.shape))


def broadcast_prompts(prompts: str | Sequence[str], count: int) -> list[str]:
    """A prompt for each image, from one for all or one each. Raises UserError."""
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if len(prompts) == 1:
        prompts = prompts * count
    if len(prompts) != count:
        raise UserError(f"{len(prompts)} prompts for {count} images: give one, or one each")
    return prompts
