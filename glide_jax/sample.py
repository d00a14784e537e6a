"""Sample, inpaint, edit, upsample and rank images with trained models.

    python sample.py --checkpoint demo --prompt "a red star" --n 4 --out samples.png
    python sample.py inpaint --checkpoint models --image cat.png --mask mask.png --prompt "a hat"
    python sample.py edit --checkpoint models --image sketch.png --prompt "a house" --strength 0.6
    python sample.py upsample --checkpoint models --low-res small.png --prompt "a house"
    python sample.py rank --checkpoint models --image a.png --image b.png --prompt "a house"

The default command is `generate`. `sample.py COMMAND --help` lists a command's flags.

    --out FILE.png  One image becomes that file. Several become a captioned grid; the folder FILE/
                    then holds them one by one, and no others.
    --out FOLDER    Every image becomes a file of the folder. Images that already exist are skipped:
                    repeat an interrupted command to resume it.

Each PNG file records its prompt, seed, all flags, and a fingerprint of the weights.
"""

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from glide_jax import Glide, UserError
from glide_jax.cli import parse_flags
from glide_jax.compilation import timed_compilation
from glide_jax.errors import exit_on_user_error, memory_advice
from glide_jax.images import save_grid, save_png
from glide_jax.parallel.sharding import use_all_cores, use_cores_to_sample
from glide_jax.sampling.buckets import bucket, equal_part
from glide_jax.sampling.clip import best_first
from glide_jax.sampling.commands import COMMANDS, Command, Generate, Rank, join_texts
from glide_jax.sampling.flags import LESS_MEMORY, recorded_flags
from glide_jax.sampling.outputs import (
    Job,
    earlier_images,
    is_folder,
    remove_images,
    remove_stage,
    stage_folder,
)
from glide_jax.sampling.stage import MAX_BATCH
from glide_jax.sampling.user_images import read_image

MAX_GRID_IMAGES = 1000


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


@memory_advice(LESS_MEMORY)
def run(command: Command) -> None:
    """Samples the images of a command, and skips those that already exist in a folder."""
    jobs = command.jobs()
    into_folder = is_folder(command.out)
    files = [] if into_folder else [file for job in jobs for file in job.files]
    if len(files) > MAX_GRID_IMAGES:
        raise UserError(
            f"--out {command.out}: a grid of {len(files):,} images is too large: give a folder"
        )
    earlier = [] if into_folder else earlier_images(command.out, files)
    images = sum(job.n for job in jobs)
    use_cores_to_sample(min(command.batch_size or images, images), command.fsdp)
    glide = command.load()
    px = glide.config(command.role(glide)).denoiser.resolution_px
    if isinstance(command, Generate) and command.upsample and command.upsampler(glide) is None:
        print(f"no upsampler among the checkpoints: images are {px} x {px} px")
    with timed_compilation() as compile_s:
        if into_folder:
            fill_folder(glide, command, jobs)
        else:
            write_grid(glide, command, jobs, earlier)
        if compile_s():
            print(f"compiled in {compile_s():.1f} s")
    if not into_folder:
        print(command.out)


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


def write_grid(
    glide: Glide, command: Command, jobs: Sequence[Job], earlier: Sequence[Path]
) -> None:
    """Samples all images; several become a grid, beside a folder with these images only."""
    images: list[np.ndarray] = []
    with contextlib.ExitStack() as stack:
        if len(jobs) > 1 and isinstance(command, Generate) and command.in_stages(glide):
            # Not in the folder of the images, where base images of another command may wait.
            temporary = stack.enter_context(tempfile.TemporaryDirectory())
            jobs = sample_base_images(glide, command, jobs, Path(temporary))
        for batch in sample_and_save(glide, command, jobs):
            if not images:  # not before there are new ones
                remove_images([file for file in earlier if file not in batch])
            images += batch.values()
    if len(images) > 1:
        prompts = [job.prompt for job in jobs for _ in job.files]
        columns = command.images_per_prompt if command.images_per_prompt > 1 else 4
        save_grid(command.out, np.stack(images), prompts, columns, png_metadata(glide, command))


def rank(command: Rank) -> None:
    """Prints the CLIP scores of the images for each prompt, best first."""
    prompts = command.prompts()
    if not command.image:
        raise UserError("no images to rank: give --image")
    use_all_cores(command.fsdp)
    glide = command.load()
    images = [read_image(path) for path in command.image]
    scored = [(prompt, glide.rank(images, prompt)) for prompt in prompts]
    print("CLIP scores (cosine similarity of image and prompt), best first")
    for prompt, scores in scored:
        print(prompt)
        for i in np.argsort(-scores):
            print(f"  {scores[i]:.3f}  {command.image[i]}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command. Raises UserError."""
    args = list(sys.argv[1:] if argv is None else argv)
    name = args.pop(0) if args and args[0] in COMMANDS else "generate"
    args = join_texts(args, COMMANDS[name])
    command = parse_flags(COMMANDS[name], f"sample.py {name}", args, __doc__)
    if isinstance(command, Rank):
        rank(command)
    else:
        assert isinstance(command, Command)
        run(command)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
