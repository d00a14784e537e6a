"""The commands of sample.py: their flags, and what each asks of `Glide`."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tyro.conf import UseAppendAction

from glide_jax.cli import UNRECORDED, ShardingFlags
from glide_jax.config import SampleConfig
from glide_jax.config.bounds import Between
from glide_jax.errors import UserError
from glide_jax.sampling.arguments import broadcast_prompts, require_seeds
from glide_jax.sampling.flags import SamplingFlags
from glide_jax.sampling.outputs import Job, digest, make_jobs
from glide_jax.sampling.pipeline import Glide
from glide_jax.sampling.samples import Samples
from glide_jax.sampling.user_images import Fit, read_alpha, read_image, read_mask, square_image
from glide_jax.storage import text_lines

MAX_IMAGES = 10**6
"""Of one command."""
TEXT_FLAGS = ("--prompt", "--negative-prompt", "--negative_prompt", "--before", "--after")


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
    """Free each model before loading the next, to save memory: the base model samples all images,
    then CLIP ranks them if asked to, then the upsampler upsamples them."""

    def load(self) -> Any:
        """The models, a `ModelSet`. Raises UserError."""
        return Glide.load(*self.checkpoint, one_at_a_time=self.one_at_a_time, fsdp=self.fsdp)

    def prompts(self) -> list[str]:
        """All prompts. Raises UserError if there are none."""
        prompts = list(self.prompt)
        if self.prompts_file is not None:
            try:
                lines = text_lines(self.prompts_file.read_bytes())
            except OSError as error:
                raise UserError(f"--prompts-file {self.prompts_file}: {error.strerror}") from None
            except UnicodeDecodeError:
                raise UserError(f"--prompts-file {self.prompts_file}: not UTF-8 text") from None
            prompts += [line.strip() for line in lines if line.strip()]
        if not prompts:
            raise UserError("no prompts: give --prompt, or --prompts-file with one prompt per line")
        return prompts


Others = dict[str, tuple[str, SampleConfig | None]]
"""Models beside the one that a command's settings apply to, by their names in the metadata: role
and sampling settings, None for a CLIP."""


@dataclass(frozen=True, kw_only=True)
class Command(SamplingFlags, Models, ABC):
    """A command that samples images."""

    out: Path = field(default=Path("samples.png"), metadata=UNRECORDED)
    """PNG file, or a folder."""

    @property
    def images_per_prompt(self) -> int:
        """Images saved for each prompt."""
        return 1

    def role(self, models: Any) -> str:
        """Role of the model that these settings apply to."""
        return "base"

    def others(self, models: Any) -> Others:
        """The other models that take part."""
        return {}

    def inputs(self) -> dict[str, str]:
        """Metadata of the inputs that all images share. Raises UserError."""
        return {}

    @abstractmethod
    def jobs(self) -> list[Job]:
        """What to sample. Raises UserError."""

    @abstractmethod
    def sample(self, models: Any, jobs: Sequence[Job], **options: Any) -> Samples:
        """Samples the images of these jobs.

        Args:
            models: from `load`.
            jobs: some of `jobs()`.
            options: of the models' methods: seed, batch size and settings.
        """


@dataclass(frozen=True, kw_only=True)
class Generate(Command):
    """Generates images for prompts."""

    n: Annotated[int, Between(1, MAX_IMAGES)] = 1
    """Images per prompt, with seeds seed, seed + 1, ..."""
    keep: Annotated[int | None, Between(1, MAX_IMAGES)] = None
    """Keep this many of each prompt's n images: those with the highest CLIP scores."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    upsample: bool = True
    """Upsample, if there is an upsampler among the checkpoints."""

    @property
    def images_per_prompt(self) -> int:
        """Images saved for each prompt."""
        return self.n if self.keep is None else self.keep

    def upsampler(self, glide: Glide) -> str | None:
        """Role of the model that upsamples the images, with its own settings; None for none."""
        return "upsample" if self.upsample and glide.has("upsample") else None

    def others(self, models: Glide) -> Others:
        """The upsampler, and the CLIP if it ranks or guides."""
        role, found = self.upsampler(models), _guide(models, self.role(models), self.settings)
        if self.keep is not None:
            found = {"clip": ("clip", None)}
        if role is not None:
            found |= _guide(models, role)
            found = {"upsampler": (role, models.settings(role))} | found
        return found

    def jobs(self) -> list[Job]:
        """A job for each image, or for each prompt with --keep. Raises UserError."""
        prompts = self.prompts()
        if len(prompts) * self.n > MAX_IMAGES:
            raise UserError(f"{len(prompts) * self.n:,} images: at most {MAX_IMAGES:,} a command")
        if self.images_per_prompt > self.n:
            raise UserError(f"--keep {self.keep}: must be at most --n {self.n}")
        require_seeds([self.seed, self.seed + self.n - 1])
        if self.keep is not None:  # chosen among all images of a prompt
            return make_jobs(prompts, None, [self.seed], self.keep, self.out, self.n)
        seeds = range(self.seed, self.seed + self.n)
        return make_jobs(prompts, None, seeds, 1, self.out)

    def sample(self, models: Glide, jobs: Sequence[Job], **options: Any) -> Samples:
        """Samples the images of these jobs."""
        if jobs[0].staged is not None:
            return self._upsample_staged(models, jobs, **options)
        options |= {
            "n": jobs[0].n,
            "keep": self.keep,
            "negative_prompt": self.negative_prompt,
            "upsample": None if self.upsample else False,
        }
        return self.sample_prompts(models, [job.prompt for job in jobs], **options)

    def sample_prompts(self, glide: Glide, prompts: list[str], **options: Any) -> Samples:
        """Samples images for these prompts."""
        return glide.generate(prompts, **options)

    def in_stages(self, glide: Glide) -> bool:
        """Whether all base images are sampled before any is ranked or upsampled."""
        return self.one_at_a_time and (self.keep is not None or self.upsampler(glide) is not None)

    def inpainted(self) -> dict[str, Any]:
        """The image, mask and fit, as `Glide` takes them, if this command inpaints."""
        return {}

    def _upsample_staged(
        self,
        glide: Glide,
        jobs: Sequence[Job],
        *,
        seed: list[int],
        batch_size: int,
        progress: bool,
        **settings: Any,
    ) -> Samples:
        """Upsamples the base images of these jobs, if there is an upsampler."""
        prompts = [job.prompt for job in jobs]
        images = np.stack([read_image(job.staged) for job in jobs if job.staged is not None])
        if self.upsampler(glide) is None:
            return Samples(images, prompts, seed, glide.settings(self.role(glide), **settings))
        return glide.upsample(
            images,
            prompts,
            **self.inpainted(),
            negative_prompt=self.negative_prompt,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
        )


