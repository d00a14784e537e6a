"""GLIDE's denoiser: a U-Net told the time and the caption (arXiv 2112.10741).

Whatever else conditions it is input channels of the same U-Net, never another class.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from glide_jax.config import ModelConfig
from glide_jax.models.layers import linear, timestep_embedding
from glide_jax.models.network import Network
from glide_jax.models.text import TextTransformer
from glide_jax.models.unet import TextKV, UNet
from glide_jax.shapes import Denoiser, Image, ModelOutput, Timesteps, TokenMask, Tokens


class TextFeatures(NamedTuple):
    """All that the U-Net needs of a caption. It does not depend on x_t or t: compute it once."""

    embedding: Float[Array, "b d"]
    """Joins the time embedding; where the model is told of noise in low_res, it is told here."""
    kv: tuple[TextKV | None, ...]
    """Keys and values for each of the U-Net's blocks."""


class GlideModel(nnx.Module):
    """Text transformer and U-Net, trained together."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        dtype = jnp.dtype(config.dtype)
        d_emb = 4 * config.unet.channels
        self.time_width = config.unet.channels
        self.text = TextTransformer(config.text, dtype, config.remat, rngs)
        self.text_emb = linear(config.text.width, d_emb, dtype, rngs)
        self.time_emb1 = linear(config.unet.channels, d_emb, dtype, rngs)
        self.time_emb2 = linear(d_emb, d_emb, dtype, rngs)
        if config.low_res_noise:
            self.low_res_emb1 = linear(config.unet.channels, d_emb, dtype, rngs)
            self.low_res_emb2 = linear(d_emb, d_emb, dtype, rngs, zero=True)
        self.config = config
        in_channels = 3 + config.condition_channels
        d_text = config.text.width
        self.unet = UNet(config.unet, in_channels, d_emb, d_text, dtype, config.remat, rngs)

    def encode_text(
        self, tokens: Tokens, mask: TokenMask, low_res_t: Timesteps | None = None
    ) -> TextFeatures:
        """Runs the text transformer.

        Args:
            tokens: (b, l) ids, l the configured length.
            mask: (b, l) True where `tokens` is caption; all False is the empty caption.
            low_res_t: (b,) the step whose noise the smaller images hold, for a model that is
                told of it (noise-conditioning augmentation, arXiv 2106.15282).

        Raises:
            ValueError: the model must be told of that noise and is not, or the other way round.
        """
        if self.config.low_res_noise != (low_res_t is not None):
            verb = "needs" if self.config.low_res_noise else "is not told of"
            raise ValueError(f"this model {verb} low_res_t")
        text = self.text(tokens, mask)
        embedding = self.text_emb(text[:, -1])
        if low_res_t is not None:
            noise = self.low_res_emb1(timestep_embedding(low_res_t, self.time_width))
            embedding += self.low_res_emb2(jax.nn.silu(noise))
        return TextFeatures(embedding, self.unet.project_text(text))

    def condition(
        self,
        low_res: Float[Array, "b h2 w2 3"] | None = None,
        known: Image | None = None,
        mask: Float[Array, "b h w 1"] | None = None,
    ) -> Float[Array, "b h w c"] | None:
        """The input channels beside x_t. They do not depend on x_t or t: compute them once.

        Args:
            low_res: for an upsampler, the smaller images, in [-1, 1].
            known: for an inpainting model, images in [-1, 1]; only what the mask shows is seen.
            mask: 1 where `known` is known, 0 where the model is to paint.

        Returns:
            [known * mask | mask | low_res resized bilinearly], as far as this model has them;
            None if it has none.

        Raises:
            ValueError: what the model needs is not given, or what it cannot see is.
        """
        for needed, given, name in (
            (self.config.low_res_px > 0, low_res is not None, "low_res"),
            (self.config.inpaint, known is not None, "known"),
            (self.config.inpaint, mask is not None, "mask"),
        ):
            if needed != given:
                raise ValueError(f"this model {'needs' if needed else 'does not see'} {name}")
        channels = []
        if known is not None and mask is not None:
            channels += [known * mask, mask]
        if low_res is not None:
            b, h, w, c = low_res.shape
            times = self.config.upscale_factor
            channels.append(jax.image.resize(low_res, (b, times * h, times * w, c), "bilinear"))
        return jnp.concatenate(channels, -1) if channels else None

    def upsampled(self, condition: Float[Array, "b h w c"] | None) -> Image:
        """An upsampler's smaller images as it sees them: resized. `condition` made the rest."""
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
        """Predicts the noise in x_t.

        Args:
            x_t: (b, h, w, 3) noised images, of the configured resolution.
            t: (b,) original step indices in [0, T).
            text: from `encode_text`.
            condition: from `condition`.
            key: switches dropout on.

        Returns:
            (b, h, w, 6) float32: eps | variance fraction.
        """
        time = self.time_emb2(jax.nn.silu(self.time_emb1(timestep_embedding(t, self.time_width))))
        x = x_t if condition is None else jnp.concatenate([x_t, condition], -1)
        return self.unet(x, time + text.embedding, text.kv, key)

    def denoiser(
        self, text: TextFeatures, condition: Float[Array, "b h w c"] | None = None
    ) -> Denoiser:
        """`(x_t, t) -> out` for these captions and conditions: all that samplers see."""
        return partial(self, text=text, condition=condition)


def glide_network(config: ModelConfig) -> Network[GlideModel]:
    """The network of a configuration."""
    return Network(lambda rngs: GlideModel(config, rngs))
