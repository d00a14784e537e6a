"""`UnCLIP`: unCLIP's trained models (DALL-E 2, arXiv 2204.06125) behind one Python API.

from glide_jax import UnCLIP
unclip = UnCLIP.load("models")  # with the run folders clip, prior, decoder, upsample
samples = unclip.generate(["a red star", "a blue ring"], seed=0)
more = unclip.variations(samples.images[0], n=4)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from glide_jax.errors import UserError, shown
from glide_jax.sampling.arguments import (
    MAX_IMAGES,
    Seed,
    broadcast_prompts,
    image_seeds,
    require_numbers,
    require_text,
    require_whole,
)
from glide_jax.sampling.decoding import Decoding
from glide_jax.sampling.latents import (
    MAX_COMPONENTS,
    PAPER_COMPONENTS,
    PrincipalComponents,
    slerp,
    text_difference,
)
from glide_jax.sampling.request import Request
from glide_jax.sampling.samples import Samples
from glide_jax.sampling.unclip_request import (
    RECONSTRUCTING,
    Noise,
    PriorChoice,
    Start,
    edit_request,
    require_choice,
    require_no_file,
    unclip_request,
)
from glide_jax.sampling.user_images import AnyImage, Fit, as_image


class UnCLIP(Decoding):
    """A set of trained models: CLIP, prior, decoder and up to two upsamplers.

    Each is loaded when it is first needed. Sampled images are 8-bit sRGB. Given ones are files,
    Pillow images or arrays of 8-bit levels or of floats in [0, 1], of any size; `fit` says how they
    become square: "stretch" as in Karlo, "crop" or "pad".

    Options of the sampling methods:
        n: images per prompt, with seeds seed, seed + 1, ...
        prompts: captions for the decoder, which reads them beside the embedding; empty by default.
        negative_prompt: what guidance leads away from, together with the null embedding.
        seed: one for all prompts, or one per prompt; None for a random one, see `Samples.seeds`.
        upsample: whether to upsample; None upsamples by all upsamplers there are.
        batch_size: images per batch; None for up to MAX_BATCH per device.
        progress: show a progress bar over the steps.
        prior_settings: fields of `SampleConfig` for the prior, such as guidance_scale and steps.
        settings: fields of `SampleConfig` for the decoder; upsamplers use their own runs'.

    All methods raise UserError for a missing model, models of different CLIPs, and unknown or
    impossible arguments.
    """

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        prior: PriorChoice = "model",
        n: int = 1,
        candidates: int = 1,
        prior_settings: Mapping[str, Any] | None = None,
        negative_prompt: str = "",
        seed: Seed = 0,
        upsample: bool | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> Samples:
        """Generates images for prompts: the prior samples embeddings, the decoder decodes them.

        Args:
            prompts: b captions.
            prior: "model"; or "text" to decode the text embeddings as if they were the images', or
                "none" to decode the captions alone.
            candidates: embeddings sampled for each image, see `embed_prompts`.
            n, prior_settings, negative_prompt, seed, upsample, batch_size, progress, settings: see
                the class.

        Returns:
            b * n images, ordered by prompt.
        """
        request = Request.of(
            prompts,
            seed,
            n=n,
            negative_prompt=negative_prompt,
            upsample=upsample,
            batch_size=batch_size,
            progress=progress,
            settings=settings,
        )
        self.require_stages(settings, prior=prior, upsample=upsample, prior_settings=prior_settings)
        embedding = None
        if prior == "model":
            seeds = request.seeds
            embedding = self._from_prior(request.prompts, seeds, candidates, prior_settings)
        elif prior == "text":
            embedding = self.embed_text(request.prompts)
        return self._decode(request, embedding)

    def decode(
        self,
        embeddings: Float[np.ndarray, "b d"],
        prompts: str | Sequence[str] = "",
        *,
        seed: Seed = 0,
        **options: Any,
    ) -> Samples:
        """Decodes image embeddings, one image each.

        Args:
            embeddings: b embeddings of the CLIP, from `embed_images` or `embed_prompts`.
            prompts: b captions, or one for all.
            seed, options: negative_prompt, upsample, batch_size, progress, settings: see the class.
        """
        embeddings = require_numbers("embeddings", embeddings, 2)
        request = unclip_request(broadcast_prompts(prompts, len(embeddings)), seed, options)
        self.require_stages(request.settings, upsample=request.upsample)
        return self._decode(request, embeddings)

    def variations(
        self,
        image: AnyImage,
        prompts: str | Sequence[str] = "",
        *,
        n: int = 1,
        fit: Fit = "stretch",
        seed: Seed = 0,
        **options: Any,
    ) -> Samples:
        """Samples images with the CLIP embedding of an image (sec. 3.1).

        Args:
            image: to vary.
            prompts, n, fit: see the class.
            seed, options: as for `decode`.
        """
        request = unclip_request(prompts, seed, options, n)
        self.require_stages(request.settings, clip=True, upsample=request.upsample)
        embedding = self.embed_images(as_image(image), fit=fit)
        return self._decode(request, np.repeat(embedding, len(request.prompts), 0))

    def reconstruct(
        self,
        image: AnyImage,
        prompts: str | Sequence[str] = "",
        *,
        n: int = 1,
        fit: Fit = "stretch",
        seed: Seed = 0,
        **options: Any,
    ) -> Samples:
        """Inverts the decoder on an image by DDIM, and decodes its embedding from that x_T.

        Without noise and guidance, which are the defaults, the image comes back; eta > 0 varies
        what the embedding does not determine (sec. 3.1).

        Args:
            image: to reconstruct.
            prompts, n, fit: see the class.
            seed, options: as for `decode`; eta is one of the settings.
        """
        request = unclip_request(prompts, seed, options, n, RECONSTRUCTING)
        self.require_stages(request.settings, clip=True, upsample=request.upsample)
        pixels = as_image(image)
        embedding = self.embed_images(pixels, fit=fit)
        count = len(request.prompts)
        noise = self._inverted(request, [pixels], embedding, fit)
        return self._decode(request, np.repeat(embedding, count, 0), np.repeat(noise, count, 0))

    def interpolate(
        self,
        a: AnyImage,
        b: AnyImage,
        n: int = 7,
        *,
        prompt: str = "",
        noise: Noise = "shared",
        fit: Fit = "stretch",
        candidates: int = 1,
        prior_settings: Mapping[str, Any] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> Samples:
        """Decodes n embeddings on the great circle between two images or prompts (sec. 3.2).

        Args:
            a, b: a string is a prompt, whose embedding the prior samples. An image is anything else
                that `AnyImage` has, such as a `Path`.
            n: number of images, of which the first has a's embedding and the last b's.
            prompt: caption of all images.
            noise: "shared", one x_T for all. "slerp", interpolated too: from a's x_T to b's by DDIM
                inversion if both are images; else from the noise of `seed` to that of the next.
            candidates: see `embed_prompts`.
            fit, prior_settings: see the class.
            seed, options: as for `decode`.
        """
        n = require_whole("n", n, 2, MAX_IMAGES)
        require_choice("noise", noise, Noise)
        for end in (a, b):
            require_no_file(end)
        inverts = noise == "slerp" and not any(isinstance(end, str) for end in (a, b))
        request = edit_request(prompt, seed, options, n, inverts)
        self.require_stages(
            request.settings,
            prior="model" if str in (type(a), type(b)) else "none",
            clip=True,
            upsample=request.upsample,
            prior_settings=prior_settings,
        )
        images, ends = [], []
        for end in (a, b):
            if isinstance(end, str):
                seeds = request.seeds[:1]
                ends.append(self._from_prior([end], seeds, candidates, prior_settings)[0])
            else:
                images.append(as_image(end))
                ends.append(self.embed_images(images[-1], fit=fit)[0])
        between, x_t = np.linspace(0, 1, n), None
        if inverts:
            x_t = self._inverted(request, images, np.stack(ends), fit)
        elif noise == "slerp":
            x_t = self.stage("decoder").noise(image_seeds(seed, 1, 2))
        x_t = None if x_t is None else slerp(x_t[0], x_t[1], between)
        return self._decode(request, slerp(ends[0], ends[1], between), x_t)

    def text_diff(
        self,
        image: AnyImage,
        before: str,
        after: str,
        theta: float | Sequence[float] | Float[np.ndarray, "n"] = (0.0, 0.125, 0.25, 0.375, 0.5),
        *,
        prompt: str = "",
        start: Start = "inverted",
        fit: Fit = "stretch",
        seed: int = 0,
        **options: Any,
    ) -> Samples:
        """Turns an image's embedding toward the difference of two captions (sec. 3.3).

        Args:
            image: to edit.
            before: a caption of the image; "a photo" or nothing if there is none.
            after: the caption to turn it into.
            theta: one or several fractions of the way, in [0, 1].
            prompt: caption of all images.
            start: "inverted", the image's own x_T by DDIM inversion: theta 0 reconstructs the
                image. "random", the noise of `seed`, which guidance works better with.
            fit: see the class.
            seed, options: as for `decode`.

        Returns:
            An image for each theta.
        """
        thetas = require_numbers("theta", np.atleast_1d(np.asarray(theta, object)), 1)
        if not ((thetas >= 0) & (thetas <= 1)).all():
            raise UserError(f"theta must be in [0, 1], not {shown(theta)}")
        texts = [require_text("before", before), require_text("after", after)]
        pixels = as_image(image)
        request = self._edit_request(prompt, seed, options, len(thetas), start)
        embedding = self.embed_images(pixels, fit=fit)
        differing = self.embed_text(texts)
        edited = text_difference(embedding[0], differing[0], differing[1], thetas)
        return self._decode(request, edited, self._start(request, pixels, embedding, start, fit))

    def probe_pca(
        self,
        image: AnyImage,
        components: Sequence[int] | None = None,
        *,
        embeddings: Float[np.ndarray, "n d"],
        prompt: str = "",
        start: Start = "random",
        fit: Fit = "stretch",
        seed: int = 0,
        **options: Any,
    ) -> Samples:
        """Decodes an image's embedding rebuilt from its principal components (sec. 4).

        Args:
            image: to probe.
            components: numbers of components; those of the paper that there are, and all, unless
                given.
            embeddings: of many images, from `embed_images`: the components are theirs.
            prompt: caption of all images.
            start: as for `text_diff`.
            fit: see the class.
            seed, options: as for `decode`.

        Returns:
            An image for each number of components.
        """
        given = require_numbers("embeddings", embeddings, 2)
        width = self.config("clip").clip.embedding_width
        if given.shape[1] != width:
            raise UserError(
                f"embeddings have {given.shape[1]} channels, but the CLIP's have {width}: they are "
                "of another CLIP"
            )
        basis = PrincipalComponents.of(given)
        most = len(basis.components)
        if components is None:
            components = [*(count for count in PAPER_COMPONENTS if count < most), most]
        counts = [require_whole("components", count, 1, MAX_COMPONENTS) for count in components]
        basis.require(counts)
        pixels = as_image(image)
        request = self._edit_request(prompt, seed, options, len(counts), start)
        embedding = self.embed_images(pixels, fit=fit)
        rebuilt = basis.rebuilt(embedding[0], counts)
        return self._decode(request, rebuilt, self._start(request, pixels, embedding, start, fit))
