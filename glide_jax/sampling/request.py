"""`Request`: one call of a sampling method of `Glide`, with a prompt and a seed per image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from jaxtyping import Bool, UInt8

from glide_jax.errors import UserError, shown
from glide_jax.sampling.arguments import (
    MAX_BATCH_SIZE,
    MAX_IMAGES,
    image_seeds,
    prompt_list,
    require_fraction,
    require_text,
    require_whole,
)
from glide_jax.sampling.buckets import bucket
from glide_jax.sampling.conditions import Conditions, Known
from glide_jax.sampling.user_images import Fit, square_image, square_known


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
    def of(cls, prompts: Any, seed: Any, *, n: Any = 1, **rest: Any) -> "Request":
        """A request for n images of each prompt, with seeds seed, seed + 1, ...

        Args:
            prompts: one or several.
            seed: the first seed of all prompts, or one for each; None for a random one.
            n: images per prompt.
            rest: the other fields.

        Raises:
            UserError: an argument of the wrong type or out of range, or another number of seeds
                than prompts.
        """
        prompts = prompt_list(prompts)
        n = require_whole("n", n, 1, MAX_IMAGES)
        if len(prompts) * n > MAX_IMAGES:
            raise UserError(
                f"{len(prompts):,} prompts with n {n:,} are more than {MAX_IMAGES:,} images: "
                "sample them in several calls"
            )
        _require_options(**rest)
        return cls(
            prompts=[p for p in prompts for _ in range(n)],
            seeds=image_seeds(seed, len(prompts), n),
            n=n,
            **rest,
        )

    def to_upsample(self, prompts: Sequence[str], seeds: Sequence[int]) -> "Request":
        """The request for the model that upsamples the images of these prompts and seeds.

        With `keep`, their batches are smaller: padding would cost as much as images. The batch
        size still serves the last, smaller part of a command's images.
        """
        size = self.batch_size
        if size is not None and self.keep is not None:
            kept_per_batch = max(size // self.n, 1) * self.keep
            size = min(size, bucket(max(kept_per_batch, len(prompts))))
        return replace(self, prompts=prompts, seeds=seeds, settings={}, batch_size=size)

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


def _require_options(
    *,
    keep: Any = None,
    negative_prompt: Any = "",
    batch_size: Any = None,
    upsample: Any = None,
    fit: Any = "crop",
    strength: Any = 1.0,
    **others: Any,
) -> None:
    """Raises UserError if an option has the wrong type or is out of range."""
    if keep is not None:
        require_whole("keep", keep, 1, MAX_IMAGES)
    if batch_size is not None:
        require_whole("batch_size", batch_size, 1, MAX_BATCH_SIZE)
    require_text("negative_prompt", negative_prompt)
    if not (upsample is None or isinstance(upsample, (bool, np.bool_))):
        raise UserError(f"upsample must be True, False or None, not {shown(upsample)}")
    if fit not in get_args(Fit):
        raise UserError(f"fit must be {' or '.join(get_args(Fit))}, not {shown(fit)}")
    require_fraction("strength", strength)
