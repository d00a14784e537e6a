"""Draws, enlarges and edits images with trained models.

    python sample.py --checkpoint runs/scenes_tiny --prompt "a red star" --n 4 --out out.png
    python sample.py inpaint --checkpoint models --image cat.png --mask hole.png --prompt "a hat"
    python sample.py edit --checkpoint models --image sketch.png --prompt "a house" --strength 0.6
    python sample.py upsample --checkpoint models --low-res small.png --prompt "a house"
    python sample.py rank --checkpoint models --image a.png --image b.png --prompt "a house"

Without a name of a command, `generate` is meant. One image becomes one PNG file; several become
a grid, and a folder beside it (out/) holds each as a file of its own; --out FOLDER writes the files
alone, and passes over those that are there already, so that an interrupted night goes on. PNG files
keep prompt, seed and settings in their text chunks.
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from tyro.conf import UseAppendAction

from glide_jax import Glide, UserError
from glide_jax.cli import ShardingFlags, keep_compiled_programs
from glide_jax.config import SampleConfig
from glide_jax.errors import exit_on_user_error
from glide_jax.images import save_grid, save_png
from glide_jax.parallel.sharding import use_all_cores
from glide_jax.sampling.outputs import Job, is_folder, make_jobs
from glide_jax.sampling.pipeline import broadcast_prompts
from glide_jax.sampling.stage import MAX_BATCH
from glide_jax.sampling.user_images import Fit, read_alpha, read_image, read_mask, square_image


@dataclass(frozen=True)
class Models(ShardingFlags):
    """Which models, and what to draw."""

    checkpoint: UseAppendAction[tuple[str | Path, ...]] = ()
    """Run folder, as train.py or glide_jax.convert writes it, or a folder of several;
    repeat the flag for more: a base model, an upsampler, a CLIP."""
    prompt: UseAppendAction[tuple[str, ...]] = ()
    """What to draw; repeat the flag for more. An empty one is unconditional."""
    prompts_file: Path | None = None
    """A text file with one prompt a line; blank lines are passed over."""
    one_at_a_time: bool = False
    """Free each model's memory before the next is loaded."""


@dataclass(frozen=True)
class SamplingFlags(Models):
    """How to draw; what is not given is as the model's own run says."""

    guidance_scale: float | None = None
    """Classifier-free guidance: 1 is none."""
    guidance_interval: tuple[int, int] | None = None
    """Guide between these steps of T only: least and largest t."""
    guidance_rescale: float | None = None
    """0..1: how far guided predictions are given back their contrast, against overexposure."""
    dynamic_threshold: float | None = None
    """Percentile, such as 0.995, of each prediction that is scaled to fit; 0 clips instead."""
    steps: str | None = None
    """A number of steps, or a respacing such as 10,10,3,2,2, karras20 or fast27."""
    sampler: str | None = None
    """ddpm, ddim, heun, plms or dpmpp_2m."""
    eta: float | None = None
    """Noise of ddim: 0 is deterministic, 1 ancestral."""
    temperature: float | None = None
    """Of the first noise."""
    seed: int = 0
    batch_size: int | None = None
    """Images at a time."""
    out: Path = field(default=Path("out.png"))
    """PNG file, or a folder."""

    @property
    def role(self) -> str:
        """What the model that these settings are for is for."""
        return "base"

    @property
    def images_each(self) -> int:
        """Images that a prompt ends in."""
        return 1


@dataclass(frozen=True)
class Generate(SamplingFlags):
    """Draws images for prompts."""

    n: int = 1
    """Images for each prompt, with seeds seed, seed + 1, ..."""
    keep: int | None = None
    """Of each prompt's n images, keep so many: those that CLIP likes best."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    clip_guidance_scale: float | None = None
    """Guidance by CLIP; needs a CLIP among the checkpoints, and --sampler ddpm."""
    upsample: bool = True
    """Enlarge, if there is an upsampler among the checkpoints."""

    @property
    def images_each(self) -> int:
        """Images that a prompt ends in."""
        return self.n if self.keep is None else self.keep


@dataclass(frozen=True, kw_only=True)
class Inpaint(Generate):
    """Paints over a part of an image."""

    image: Path
    """The image, of any size."""
    mask: Path | None = None
    """White stays, black is painted over. Without it, the image's transparent part is painted."""
    fit: Fit = "crop"
    """crop: the largest square from the middle; pad: paint around it; stretch."""


