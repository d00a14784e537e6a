"""What all tasks of `UnCLIP` share: embeddings from captions and images, and images from them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from glide_jax.errors import UserError
from glide_jax.runs.folder import Run
from glide_jax.sampling.arguments import (
    MAX_IMAGES,
    Seed,
    image_seeds,
    prompt_list,
    require_whole,
)
from glide_jax.sampling.conditions import Conditions
from glide_jax.sampling.model_set import ModelSet, role_of
from glide_jax.sampling.prior_stage import PriorStage
from glide_jax.sampling.request import Request
from glide_jax.sampling.samples import Samples
from glide_jax.sampling.settings import require_usable
from glide_jax.sampling.unclip_request import (
    PriorChoice,
    Start,
    edit_request,
    require_choice,
    unclip_request,
)
from glide_jax.sampling.user_images import AnyImage, Fit, as_images, square_image
from glide_jax.shapes import TextStates

UPSAMPLERS = ("upsample", "upsample2")
Embeddings = Float[np.ndarray, "b d"]


class Decoding(ModelSet):
    """unCLIP's models: a CLIP, a prior, a decoder, and up to two upsamplers."""

    roles = ("clip", "prior", "decoder", *UPSAMPLERS)

    @classmethod
    def _with_roles(cls, runs: Sequence[Run]) -> list[tuple[Run, str]]:
        """The upsampler of the lower resolution comes first."""

        def low_res_px(run: Run) -> int:
            return run.config.denoiser.low_res_px

        upsamplers = [run for run in runs if role_of(run.config) == "upsample"]
        ordered = sorted({low_res_px(run) for run in upsamplers})
        roles = dict(zip(ordered, UPSAMPLERS, strict=False))
        return [
            (run, roles.get(low_res_px(run), role) if role == "upsample" else role)
            for run, role in super()._with_roles(runs)
        ]

    def embed_images(
        self, images: Samples | AnyImage | Sequence[AnyImage], *, fit: Fit = "stretch"
    ) -> Embeddings:
        """The CLIP's embeddings of images, to decode.

        Args:
            images: of any sizes.
            fit: how they become square: "stretch" ignores the aspect ratio, as Karlo does; "crop"
                takes the largest centered square; "pad" adds gray margins.

        Raises:
            UserError: there is no CLIP, or an image cannot be read.
        """
        require_choice("fit", fit, Fit)
        return self.clip.embed_images(as_images(images), fit)

    def embed_text(self, prompts: str | Sequence[str]) -> Embeddings:
        """The CLIP's embeddings of captions. Raises UserError if there is no CLIP."""
        return np.asarray(self._states(prompt_list(prompts)).embedding)

    def embed_prompts(
        self,
        prompts: str | Sequence[str],
        *,
        n: int = 1,
        candidates: int = 1,
        seed: Seed = 0,
        **settings: Any,
    ) -> Embeddings:
        """Samples image embeddings for captions with the prior, to decode.

        Args:
            prompts: b captions.
            n: embeddings per caption.
            candidates: embeddings sampled for each, of which the one with the highest dot product
                with the text embedding is kept (2 in the paper).
            seed: as for `generate`.
            settings: of the prior: fields of `SampleConfig`.

        Returns:
            b * n embeddings, ordered by caption.

        Raises:
            UserError: there is no prior or no CLIP, or an impossible setting.
        """
        listed = prompt_list(prompts)
        n = require_whole("n", n, 1, MAX_IMAGES)
        repeated = [prompt for prompt in listed for _ in range(n)]
        seeds = image_seeds(seed, len(listed), n)
        return self._from_prior(repeated, seeds, candidates, settings)

    def require_stages(
        self,
        settings: Mapping[str, Any],
        *,
        prior: PriorChoice = "none",
        clip: bool = False,
        upsample: bool | None = None,
        prior_settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises UserError for all that can be refused before sampling, which may take hours.

        Args:
            settings: changes to the decoder's.
            prior: where image embeddings come from.
            clip: whether images or captions are embedded.
            upsample: see `UnCLIP`.
            prior_settings: changes to the prior's.
        """
        require_choice("prior", prior, PriorChoice)
        config, changed = self.config("decoder"), self.settings("decoder", **settings)
        require_usable(config, changed)
        if changed.clip_guidance_scale:
            raise UserError("clip_guidance_scale is for GLIDE's models: unCLIP has no noised CLIP")
        if prior == "model":
            require_usable(self.config("prior"), self.settings("prior", **(prior_settings or {})))
        if clip or prior != "none" or config.denoiser.text.encoder == "clip":
            self.config("clip")
        self._require_same_clip()
        px = config.denoiser.resolution_px
        for role in self._upsamplers(upsample):
            own = self.config(role)
            require_usable(own, self.settings(role))
            if own.denoiser.low_res_px != px:
                raise UserError(
                    f"the {role} model upsamples {own.denoiser.low_res_px} px, but its images have "
                    f"{px} px"
                )
            px = own.denoiser.resolution_px

    def _require_same_clip(self) -> None:
        """Raises UserError if the models were trained with different CLIPs."""
        widths = {role: run.config.embedding_width for role, run in self.runs.items()}
        widths = {role: width for role, width in widths.items() if width}
        if len(set(widths.values())) > 1:
            found = ", ".join(f"{role} {width}" for role, width in widths.items())
            raise UserError(
                f"these models have CLIP embeddings of different widths ({found}): they are of "
                "different CLIPs and do not fit together"
            )
        known = {
            role: self.runs[role].config.train.clip_fingerprint
            for role in ("prior", "decoder")
            if self.has(role) and self.runs[role].config.train.clip_fingerprint
        }
        if known and self.has("clip"):
            known["clip"] = self.runs["clip"].clip_fingerprint
        if len(set(known.values())) > 1:
            paths = ", ".join(f"{role} {self.runs[role].path}" for role in known)
            raise UserError(f"these models are of different CLIPs and do not fit together: {paths}")

    def _upsamplers(self, upsample: bool | None) -> list[str]:
        """Roles of the models that upsample. Raises UserError if there is none but one must."""
        roles = [role for role in UPSAMPLERS if self.has(role)]
        if upsample and not roles:
            self.config("upsample")
        return [] if upsample is False else roles

    def _load_prior(self) -> PriorStage:
        return self._load("prior", PriorStage)

    def _states(self, prompts: Sequence[str]) -> TextStates:
        """Captions as the CLIP sees them, one row each; arrays on the host."""
        unique, which = np.unique(prompts, return_inverse=True)
        states = self.clip.embed_text(unique.tolist())
        return TextStates(*(np.asarray(x)[which] for x in states))  # type: ignore[arg-type]

    def _from_prior(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        candidates: int = 1,
        settings: Mapping[str, Any] | None = None,
    ) -> Embeddings:
        """Image embeddings of captions, by the prior."""
        candidates = require_whole("candidates", candidates, 1, 1024)
        changed = self.settings("prior", **(settings or {}))
        text, empty = self._states(prompts), self._states([""])
        return self._load_prior().sample(text, empty, list(seeds), changed, candidates=candidates)

    def _conditions(
        self, request: Request, embedding: Embeddings | None, noise: np.ndarray | None = None
    ) -> Conditions:
        """Conditions of the decoder."""
        states = negative = None
        if self.config("decoder").denoiser.text.encoder == "clip":
            states = self._states(request.prompts)
            negative = self._states([request.negative_prompt])
        return Conditions(embedding=embedding, states=states, negative_states=negative, noise=noise)

    def _decode(
        self, request: Request, embedding: Embeddings | None, noise: np.ndarray | None = None
    ) -> Samples:
        """Images of embeddings, upsampled.

        Args:
            request: one prompt and seed per image.
            embedding: one per image; None for the captions alone.
            noise: x_T; None for the seeds' own.
        """
        settings = self.settings("decoder", **request.settings)
        conditions = self._conditions(request, embedding, noise)
        options: dict[str, Any] = {
            "negative_prompt": request.negative_prompt,
            "batch_size": request.batch_size,
            "progress": request.progress,
        }
        roles = ["decoder", *self._upsamplers(request.upsample)]
        for role in roles:
            images = self.stage(role).sample(
                request.prompts,
                request.seeds,
                settings if role == "decoder" else self.settings(role),
                conditions,
                rounds=role == roles[-1],
                **options,
            )
            conditions = Conditions(low_res=images)
        return Samples(images, request.prompts, request.seeds, settings)

    def _edit_request(
        self, prompt: str, seed: int, options: dict[str, Any], count: int, start: Start
    ) -> Request:
        """A request for edits of one image, all with one seed. Raises UserError."""
        require_choice("start", start, Start)
        request = edit_request(prompt, seed, options, count, start == "inverted")
        self.require_stages(request.settings, clip=True, upsample=request.upsample)
        return request

    def _start(
        self,
        request: Request,
        image: UInt8[np.ndarray, "h w 3"],
        embedding: Embeddings,
        start: Start,
        fit: Fit,
    ) -> np.ndarray | None:
        """x_T of all edits of an image; None for the seeds' own."""
        if start == "random":
            return None
        noise = self._inverted(request, [image], embedding, fit)
        return np.repeat(noise, len(request.prompts), 0)

    def _inverted(
        self,
        request: Request,
        images: Sequence[UInt8[np.ndarray, "h w 3"]],
        embeddings: Embeddings,
        fit: Fit,
    ) -> Float[np.ndarray, "b h w 3"]:
        """x_T of images, with their embeddings and the request's first caption."""
        px = self.config("decoder").denoiser.resolution_px
        squares = np.stack([square_image(image, px, fit) for image in images])
        one = unclip_request(request.prompts[0], 0, {}, len(images))
        return self.stage("decoder").invert(
            squares,
            one.prompts,
            self.settings("decoder", **request.settings),
            self._conditions(one, embeddings),
            batch_size=request.batch_size,
            progress=request.progress,
        )
