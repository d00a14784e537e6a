"""GLIDE's denoiser: a U-Net conditioned on time and caption (arXiv 2112.10741).

All other conditioning, such as a low-resolution image or an inpainting mask, enters as further
input channels of the same U-Net; there is one class for all models.
"""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from glide_jax.config import ModelConfig
from glide_jax.models.layers import LayerNorm, linear, timestep_embedding
from glide_jax.models.network import Network
from glide_jax.models.platform import Platform
from glide_jax.models.text import TextTransformer
from glide_jax.models.unet import UNet
from glide_jax.models.unet_blocks import TextKV
from glide_jax.shapes import (
    Denoiser,
    Image,
    ModelOutput,
    TextStates,
    Timesteps,
    TokenMask,
    Tokens,
)


class TextFeatures(NamedTuple):
    """The U-Net's text conditioning. Independent of x_t and t: compute it once per caption."""

    embedding: Float[Array, "b d"]
    """Added to the time embedding; includes the augmentation level of low_res, if the model is
    conditioned on it."""
    kv: tuple[TextKV | None, ...]
    """Keys and values for each block of the U-Net."""


class GlideModel(nnx.Module):
    """Text transformer and U-Net, trained together.

    Args:
        config: sizes, conditioning, types and rematerialization policy.
        platform: of the program.
        rngs: initial values.
    """

    def __init__(self, config: ModelConfig, platform: Platform, rngs: nnx.Rngs) -> None:
        dtype, remat = jnp.dtype(config.dtype), config.remat
        self.time_width = config.unet.channels
        d_emb, d_text = 4 * self.time_width, config.text.width
        if config.text.encoder == "transformer":
            self.text = TextTransformer(config.text, dtype, remat, platform, rngs)
            self.text_emb = linear(d_text, d_emb, dtype, rngs)
        if config.text.encoder == "clip":
            self.text_states = linear(config.text.clip_width, d_text, dtype, rngs)
            self.text_norm = LayerNorm(d_text)
            self.text_emb = linear(config.image_embedding_width, d_emb, dtype, rngs)
        if config.image_embedding_width:
            d_image = config.image_embedding_width
            self.image_null = nnx.Param(np.zeros(d_image, np.float32))
            self.image_emb = linear(d_image, d_emb, dtype, rngs, zero=True)
            if config.image_tokens:
                self.image_tokens = linear(d_image, config.image_tokens * d_text, dtype, rngs)
        emb_dtype = platform.embedding_dtype(dtype)
        self.time_emb1 = linear(self.time_width, d_emb, emb_dtype, rngs)
        self.time_emb2 = linear(d_emb, d_emb, emb_dtype, rngs)
        if config.low_res_noise:
            self.low_res_emb1 = linear(self.time_width, d_emb, emb_dtype, rngs)
            self.low_res_emb2 = linear(d_emb, d_emb, emb_dtype, rngs, zero=True)
        self.config = config
        channels = 3 + config.condition_channels, 6 if config.learned_variance else 3
        self.unet = UNet(config.unet, *channels, d_emb, d_text, dtype, remat, platform, rngs)

    def encode_text(
        self,
        tokens: Tokens,
        mask: TokenMask,
        low_res_t: Timesteps | None = None,
        states: TextStates | None = None,
    ) -> TextFeatures:
        """Run the text transformer, or project a CLIP's text states.

        Args:
            tokens: (b, l) ids; l is the configured length.
            mask: (b, l) True where `tokens` holds caption; all False is the empty caption.
            low_res_t: (b,) augmentation level of the low-resolution images, the step in [0, T)
                whose noise they hold (noise conditioning augmentation, arXiv 2106.15282).
            states: of the CLIP, for a model with text.encoder clip; tokens and mask are not read.

        Raises:
            ValueError: low_res_t or states are missing, or given to a model not conditioned on
                them.
        """
        encoder = self.config.text.encoder
        for needed, given, name in (
            (self.config.low_res_noise, low_res_t is not None, "low_res_t"),
            (encoder == "clip", states is not None, "states"),
        ):
            if needed != given:
                verb = "needs" if needed else "is not conditioned on"
                raise ValueError(f"this model {verb} {name}")
        if states is not None:
            text = self.text_norm(self.text_states(states.states))  # b l d
            embedding = self.text_emb(states.embedding)  # b d_emb
            kv = self.unet.project_text(text, states.mask)
        elif encoder == "none":
            embedding = jnp.zeros((len(tokens), 4 * self.time_width))  # b d_emb
            kv = self.unet.project_text(embedding[:, None])  # of no block
        else:
            text = self.text(tokens, mask)  # b l d
            embedding = self.text_emb(text[:, -1])  # b d_emb
            kv = self.unet.project_text(text)
        if low_res_t is not None:
            noise = self.low_res_emb1(timestep_embedding(low_res_t, self.time_width))  # b d_emb
            embedding += self.low_res_emb2(jax.nn.silu(noise))
        return TextFeatures(embedding, kv)

    def add_image(
        self, text: TextFeatures, image: Float[Array, "b d"], given: Bool[Array, "b"]
    ) -> TextFeatures:
        """Condition unCLIP's decoder on image embeddings too (sec. 2.1, arXiv 2204.06125).

        The embedding is projected and added to that of time, and projected to tokens before those
        of the text.

        Args:
            text: from `encode_text`.
            image: CLIP embeddings of images.
            given: False for an example without embedding, which gets the learned null embedding.
        """
        image = jnp.where(given[:, None], image, self.image_null[...])  # b d
        embedding, kv = text.embedding + self.image_emb(image), text.kv  # b d_emb
        if self.config.image_tokens:
            tokens = self.image_tokens(image)  # b tokens*d2: token j's channel c is at 4 c + j
            tokens = tokens.reshape(len(image), -1, self.config.image_tokens).swapaxes(1, 2)
            first = self.unet.project_text(tokens)  # (b, tokens, d2) each
            kv = tuple(
                None if ours is None or theirs is None else theirs.after(ours)
                for ours, theirs in zip(first, kv, strict=True)
            )
        return TextFeatures(embedding, kv)

    def condition(
        self,
        low_res: Float[Array, "b h2 w2 3"] | None = None,
        known: Image | None = None,
        mask: Float[Array, "b h w 1"] | None = None,
    ) -> Float[Array, "b h w c"] | None:
        """Input channels beside x_t. Independent of x_t and t: compute them once.

        Args:
            low_res: low-resolution images in [-1, 1], for an upsampler.
            known: images in [-1, 1], for an inpainting model; multiplied by the mask.
            mask: 1 where `known` is known, 0 where the model inpaints.

        Returns:
            [known * mask | mask | low_res resized], those that the model has; None if it has none.

        Raises:
            ValueError: an input of the model is missing, or one is given that it does not have.
        """
        for needed, given, name in (
            (self.config.low_res_px > 0, low_res is not None, "low_res"),
            (self.config.inpaint, known is not None, "known"),
            (self.config.inpaint, mask is not None, "mask"),
        ):
            if needed != given:
                raise ValueError(f"this model {'needs' if needed else 'does not take'} {name}")
        channels = []
        if known is not None and mask is not None:
            channels += [known * mask, mask]  # b h w 3, b h w 1
        if low_res is not None:
            b, h, w, c = low_res.shape
            factor = self.config.upscale_factor
            size = (b, factor * h, factor * w, c)
            method = "cubic" if self.config.low_res_resize == "bicubic" else "bilinear"
            channels.append(jax.image.resize(low_res, size, method))  # b h w 3
        return jnp.concatenate(channels, -1) if channels else None  # b h w 3, 4 or 7

    def upsampled_low_res(self, condition: Float[Array, "b h w c"] | None) -> Image:
        """An upsampler's low-resolution images, resized: the last channels of `condition`."""
        assert condition is not None and self.config.low_res_px
        return condition[..., -3:]

    def __call__(
        self,
        x_t: Image,
        t: Timesteps,
        text: TextFeatures,
        condition: Float[Array, "b h w c"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> ModelOutput:
        """Predict the noise in x_t.

        Args:
            x_t: (b, h, w, 3) noised images of the configured resolution.
            t: (b,) original step indices in [0, T).
            text: from `encode_text`.
            condition: from `condition`.
            key: of dropout; None switches dropout off.

        Returns:
            (b, h, w, 6) float32: [eps or v | variance fraction]. A fixed variance has the fraction
            -1: that of the posterior.
        """
        time = timestep_embedding(t, self.time_width)  # b c
        time = self.time_emb2(jax.nn.silu(self.time_emb1(time)))  # b d_emb
        x = x_t if condition is None else jnp.concatenate([x_t, condition], -1)  # b h w c
        out = self.unet(x, time + text.embedding, text.kv, key)  # b h w 6, or b h w 3
        if self.config.learned_variance:
            return out
        return jnp.concatenate([out, jnp.full_like(out, -1)], -1)  # b h w 6

    def denoiser(
        self, text: TextFeatures, condition: Float[Array, "b h w c"] | None = None
    ) -> Denoiser:
        """`(x_t, t) -> out` with text and condition closed over, as samplers take it."""
        return partial(self, text=text, condition=condition)


class LastStepModel(nnx.Module):
    """Two networks of the same sizes: `last` takes the step at t = 0, `first` all others.

    It has `GlideModel`'s methods. A batch is at one t, as in sampling.
    """

    def __init__(self, config: ModelConfig, platform: Platform, rngs: nnx.Rngs) -> None:
        self.config = config
        self.first = GlideModel(config, platform, rngs)
        self.last = GlideModel(config, platform, rngs)

    def encode_text(
        self, tokens: Tokens, mask: TokenMask, *given: Any
    ) -> tuple[TextFeatures, TextFeatures]:
        """See `GlideModel.encode_text`: for each network."""
        return (
            self.first.encode_text(tokens, mask, *given),
            self.last.encode_text(tokens, mask, *given),
        )

    def condition(self, *given: Any) -> Float[Array, "b h w c"] | None:
        """See `GlideModel.condition`."""
        return self.first.condition(*given)

    def upsampled_low_res(self, condition: Float[Array, "b h w c"] | None) -> Image:
        """See `GlideModel.upsampled_low_res`."""
        return self.first.upsampled_low_res(condition)

    def __call__(
        self,
        x_t: Image,
        t: Timesteps,
        text: tuple[TextFeatures, TextFeatures],
        condition: Float[Array, "b h w c"] | None = None,
    ) -> ModelOutput:
        """See `GlideModel.__call__`."""
        return jax.lax.cond(
            t[0] == 0,
            lambda: self.last(x_t, t, text[1], condition),
            lambda: self.first(x_t, t, text[0], condition),
        )

    def denoiser(self, text: Any, condition: Float[Array, "b h w c"] | None = None) -> Denoiser:
        """See `GlideModel.denoiser`."""
        return partial(self, text=text, condition=condition)


@cache
def glide_network(config: ModelConfig) -> Network[Any]:
    """The network of a denoiser configuration: one for all that have the same."""
    model = LastStepModel if config.last_step_network else GlideModel
    return Network(lambda rngs, platform: model(config, platform, rngs))
