"""unCLIP's commands of sample.py whose images are one series, with one seed."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from tyro.conf import UseAppendAction

from glide_jax.config import Embeddings
from glide_jax.config.bounds import FRACTION, Between
from glide_jax.data.embeddings import EmbeddingsSource, require_clip
from glide_jax.data.shard_folder import shard_cache
from glide_jax.errors import UserError
from glide_jax.sampling.arguments import require_seeds
from glide_jax.sampling.commands import MAX_IMAGES
from glide_jax.sampling.latents import MAX_COMPONENTS, MAX_EMBEDDINGS, PAPER_COMPONENTS
from glide_jax.sampling.outputs import Job, digest, make_jobs
from glide_jax.sampling.samples import Samples
from glide_jax.sampling.unclip import UnCLIP
from glide_jax.sampling.unclip_commands import ImageCommand, PriorFlags, UnclipCommand
from glide_jax.sampling.unclip_request import Noise, Start
from glide_jax.sampling.user_images import Fit, read_image


@dataclass(frozen=True, kw_only=True)
class SeriesCommand(UnclipCommand):
    """A command whose images are one series, with one seed: `images_per_prompt` of them."""

    @abstractmethod
    def series(self, models: UnCLIP, **options: Any) -> Samples:
        """Samples the series."""

    def caption(self) -> str:
        """The prompt that the images' metadata names. Raises UserError."""
        return _one_caption(self.prompts() if self.prompt or self.prompts_file else [""])

    def jobs(self) -> list[Job]:
        """One job for all images. Raises UserError."""
        require_seeds([self.seed])
        count = self.images_per_prompt
        return make_jobs([self.caption()], None, [self.seed], count, self.out, count)

    def sample(self, models: UnCLIP, jobs: Sequence[Job], **options: Any) -> Samples:
        """Samples the images of the job."""
        options["seed"] = jobs[0].seed
        return self.series(models, **self.options, **options)


@dataclass(frozen=True, kw_only=True)
class Interpolate(SeriesCommand, PriorFlags):
    """Interpolates between two images (--image twice), two prompts (--prompt twice), or both."""

    image: UseAppendAction[tuple[Path, ...]] = ()
    """Image of any size; repeat the flag for two."""
    n: Annotated[int, Between(2, MAX_IMAGES)] = 7
    """Number of images, both ends included."""
    noise: Noise = "shared"
    """x_T: shared, one for all images; slerp, interpolated too, from one image's to the other's by
    DDIM inversion, or for prompts from the noise of the seed to that of the next."""
    fit: Fit = "stretch"
    """As of the other commands."""

    @property
    def images_per_prompt(self) -> int:
        """Images of the series."""
        return self.n

    def inverts(self) -> bool:
        """Whether x_T is an image's own."""
        return self.noise == "slerp" and len(self.image) == 2

    def uses_prior(self) -> bool:
        """Whether the prior samples embeddings."""
        return len(self.image) < 2

    def inputs(self) -> dict[str, str]:
        """Metadata of the inputs that all images share. Raises UserError."""
        return {f"image_digest_{i}": digest(path) for i, path in enumerate(self.image)}

    def ends(self) -> list[Path | str]:
        """Images, then prompts. Raises UserError unless they are two."""
        prompts = self.prompts() if self.prompt or self.prompts_file is not None else []
        ends: list[Path | str] = [*self.image, *prompts]
        if len(ends) != 2:
            raise UserError(
                f"interpolation is between two images or prompts, not {len(ends)}: give --image "
                "twice, --prompt twice, or each once"
            )
        return ends

    def caption(self) -> str:
        """The prompts, in words."""
        return " to ".join(end for end in self.ends() if isinstance(end, str))

    def series(self, models: UnCLIP, **options: Any) -> Samples:
        """Samples the series."""
        a, b = (read_image(end) if isinstance(end, Path) else end for end in self.ends())
        return models.interpolate(
            a,
            b,
            self.n,
            noise=self.noise,
            fit=self.fit,
            candidates=self.candidates,
            prior_settings=self.prior_changes(),
            **options,
        )


@dataclass(frozen=True, kw_only=True)
class TextDiff(SeriesCommand, ImageCommand):
    """Edits an image by the difference of two captions, an image for each theta."""

    before: str = ""
    """A caption of the image, such as "a photo of a cat". By default the empty one."""
    after: str
    """The caption to turn it into, such as "an anime drawing of a cat"."""
    theta: tuple[Annotated[float, FRACTION], ...] = (0.0, 0.125, 0.25, 0.375, 0.5)
    """How far to turn the embedding, in [0, 1]: one or several."""
    start: Start = "inverted"
    """x_T: inverted, the image's own by DDIM inversion, so that theta 0 reconstructs it; random."""

    def inverts(self) -> bool:
        """Whether x_T is an image's own."""
        return self.start == "inverted"

    @property
    def images_per_prompt(self) -> int:
        """Images of the series."""
        return len(self.theta)

    def series(self, models: UnCLIP, **options: Any) -> Samples:
        """Samples the series."""
        options |= {"prompt": self.caption(), "start": self.start, "fit": self.fit}
        image = read_image(self.image)
        return models.text_diff(image, self.before, self.after, self.theta, **options)


@dataclass(frozen=True, kw_only=True)
class ProbePca(SeriesCommand, ImageCommand):
    """Decodes an image's embedding, rebuilt from its first principal components."""

    embeddings: str
    """Folder of embeddings of many images, written by python -m glide_jax.embed: the components are
    those of its training split."""
    components: tuple[Annotated[int, Between(1, MAX_COMPONENTS)], ...] = PAPER_COMPONENTS
    """Numbers of components: one or several."""
    start: Start = "random"
    """x_T: inverted, the image's own by DDIM inversion; random."""

    def inverts(self) -> bool:
        """Whether x_T is an image's own."""
        return self.start == "inverted"

    @property
    def images_per_prompt(self) -> int:
        """Images of the series."""
        return len(self.components)

    def series(self, models: UnCLIP, **options: Any) -> Samples:
        """Samples the series."""
        options |= {"prompt": self.caption(), "start": self.start, "fit": self.fit}
        return models.probe_pca(
            read_image(self.image),
            self.components,
            embeddings=_read_embeddings(self.embeddings, models.runs["clip"].clip_fingerprint),
            **options,
        )


SERIES_COMMANDS: dict[str, type[UnclipCommand]] = {
    "interpolate": Interpolate,
    "text-diff": TextDiff,
    "probe-pca": ProbePca,
}


def _one_caption(prompts: list[str]) -> str:
    """The only prompt. Raises UserError if there are several."""
    if len(prompts) > 1:
        raise UserError(f"{len(prompts)} prompts: this command takes one caption for all images")
    return prompts[0]


def _read_embeddings(folder: str, fingerprint: str) -> Float[np.ndarray, "n d"]:
    """Embeddings of the training split of a folder. Raises UserError."""
    try:
        require_clip(Embeddings(folder), fingerprint)
    except UserError:
        raise UserError(
            f"--embeddings {folder}: no embeddings of this CLIP: write them with "
            "python -m glide_jax.embed"
        ) from None
    source = EmbeddingsSource(folder, "train", shard_cache(""))
    count = min(len(source), MAX_EMBEDDINGS)
    embeddings: list[Any] = [source[i].embedding for i in range(count)]
    return np.stack(embeddings)
