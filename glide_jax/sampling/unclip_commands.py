"""unCLIP's commands of sample.py: their flags, and what each asks of `UnCLIP`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from glide_jax.cli import UNRECORDED
from glide_jax.config.bounds import Between
from glide_jax.errors import UserError
from glide_jax.sampling.arguments import require_seeds
from glide_jax.sampling.commands import MAX_IMAGES, Command, Others
from glide_jax.sampling.decoding import UPSAMPLERS
from glide_jax.sampling.flags import SettingFlags
from glide_jax.sampling.outputs import Job, digest, make_jobs
from glide_jax.sampling.samples import Samples
from glide_jax.sampling.unclip import UnCLIP
from glide_jax.sampling.unclip_request import RECONSTRUCTING, PriorChoice
from glide_jax.sampling.user_images import Fit, read_image


@dataclass(frozen=True, kw_only=True)
class UnclipCommand(Command):
    """A command of unCLIP; its sampling settings are the decoder's."""

    negative_prompt: str = ""
    """What guidance leads away from, together with the null embedding."""
    upsample: bool = True
    """Upsample, by all upsamplers among the checkpoints."""

    def load(self) -> UnCLIP:
        """The models. Raises UserError."""
        return UnCLIP.load(*self.checkpoint, one_at_a_time=self.one_at_a_time, fsdp=self.fsdp)

    def role(self, models: UnCLIP) -> str:
        """The decoder's."""
        return "decoder"

    def inverts(self) -> bool:
        """Whether x_T is an image's own, by DDIM inversion."""
        return False

    @property
    def settings(self) -> dict[str, Any]:
        """The sampling settings; those of reconstruction where unset, if x_T is inverted."""
        settings = super().settings
        unset = [name for name in RECONSTRUCTING if settings[name] is None]
        return settings | {name: RECONSTRUCTING[name] for name in unset if self.inverts()}

    def uses_prior(self) -> bool:
        """Whether the prior samples embeddings."""
        return False

    def prior_changes(self) -> dict[str, Any]:
        """Changes to the prior's sampling settings."""
        return {}

    def others(self, models: UnCLIP) -> Others:
        """The other models that take part."""
        found: Others = {}
        if models.has("clip"):
            found["clip"] = "clip", None
        if self.uses_prior():
            found["prior"] = "prior", models.settings("prior", **self.prior_changes())
        for i, role in enumerate(UPSAMPLERS):
            if self.upsample and models.has(role):
                found["upsampler" + str(i + 1) * (i > 0)] = role, models.settings(role)
        return found

    @property
    def options(self) -> dict[str, Any]:
        """Options of all of `UnCLIP`'s methods."""
        return {
            "negative_prompt": self.negative_prompt,
            "upsample": None if self.upsample else False,
        }


@dataclass(frozen=True, kw_only=True)
class PriorFlags(UnclipCommand):
    """Flags of commands that use the prior."""

    candidates: Annotated[int, Between(1, 1024)] = 1
    """Embeddings that the prior samples for each image, of which the one with the highest dot
    product with the text embedding is kept (2 in the paper)."""
    prior_settings: SettingFlags = field(default_factory=SettingFlags, metadata=UNRECORDED)
    """Sampling settings of the prior."""

    def prior_changes(self) -> dict[str, Any]:
        """Changes to the prior's sampling settings."""
        return dataclasses.asdict(self.prior_settings)


@dataclass(frozen=True, kw_only=True)
class Unclip(PriorFlags):
    """Generates images for prompts by unCLIP."""

    n: Annotated[int, Between(1, MAX_IMAGES)] = 1
    """Images per prompt, with seeds seed, seed + 1, ..."""
    prior: PriorChoice = "model"
    """Image embeddings: model, sampled by the prior; text, the prompts' text embeddings in their
    place; none, the decoder has the prompts alone."""

    @property
    def images_per_prompt(self) -> int:
        """Images saved for each prompt."""
        return self.n

    def uses_prior(self) -> bool:
        """Whether the prior samples embeddings."""
        return self.prior == "model"

    def jobs(self) -> list[Job]:
        """A job for each image. Raises UserError."""
        return _jobs_by_seed(self.prompts(), self.seed, self.n, self.out)

    def sample(self, models: UnCLIP, jobs: Sequence[Job], **options: Any) -> Samples:
        """Samples the images of these jobs."""
        return models.generate(
            [job.prompt for job in jobs],
            prior=self.prior,
            candidates=self.candidates,
            prior_settings=self.prior_changes(),
            **self.options,
            **options,
        )


@dataclass(frozen=True, kw_only=True)
class ImageCommand(UnclipCommand):
    """A command of unCLIP on an image. A prompt is a caption of the result, and not needed."""

    image: Path
    """Image of any size."""
    fit: Fit = "stretch"
    """How the image becomes square. stretch: as Karlo; crop: the largest centered square; pad: gray
    margins."""

    def captions(self) -> list[str]:
        """The prompts; one empty one if there are none. Raises UserError."""
        return self.prompts() if self.prompt or self.prompts_file is not None else [""]

    def inputs(self) -> dict[str, str]:
        """Metadata of the inputs that all images share. Raises UserError."""
        return {"image_digest": digest(self.image)}


@dataclass(frozen=True, kw_only=True)
class Variations(ImageCommand):
    """Varies an image: decodes its CLIP embedding from random noise."""

    n: Annotated[int, Between(1, MAX_IMAGES)] = 1
    """Images per prompt, with seeds seed, seed + 1, ..."""

    @property
    def images_per_prompt(self) -> int:
        """Images saved for each prompt."""
        return self.n

    def jobs(self) -> list[Job]:
        """A job for each image. Raises UserError."""
        return _jobs_by_seed(self.captions(), self.seed, self.n, self.out)

    def sample(self, models: UnCLIP, jobs: Sequence[Job], **options: Any) -> Samples:
        """Samples the images of these jobs."""
        image, prompts = read_image(self.image), [job.prompt for job in jobs]
        return models.variations(image, prompts, fit=self.fit, **self.options, **options)


@dataclass(frozen=True, kw_only=True)
class Reconstruct(Variations):
    """Reconstructs an image: decodes its embedding from its x_T by DDIM inversion.

    --eta above 0 varies what the embedding does not determine. The sampler is ddim and the guidance
    scale 1 unless given.
    """

    def inverts(self) -> bool:
        """Whether x_T is an image's own."""
        return True

    def sample(self, models: UnCLIP, jobs: Sequence[Job], **options: Any) -> Samples:
        """Samples the images of these jobs."""
        image, prompts = read_image(self.image), [job.prompt for job in jobs]
        return models.reconstruct(image, prompts, fit=self.fit, **self.options, **options)


UNCLIP_COMMANDS: dict[str, type[UnclipCommand]] = {
    "unclip": Unclip,
    "variations": Variations,
    "reconstruct": Reconstruct,
}


def _jobs_by_seed(prompts: list[str], seed: int, n: int, out: Path) -> list[Job]:
    """A job for each of n images of each prompt. Raises UserError."""
    if len(prompts) * n > MAX_IMAGES:
        raise UserError(f"{len(prompts) * n:,} images: at most {MAX_IMAGES:,} a command")
    require_seeds([seed, seed + n - 1])
    return make_jobs(prompts, None, range(seed, seed + n), 1, out)