@dataclass(frozen=True, kw_only=True)
class Edit(Generate):
    """Draws on from an image or a sketch (SDEdit)."""

    image: Path
    """The image, of any size."""
    strength: float = 0.7
    """Share of the steps that are taken: little keeps the image, 1 forgets it."""
    fit: Fit = "crop"
    """crop: the largest square from the middle; pad: with gray; stretch."""


@dataclass(frozen=True, kw_only=True)
class Upsample(SamplingFlags):
    """Enlarges small images, with the help of their captions: one prompt for all, or one each."""

    low_res: UseAppendAction[tuple[Path, ...]] = ()
    """An image; repeat the flag for more. Made as small as the upsampler expects."""
    low_res_noise: int | None = None
    """Noise added to the small images, as at this step: hides their faults. For upsamplers that
    are told of it."""
    fit: Fit = "crop"
    """crop: the largest square from the middle; pad: with gray; stretch."""

    @property
    def role(self) -> str:
        """What the model that these settings are for is for."""
        return "upsample"


@dataclass(frozen=True, kw_only=True)
class Rank(Models):
    """Says how well images fit a prompt, by CLIP; the best comes first."""

    image: UseAppendAction[tuple[Path, ...]] = ()
    """An image; repeat the flag for more."""


COMMANDS = {
    "generate": Generate,
    "inpaint": Inpaint,
    "edit": Edit,
    "upsample": Upsample,
    "rank": Rank,
}
METADATA_FLAGS = ("negative_prompt", "n", "keep", "image", "mask", "strength", "fit")
"""What an image's metadata tells beside the settings of sampling."""


def read_prompts(arguments: Models) -> list[str]:
    """The prompts of the flags and of the file. Raises UserError if there are none."""
    prompts = list(arguments.prompt)
    if arguments.prompts_file is not None:
        try:
            lines = arguments.prompts_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts-file {arguments.prompts_file}: {error}") from None
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError("nothing to draw: give --prompt, or --prompts-file with a prompt a line")
    return prompts


def load(arguments: Models) -> Glide:
    """The models. Raises UserError."""
    return Glide.load(
        *arguments.checkpoint, one_at_a_time=arguments.one_at_a_time, fsdp=arguments.fsdp
    )


def plan_jobs(arguments: SamplingFlags) -> list[Job]:
    """What is to be drawn. Raises UserError."""
    prompts = read_prompts(arguments)
    each = arguments.images_each
    if isinstance(arguments, Generate) and arguments.n < 1:
        raise UserError(f"--n {arguments.n}: must be at least 1")
    if each < 1:
        raise UserError(f"--keep {each}: must be at least 1")
    small: list[Path | None] = [None] * len(prompts)
    if isinstance(arguments, Upsample):
        if not arguments.low_res:
            raise UserError("nothing to enlarge: give --low-res")
        small = list(arguments.low_res)
        prompts = broadcast_prompts(prompts, len(small))
    return make_jobs(prompts, small, each, arguments.out)


def chosen_settings(arguments: SamplingFlags) -> dict[str, Any]:
    """The sampling settings that flags change; None leaves one as it is."""
    names = (field.name for field in dataclasses.fields(SampleConfig))
    return {name: getattr(arguments, name, None) for name in names}


def png_metadata(glide: Glide, arguments: SamplingFlags) -> dict[str, str]:
    """What all images' metadata have in common."""
    role = arguments.role
    if isinstance(arguments, Inpaint) and glide.has("base-inpaint"):
        role = "base-inpaint"
    settings = dataclasses.asdict(glide.settings(role, **chosen_settings(arguments)))
    settings["checkpoint"] = ", ".join(map(str, arguments.checkpoint))
    settings |= {name: getattr(arguments, name, None) for name in METADATA_FLAGS}
    return {name: str(value) for name, value in settings.items() if value not in (None, "")}


