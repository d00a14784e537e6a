"""GLIDE's denoiser: a U-Net conditioned on time and caption (arXiv 2112.10741).

All other conditioning, such as a low-resolution image or an inpainting mask, enters as further
input channels of the same U-Net; there is one class for all models.
"""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from glide_jax.config import ModelConfig
from glide_jax.models.layers import linear, timestep_embedding
from glide_jax.models.network import Network
from glide_jax.models.platform import Platform
from glide_jax.models.text import TextTransformer
from glide_jax.models.unet import TextKV, UNet
from glide_jax.shapes import Denoiser, Image, ModelOutput, Timesteps, TokenMask, Tokens


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
        self.text = TextTransformer(config.text, dtype, remat, platform, rngs)
        self.text_emb = linear(d_text, d_emb, dtype, rngs)
        emb_dtype = platform.embedding_dtype(dtype)
        self.time_emb1 = linear(self.time_width, d_emb, emb_dtype, rngs)
        self.time_emb2 = linear(d_emb, d_emb, emb_dtype, rngs)
        if config.low_res_noise:
            self.low_res_emb1 = linear(self.time_width, d_emb, emb_dtype, rngs)
            self.low_res_emb2 = linear(d_emb, d_emb, emb_dtype, rngs, zero=True)
        self.config = config
        in_channels = 3 + config.condition_channels
        self.unet = UNet(config.unet, in_channels, d_emb, d_text, dtype, remat, platform, rngs)

    def encode_text(
        self, tokens: Tokens, mask: TokenMask, low_res_t: Timesteps | None = None
    ) -> TextFeatures:
        """Run the text transformer.

        Args:
            tokens: (b, l) ids; l is the configured length.
            mask: (b, l) True where `tokens` holds caption; all False is the empty caption.
            low_res_t: (b,) augmentation level of the low-resolution images, the step in [0, T)
                whose noise they hold (noise conditioning augmentation, arXiv 2106.15282).

        Raises:
            ValueError: low_res_t is missing, or given to a model not conditioned on it.
        """
        if self.config.low_res_noise != (low_res_t is not None):
            verb = "needs" if self.config.low_res_noise else "is not conditioned on"
            raise ValueError(f"this model {verb} low_res_t")
        text = self.text(tokens, mask)  # b l d
        embedding = self.text_emb(text[:, -1])  # b d_emb
        if low_res_t is not None:
            noise = self.low_res_emb1(timestep_embedding(low_res_t, self.time_width))  # b d_emb
            embedding += self.low_res_emb2(jax.nn.silu(noise))
        return TextFeatures(embedding, self.unet.project_text(text))

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
            [known * mask | mask | low_res resized bilinearly], those that the model has; None if
            it has none.

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
            channels.append(jax.image.resize(low_res, size, "bilinear"))  # b h w 3
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
            (b, h, w, 6) float32: [eps or v | variance fraction].
        """
        time = timestep_embedding(t, self.time_width)  # b c
        time = self.time_emb2(jax.nn.silu(self.time_emb1(time)))  # b d_emb
        x = x_t if condition is None else jnp.concatenate([x_t, condition], -1)  # b h w c
        return self.unet(x, time + text.embedding, text.kv, key)

    def denoiser(
        self, text: TextFeatures, condition: Float[Array, "b h w c"] | None = None
    ) -> Denoiser:
        """`(x_t, t) -> out` with text and condition closed over, as samplers take it."""
        return partial(self, text=text, condition=condition)


@cache
def glide_network(config: ModelConfig) -> Network[GlideModel]:
    """The network of a denoiser configuration: one for all that have the same."""
    return Network(lambda rngs, platform: GlideModel(config, platform, rngs))
