"""References of metrics: images or files of statistics, measured once and cached by content."""

import contextlib
import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from glide_jax.errors import UserError
from glide_jax.evaluation.features import FeatureExtractor
from glide_jax.evaluation.image_sets import EvaluatedImage, ImageSet, Preparation, open_images
from glide_jax.evaluation.npz_images import IMAGES_ARRAY
from glide_jax.evaluation.statistics import RunningStatistics, Statistics
from glide_jax.evaluation.statistics_files import (
    SUFFIXES,
    has_statistics,
    read_statistics,
    write_statistics,
)
from glide_jax.evaluation.suite import Measured, Need, measure
from glide_jax.hub import fetched
from glide_jax.storage import cache_folder, expand_home, write_atomically

logger = logging.getLogger(__name__)

VERSION = 1
"""Of the cached files."""
CACHED = "references"
"""Their folder."""
PUBLISHED = "inception"
"""Network of statistics whose file does not say."""
FIRST = 8
"""Images of a set whose sizes are compared."""


def open_reference(
    words: Sequence[str | Path],
    split: str,
    preparation: Preparation,
    n: int | None,
    network: str,
) -> tuple[ImageSet | None, Measured]:
    """A reference from the command line.

    Args:
        words: a file of statistics, local or hf://ORG/REPO/FILE, or images as of `open_images`.
        split, preparation, n: as of `open_images`.
        network: whose statistics are read from a file with those of several.

    Returns:
        Its images, if it has any, and the statistics that its file has. Statistics of another
        network beside images are left out.

    Raises:
        UserError: there is no such reference, or `n` is given for a file of statistics.
    """
    path = Path(expand_home(fetched(words[0]))) if len(words) == 1 else None
    if path is None or path.suffix not in SUFFIXES or not has_statistics(path):
        return open_images(words, split, preparation, n), Measured()
    spatial = None
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if "mu_s.npy" in names:
            spatial = read_statistics(path, "spatial")
        has_images = f"{IMAGES_ARRAY}.npy" in names
    else:
        has_images = False
    if n is not None and not has_images:
        raise UserError(f"{path} has statistics only: --reference-n needs images")
    images = open_images(words, split, preparation, n) if has_images else None
    pool = read_statistics(path, network=network)
    if images is not None and pool.settings.get("network", PUBLISHED) != network:
        return images, Measured()
    return images, Measured(pool, spatial, n=pool.n)


def measured_reference(
    images: ImageSet | None,
    known: Measured,
    extractor: FeatureExtractor,
    wanted: set[Need],
) -> Measured:
    """The features of a reference, from its file of statistics, the cache or its images.

    Args:
        images: of the reference; None if there are only statistics.
        known: the statistics of its file, which are taken as they are.
        extractor: of the features.
        wanted: what the metrics read.

    Raises:
        UserError: its images cannot be read.
    """
    missing = {need for need in wanted if getattr(known, need) is None}
    if images is None or not missing:
        return known
    key = [VERSION, images.digest(), extractor.settings]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    path = cache_folder() / CACHED / f"{digest[:32]}.npz"
    found = _cached(path, extractor.settings | images.preparation.settings)
    if absent := {need for need in missing if getattr(found, need) is None}:
        measured = measure(pixels_of(images), extractor, absent, images.preparation.settings)
        found = _joined(found, measured)
        _store(path, found)
    else:
        print(f"{images.name}: features from {path}")
    return _joined(known, found)


def warn_of_other_sizes(images: ImageSet, reference: ImageSet) -> None:
    """Warns if samples and reference differ in resolution, as far as their first images show."""
    if images.preparation.px:
        return
    ranges = []
    for each in (images, reference):
        sides = [side for image in islice(each, FIRST) for side in image.pixels.shape[:2]]
        ranges.append((min(sides), max(sides)))
    if ranges[0][1] < ranges[1][0] or ranges[1][1] < ranges[0][0]:
        of_images, of_reference = (
            f"{low} px" if low == high else f"{low} to {high} px" for low, high in ranges
        )
        logger.warning(
            f"{images.name} has images of {of_images}, the reference {reference.name} of "
            f"{of_reference}: the numbers compare resizing filters too; give --px "
            f"{min(map(min, ranges))}"
        )


def _joined(first: Measured, second: Measured) -> Measured:
    """What either has; the first's where both have it."""
    missing = {name: value for name, value in vars(second).items() if getattr(first, name) is None}
    return replace(first, **missing)


def pixels_of(images: ImageSet, total: int | None = None) -> Iterator[Any]:
    """The pixels of all images, with a progress bar."""
    return (image.pixels for image in with_progress(images, images.name, total))


def with_progress(
    images: Iterable[EvaluatedImage], name: str, total: int | None = None
) -> Iterator[EvaluatedImage]:
    """The images, with a bar of images per second and, if their number is known, the time left."""
    yield from tqdm.tqdm(images, desc=name, unit=" images", total=total, leave=False, delay=2)


def _cached(path: Path, settings: Mapping[str, str]) -> Measured:
    """What is cached; nothing if the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        n = int(arrays["n"])
    except Exception:  # NumPy raises many types for damaged files; it is computed again
        return Measured()

    def statistics(ending: str) -> Statistics | None:
        if f"mu{ending}" not in arrays:
            return None
        return Statistics(arrays[f"mu{ending}"], arrays[f"sigma{ending}"], n, dict(settings))

    found = (statistics(""), statistics("_s"), arrays.get("features"), arrays.get("logits"))
    return Measured(*found, n, settings)


def _store(path: Path, found: Measured) -> None:
    arrays: dict[str, Any] = {"n": found.n}
    for ending, statistics in (("", found.statistics), ("_s", found.spatial)):
        if statistics is not None:
            fixed = fixed_statistics(statistics)
            arrays |= {f"mu{ending}": fixed.mu, f"sigma{ending}": fixed.sigma}
    for name in ("features", "logits"):
        if getattr(found, name) is not None:
            arrays[name] = getattr(found, name)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(unfinished, allow_pickle=False, **arrays)
        unfinished.replace(path)
    except OSError as error:  # a full disk costs only time
        print(f"cannot cache {path}: {error.strerror}")
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def fixed_statistics(statistics: RunningStatistics | Statistics) -> Statistics:
    """The statistics so far."""
    return statistics.statistics() if isinstance(statistics, RunningStatistics) else statistics


def save_statistics(path: Path, reference: Measured) -> None:
    """Writes the statistics of a reference for later runs and other evaluators.

    Raises:
        UserError: it has none, or the file cannot be written.
    """
    if reference.statistics is None:
        raise UserError(f"--save-statistics {path}: no metric of statistics was asked for")
    found = {"pool": fixed_statistics(reference.statistics)}
    if reference.spatial is not None:
        found["spatial"] = fixed_statistics(reference.spatial)
    write_statistics(path, found)


def write_json(path: Path, value: Any) -> None:
    """Writes a complete JSON file, or none."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