def draw(glide: Glide, arguments: SamplingFlags, jobs: list[Job], batch_size: int) -> np.ndarray:
    """Images for these jobs, as the command asks."""
    prompts = [job.prompt for job in jobs]
    common: dict[str, Any] = {
        "seed": arguments.seed,
        "batch_size": batch_size,
        "progress": True,
        **chosen_settings(arguments),
    }
    if isinstance(arguments, Upsample):
        px = glide.config("upsample").denoiser.low_res_px
        paths = [job.low_res for job in jobs if job.low_res is not None]
        small = [square_image(read_image(path), px, arguments.fit) for path in paths]
        return glide.upsample(np.stack(small), prompts, **common)
    assert isinstance(arguments, Generate)
    common |= {
        "n": arguments.n,
        "keep": arguments.keep,
        "negative_prompt": arguments.negative_prompt,
        "upsample": None if arguments.upsample else False,
    }
    if isinstance(arguments, Inpaint):
        image = arguments.image
        known = read_alpha(image) if arguments.mask is None else read_mask(arguments.mask)
        return glide.inpaint(read_image(image), known, prompts, fit=arguments.fit, **common)
    if isinstance(arguments, Edit):
        original = read_image(arguments.image)
        return glide.edit(
            original, prompts, strength=arguments.strength, fit=arguments.fit, **common
        )
    return glide.generate(prompts, **common)


def draw_and_save(glide: Glide, arguments: SamplingFlags, jobs: list[Job]) -> list[np.ndarray]:
    """Draws a few jobs at a time, and writes their images when they are done."""
    common = png_metadata(glide, arguments)
    n = getattr(arguments, "n", 1)
    most = arguments.batch_size or MAX_BATCH * jax.local_device_count()
    at_a_time = min(max(most // n, 1), len(jobs))
    images: list[np.ndarray] = []
    for start in range(0, len(jobs), at_a_time):
        some = jobs[start : start + at_a_time]
        # The last ones are drawn in a batch of the same size, by the program that is there.
        drawn = draw(glide, arguments, some, batch_size=min(most, at_a_time * n))
        targets = [(job, file) for job in some for file in job.files]
        for (job, file), image, seed in zip(targets, drawn, glide.last_seeds, strict=True):
            save_png(file, image, common | job.metadata | {"seed": str(seed)})
        images += list(drawn)
    return images


def rank(arguments: Rank) -> None:
    """Prints each prompt's images, the best first."""
    prompts = read_prompts(arguments)
    if not arguments.image:
        raise UserError("nothing to rank: give --image")
    glide = load(arguments)
    images = [read_image(path) for path in arguments.image]
    for prompt in prompts:
        print(prompt)
        scores = glide.rank(images, [prompt])
        for i in np.argsort(-scores):
            print(f"  {scores[i]:.3f}  {arguments.image[i]}")


def main() -> None:
    """The command."""
    argv = sys.argv[1:]
    name = argv.pop(0) if argv and argv[0] in COMMANDS else "generate"
    arguments: Any = tyro.cli(
        COMMANDS[name], prog=f"sample.py {name}", args=argv, description=__doc__
    )
    keep_compiled_programs()
    if isinstance(arguments, Rank):
        use_all_cores(arguments.fsdp)
        rank(arguments)
        return
    jobs = plan_jobs(arguments)
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise UserError(f"batch size {arguments.batch_size} must be at least 1")
    one_image = len(jobs) * getattr(arguments, "n", 1) == 1
    use_all_cores(arguments.fsdp if one_image else MAX_BATCH)
    glide = load(arguments)
    if is_folder(arguments.out):
        common = png_metadata(glide, arguments)
        left = [job for job in jobs if not job.is_done(common)]
        print(f"{arguments.out}: {len(left)} of {len(jobs)} prompts to draw")
        draw_and_save(glide, arguments, left)
        return
    images = draw_and_save(glide, arguments, jobs)
    if len(images) > 1:
        each = arguments.images_each
        prompts = [job.prompt for job in jobs for _ in job.files]
        columns = each if each > 1 else min(len(prompts), 4)
        metadata = png_metadata(glide, arguments) | {"seed": str(arguments.seed)}
        save_grid(arguments.out, np.stack(images), prompts, columns, metadata)
    print(arguments.out)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
