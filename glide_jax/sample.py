"""Sample, inpaint, edit, upsample and rank images with trained models.

    python sample.py --checkpoint demo --prompt "a red star" --n 4 --out out.png
    python sample.py inpaint --checkpoint models --image cat.png --mask mask.png --prompt "a hat"
    python sample.py edit --checkpoint models --image sketch.png --prompt "a house" --strength 0.6
    python sample.py upsample --checkpoint models --low-res small.png --prompt "a house"
    python sample.py rank --checkpoint models --image a.png --image b.png --prompt "a house"

The default command is `generate`. `sample.py COMMAND --help` lists a command's flags.

With --out FILE.png, one image becomes that file; several become a captioned grid, and the folder
FILE/ holds them one by one. With --out FOLDER, every image becomes a file in the folder, and images
that already exist are skipped: repeat an interrupted command to resume it. The text chunks of each
PNG file record its prompt, its seed and every flag that affects it.
"""

import dataclasses
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tyro.conf import UseAppendAction

from glide_jax import Glide, UserError
from glide_jax.cli import UNRECORDED, ShardingFlags, keep_compiled_programs, parse_flags
from glide_jax.errors import exit_on_user_error
from glide_jax.images import save_grid, save_png
from glide_jax.parallel.sharding import use_all_cores
from glide_jax.sampling.flags import SamplingFlags, recorded_flags
from glide_jax.sampling.outputs import Job, is_folder, make_jobs
from glide_jax.sampling.request import broadcast_prompts
from glide_jax.sampling.samples import Samples
from glide_jax.sampling.stage import MAX_BATCH
from glide_jax.sampling.user_images import Fit, read_alpha, read_image, read_mask, square_image
from glide_jax.storage import text_lines


@dataclass(frozen=True, kw_only=True)
class Models(ShardingFlags):
    """Flags of every command: models and prompts."""

    checkpoint: UseAppendAction[tuple[str | Path, ...]] = ()
    """Run folder, a folder of run folders, or a shipped model such as demo or demo/base. Repeat the
    flag for several: a base model, an upsampler, a CLIP."""
    prompt: UseAppendAction[tuple[str, ...]] = field(default=(), metadata=UNRECORDED)
    """Prompt; repeat the flag for several. An empty prompt is unconditional."""
    prompts_file: Path | None = field(default=None, metadata=UNRECORDED)
    """Text file with one prompt per line; blank lines are skipped."""
    one_at_a_time: bool = field(default=False, metadata=UNRECORDED)
    """Free each model before loading the next, to save memory."""

    def load(self) -> Glide:
        """The models. Raises UserError."""
        return Glide.load(*self.checkpoint, one_at_a_time=self.one_at_a_time, fsdp=self.fsdp)

    def prompts(self) -> list[str]:
        """All prompts. Raises UserError if there are none."""
        prompts = list(self.prompt)
        if self.prompts_file is not None:
            try:
                lines = text_lines(self.prompts_file.read_bytes())
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"--prompts-file {self.prompts_file}: {error}") from None
            prompts += [line.strip() for line in lines if line.strip()]
        if not prompts:
            raise UserError("no prompts: give --prompt, or --prompts-file with one prompt per line")
        return prompts


@dataclass(frozen=True, kw_only=True)
class Command(SamplingFlags, Models, ABC):
    """A command that samples images."""

    out: Path = field(default=Path("out.png"), metadata=UNRECORDED)
    """PNG file, or a folder."""

    @property
    def sampled_per_prompt(self) -> int:
        """Images sampled for each prompt."""
        return 1

    @property
    def images_per_prompt(self) -> int:
        """Images saved for each prompt."""
        return self.sampled_per_prompt

    def role(self, glide: Glide) -> str:
        """Role of the model that these settings apply to."""
        return "base"

    def jobs(self) -> list[Job]:
        """A job for each prompt. Raises UserError."""
        return make_jobs(self.prompts(), None, self.images_per_prompt, self.out)

    @abstractmethod
    def sample(self, glide: Glide, jobs: Sequence[Job], **options: Any) -> Samples:
        """Samples the images of these jobs.

        Args:
            glide: the models.
            jobs: some of `jobs()`.
            options: of `Glide`'s methods: seed, batch size and settings.
        """


