"""Sampling the images of a command into files, resumable after an interruption."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from glide_jax.errors import UserError
from glide_jax.images import save_png
from glide_jax.sampling.buckets import bucket, equal_part
from glide_jax.sampling.clip import best_first
from glide_jax.sampling.commands import Command, Generate
from glide_jax.sampling.flags import recorded_flags
from glide_jax.sampling.outputs import Job, remove_stage, stage_folder
from glide_jax.sampling.pipeline import Glide
from glide_jax.sampling.stage import MAX_BATCH


def png_metadata(glide: Glide, command: Command) -> dict[str, str | None]:
    """The metadata that all images of a command share: name, flags, resolved settings, weights.

    Unset flags are None.
    """
    role, upsampler = command.role(glide), command.upsampler(glide)
    settings = dataclasses.asdict(glide.settings(role, **command.settings))
    flags = recorded_flags(command)
    flags["first_seed"] = flags.pop("seed")  # `seed` is each image's own
    flags["checkpoint"] = ", ".join(map(str, command.checkpoint))
    values = {"command": type(command).__name__.lower()} | settings | flags | command.inputs()
    ranks = flags.get("keep") is not None or settings["clip_guidance_scale"]
    own = {}
    if upsampler is not None:
        own = dataclasses.asdict(glide.settings(upsampler))
        ranks = ranks or own["clip_guidance_scale"]
    roles = (role, upsampler, "clip" if ranks else None)
    used = [(role, glide.runs[role]) for role in roles if role and glide.has(role)]
    values["weights"] = ", ".join(f"{role} {run.fingerprint}" for role, run in used)
    if own:
        values["upsampler_settings"] = ", ".join(f"{name}={value}" for name, value in own.items())
    return {name: None if value is None else str(value) for name, value in values.items()}


def sample_and_save(
    glide: Glide,
    command: Command,
    jobs: Sequence[Job],
    before: Mapping[str, str | None] | None = None,
) -> Iterator[dict[Path, np.ndarray]]:
    """Samples jobs batch by batch. Yields the images of each batch by file, once all are saved.

    Args:
        glide: the models.
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
        samples = command.sample(glide, some, seed=[job.seed for job in some], **options)
        common = png_metadata(glide, command)  # of the weights that are loaded now
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


def fill_folder(glide: Glide, command: Command, jobs: Sequence[Job]) -> None:
    """Samples the images that the folder lacks, a batch of them in memory at a time."""
    common = png_metadata(glide, command)
    left = [job for job in jobs if not job.is_done(common)]
    count = [sum(len(job.files) for job in some) for some in (left, jobs)]
    print(f"{command.out}: {count[0]:,} of {count[1]:,} images left to sample", flush=True)
    try:
        if left and isinstance(command, Generate) and command.in_stages(glide):
            left = sample_base_images(glide, command, left, stage_folder(command.out))
        for _ in sample_and_save(glide, command, left, common):
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
