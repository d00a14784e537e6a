"""Flags of the commands that evaluate, and what they open."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

from tyro.conf import UseAppendAction

from glide_jax.config.bounds import Between
from glide_jax.errors import UserError
from glide_jax.evaluate.captions import CaptionFlags, require_caption_flags
from glide_jax.evaluate.sampling import DEFAULT_N
from glide_jax.evaluation.crops import CROPS
from glide_jax.evaluation.feature_networks import NETWORKS
from glide_jax.evaluation.image_sets import Preparation
from glide_jax.evaluation.metrics.kernel import SUBSET_SIZE
from glide_jax.evaluation.suite import (
    CAPTION_METRICS,
    IMPLEMENTATIONS,
    METRICS,
    PAIRED_METRICS,
    require_metrics,
    split_names,
)
from glide_jax.sampling.arguments import MAX_IMAGES
from glide_jax.sampling.flags import SamplingFlags
from glide_jax.storage import require_file, require_folder

DEFAULT_METRICS = {"inception": "fid,sfid,is,kid,precision_recall"}
"""By network; of others, OTHER_METRICS."""
OTHER_METRICS = "fd,kid,precision_recall"


@dataclass(frozen=True, kw_only=True)
class FeatureFlags(SamplingFlags):
    """Images, a reference, and the network of their features."""

    checkpoint: UseAppendAction[tuple[str | Path, ...]] = ()
    """Run folder or shipped model to sample from, for captions of its data set; repeat the flag for
    a base model and an upsampler."""
    reference: tuple[str, ...] = ()
    """Folder, .tar or .npz file of images; file of statistics; hf://ORG/REPO/FILE of these; or a
    data set as of --data.source, such as tfds coco_captions. With --checkpoint: by default its own
    data set."""
    reference_split: str = ""
    """Split of the reference data set; empty: validation."""
    network: str = "efficientnet-lite0"
    """Network of the features: efficientnet-lite0, inception, dinov2-vit-l-14 and others."""
    weights: str = ""
    """File of the network's weights, or hf://ORG/REPO/FILE. Empty: its Python package."""
    resize: str = ""
    """Resizing to the network's input: tf1, torch, clean, ... Empty: the implementation's."""
    px: Annotated[int, Between(0, 8192)] = 0
    """Crop all images to squares of this side first; 0: not at all, or with --checkpoint the
    model's resolution."""
    crop: str = "adm"
    """How to crop: adm, edm2, torchvision or squeeze."""
    blur_radius: Annotated[float, Between(0, 100)] = 0.0
    """Blur images and reference by a Gaussian of this standard deviation in px, as DALL-E's FID."""
    n: Annotated[int | None, Between(2, MAX_IMAGES)] = None
    """Number of images; with --checkpoint by default 256, else all."""
    reference_n: Annotated[int | None, Between(2, MAX_IMAGES)] = None
    """Number of reference images; by default all."""
    split: str = ""
    """Split of the captions to sample for; empty: the model's validation split."""
    caption_index: Annotated[int, Between(0, 1000)] = 0
    """Which of a record's captions to sample for, from 0."""
    samples: Path | None = None
    """Folder for the samples of --checkpoint, which resumes; by default in the run folder."""
    out: Path | None = None
    """JSON file for the results and all settings."""

    def check(self) -> None:
        """Raises UserError for flags that do not fit together."""
        _require_choice("--network", self.network, NETWORKS)
        _require_choice("--crop", self.crop, CROPS)
        if self.crop != FeatureFlags.crop and not self.px and not self.checkpoint:
            raise UserError(f"--crop {self.crop}: give --px too, the side of the squares")
        require_file("--out", self.out, (".json",))
        if self.samples is not None:
            require_folder("--samples", self.samples)

    @property
    def preparation(self) -> Preparation:
        """Of all images."""
        return Preparation(self.px, self.crop, self.blur_radius)


@dataclass(frozen=True, kw_only=True)
class EvaluationFlags(CaptionFlags, FeatureFlags):
    """What to measure, and how."""

    metrics: str = ""
    """Metrics separated by commas: fd, kid, precision_recall, density_coverage; of the inception
    network fid, sfid, is; of images with captions clip_score, clip_score_torchmetrics,
    clip_score_hessel, clip_retrieval, lpips_diversity; of images with a reference of the same name
    each psnr, ssim, lpips. Empty: fd (or fid, sfid, is), kid, precision_recall."""
    implementation: str = "guided-diffusion"
    """Published evaluator whose choices to make: guided-diffusion, pytorch-fid, torch-fidelity or
    clean-fid."""
    masks: Path | None = None
    """For psnr, ssim and lpips: folder, .tar or .npz file of masks with the images' names, white
    where pixels count, such as those that inpainting keeps. By default all count."""

    def check(self) -> None:
        """Raises UserError for flags that do not fit together."""
        super().check()
        _require_choice("--implementation", self.implementation, IMPLEMENTATIONS)
        require_caption_flags([*self.caption_metrics, *self.paired_metrics], self)
        self._check_pairs()
        self._check_subsets()
        if "lpips_diversity" in self.caption_metrics and self.checkpoint:
            raise UserError(
                "lpips_diversity needs several images of a caption, but --checkpoint samples one "
                "of each: sample with sample.py --n, then give --images"
            )
        needing = [name for name in self.feature_metrics if METRICS[name].reads_reference]
        if needing and not self.reference and not self.checkpoint:
            raise UserError(f"{', '.join(needing)}: give --reference")

    def _check_subsets(self) -> None:
        if "kid" not in self.feature_metrics or not IMPLEMENTATIONS[self.implementation].subsets:
            return
        n = self.n or (DEFAULT_N if self.checkpoint else None)
        for flag, count in (("--n", n), ("--reference-n", self.reference_n)):
            if count is not None and count < SUBSET_SIZE:
                raise UserError(
                    f"{flag} {count}: kid of --implementation {self.implementation} takes subsets "
                    f"of {SUBSET_SIZE:,} images; give more, or --implementation guided-diffusion"
                )

    def _check_pairs(self) -> None:
        if self.paired_metrics and (self.checkpoint or not self.reference):
            raise UserError(
                f"{', '.join(self.paired_metrics)}: give --images, and as --reference images of "
                "the same names"
            )
        if self.masks is not None and not self.paired_metrics:
            raise UserError(f"--masks: add one of {', '.join(PAIRED_METRICS)} to --metrics")

    @cached_property
    def _names(self) -> list[str]:
        return split_names(self.metrics or DEFAULT_METRICS.get(self.network, OTHER_METRICS))

    @property
    def caption_metrics(self) -> list[str]:
        """The metrics of images with captions."""
        return [name for name in CAPTION_METRICS if name in self._names]

    @property
    def paired_metrics(self) -> list[str]:
        """The metrics of images with a reference image each."""
        return [name for name in PAIRED_METRICS if name in self._names]

    @property
    def feature_metrics(self) -> list[str]:
        """The other metrics. Raises UserError if one is unknown or not of this network."""
        others = [*self.caption_metrics, *self.paired_metrics]
        names = [name for name in self._names if name not in others]
        if not names and others:
            return []
        require_metrics(names, NETWORKS[self.network].title)
        return names


def _require_choice(flag: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise UserError(f"{flag} {value}: choose one of {', '.join(choices)}")
