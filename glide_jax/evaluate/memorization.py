"""Does a model copy its training images? Nearest training image of each sample, by features.

    python -m glide_jax.evaluate.memorization --checkpoint demo/base --n 64 --grid nearest.png

Compares the distances of samples to their nearest training images with those of held-out images,
which no model has seen. The grid shows the samples nearest to a training image, each beside its
nearest ones. Distances are Euclidean, of the pooled features of --network.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from glide_jax.cli import parse_flags
from glide_jax.compilation import keep_compiled_programs
from glide_jax.config.bounds import Between
from glide_jax.data.sources import open_source
from glide_jax.errors import UserError, exit_on_user_error, memory_advice
from glide_jax.evaluate.flags import FeatureFlags
from glide_jax.evaluate.results import with_px
from glide_jax.evaluate.sampling import Sampled, sample_images
from glide_jax.evaluation.features import BATCH_SIZE, FeatureExtractor, load_extractor
from glide_jax.evaluation.image_sets import ImageSet, data_set, open_images
from glide_jax.evaluation.metrics.nearest import (
    PERCENTILE,
    Nearest,
    memorization,
    nearest_neighbors,
)
from glide_jax.evaluation.reference import pixels_of, write_json
from glide_jax.evaluation.suite import in_digits, measure
from glide_jax.images import new_figure, require_figure, resized, save_figure, save_grid
from glide_jax.parallel.sharding import use_all_cores
from glide_jax.sampling.flags import LESS_MEMORY
from glide_jax.storage import require_file

logger = logging.getLogger(__name__)

NEIGHBORS = 3
"""Training images shown beside each sample."""
SAME = 1e-4
"""Distance of equal images, as a fraction of the features' length: rounding."""
TILE_PX = 128
"""Side of an image in the grid."""


@dataclass(frozen=True, kw_only=True)
class Arguments(FeatureFlags):
    """Compares samples with their nearest training images."""

    images: Path | None = None
    """Instead of --checkpoint: folder, .tar or .npz file of samples; needs --train, --reference."""
    train: tuple[str, ...] = ()
    """Training images, as --reference; by default the training split of the model's data set."""
    train_n: Annotated[int | None, Between(NEIGHBORS, 10**9)] = None
    """Number of training images to search; by default all."""
    grid: Path | None = None
    """PNG file for the samples nearest to a training image, beside their nearest ones."""
    rows: Annotated[int, Between(1, 100)] = 8
    """Samples in the grid."""
    plot: Path | None = None
    """PNG, SVG or PDF file for the histogram of distances."""

    def check(self) -> None:
        """Raises UserError for flags that do not fit together."""
        if (self.images is None) == (not self.checkpoint):
            raise UserError("give either --images or --checkpoint")
        if self.images is not None and not (self.train and self.reference):
            raise UserError("--images: give --train, and held-out images as --reference")
        require_file("--grid", self.grid, (".png",))
        require_figure("--plot", self.plot)
        super().check()


@memory_advice(LESS_MEMORY)
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises UserError."""
    arguments: Arguments = parse_flags(
        Arguments, "python -m glide_jax.evaluate.memorization", argv, __doc__
    )
    arguments.check()
    use_all_cores(arguments.batch_size or BATCH_SIZE)
    keep_compiled_programs()
    size = arguments.batch_size or BATCH_SIZE
    extractor = load_extractor(arguments.network, arguments.weights, arguments.resize, size)
    sampled = sample_images(arguments) if arguments.checkpoint else None
    samples, train, held_out = open_sets(arguments, sampled)
    of_samples, of_held_out = (
        measure(pixels_of(images), extractor, {"features"}).features
        for images in (samples, held_out)
    )
    # Both are searched for in one pass over the training images.
    queries = np.concatenate([of_samples, of_held_out])
    stream = (part["pool"] for part in extractor.stream(p[None] for p in pixels_of(train)))
    found = nearest_neighbors(queries, stream, NEIGHBORS)
    nearest = Nearest(*(values[: len(of_samples)] for values in found))
    distances = found.distances[:, 0]
    near, far = distances[: len(of_samples)], distances[len(of_samples) :]
    same = int((far < SAME * np.linalg.norm(of_held_out, axis=1)).sum())
    if same:
        logger.warning(
            f"{same:,} of {len(far):,} held-out images are training images: the comparison needs "
            "images that the model was not trained on"
        )
    report(arguments, near, far, f"{samples.name} and {train.name}", extractor)
    if arguments.grid is not None:
        draw_nearest(arguments.grid, samples, train, nearest, arguments.rows)
        print(arguments.grid)
    if arguments.plot is not None:
        plot(near, far, arguments.plot)
        print(arguments.plot)


def open_sets(arguments: Arguments, sampled: Sampled | None) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Samples, training images and held-out images."""
    preparation = with_px(arguments, sampled).preparation
    place = sampled.folder if sampled is not None else arguments.images
    assert place is not None
    samples = open_images([place], preparation=preparation, n=arguments.n)
    split = arguments.reference_split or "validation"
    train_n, held_out_n = arguments.train_n, arguments.reference_n
    if sampled is None or arguments.train:
        train = open_images(arguments.train, "train", preparation, train_n)
    else:
        name = sampled.data.train_split
        source = open_source(sampled.data, name)
        train = data_set(source, sampled.data, name, preparation, train_n)
    if sampled is None or arguments.reference:
        return samples, train, open_images(arguments.reference, split, preparation, held_out_n)
    split = arguments.reference_split or sampled.split
    held_out = data_set(sampled.source, sampled.data, split, preparation, held_out_n)
    return samples, train, held_out


