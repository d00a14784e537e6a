"""unCLIP's diffusion prior: from a caption to the CLIP embedding of an image of it.

A causal transformer reads the CLIP's text states and text embedding, the timestep, the noised image
embedding and a learned query, at whose position it predicts the embedding without noise (sec. 2.2,
arXiv 2204.06125; sizes and details as in Karlo). It works on normalized embeddings.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from glide_jax.config import PriorConfig
from glide_jax.models.layers import LayerNorm, linear, normal, timestep_embedding
from glide_jax.models.network import Network
from glide_jax.models.platform import Platform
from glide_jax.models.scan_blocks import apply_blocks
from glide_jax.models.text import KV, TransformerBlock
from glide_jax.shapes import TextStates, Timesteps, TokenMask


class Prefix(NamedTuple):
    """The caption as the prior's layers see it."""

    kv: tuple[KV, ...]
    """Of each layer."""
    mask: Bool[Array, "b l"]


class Prior(nnx.Module):
    """The transformer, and the statistics that normalize image embeddings.

    Args:
        config: sizes, types and rematerialization policy.
        platform: of the program.
        rngs: initial values.
    """

    def __init__(self, config: PriorConfig, platform: Platform, rngs: nnx.Rngs) -> None:
        dtype, width, d_image = jnp.dtype(config.dtype), config.width, config.embedding_width
        self.config = config
        self.dtype = dtype
        self.platform = platform
        self.mean = nnx.Param(np.zeros(d_image, np.float32))
        self.std = nnx.Param(np.ones(d_image, np.float32))
        std = width**-0.5
        self.position_embedding = nnx.Param(normal(rngs.params(), (1, config.length, width), std))
        self.query = nnx.Param(normal(rngs.params(), (1, 1, width), std))
        emb_dtype = platform.embedding_dtype(dtype)
        self.time_emb1 = linear(width, width, emb_dtype, rngs)
        self.time_emb2 = linear(width, width, emb_dtype, rngs)
        self.text_states = linear(config.text.width, width, dtype, rngs)
        self.text_embedding = linear(d_image, width, dtype, rngs)
        self.image_embedding = linear(d_image, width, dtype, rngs)
        self.blocks = nnx.List(
            TransformerBlock(width, config.heads, dtype, platform, rngs, causal=True)
            for _ in range(config.layers)
        )
        self.norm_out = LayerNorm(width)
        self.out = linear(width, d_image, jnp.dtype("float32"), rngs)

    def normalize(self, embedding: Float[Array, "b d"]) -> Float[Array, "b d"]:
        """Image embeddings with mean 0 and standard deviation 1 in each channel."""
        return (embedding - self.mean[...]) / self.std[...]

    def denormalize(self, x: Float[Array, "b d"]) -> Float[Array, "b d"]:
        """The inverse of `normalize`."""
        return x * self.std[...] + self.mean[...]

    def __call__(
        self, x_t: Float[Array, "b d"], t: Timesteps, text: TextStates
    ) -> Float[Array, "b d"]:
        """Predict the embedding without noise.

        Args:
            x_t: noised normalized image embeddings.
            t: original step indices in [0, T).
            text: of the captions.

        Returns:
            x_0, the normalized image embedding, float32.
        """
        x = jnp.concatenate([self._caption(text), self._noised(x_t, t)], 1)  # b l+4 d2
        x = apply_blocks(
            self.blocks, x, self.config.remat, self.platform, mask=_with_extra(text.mask, x)
        )
        return self.out(self.norm_out(x[:, -1]))  # b d

    def encode_text(self, text: TextStates) -> Prefix:
        """The transformer on the caption, which sees nothing that comes after it.

        Compute it once per caption; `denoise` then runs on three positions.
        """
        x, kv = self._caption(text), []
        mask = _with_extra(text.mask, x)
        for block in self.blocks:
            x, of_block = block.extend(x, mask)
            kv.append(of_block)
        return Prefix(tuple(kv), mask)

    def denoise(self, x_t: Float[Array, "b d"], t: Timesteps, text: Prefix) -> Float[Array, "b d"]:
        """The call, for captions from `encode_text`."""
        x = self._noised(x_t, t)  # b 3 d2
        seen = jnp.ones(x.shape[:2], bool)
        mask = jnp.concatenate([text.mask, seen], 1)  # b l+4
        for block, kv in zip(self.blocks, text.kv, strict=True):
            x, _ = block.extend(x, mask, kv)
        return self.out(self.norm_out(x[:, -1]))  # b d

    def _caption(self, text: TextStates) -> Float[Array, "b l d"]:
        """Text states and text embedding, with their positions."""
        states, embedding = self.text_states(text.states), self.text_embedding(text.embedding)
        x = jnp.concatenate([states.astype(jnp.float32), embedding.astype(jnp.float32)[:, None]], 1)
        return (x + self.position_embedding[:, : x.shape[1]]).astype(self.dtype)  # b l+1 d2

    def _noised(self, x_t: Float[Array, "b d"], t: Timesteps) -> Float[Array, "b 3 d2"]:
        """Timestep, noised embedding and query, with their positions."""
        time = timestep_embedding(t, self.config.width)  # b d2
        time = self.time_emb2(jax.nn.silu(self.time_emb1(time)))
        query = jnp.broadcast_to(self.query[0, 0], time.shape)
        tokens = (time, self.image_embedding(x_t), query)
        x = jnp.stack([token.astype(jnp.float32) for token in tokens], 1)  # b 3 d2
        return (x + self.position_embedding[:, -x.shape[1] :]).astype(self.dtype)


def _with_extra(mask: TokenMask, x: Float[Array, "b l2 d"]) -> Bool[Array, "b l2"]:
    """The mask of a caption's tokens, and True for all positions of `x` after them."""
    b, l = mask.shape
    return jnp.concatenate([mask, jnp.ones((b, x.shape[1] - l), bool)], 1)


@cache
def prior_network(config: PriorConfig) -> Network[Prior]:
    """The network of a prior's configuration: one for all that have the same."""
    return Network(lambda rngs, platform: Prior(config, platform, rngs))