@dataclass(frozen=True, kw_only=True)
class Inpaint(Generate):
    """Inpaints a part of an image."""

    image: Path
    """Image of any size."""
    mask: Path | None = None
    """Mask: white is kept, black is inpainted. Without it, transparent pixels are inpainted."""
    fit: Fit = "crop"
    """crop: the largest centered square; pad: inpaint the margins; stretch."""

    def role(self, models: Glide) -> str:
        """Role of the model that these settings apply to."""
        return "base-inpaint" if models.has("base-inpaint") else "base"

    def upsampler(self, glide: Glide) -> str | None:
        """Role of the model that upsamples the images, with its own settings; None for none."""
        inpaints = self.upsample and glide.has("upsample-inpaint")
        return "upsample-inpaint" if inpaints else super().upsampler(glide)

    def inputs(self) -> dict[str, str]:
        """Metadata of the inputs that all images share. Raises UserError."""
        mask = {} if self.mask is None else {"mask_digest": digest(self.mask)}
        return {"image_digest": digest(self.image)} | mask

    def sample_prompts(self, glide: Glide, prompts: list[str], **options: Any) -> Samples:
        """Samples images for these prompts."""
        return glide.inpaint(prompts=prompts, **self.inpainted(), **options)

    def inpainted(self) -> dict[str, Any]:
        """The image, mask and fit, as `Glide` takes them."""
        known = read_alpha(self.image) if self.mask is None else read_mask(self.mask)
        return {"image": read_image(self.image), "known": known, "fit": self.fit}


@dataclass(frozen=True, kw_only=True)
class Edit(Generate):
    """Edits an image or a sketch (SDEdit)."""

    image: Path
    """Image of any size."""
    strength: float = 0.7
    """Fraction of the steps taken, up to 1: the higher, the less of the image is kept."""
    fit: Fit = "crop"
    """crop: the largest centered square; pad: gray margins; stretch."""

    def inputs(self) -> dict[str, str]:
        """Metadata of the inputs that all images share. Raises UserError."""
        return {"image_digest": digest(self.image)}

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

    def role(self, models: Glide) -> str:
        """Role of the model that these settings apply to."""
        return "upsample"

    def others(self, models: Glide) -> Others:
        """The CLIP if it guides."""
        return _guide(models, "upsample", self.settings)

    def jobs(self) -> list[Job]:
        """A job for each image. Raises UserError."""
        prompts = self.prompts()
        if not self.low_res:
            raise UserError("no images to upsample: give --low-res")
        require_seeds([self.seed])
        prompts = broadcast_prompts(prompts, len(self.low_res))
        return make_jobs(prompts, self.low_res, [self.seed], 1, self.out)

    def sample(self, models: Glide, jobs: Sequence[Job], **options: Any) -> Samples:
        """Samples the images of these jobs."""
        px = models.config("upsample").denoiser.low_res_px
        paths = [job.low_res for job in jobs if job.low_res is not None]
        low_res = np.stack([square_image(read_image(path), px, self.fit) for path in paths])
        return models.upsample(low_res, [job.prompt for job in jobs], **options)


@dataclass(frozen=True, kw_only=True)
class Rank(Models):
    """Prints CLIP scores of images for each prompt, best first."""

    image: UseAppendAction[tuple[Path, ...]] = ()
    """Image; repeat the flag for several."""


def _guide(models: Glide, role: str, changes: Mapping[str, Any] | None = None) -> Others:
    """The CLIP if it guides this model, with changed settings."""
    guides = models.settings(role, **(changes or {})).clip_guidance_scale
    return {"clip": ("clip", None)} if guides else {}


COMMANDS: dict[str, type[Models]] = {
    "generate": Generate,
    "inpaint": Inpaint,
    "edit": Edit,
    "upsample": Upsample,
    "rank": Rank,
}


def join_texts(args: Sequence[str], command: type[Models]) -> list[str]:
    """`--prompt -a` as `--prompt=-a`: a text may begin with a dash, unless it is a flag."""
    names = [one.name.replace("_", "-") for one in dataclasses.fields(command)]
    flags = {"-h", *(f"--{no}{name}" for name in ("help", *names) for no in ("", "no-"))}
    joined: list[str] = []
    for word in args:
        is_flag = word.partition("=")[0].replace("_", "-") in flags
        if joined and joined[-1] in TEXT_FLAGS and word.startswith("-") and not is_flag:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined
