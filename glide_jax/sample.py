"""Sample, inpaint, edit, upsample, rank and vary images with trained models.

    python sample.py --checkpoint demo --prompt "a red star" --n 4 --out samples.png
    python sample.py inpaint --checkpoint models --image cat.png --mask mask.png --prompt "a hat"
    python sample.py edit --checkpoint models --image sketch.png --prompt "a house" --strength 0.6
    python sample.py upsample --checkpoint models --low-res small.png --prompt "a house"
    python sample.py rank --checkpoint models --image a.png --image b.png --prompt "a house"
    python sample.py unclip --checkpoint models --prompt "a house" --n 4
    python sample.py variations --checkpoint models --image cat.png --n 4

More commands of unCLIP: reconstruct, interpolate, text-diff, probe-pca (docs/unclip.md).
The default command is `generate`. `sample.py COMMAND --help` lists a command's flags.

    --out FILE.png  One image becomes that file. Several become a captioned grid; the folder FILE/
                    then holds them one by one, and no others.
    --out FOLDER    Every image becomes a file of the folder. Images that already exist are skipped:
                    repeat an interrupted command to resume it.

Each PNG file records its prompt, seed, all flags, and a fingerprint of the weights.
"""

import contextlib
import inspect
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glide_jax import UserError
from glide_jax.cli import parse_flags
from glide_jax.compilation import timed_compilation
from glide_jax.errors import exit_on_user_error, memory_advice
from glide_jax.images import save_grid
from glide_jax.parallel.sharding import use_all_cores, use_cores_to_sample
from glide_jax.sampling.commands import COMMANDS as GLIDE_COMMANDS
from glide_jax.sampling.commands import Command, Generate, Models, Rank, join_texts
from glide_jax.sampling.flags import LESS_MEMORY
from glide_jax.sampling.folders import (
    fill_folder,
    png_metadata,
    sample_and_save,
    sample_base_images,
)
from glide_jax.sampling.outputs import Job, earlier_images, is_folder, remove_images
from glide_jax.sampling.unclip_commands import UNCLIP_COMMANDS
from glide_jax.sampling.unclip_series import SERIES_COMMANDS
from glide_jax.sampling.user_images import read_image

MAX_GRID_IMAGES = 1000
COMMANDS: dict[str, type[Models]] = {**GLIDE_COMMANDS, **UNCLIP_COMMANDS, **SERIES_COMMANDS}


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
    models = command.load()
    px = models.config(command.role(models)).denoiser.resolution_px
    if isinstance(command, Generate) and command.upsample and command.upsampler(models) is None:
        print(f"no upsampler among the checkpoints: images are {px} x {px} px")
    with timed_compilation() as compile_s:
        if into_folder:
            fill_folder(models, command, jobs)
        else:
            write_grid(models, command, jobs, earlier)
        if compile_s():
            print(f"compiled in {compile_s():.1f} s")
    if not into_folder:
        print(command.out)


def write_grid(models: Any, command: Command, jobs: Sequence[Job], earlier: Sequence[Path]) -> None:
    """Samples all images; several become a grid, beside a folder with these images only."""
    images: list[np.ndarray] = []
    with contextlib.ExitStack() as stack:
        if len(jobs) > 1 and isinstance(command, Generate) and command.in_stages(models):
            # Not in the folder of the images, where base images of another command may wait.
            temporary = stack.enter_context(tempfile.TemporaryDirectory())
            jobs = sample_base_images(models, command, jobs, Path(temporary))
        for batch in sample_and_save(models, command, jobs):
            if not images:  # not before there are new ones
                remove_images([file for file in earlier if file not in batch])
            images += batch.values()
    if len(images) > 1:
        prompts = [job.prompt for job in jobs for _ in job.files]
        columns = command.images_per_prompt if command.images_per_prompt > 1 else 4
        save_grid(command.out, np.stack(images), prompts, columns, png_metadata(models, command))


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
    description = f"{inspect.getdoc(COMMANDS[name])}\n\n{__doc__}"
    command = parse_flags(COMMANDS[name], f"sample.py {name}", args, description)
    if isinstance(command, Rank):
        rank(command)
    else:
        assert isinstance(command, Command)
        run(command)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
