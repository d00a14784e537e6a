"""`Glide`: trained models behind one Python API.

from glide_jax import Glide
glide = Glide.load("demo")
samples = glide.generate(["a red star", "a blue ring"], seed=0)
samples.images  # (2, 128, 128, 3)
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from glide_jax.errors import UserError
from glide_jax.sampling.arguments import Seed, broadcast_prompts
from glide_jax.sampling.clip import best_first
from glide_jax.sampling.conditions import Conditions
from glide_jax.sampling.model_set import ModelSet
from glide_jax.sampling.request import Request
from glide_jax.sampling.samples import Samples
from glide_jax.sampling.settings import require_guide, require_usable
from glide_jax.sampling.user_images import (
    AnyImage,
    AnyMask,
    Fit,
    as_image,
    as_images,
    inpainted_image,
)


class Glide(ModelSet):
    """GLIDE's trained models: base model, upsampler, their inpainting versions, and CLIP.

    Any of them may be missing. Each is loaded when it is first needed. Sampled images are 8-bit
    sRGB. Given ones are files, Pillow images or arrays of 8-bit levels or of floats in [0, 1].

    Options of the sampling methods:
        n: images per prompt, with seeds seed, seed + 1, ...
        keep: keep only this many of each prompt's n images, those with the highest CLIP scores,
            best first. They are chosen before upsampling.
        negative_prompt: what guidance leads away from; the empty caption by default.
        seed: one for all prompts, or one per prompt; None for a random one, see `Samples.seeds`. An
            image depends on its prompt, its seed and the settings, not on the rest of the batch.
        upsample: whether to upsample; None upsamples if there is an upsampler.
        batch_size: images per batch; None for up to MAX_BATCH per device.
        progress: show a progress bar over the steps.
        settings: fields of `SampleConfig`, such as guidance_scale, steps and sampler. They change
            the settings of the first model; an upsampler that follows it uses its own run's.
    """

    roles = ("base", "upsample", "base-inpaint", "upsample-inpaint", "clip")

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        n: int = 1,
        keep: int | None = None,
        negative_prompt: str = "",
        seed: Seed = 0,
        upsample: bool | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> Samples:
        """Generates images for prompts.

        Args:
            prompts: b captions; an empty one is unconditional.
            n, keep, negative_prompt, seed, upsample, batch_size, progress, settings: see the class.

        Returns:
            b * n images, or b * keep, ordered by prompt.

        Raises:
            UserError: an unknown or impossible setting, or a missing model.
        """
        request = Request.of(
            prompts,
            seed,
            n=n,
            keep=keep,
            negative_prompt=negative_prompt,
            upsample=upsample,
            batch_size=batch_size,
            progress=progress,
            settings=settings,
        )
        return self._sample(request)

    def upsample(
        self,
        images: Samples | AnyImage | Sequence[AnyImage],
        prompts: str | Sequence[str],
        *,
        image: AnyImage | None = None,
        known: AnyMask | None = None,
        fit: Fit = "crop",
        negative_prompt: str = "",
        seed: Seed = 0,
        batch_size: int | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> Samples:
        """Upsamples images, conditioned on their captions.

        Args:
            images: b images of the upsampler's low resolution, such as `Samples`.
            prompts: b captions, or one for all.
            image, known, fit: of `inpaint`, if `images` are inpainted: the known pixels are kept.
            negative_prompt, seed, batch_size, progress, settings: see the class.

        Returns:
            b upsampled images.

        Raises:
            UserError: as `generate`, or the images have another size.
        """
        low_res = as_images(images)
        inpainted = image is not None or known is not None
        if len({image.shape for image in low_res}) > 1:
            raise UserError("images to upsample must have the upsampler's low resolution")
        request = Request.of(
            broadcast_prompts(prompts, len(low_res)),
            seed,
            **(inpainted_image(image, known) if inpainted else {}),
            fit=fit,
            negative_prompt=negative_prompt,
            batch_size=batch_size,
            progress=progress,
            settings=settings,
        )
        self._require_usable(self._roles(request)[1], settings)
        return self._upsample(request, np.stack(low_res))

    def inpaint(
        self,
        image: AnyImage,
        known: AnyMask,
        prompts: str | Sequence[str],
        *,
        n: int = 1,
        keep: int | None = None,
        fit: Fit = "crop",
        negative_prompt: str = "",
        seed: Seed = 0,
        upsample: bool | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> Samples:
        """Inpaints the unknown part of an image, once for each prompt.

        Models trained for inpainting are used where there are any. Other models are reset to the
        known pixels at every step. To edit an image step by step, inpaint the result with another
        mask and prompt.

        Args:
            image: of any size; made square by `fit`, and resized to the models' resolutions.
            known: True, 1 or white where the image is kept, False, 0 or black where it is
                inpainted.
            prompts: b captions of the complete image.
            fit: "crop" takes the largest centered square; "pad" puts all of the image into a
                square and inpaints its margins; "stretch" ignores the aspect ratio.
            n, keep, negative_prompt, seed, upsample, batch_size, progress, settings: see the class.

        Returns:
            As `generate`; known pixels are exactly those of the resized image.

        Raises:
            UserError: as `generate`; the sizes of mask and image differ; or nothing is left to
                inpaint.
        """
        request = Request.of(
            prompts,
            seed,
            n=n,
            keep=keep,
            **inpainted_image(image, known),
            fit=fit,
            negative_prompt=negative_prompt,
            upsample=upsample,
            batch_size=batch_size,
            progress=progress,
            settings=settings,
        )
        return self._sample(request)

    def edit(
        self,
        image: AnyImage,
        prompts: str | Sequence[str],
        *,
        strength: float | int = 0.7,
        n: int = 1,
        keep: int | None = None,
        fit: Fit = "crop",
        negative_prompt: str = "",
        seed: Seed = 0,
        upsample: bool | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> Samples:
        """Edits an image or a sketch by SDEdit (arXiv 2108.01073): noises it, then denoises it.

        Args:
            image: of any size; made square by `fit`.
            prompts: b captions.
            strength: fraction of the steps taken, in (0, 1]: 1 keeps nothing of the image.
            fit: as in `inpaint`, except that "pad" fills the margins with gray.
            n, keep, negative_prompt, seed, upsample, batch_size, progress, settings: see the class.

        Returns:
            As `generate`.

        Raises:
            UserError: as `generate`, or strength is out of range.
        """
        request = Request.of(
            prompts,
            seed,
            n=n,
            keep=keep,
            image=as_image(image),
            strength=strength,
            fit=fit,
            negative_prompt=negative_prompt,
            upsample=upsample,
            batch_size=batch_size,
            progress=progress,
            settings=settings,
        )
        return self._sample(request)

    def rank(
        self,
        images: Samples | AnyImage | Sequence[AnyImage],
        prompts: str | Sequence[str],
    ) -> Float[np.ndarray, "b"]:
        """CLIP scores of images and captions: cosine similarities in [-1, 1].

        Args:
            images: of any size.
            prompts: one per image, or one for all.

        Raises:
            UserError: there is no CLIP.
        """
        ranked = as_images(images)
        return self.clip.scores(ranked, broadcast_prompts(prompts, len(ranked)))

    def require_stages(
        self, first: str, second: str | None, ranks: bool, settings: Mapping[str, Any]
    ) -> None:
        """Raises UserError for all that can be refused before sampling, which may take hours.

        Args:
            first: role of the model that samples.
            second: role of the model that upsamples its images; None for none.
            ranks: whether CLIP ranks them.
            settings: changes to those of the first model.
        """
        self._require_usable(first, settings)
        if second is not None:
            self._require_usable(second, {})
            px = self.config(first).denoiser.resolution_px
            low_res_px = self.config(second).denoiser.low_res_px
            if low_res_px != px:
                raise UserError(
                    f"the {second} model upsamples {low_res_px} px, but the {first} model samples "
                    f"{px} px"
                )
        if ranks:
            self.config("clip")

    def _roles(self, request: Request) -> tuple[str, str]:
        """Roles of the model that samples and of the model that upsamples."""
        inpaints = request.known is not None
        return (
            "base-inpaint" if inpaints and self.has("base-inpaint") else "base",
            "upsample-inpaint" if inpaints and self.has("upsample-inpaint") else "upsample",
        )

    def _sample(self, request: Request) -> Samples:
        """Samples the first model, keeps the best images by CLIP, and upsamples them."""
        first, second = self._roles(request)
        px = self.config(first).denoiser.resolution_px
        upsample = self.has(second) if request.upsample is None else request.upsample
        ranks = request.keep is not None
        self.require_stages(first, second if upsample else None, ranks, request.settings)
        if request.keep is not None and request.keep > request.n:
            raise UserError(f"keep ({request.keep}) must be between 1 and n ({request.n})")

        samples = self._run_stage(first, request, request.conditions(px))
        if request.keep is not None:
            samples = self._best(samples, request.n, request.keep)
        if upsample:
            request = request.to_upsample(samples.prompts, samples.seeds)
            upsampled = self._upsample(request, samples.images)
            samples = dataclasses.replace(samples, images=upsampled.images)
        return samples

    def _upsample(self, request: Request, low_res: UInt8[np.ndarray, "b h w 3"]) -> Samples:
        _, role = self._roles(request)
        px = self.config(role).denoiser.resolution_px
        return self._run_stage(role, request, request.conditions(px, low_res))

    def _require_usable(self, role: str, changes: Mapping[str, Any]) -> None:
        """Raises UserError if this model cannot be sampled with its settings, changed."""
        config, settings = self.config(role), self.settings(role, **changes)
        require_usable(config, settings)
        if settings.clip_guidance_scale:
            guide = self.config("clip")
            require_guide(config, guide.clip, guide.diffusion)

    def _run_stage(self, role: str, request: Request, conditions: Conditions) -> Samples:
        settings = self.settings(role, **request.settings)
        guided = bool(settings.clip_guidance_scale)
        stage, clip = self.guided_stage(role) if guided else (self.stage(role), None)
        images = stage.sample(
            request.prompts,
            request.seeds,
            settings,
            conditions,
            clip=clip,
            negative_prompt=request.negative_prompt,
            strength=request.strength,
            batch_size=request.batch_size,
            progress=request.progress,
        )
        return Samples(images, request.prompts, request.seeds, settings)

    def _best(self, samples: Samples, n: int, keep: int) -> Samples:
        """The `keep` images with the highest CLIP scores of each prompt's n, best first."""
        scores = self.rank(samples, samples.prompts).reshape(-1, n)
        order = best_first(scores)[:, :keep]
        best = (order + n * np.arange(len(scores))[:, None]).ravel().tolist()
        return Samples(
            samples.images[best],
            [samples.prompts[i] for i in best],
            [samples.seeds[i] for i in best],
            samples.settings,
        )
