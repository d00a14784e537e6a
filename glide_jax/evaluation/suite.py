"""Metrics of a set of images against a reference, by name.

extractor = load_extractor()
reference = measure(reference_images, extractor, needs(["fd", "kid"]))
samples = measure(images, extractor, needs(["fd", "kid"]))
for result in compare(["fd", "kid"], samples, reference, extractor.title):
    print(result)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from glide_jax.errors import UserError
from glide_jax.evaluation.features import FeatureExtractor
from glide_jax.evaluation.metrics.estimate import Estimate
from glide_jax.evaluation.metrics.inception_score import (
    inception_score,
    inception_score_torch_fidelity,
)
from glide_jax.evaluation.metrics.kernel import kid, kid_torch_fidelity
from glide_jax.evaluation.metrics.precision_recall import Arithmetic, precision_recall
from glide_jax.evaluation.statistics import (
    RunningStatistics,
    Statistics,
    frechet,
    unknown_settings,
)

Need = Literal["statistics", "spatial", "features", "logits"]
"""What a metric reads: statistics of the pooled or the spatial features, or all features or logits
themselves."""
INCEPTION = "Inception"
"""Title of the network whose metrics have their bare names."""


@dataclass(frozen=True)
class Implementation:
    """The choices of a published evaluator."""

    resize: str = ""
    """Resizing to the network's input; "" is the network's default."""
    subsets: bool = False
    """Whether the KID is a mean over subsets of 1,000 images, not of all."""
    shuffled_splits: bool = False
    """Whether the Inception Score is a mean over 10 shuffled splits, not over 5,000 images each."""
    arithmetic: Arithmetic = "guided_diffusion"
    """Of distances for precision and recall."""


IMPLEMENTATIONS = {
    "guided-diffusion": Implementation(),
    "pytorch-fid": Implementation(resize="torch"),
    "torch-fidelity": Implementation("tf1", True, True, "float32"),
    "clean-fid": Implementation(resize="clean", subsets=True),
}
"""By name; the first is the default."""


@dataclass(frozen=True)
class Measured:
    """The features of a set of images, as far as metrics need them."""

    statistics: Any = None
    """RunningStatistics or Statistics of the pooled features."""
    spatial: Any = None
    """Those of the spatial features."""
    features: Any = None
    """Pooled features, float32 (n, d)."""
    logits: Any = None
    """Logits of the classes, float32 (n, classes)."""
    n: int | None = None
    """Number of images, if it is known."""
    settings: Mapping[str, str] | None = None
    """Of features and logits; statistics have their own."""


@dataclass(frozen=True)
class Result:
    """A metric's value."""

    name: str
    """Such as "FID" or "KID (EfficientNet-Lite0)"."""
    value: float
    error: float | None
    """Standard error; None if it is unknown."""

    def __str__(self) -> str:
        """The value to two digits of its error."""
        return f"{self.name} {in_digits(self.value, self.error)}"


def in_digits(value: float, error: float | None) -> str:
    """A value and its standard error, to the digits that it supports.

    >>> in_digits(12.34567, 0.0213)
    '12.346 ± 0.021'
    """
    if error is None or not np.isfinite(error) or error <= 0:
        return f"{value:.4g}"
    digits = max(1 - int(np.floor(np.log10(error))), 0)
    return f"{value:.{digits}f} ± {error:.{digits}f}"


@dataclass(frozen=True)
class Metric:
    """One or several numbers that are computed together.

    Args:
        needs: what it reads of the samples.
        reads_reference: whether it compares with a reference, of which it reads the same.
        compute: `(samples, reference, implementation) -> estimates by name`.
        only_inception: whether it is defined for the FID Inception only.
    """

    needs: tuple[Need, ...]
    reads_reference: bool
    compute: Callable[[Measured, Measured, Implementation], dict[str, Estimate]]
    only_inception: bool = False


def _frechet(samples: Measured, reference: Measured, _: Implementation) -> dict[str, Estimate]:
    return {"FD": frechet(samples.statistics, _fixed(reference.statistics))}


def _spatial(samples: Measured, reference: Measured, _: Implementation) -> dict[str, Estimate]:
    return {"sFID": frechet(samples.spatial, _fixed(reference.spatial))}


def _fixed(statistics: RunningStatistics | Statistics | None) -> Statistics:
    assert statistics is not None
    return statistics.statistics() if isinstance(statistics, RunningStatistics) else statistics


def _kid(samples: Measured, reference: Measured, how: Implementation) -> dict[str, Estimate]:
    if how.subsets:
        mean, _ = kid_torch_fidelity(samples.features, reference.features)
        return {"KID": Estimate(mean, None)}
    return {"KID": kid(samples.features, reference.features)}


def _inception_score(samples: Measured, _: Measured, how: Implementation) -> dict[str, Estimate]:
    if how.shuffled_splits:
        return {"IS": Estimate(inception_score_torch_fidelity(samples.logits)[0], None)}
    return {"IS": inception_score(samples.logits)}


def _manifolds(samples: Measured, reference: Measured, how: Implementation) -> dict[str, Estimate]:
    found = precision_recall(samples.features, reference.features, arithmetic=how.arithmetic)
    return {"precision": found.precision, "recall": found.recall}


def _coverage(samples: Measured, reference: Measured, _: Implementation) -> dict[str, Estimate]:
    found = precision_recall(samples.features, reference.features, 5, "float64")
    return {"density": found.density, "coverage": found.coverage}


