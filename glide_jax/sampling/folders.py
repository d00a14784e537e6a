"""Sampling the images of a command into files, resumable after an interruption."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from glide_jax.errors import UserError
from glide_jax.images import save_png
from glide_jax.sampling.buckets import bucket, equal_part
from glide_jax.sampling.clip import best_first
from glide_jax.sampling.commands import Command, Generate
from glide_jax.sampling.flags import recorded_flags
from glide_jax.sampling.model_set import ModelSet
from glide_jax.sampling.outputs import Job, remove_stage, stage_folder
from glide_jax.sampling.pipeline import Glide
from glide_jax.sampling.stage import MAX_BATCH


def png_metadata(models: ModelSet, command: Command) -> dict[str, str | None]:
    """The metadata that all images of a command share: name, flags, resolved settings, weights.

    Unset flags are None.
    """
    role, others = command.role(models), command.others(models)
    settings = dataclasses.asdict(models.settings(role, **command.settings))
    flags = recorded_flags(command)
    flags["first_seed"] = flags.pop("seed")  # `seed` is each image's own
    flags["checkpoint"] = ", ".join(map(str, command.checkpoint))
    values = {"command": type(command).__name__.lower()} | settings | flags | command.inputs()
    roles = [role, *(other for other, _ in others.values())]
    used = [(role, models.runs[role]) for role in roles if models.has(role)]
    values["weights"] = ", ".join(f"{role} {run.fingerprint}" for role, run in used)
    for name, (_, own) in others.items():
        if own is not None:
            of_model = dataclasses.asdict(own).items()
            values[f"{name}_settings"] = ", ".join(f"{key}={value}" for key, value in of_model)
    return {name: None if value is None else str(value) for name, value in values.items()}


def sample_and_save(
    models: ModelSet,
    command: Command,
    jobs: Sequence[Job],
    before: Mapping[str, str | None] | None = None,
) -> Iterator[dict[Path, np.ndarray]]:
    """Samples jobs batch by batch. Yields the images of each batch by file, once all are saved.

    Args:
        models: of the command.
        command: whose jobs these are.
        jobs: what to sample.
        before: the metadata of images that exist.

    Raises:
        UserError: a model was trained on in between.
    """
    n = jobs[0].n if jobs else 1
    limit = command.batch_size or MAX_BATCH * jax.local_device_count()
    jobs_per_batch = equal_part(max(len(jobs), 1), max(limit // n, 1))
    # One batch size for all, so that the last jobs need no programs of their own.
    size = bucket(jobs_per_batch * n, jax.local_device_count())
    options = {"batch_size": min(limit, size), "progress": True, **command.settings}
    for start in range(0, len(jobs), jobs_per_batch):
        some = jobs[start : start + jobs_per_batch]
        samples = command.sample(models, some, seed=[job.seed for job in some], **options)
        common = png_metadata(models, command)  # of the weights that are loaded now
        if before not in (None, common):
            raise UserError(
                "a model was trained on while its images were sampled: export it first "
                "(python -m glide_jax.export), and give another --out"
            )
        before = common
        targets = [(job, file) for job in some for file in job.files]
        for (job, file), image, seed in zip(targets, samples, samples.seeds, strict=True):
            save_png(file, image, common | job.metadata | {"seed": str(seed)})
        yield {file: image for (_, file), image in zip(targets, samples, strict=True)}


def fill_folder(models: Any, command: Command, jobs: Sequence[Job]) -> None:
    """Samples the images that the folder lacks, a batch of them in memory at a time."""
    common = png_metadata(models, command)
    left = [job for job in jobs if not job.is_done(common)]
    count = [sum(len(job.files) for job in some) for some in (left, jobs)]
    print(f"{command.out}: {count[0]:,} of {count[1]:,} images left to sample", flush=True)
    try:
        if left and isinstance(command, Generate) and command.in_stages(models):
            left = sample_base_images(models, command, left, stage_folder(command.out))
        for _ in sample_and_save(models, command, left, common):
            pass
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command resumes") from None
    remove_stage(command.out)


def sample_base_images(
    glide: Glide, command: Generate, jobs: Sequence[Job], folder: Path
) -> list[Job]:
    """Samples the base images that a stage's folder lacks, and ranks them if some are kept.

    With --one-at-a-time, so that each model is loaded once for all images.

    Args:
        glide: the models.
        command: whose jobs these are.
        jobs: what to sample.
        folder: of the stage.

    Returns:
        A job for each image to save, which upsamples its base image.
    """
    ranks = command.keep is not None
    glide.require_stages(command.role(glide), command.upsampler(glide), ranks, command.settings)
    base = dataclasses.replace(command, keep=None, upsample=False, out=folder)
    common = png_metadata(glide, base)
    stages = [job.base_jobs(folder) for job in jobs]
    left = [one for stage in stages for one in stage if not one.is_done(common)]
    total = sum(map(len, stages))
    print(f"{folder}: {len(left):,} of {total:,} base images left to sample", flush=True)
    for _ in sample_and_save(glide, base, left, common):
        pass
    upsampled = []
    for job, stage in zip(jobs, stages, strict=True):
        files = [one.files[0] for one in stage]
        order = best_first(glide.rank(files, job.prompt)) if ranks else range(job.n)
        for file, i in zip(job.files, order, strict=False):
            upsampled.append(Job(job.prompt, stage[i].seed, (file,), staged=files[i]))
    return upsampled
