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
    """Joins the time embedding."""
    kv: tuple[TextKV | None, ...]
    """Keys and values for each of the U-Net's blocks."""


class GlideModel(nnx.Module):
    """Text transformer and U-Net, trained together."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        dtype = jnp.dtype(config.dtype)
        d_emb = 4 * config.unet.channels
        self.time_width = config.unet.channels
        self.text = TextTransformer(config.text, dtype, rngs)
        self.text_emb = linear(config.text.width, d_emb, dtype, rngs)
        self.time_emb1 = linear(config.unet.channels, d_emb, dtype, rngs)
        self.time_emb2 = linear(d_emb, d_emb, dtype, rngs)
        self.unet = UNet(config.unet, 3, d_emb, config.text.width, dtype, config.remat, rngs)

    def encode_text(self, tokens: Tokens, mask: TokenMask) -> TextFeatures:
        """Runs the text transformer.

        Args:
            tokens: (b, l) ids, l the configured length.
            mask: (b, l) True where `tokens` is caption; all False is the empty caption.
        """
        text = self.text(tokens, mask)
        return TextFeatures(self.text_emb(text[:, -1]), self.unet.project_text(text))

    def __call__(
        self, x_t: Image, t: Timesteps, text: TextFeatures, key: PRNGKeyArray | None = None
    ) -> ModelOutput:
        """Predicts the noise in x_t.

        Args:
            x_t: (b, h, w, 3) noised images, of the configured resolution.
            t: (b,) original step indices in [0, T).
            text: from `encode_text`.
            key: switches dropout on.

        Returns:
            (b, h, w, 6) float32: eps | variance fraction.
        """
        time = self.time_emb2(jax.nn.silu(self.time_emb1(timestep_embedding(t, self.time_width))))
        return self.unet(x_t, time + text.embedding, text.kv, key)

    def denoiser(self, text: TextFeatures) -> Denoiser:
        """`(x_t, t) -> out` for these captions: all that samplers see."""
        return partial(self, text=text)


def glide_network(config: ModelConfig) -> Network[GlideModel]:
    """The network of a configuration."""
    return Network(lambda rngs: GlideModel(config, rngs))
