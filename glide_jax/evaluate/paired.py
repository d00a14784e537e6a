"""Metrics of images with a reference image each: PSNR, SSIM and LPIPS."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import PurePosixPath

import numpy as np

from glide_jax.errors import UserError
from glide_jax.evaluate.captions import CaptionFlags
from glide_jax.evaluation.image_sets import ImageSet
from glide_jax.evaluation.metrics.estimate import mean_estimate
from glide_jax.evaluation.metrics.image_quality import WINDOW_PX
from glide_jax.evaluation.perceptual import PAIRS, PerceptualDistance, Pixels, load_lpips
from glide_jax.evaluation.quality import defined, image_quality
from glide_jax.evaluation.reference import with_progress
from glide_jax.evaluation.suite import Result

WHITE = 255
"""Level of kept pixels in a mask. Crops blend kept and other pixels at borders: not kept."""


@dataclass(frozen=True)
class PairedMetrics:
    """Metrics with their network.

    Args:
        names: of PAIRED_METRICS.
        distance: for `lpips`.
        batch_size: pairs in memory.
    """

    names: Sequence[str]
    distance: PerceptualDistance | None
    batch_size: int = PAIRS

    @classmethod
    def load(cls, names: Sequence[str], flags: CaptionFlags) -> "PairedMetrics":
        """Loads the network of LPIPS if it is needed. Raises UserError."""
        size = flags.batch_size or PAIRS
        distance = load_lpips(flags.lpips_trunk, flags.lpips, size) if "lpips" in names else None
        return cls(names, distance, size)

    def __call__(
        self, images: ImageSet, reference: ImageSet, masks: ImageSet | None = None
    ) -> tuple[list[Result], int]:
        """The results, and the number of images.

        Args:
            images: each is compared with the image of its name in `reference`.
            reference: in the same order; it may have more.
            masks: white where pixels count; the same.

        Raises:
            UserError: an image has no reference or mask, or another size.
        """
        parts: dict[str, list[np.ndarray]] = {}
        count = 0
        sets = (reference,) if masks is None else (reference, masks)
        for _, of_size in groupby(matched(images, sets), lambda each: each[0].shape):
            while batch := list(islice(of_size, self.batch_size)):
                x, y, *mask = (np.stack(pixels) for pixels in zip(*batch, strict=True))
                kept = (mask[0] == WHITE).all(3, keepdims=True) if mask else None
                for title, part in image_quality(x, y, self.distance, kept).items():
                    parts.setdefault(title, []).append(part)
                count += len(batch)
        values = defined({title: np.concatenate(found) for title, found in parts.items()})
        titles = {title.split()[0].lower(): title for title in values}
        for name in self.names:
            if name not in titles:
                which = f"{WINDOW_PX}x{WINDOW_PX} kept pixels" if name == "ssim" else "kept pixels"
                raise UserError(f"{images.name}: no image has {which}, which {name} needs")
        shown = [titles[name] for name in self.names]
        return [Result(title, *mean_estimate(values[title])) for title in shown], count


def matched(images: ImageSet, others: Sequence[ImageSet]) -> Iterator[tuple[Pixels, ...]]:
    """The pixels of each image, and of the image of its name in each other set.

    Suffixes of names may differ. All sets are read once, side by side.

    Raises:
        UserError: a set lacks an image, or has it in another order or size.
    """
    streams = [iter(other) for other in others]
    for image in with_progress(images, images.name):
        name, found = _stem(image.name), [image.pixels]
        for other, stream in zip(others, streams, strict=True):
            match = next((each for each in stream if _stem(each.name) == name), None)
            if match is None:
                raise UserError(
                    f"{other.name}: no image {name}, which {images.name} has; both sets must have "
                    "the same names in the same order"
                )
            if match.pixels.shape != image.pixels.shape:
                (h, w, _), (h2, w2, _) = image.pixels.shape, match.pixels.shape
                raise UserError(
                    f"{name} is {w}x{h} px in {images.name}, but {w2}x{h2} px in {other.name}: "
                    "give --px"
                )
            found.append(match.pixels)
        yield tuple(found)


def _stem(name: str) -> str:
    """The name of an image without its suffix."""
    return str(PurePosixPath(name).with_suffix(""))
