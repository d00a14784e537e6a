"""unCLIP's diffusion prior: from a caption to the CLIP embedding of an image of it.

A causal transformer reads the CLIP's text states and text embedding, the timestep, the noised image
embedding and a learned query, at whose position it predicts the embedding without noise (sec. 2.2,
arXiv 2204.06125; sizes and details as in Karlo). It works on normalized embeddings.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from glide_jax.config import PriorConfig
from glide_jax.models.layers import LayerNorm, linear, normal, timestep_embedding
from glide_jax.models.network import Network
from glide_jax.models.platform import Platform
from glide_jax.models.scan_blocks import apply_blocks
from glide_jax.models.text import TransformerBlock
from glide_jax.shapes import TextStates, Timesteps


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
        time = timestep_embedding(t, self.config.width)  # b d2
        time = self.time_emb2(jax.nn.silu(self.time_emb1(time)))
        b = len(x_t)
        tokens = (
            self.text_states(text.states),  # b l d2
            self.text_embedding(text.embedding)[:, None],  # b 1 d2
            time[:, None],
            self.image_embedding(x_t)[:, None],
            jnp.broadcast_to(self.query[...], (b, 1, self.config.width)),
        )
        x = jnp.concatenate([token.astype(jnp.float32) for token in tokens], 1)  # b l+4 d2
        x = (x + self.position_embedding[...]).astype(self.dtype)
        extra = jnp.ones((b, x.shape[1] - text.mask.shape[1]), bool)
        mask = jnp.concatenate([text.mask, extra], 1)  # b l+4
        x = apply_blocks(
            self.blocks,
            x,
            self.config.remat,
            self.platform,
            mask=mask,
            unrolled=not self.platform.training,
        )
        return self.out(self.norm_out(x[:, -1]))  # b d


@cache
def prior_network(config: PriorConfig) -> Network[Prior]:
    """The network of a prior's configuration: one for all that have the same."""
    return Network(lambda rngs, platform: Prior(config, platform, rngs))