METRICS: dict[str, Metric] = {
    "fd": Metric(("statistics",), True, _frechet),
    "fid": Metric(("statistics",), True, _frechet, only_inception=True),
    "sfid": Metric(("spatial",), True, _spatial, only_inception=True),
    "kid": Metric(("features",), True, _kid),
    "is": Metric(("logits",), False, _inception_score, only_inception=True),
    "precision_recall": Metric(("features",), True, _manifolds),
    "density_coverage": Metric(("features",), True, _coverage),
}
"""By name."""
CAPTION_METRICS = (
    "clip_score",
    "clip_score_torchmetrics",
    "clip_score_hessel",
    "clip_retrieval",
    "lpips_diversity",
)
"""Names of metrics on images with captions, which read no features: `evaluate.captions`."""
PAIRED_METRICS = ("psnr", "ssim", "lpips")
"""Names of metrics on images with a reference image each: `evaluate.paired`."""


def split_names(names: str) -> list[str]:
    """Names that commas separate."""
    return [name.strip() for name in names.split(",") if name.strip()]


def require_metrics(names: Sequence[str], title: str) -> None:
    """Checks names of metrics.

    Raises:
        UserError: there are none, one is unknown, or its metric is not defined for the network of
            this title.
    """
    for name in names:
        if name not in METRICS:
            known = (*METRICS, *CAPTION_METRICS, *PAIRED_METRICS)
            near = [each for each in known if name in each.split("_")]
            near = near or get_close_matches(name, known, 1)
            choice = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
            raise UserError(f"unknown metric {name!r}: {choice}")
        if METRICS[name].only_inception and title != INCEPTION:
            instead = "; with other networks it is called fd" if name == "fid" else ""
            raise UserError(f"{name} is defined for --network inception, not {title}{instead}")
    if not names:
        raise UserError(f"no metrics: choose from {', '.join(METRICS)}")


def needs(metrics: Iterable[str], of_reference: bool = False) -> set[Need]:
    """What these metrics read of the samples, or of the reference."""
    return {
        need
        for name in metrics
        if METRICS[name].reads_reference or not of_reference
        for need in METRICS[name].needs
    }


def require_reference(
    metrics: Iterable[str], reference: Measured, settings: Mapping[str, str]
) -> None:
    """Checks a reference before samples are measured.

    Args:
        metrics: keys of METRICS.
        reference: see `Measured`.
        settings: of the features of the samples.

    Raises:
        UserError: it lacks what a metric reads, or the features do not compare.
    """
    for name in metrics:
        for need in needs([name], of_reference=True):
            if getattr(reference, need) is None:
                raise UserError(
                    f"{name} needs reference images: the reference has other statistics only; give "
                    "--metrics fd (or fid, sfid), or images"
                )
    for part in (reference, reference.statistics, reference.spatial):
        if part is not None:
            unknown_settings(settings, part.settings or {})


def measure(
    images: Iterable[UInt8[np.ndarray, "h w 3"]],
    extractor: FeatureExtractor,
    wanted: set[Need],
    settings: Mapping[str, str] | None = None,
) -> Measured:
    """Computes the features of images, and keeps of them what is wanted.

    Args:
        images: of any sizes, one at a time.
        extractor: of the features.
        wanted: see `needs`. Statistics take constant memory; features and logits, 4 bytes per
            dimension and image.
        settings: of the images, recorded beside the extractor's.

    Raises:
        UserError: there are no images, or their features are not finite.
    """
    known = {**extractor.settings, **(settings or {})}
    running = {name: RunningStatistics(known) for name in ("pool", "spatial")}
    kept: dict[str, list[np.ndarray]] = {"pool": [], "logits": []}
    n = 0
    for found in extractor.stream(image[None] for image in images):
        n += len(found["pool"])
        if "statistics" in wanted:
            running["pool"].add(found["pool"])
        if "spatial" in wanted:
            running["spatial"].add(found["spatial"])
        if "features" in wanted:
            kept["pool"].append(found["pool"])
        if "logits" in wanted:
            kept["logits"].append(found["logits"])
    return Measured(
        statistics=running["pool"] if "statistics" in wanted else None,
        spatial=running["spatial"] if "spatial" in wanted else None,
        features=np.concatenate(kept["pool"]) if "features" in wanted else None,
        logits=np.concatenate(kept["logits"]) if "logits" in wanted else None,
        n=n,
        settings=known,
    )


def compare(
    metrics: Sequence[str],
    samples: Measured,
    reference: Measured,
    title: str,
    implementation: str = "guided-diffusion",
) -> list[Result]:
    """The metrics of samples against a reference.

    Args:
        metrics: keys of METRICS.
        samples, reference: with what `needs` names; a reference is needed by most.
        title: of the network.
        implementation: a key of IMPLEMENTATIONS.

    Raises:
        UserError: the reference lacks what a metric reads, or the features do not compare.
    """
    require_reference(metrics, reference, samples.settings or {})
    how = IMPLEMENTATIONS[implementation]
    return [
        Result(titled(bare, title), *estimate)
        for name in metrics
        for bare, estimate in METRICS[name].compute(samples, reference, how).items()
    ]


def titled(name: str, title: str) -> str:
    """A metric's name with its network: FID's own are bare."""
    if title == INCEPTION:
        return {"FD": "FID"}.get(name, name)
    if title == "DINOv2" and name == "FD":
        return "FD-DINOv2"
    return f"{name} ({title})"