def report(
    arguments: Arguments,
    near: Float[np.ndarray, "n"],
    far: Float[np.ndarray, "m"],
    name: str,
    extractor: FeatureExtractor,
) -> None:
    """Prints the comparison, and writes it to --out."""
    found = memorization(near, far)
    print(f"{len(near):,} samples, {len(far):,} held-out images: {name}")
    print(
        f"  median distance to the nearest training image: {np.median(near):.4g} of samples, "
        f"{np.median(far):.4g} of held-out images"
    )
    print(
        f"  nearer than the {PERCENTILE:g}st percentile of held-out images: "
        f"{in_digits(*found.suspicious)} of samples ({PERCENTILE / 100:g} without memorization)"
    )
    print(
        f"  a sample is nearer than a held-out image with probability {found.nearer:.3f} "
        f"(0.5 without memorization), z = {found.z:.1f}"
    )
    if arguments.out is not None:
        values: dict[str, Any] = {
            "suspicious": found.suspicious.value,
            "suspicious_standard_error": found.suspicious.standard_error,
            "nearer": found.nearer,
            "z": found.z,
            "distances": near.tolist(),
            "held_out_distances": far.tolist(),
            "settings": extractor.settings,
        }
        write_json(arguments.out, values)
        print(arguments.out)


def draw_nearest(
    path: Path, samples: ImageSet, train: ImageSet, nearest: Nearest, rows: int
) -> None:
    """Writes a grid: each row a sample and its nearest training images."""
    order = np.argsort(nearest.distances[:, 0], kind="stable")[:rows]
    of_samples = dict(_selected(samples, set(order.tolist())))
    of_train = dict(_selected(train, set(nearest.indices[order].ravel().tolist())))
    images, labels = [], []
    for i in order:
        pixels, caption = of_samples[int(i)]
        images.append(pixels)
        labels.append(f"sample: {caption}" if caption else "sample")
        for distance, place in zip(nearest.distances[i], nearest.indices[i], strict=True):
            pixels, caption = of_train[int(place)]
            images.append(pixels)
            labels.append(f"{distance:.3g}: {caption}" if caption else f"{distance:.3g}")
    save_grid(path, np.stack([_tile(image) for image in images]), labels, NEIGHBORS + 1)


def _selected(
    images: ImageSet, places: set[int]
) -> Iterator[tuple[int, tuple[UInt8[np.ndarray, "h w 3"], str]]]:
    """Pixels and first caption of the images at these places."""
    last = max(places)
    for place, image in enumerate(images):
        if place in places:
            captions = image.captions
            yield place, (image.pixels, captions[0] if captions else "")
        if place == last:
            return


def _tile(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "px px2 3"]:
    return resized(image[None], TILE_PX, Image.Resampling.NEAREST)[0]


def plot(near: Float[np.ndarray, "n"], far: Float[np.ndarray, "m"], path: Path) -> None:
    """Draws the distributions of distances to the nearest training image."""
    figure = new_figure(6.0, 4.0)
    axes = figure.subplots()
    bins = np.linspace(0, max(near.max(), far.max()), 40)
    for distances, label in ((far, "held-out images"), (near, "samples")):
        axes.hist(distances, bins, density=True, alpha=0.55, label=label)
    threshold = np.percentile(far, PERCENTILE)
    axes.axvline(threshold, color="black", linestyle="--", label=f"percentile {PERCENTILE:g}")
    axes.set(xlabel="distance to the nearest training image", ylabel="density")
    axes.legend()
    save_figure(path, figure)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
