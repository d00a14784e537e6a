"""How close a prior's image embeddings are to those of the images that captions describe.

    python -m glide_jax.evaluation.prior --checkpoint runs/prior --n 256 --scales 1 2 4

For each guidance scale, prints the cosine of sampled and true embeddings, and how often a sampled
one is nearest to its own image's among all. Both are after subtracting the mean over the training
images, as a CLIP's embeddings lie in a narrow cone. The last line is of the caption's embedding in
place of a sampled one: what the prior is to beat.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float

from glide_jax.cli import parse_flags
from glide_jax.compilation import keep_compiled_programs
from glide_jax.config import Config
from glide_jax.config.bounds import ANY_NUMBER, Between
from glide_jax.data.embeddings import require_clip
from glide_jax.data.records import Record, RecordReader
from glide_jax.data.sources import open_source
from glide_jax.data.transforms import load_pixels
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.evaluation.metrics.retrieval import retrieval_accuracy
from glide_jax.runs.folder import Run
from glide_jax.sampling.arguments import MAX_IMAGES
from glide_jax.sampling.clip import ClipScorer
from glide_jax.sampling.flags import SamplingFlags
from glide_jax.sampling.prior_stage import PriorStage
from glide_jax.sampling.settings import changed_settings


@dataclass(frozen=True, kw_only=True)
class Arguments(SamplingFlags):
    """Prints how close a prior's embeddings are to those of held-out images."""

    checkpoint: str
    """Run folder of a prior."""
    clip: str = ""
    """Run folder of its CLIP; empty: the run's own train.clip_run."""
    n: Annotated[int, Between(2, MAX_IMAGES)] = 256
    """Number of images: the first of the split."""
    split: str = ""
    """Split of the prior's own data set; empty: its validation split."""
    caption_index: Annotated[int, Between(0, 1000)] = 0
    """Which of a record's captions, from 0; caption 1 of the scenes data set is complete."""
    scales: Annotated[tuple[float, ...], ANY_NUMBER] = ()
    """Guidance scales to compare; none: --guidance-scale."""
    candidates: Annotated[int, Between(1, 64)] = 1
    """Embeddings sampled for each caption, of which the one with the highest dot product with the
    caption's embedding is kept (the paper: 2)."""


class HeldOut(NamedTuple):
    """Held-out images and one caption of each."""

    embeddings: Float[np.ndarray, "n d"]
    captions: list[str]


class Closeness(NamedTuple):
    """How close embeddings are to the true ones."""

    cosine: float
    """Mean cosine with the own image's embedding."""
    retrieval: float
    """Fraction that is nearest to the own image's embedding."""

    def __str__(self) -> str:
        return f"cosine {self.cosine:.3f}, own image found {self.retrieval:.1%}"


def closeness(
    found: Float[np.ndarray, "n d"],
    true: Float[np.ndarray, "n d"],
    mean: Float[np.ndarray, "d"],
    found_mean: Float[np.ndarray, "d"] | None = None,
) -> Closeness:
    """Compares embeddings with the true ones.

    Args:
        found: the embeddings.
        true: row i is of the same image.
        mean: over the training images, which is subtracted from both.
        found_mean: which is subtracted from `found` instead.
    """
    a, b = _unit(found - (mean if found_mean is None else found_mean)), _unit(true - mean)
    return Closeness(float(np.sum(a * b, -1).mean()), retrieval_accuracy(a, b, len(a)))


def _unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def held_out(config: Config, split: str, n: int, caption_index: int, clip: ClipScorer) -> HeldOut:
    """The first n usable records of a split, with embeddings stored or made of their images.

    Raises:
        UserError: the data set cannot be opened, has fewer than two usable records, or a record has
            no such caption.
    """
    source = open_source(config.data, split or config.data.validation_split)
    reader = RecordReader(source, config.data.max_bad_fraction)
    px = clip.config.resolution_px

    def read(record: Record) -> tuple[Record, np.ndarray]:
        if record.embedding is not None:
            return record, record.embedding
        return record, load_pixels(record.image, px, name=record.name)

    found: list[tuple[Record, np.ndarray]] = []
    for index in range(len(source)):
        if len(found) == n:
            break
        one = reader.attempt(index, read)
        if one is not None:
            found.append(one)
    if len(found) < 2:
        raise UserError(f"the split has {len(found)} usable records: at least 2 are needed")
    records, arrays = zip(*found, strict=True)
    fewest = min(len(record.captions) for record in records)
    if caption_index >= fewest:
        raise UserError(f"--caption-index {caption_index}: some records have {fewest} captions")
    stacked = np.stack(arrays)
    embeddings = clip.embed_images(stacked) if stacked.ndim == 4 else stacked
    return HeldOut(embeddings, [record.captions[caption_index] for record in records])


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises UserError."""
    arguments: Arguments = parse_flags(Arguments, "python -m glide_jax.evaluation.prior", argv)
    keep_compiled_programs()
    run = Run.open(arguments.checkpoint)
    _ = run.config.prior
    folder = arguments.clip or run.config.train.clip_run
    if not folder:
        raise UserError("--clip: give the run of the prior's CLIP, which this run does not name")
    clip_run = Run.open(folder)
    require_clip(run.config.data.source, clip_run.clip_fingerprint)
    clip = ClipScorer.load(clip_run, arguments.fsdp)
    prior = PriorStage.load(run, arguments.fsdp)
    data = held_out(run.config, arguments.split, arguments.n, arguments.caption_index, clip)
    text, empty = clip.embed_text(data.captions), clip.embed_text([""])
    mean = np.asarray(prior.params["mean"], np.float32)
    seeds = [arguments.seed + i for i in range(len(data.captions))]
    settings = changed_settings(run.config.sample, **arguments.settings)
    for scale in arguments.scales or (settings.guidance_scale,):
        changed = changed_settings(settings, guidance_scale=scale)
        sampled = prior.sample(text, empty, seeds, changed, candidates=arguments.candidates)
        print(f"scale {scale:g}: {closeness(sampled, data.embeddings, mean)}", flush=True)
    captions = np.asarray(text.embedding)
    print(f"captions: {closeness(captions, data.embeddings, mean, captions.mean(0))}")
    print(f"of {len(seeds)} images")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
