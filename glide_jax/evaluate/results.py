"""The results of a command's flags: features, reference, comparison."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from glide_jax.errors import UserError
from glide_jax.evaluate.captions import CaptionMetrics
from glide_jax.evaluate.flags import EvaluationFlags, FeatureFlags
from glide_jax.evaluate.paired import PairedMetrics
from glide_jax.evaluate.sampling import Sampled
from glide_jax.evaluation.feature_networks import NETWORKS
from glide_jax.evaluation.features import BATCH_SIZE, FeatureExtractor, load_extractor
from glide_jax.evaluation.image_sets import ImageSet, Preparation, data_set, open_images
from glide_jax.evaluation.reference import (
    measured_reference,
    open_reference,
    pixels_of,
    save_statistics,
    warn_of_other_sizes,
)
from glide_jax.evaluation.suite import (
    IMPLEMENTATIONS,
    Measured,
    Need,
    Result,
    compare,
    measure,
    needs,
    require_reference,
)


@dataclass
class Evaluator:
    """Networks and reference of a command, loaded once for all sets of images.

    Args:
        flags: of the command.
    """

    flags: EvaluationFlags

    def __post_init__(self) -> None:
        size = self.flags.batch_size or BATCH_SIZE
        self.metrics = self.flags.feature_metrics
        self._extractor: FeatureExtractor | None = None
        if self.metrics:
            flags = self.flags
            resize = flags.resize or IMPLEMENTATIONS[flags.implementation].resize
            self._extractor = load_extractor(flags.network, flags.weights, resize, size)
        self._captions = CaptionMetrics.load(self.flags.caption_metrics, self.flags)
        self._paired = PairedMetrics.load(self.flags.paired_metrics, self.flags)
        self._reference: tuple[Measured, dict[str, str]] | None = None
        if self.flags.reference and needs(self.metrics, of_reference=True):
            # Before samples are made, whose resolution is not known yet.
            preparation = self.flags.preparation
            if self.flags.checkpoint and not preparation.px:
                preparation = replace(preparation, px=1)
            images, known = self._opened(preparation)
            if images is None:
                require_reference(self.metrics, known, {})

    def results(
        self, images: ImageSet, sampled: Sampled | None = None
    ) -> tuple[list[Result], int, dict[str, str]]:
        """The metrics of images.

        Args:
            images: to evaluate.
            sampled: how they were sampled; its data set is the default reference.

        Returns:
            The results, the number of images, and all settings.
        """
        flags, prepared, reference = self.flags, images.preparation.settings, Measured()
        settings = {"images": images.name, **prepared, **self._captions.settings}
        if self._extractor is not None:
            settings |= self._extractor.settings | {"implementation": flags.implementation}
            if read := needs(self.metrics, of_reference=True):
                reference, described = self._measured_reference(sampled, images, read)
                settings |= described
            require_reference(self.metrics, reference, self._extractor.settings | prepared)
        # Before the features of all images: one of them may have no caption, or no reference.
        results, count = self._captions(images)
        if self._paired.names:
            of_pairs, count, described = self._of_pairs(images)
            results, settings = [*of_pairs, *results], settings | described
        if self._extractor is not None:
            wanted, title = needs(self.metrics), NETWORKS[flags.network].title
            found = measure(pixels_of(images), self._extractor, wanted, prepared)
            count = found.n or 0
            results = [
                *compare(self.metrics, found, reference, title, flags.implementation),
                *results,
            ]
        with contextlib.suppress(PackageNotFoundError):  # run from a clone without installation
            settings["glide_jax"] = version("glide_jax")
        of_samples = sampled.settings.items() if sampled is not None else ()
        settings |= {f"sample.{name}": value for name, value in of_samples}
        return results, count, settings | {"n": str(count)}

    def _of_pairs(self, images: ImageSet) -> tuple[list[Result], int, dict[str, str]]:
        """The metrics of images with a reference image each, their number, and their settings."""
        masks = None
        reference, _ = self._opened(images.preparation)
        if reference is None:
            raise UserError(f"{', '.join(self._paired.names)} need a reference of images")
        described = {"reference": reference.name}
        if self.flags.masks is not None:
            unblurred = replace(images.preparation, blur_radius_px=0.0)
            masks = open_images([self.flags.masks], preparation=unblurred)
            described["masks"] = masks.name
        if self._paired.distance is not None:
            network = self._paired.distance.settings
            described |= {f"lpips.{name}": value for name, value in network.items()}
        return *self._paired(images, reference, masks), described

    def _measured_reference(
        self, sampled: Sampled | None, images: ImageSet | None, wanted: set[Need]
    ) -> tuple[Measured, Mapping[str, str]]:
        """The features of the reference for images, and its settings; measured once."""
        if self._reference is None:
            assert self._extractor is not None
            preparation = self.flags.preparation if images is None else images.preparation
            found, known = self._open_reference(sampled, preparation)
            if images is not None and found is not None:
                warn_of_other_sizes(images, found)
            reference = measured_reference(found, known, self._extractor, wanted)
            name = found.name if found is not None else " ".join(self.flags.reference)
            described = {"reference": name, "reference_n": str(reference.n or "unknown")}
            self._reference = reference, described
        return self._reference

    def _open_reference(
        self, sampled: Sampled | None, preparation: Preparation
    ) -> tuple[ImageSet | None, Measured]:
        flags = self.flags
        if flags.reference or sampled is None:
            return self._opened(preparation)
        split = flags.reference_split or sampled.split
        found = data_set(sampled.source, sampled.data, split, preparation, flags.reference_n)
        return found, Measured()

    def _opened(self, preparation: Preparation) -> tuple[ImageSet | None, Measured]:
        """The reference of --reference."""
        flags = self.flags
        split = flags.reference_split or "validation"
        return open_reference(flags.reference, split, preparation, flags.reference_n, flags.network)

    def save_statistics(self, path: Path) -> None:
        """Writes the statistics of the reference, and prints their file. Raises UserError."""
        read = needs(self.metrics, of_reference=True)
        wanted = read & {"statistics", "spatial"}
        reference, _ = self._measured_reference(None, None, wanted)
        save_statistics(path, reference)
        print(path)


def with_px(flags: FeatureFlags, sampled: Sampled | None) -> FeatureFlags:
    """The flags, whose images are by default prepared to the resolution of the samples."""
    return flags if flags.px or sampled is None else replace(flags, px=sampled.px)
