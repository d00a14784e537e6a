"""Samples of a model for the captions of its data set, in a folder, resumable."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from glide_jax.cli import UNRECORDED
from glide_jax.config import DataConfig
from glide_jax.data.records import BadRecordError, Source
from glide_jax.data.sources import open_source
from glide_jax.errors import UserError
from glide_jax.runs.folder import Run
from glide_jax.sampling.arguments import require_seeds
from glide_jax.sampling.commands import Generate
from glide_jax.sampling.flags import SettingFlags
from glide_jax.sampling.folders import fill_folder, png_metadata
from glide_jax.sampling.outputs import Job
from glide_jax.sampling.pipeline import Glide

logger = logging.getLogger(__name__)

DEFAULT_N = 256
"""Images to sample by default."""


@dataclass(frozen=True, kw_only=True)
class GenerateEach(Generate):
    """One image per caption; the seed of image i is `seed` + i."""

    captions: tuple[str, ...] = field(default=(), metadata=UNRECORDED)

    def jobs(self) -> list[Job]:
        """A job for each caption. Raises UserError."""
        require_seeds([self.seed, self.seed + len(self.captions) - 1])
        return [
            Job(caption, self.seed + i, (self.out / f"{i:06d}.png",))
            for i, caption in enumerate(self.captions)
        ]


@dataclass(frozen=True)
class Sampled:
    """Samples of a model."""

    folder: Path
    count: int
    px: int
    """Side of the images."""
    source: Source
    """The split whose captions they were sampled for."""
    data: DataConfig
    split: str
    settings: dict[str, str]
    """How they were sampled, as their PNG metadata says."""
    log: Path | None
    """File of the run's evaluations; None for a shipped model."""


def sample_images(arguments: Any, glide: Glide | None = None) -> Sampled:
    """Samples the images that are still missing.

    Args:
        arguments: with `checkpoint`, `n`, `split`, `caption_index`, `samples` and SamplingFlags.
        glide: the loaded checkpoints, if they are.

    Raises:
        UserError: the models or their data set cannot be loaded, or a sample of other settings is
            in the folder.
    """
    command = GenerateEach(
        checkpoint=arguments.checkpoint,
        out=arguments.samples or Path("unused"),
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        fsdp=arguments.fsdp,
        **{name: getattr(arguments, name) for name in SettingFlags.__dataclass_fields__},
    )
    glide = glide or command.load()
    run = glide.runs["base"] if glide.has("base") else None
    if run is None:
        raise UserError(
            "--checkpoint: give a base model; upsamplers: glide_jax.evaluation.upsampling"
        )
    data = run.config.data
    split = arguments.split or data.validation_split
    source = open_source(data, split)
    captions = captions_of(source, arguments.n or DEFAULT_N, arguments.caption_index)
    role = command.upsampler(glide) or command.role(glide)
    folder = arguments.samples or default_folder(run, role, len(captions))
    command = replace(command, out=folder, captions=tuple(captions))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        fill_folder(glide, command, command.jobs())
    except UserError as error:  # sample.py's flag for the folder has another name
        raise UserError(str(error).replace("--out", "--samples")) from None
    settings = {k: v for k, v in png_metadata(glide, command).items() if v is not None}
    settings |= {"split": split, "caption_index": str(arguments.caption_index)}
    return Sampled(
        folder,
        len(captions),
        glide.config(role).denoiser.resolution_px,
        source,
        data,
        split,
        settings,
        _log(run),
    )


def captions_of(source: Source, n: int, index: int) -> list[str]:
    """A caption of each of the first n records with enough of them.

    Raises:
        UserError: there are fewer.
    """
    found: list[str] = []
    for record in range(len(source)):
        if len(found) == n:
            break
        try:
            captions = source.captions(record)
        except BadRecordError as error:
            logger.warning("skipped a record: %s", error)
            continue
        if index < len(captions):
            found.append(captions[index])
    if len(found) < n:
        raise UserError(
            f"--n {n}: the split has {len(found):,} records with a caption {index}; give another "
            "--n, --split or --caption-index"
        )
    return found


def default_folder(run: Run, role: str, n: int) -> Path:
    """A folder in the run folder, if it is a local training run; else in the working folder."""
    if _log(run) is not None:
        return Path(run.path) / "samples" / f"evaluation-{role}-{n}"
    return Path(f"evaluation-{role}-{n}")


def _log(run: Run) -> Path | None:
    path = run.path
    if isinstance(path, Path) and (path / "metrics.jsonl").is_file():
        return path / "evaluations.jsonl"
    return None