@dataclass(frozen=True, kw_only=True)
class Generate(Command):
    """Generates images for prompts."""

    n: int = 1
    """Images per prompt, with seeds seed, seed + 1, ..."""
    keep: int | None = None
    """Keep this many of each prompt's n images: those with the highest CLIP scores."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    upsample: bool = True
    """Upsample, if there is an upsampler among the checkpoints."""

    @property
    def sampled_per_prompt(self) -> int:
        """Images sampled for each prompt."""
        return self.n

    @property
    def images_per_prompt(self) -> int:
        """Images saved for each prompt."""
        return self.n if self.keep is None else self.keep

    def jobs(self) -> list[Job]:
        """A job for each prompt. Raises UserError."""
        prompts = self.prompts()
        if self.n < 1:
            raise UserError(f"--n {self.n}: must be at least 1")
        if self.images_per_prompt < 1:
            raise UserError(f"--keep {self.keep}: must be at least 1")
        return make_jobs(prompts, None, self.images_per_prompt, self.out)

    def sample(self, glide: Glide, jobs: Sequence[Job], **options: Any) -> Samples:
        """Samples the images of these jobs."""
        options |= {
            "n": self.n,
            "keep": self.keep,
            "negative_prompt": self.negative_prompt,
            "upsample": None if self.upsample else False,
        }
        return self.sample_prompts(glide, [job.prompt for job in jobs], **options)

    def sample_prompts(self, glide: Glide, prompts: list[str], **options: Any) -> Samples:
        """Samples images for these prompts."""
        return glide.generate(prompts, **options)


@dataclass(frozen=True, kw_only=True)
class Inpaint(Generate):
    """Inpaints a part of an image."""

    image: Path
    """Image of any size."""
    mask: Path | None = None
    """Mask: white is kept, black is inpainted. Without it, transparent pixels are inpainted."""
    fit: Fit = "crop"
    """crop: the largest centered square; pad: inpaint the margins; stretch."""

    def role(self, glide: Glide) -> str:
        """Role of the model that these settings apply to."""
        return "base-inpaint" if glide.has("base-inpaint") else "base"

    def sample_prompts(self, glide: Glide, prompts: list[str], **options: Any) -> Samples:
        """Samples images for these prompts."""
        known = read_alpha(self.image) if self.mask is None else read_mask(self.mask)
        return glide.inpaint(read_image(self.image), known, prompts, fit=self.fit, **options)


@dataclass(frozen=True, kw_only=True)
class Edit(Generate):
    """Edits an image or a sketch (SDEdit)."""

    image: Path
    """Image of any size."""
    strength: float = 0.7
    """Fraction of the steps taken, up to 1: the higher, the less of the image is kept."""
    fit: Fit = "crop"
    """crop: the largest centered square; pad: gray margins; stretch."""

    def sample_prompts(self, glide: Glide, prompts: list[str], **options: Any) -> Samples:
        """Samples images for these prompts."""
        image = read_image(self.image)
        return glide.edit(image, prompts, strength=self.strength, fit=self.fit, **options)


@dataclass(frozen=True, kw_only=True)
class Upsample(Command):
    """Upsamples images, conditioned on captions: one prompt for all, or one each."""

    low_res: UseAppendAction[tuple[Path, ...]] = field(default=(), metadata=UNRECORDED)
    """Image; repeat the flag for several. Resized to the upsampler's low resolution."""
    fit: Fit = "crop"
    """crop: the largest centered square; pad: gray margins; stretch."""

    def role(self, glide: Glide) -> str:
        """Role of the model that these settings apply to."""
        return "upsample"

    def jobs(self) -> list[Job]:
        """A job for each image. Raises UserError."""
        prompts = self.prompts()
        if not self.low_res:
            raise UserError("no images to upsample: give --low-res")
        return make_jobs(broadcast_prompts(prompts, len(self.low_res)), self.low_res, 1, self.out)

    def sample(self, glide: Glide, jobs: Sequence[Job], **options: Any) -> Samples:
        """Samples the images of these jobs."""
        px = glide.config("upsample").denoiser.low_res_px
        paths = [job.low_res for job in jobs if job.low_res is not None]
        low_res = np.stack([square_image(read_image(path), px, self.fit) for path in paths])
        return glide.upsample(low_res, [job.prompt for job in jobs], **options)


@dataclass(frozen=True, kw_only=True)
class Rank(Models):
    """Prints CLIP scores of images for each prompt, best first."""

    image: UseAppendAction[tuple[Path, ...]] = ()
    """Image; repeat the flag for several."""


COMMANDS: dict[str, type[Models]] = {
    "generate": Generate,
    "inpaint": Inpaint,
    "edit": Edit,
    "upsample": Upsample,
    "rank": Rank,
}


def png_metadata(glide: Glide, command: Command) -> dict[str, str | None]:
    """The metadata that all images of a command share: its name, flags and resolved settings.

    Unset flags are None.
    """
    name = {"command": type(command).__name__.lower()}
    settings = dataclasses.asdict(glide.settings(command.role(glide), **command.settings))
    flags = recorded_flags(command)
    flags["first_seed"] = flags.pop("seed")  # `seed` is each image's own
    flags["checkpoint"] = ", ".join(map(str, command.checkpoint))
    values = name | settings | flags
    return {name: None if value is None else str(value) for name, value in values.items()}


def sample_and_save(glide: Glide, command: Command, jobs: list[Job]) -> list[np.ndarray]:
    """Samples jobs batch by batch, and saves the images of each batch as soon as it is done."""
    common = png_metadata(glide, command)
    n = command.sampled_per_prompt
    limit = command.batch_size or MAX_BATCH * jax.local_device_count()
    jobs_per_batch = max(min(limit // n, len(jobs)), 1)
    options = {"seed": command.seed, "progress": True, **command.settings}
    # One batch size for all, so that the last jobs need no programs of their own.
    options["batch_size"] = min(limit, jobs_per_batch * n)
    images: list[np.ndarray] = []
    for start in range(0, len(jobs), jobs_per_batch):
        some = jobs[start : start + jobs_per_batch]
        samples = command.sample(glide, some, **options)
        targets = [(job, file) for job in some for file in job.files]
        for (job, file), image, seed in zip(targets, samples, samples.seeds, strict=True):
            save_png(file, image, common | job.metadata | {"seed": str(seed)})
        images += list(samples)
    return images


def run(command: Command) -> None:
    """Samples the images of a command, and skips those that already exist in a folder."""
    jobs = command.jobs()
    if command.batch_size is not None and command.batch_size < 1:
        raise UserError(f"--batch-size {command.batch_size}: must be at least 1")
    one_image = len(jobs) * command.sampled_per_prompt == 1
    use_all_cores(command.fsdp if one_image else MAX_BATCH)
    glide = command.load()
    if is_folder(command.out):
        common = png_metadata(glide, command)
        left = [job for job in jobs if not job.is_done(common)]
        print(f"{command.out}: {len(left)} of {len(jobs)} prompts left to sample")
        sample_and_save(glide, command, left)
        return
    images = sample_and_save(glide, command, jobs)
    if len(images) > 1:
        prompts = [job.prompt for job in jobs for _ in job.files]
        columns = command.images_per_prompt if command.images_per_prompt > 1 else 4
        save_grid(command.out, np.stack(images), prompts, columns, png_metadata(glide, command))
    print(command.out)


def rank(command: Rank) -> None:
    """Prints the CLIP scores of the images for each prompt, best first."""
    prompts = command.prompts()
    if not command.image:
        raise UserError("no images to rank: give --image")
    use_all_cores(command.fsdp)
    glide = command.load()
    images = [read_image(path) for path in command.image]
    for prompt in prompts:
        scores = glide.rank(images, prompt)  # loads the CLIP: --fsdp is checked here
        print(prompt)
        for i in np.argsort(-scores):
            print(f"  {scores[i]:.3f}  {command.image[i]}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command. Raises UserError."""
    args = list(sys.argv[1:] if argv is None else argv)
    name = args.pop(0) if args and args[0] in COMMANDS else "generate"
    command = parse_flags(COMMANDS[name], f"sample.py {name}", args, __doc__)
    keep_compiled_programs()
    if isinstance(command, Rank):
        rank(command)
    else:
        assert isinstance(command, Command)
        run(command)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
