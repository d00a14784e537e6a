"""The noised CLIP that guides GLIDE (sections 2.4 and 3.4, arXiv 2112.10741).

As in CLIP (arXiv 2103.00020), one tower reads captions and the other images; both end in one
space, in which a caption and an image that fit each other point the same way. Here the images
are noised, and the image tower learns a class token for every timestep: that tells it how much.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from glide_jax.config import ClipConfig, ClipImageConfig, ClipTextConfig, Remat
from glide_jax.models.layers import (
    LayerNorm,
    Linear,
    attend,
    mlp,
    normal,
)
from glide_jax.models.network import Network
from glide_jax.models.remat import run_equal_blocks
from glide_jax.shapes import Image, Timesteps, TokenMask, Tokens

MEAN = (122.77093945, 116.74601272, 104.09373519)
"""Of each channel over CLIP's images, on levels 0..255."""
DEVIATION = (68.50053285, 66.63215831, 70.32316309)
"""Likewise."""

INITIAL_TEMPERATURE = 0.07
"""exp(-logit_scale) at the start of training (section 2.5, arXiv 2103.00020)."""


def _embedding(rows: int, width: int, deviation: float, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(normal(rngs.params(), (rows, width), deviation))


def _linear(
    d_in: int, d_out: int, deviation: float, dtype: jnp.dtype, rngs: nnx.Rngs, bias: bool = True
) -> Linear:
    return Linear(
        d_in,
        d_out,
        use_bias=bias,
        dtype=dtype,
        kernel_init=lambda key, shape, _: normal(key, shape, deviation),
        bias_init=lambda key, shape, _: np.zeros(shape, np.float32),
        rngs=rngs,
    )


class ClipBlock(nnx.Module):
    """Pre-norm residual attention and MLP (4 wide, exact GELU); keys have no bias.

    Initialized as CLIP: what adds to the residual stream is scaled down with the depth.
    """

    def __init__(
        self, width: int, heads: int, layers: int, causal: bool, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        self.heads = heads
        self.causal = causal
        inner = width**-0.5
        residual = inner * (2 * layers) ** -0.5
        self.norm1 = LayerNorm(width)
        self.q = _linear(width, width, inner, dtype, rngs)
        self.k = _linear(width, width, inner, dtype, rngs, bias=False)
        self.v = _linear(width, width, inner, dtype, rngs)
        self.out = _linear(width, width, residual, dtype, rngs)
        self.norm2 = LayerNorm(width)
        self.mlp_in = _linear(width, 4 * width, (2 * width) ** -0.5, dtype, rngs)
        self.mlp_out = _linear(4 * width, width, residual, dtype, rngs)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """x + attention(norm(x)), then the same with the MLP."""
        h = self.norm1(x).astype(x.dtype)
        attended = attend(self.q(h), self.k(h), self.v(h), self.heads, causal=self.causal)
        x = x + self.out(attended)
        return x + mlp(self.mlp_in, self.mlp_out, self.norm2(x).astype(x.dtype))


class _Tower(nnx.Module):
    """What both towers have: blocks, and the way from one position's feature to the embedding."""

    def __init__(
        self,
        config: ClipTextConfig | ClipImageConfig,
        d_embedding: int,
        causal: bool,
        dtype: jnp.dtype,
        remat: Remat,
        rngs: nnx.Rngs,
    ) -> None:
        self.dtype = dtype
        self.remat = remat
        width, layers = config.width, config.layers
        self.blocks = nnx.List(
            [ClipBlock(width, config.heads, layers, causal, dtype, rngs) for _ in range(layers)]
        )
        self.final_norm = LayerNorm(width)
        float32 = jnp.dtype("float32")
        self.projection = _linear(width, d_embedding, width**-0.5, float32, rngs, bias=False)

    def _run(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        x = x.astype(self.dtype)
        return run_equal_blocks(self.blocks, x, self.remat)

    def _embed(self, feature: Float[Array, "b d"]) -> Float[Array, "b d2"]:
        z = self.projection(self.final_norm(feature))
        return z / (jnp.linalg.norm(z, axis=-1, keepdims=True) + 1e-12)


class ClipText(_Tower):
    """Captions to embeddings: a causal transformer, read at the end token."""

    def __init__(
        self,
        config: ClipTextConfig,
        d_embedding: int,
        dtype: jnp.dtype,
        remat: Remat,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(config, d_embedding, True, dtype, remat, rngs)
        self.token_embedding = _embedding(config.vocab_size, config.width, 0.02, rngs)
        self.position_embedding = _embedding(config.length, config.width, 0.01, rngs)

    def __call__(self, tokens: Tokens, mask: TokenMask) -> Float[Array, "b d"]:
        """See `Clip.encode_text`."""
        x = self._run(self.token_embedding[...][tokens] + self.position_embedding[...])
        # A product with zeros and a one: reading rows by index would gather a sharded batch.
        is_end = jax.nn.one_hot(jnp.sum(mask, -1) - 1, x.shape[1], dtype=x.dtype)
        return self._embed(jnp.einsum("bld,bl->bd", x, is_end))


class ClipImage(_Tower):
    """Noised images to embeddings: a vision transformer, read at its class token."""

    def __init__(
        self,
        config: ClipImageConfig,
        d_embedding: int,
        steps: int,
        dtype: jnp.dtype,
        remat: Remat,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(config, d_embedding, False, dtype, remat, rngs)
        width, patch = config.width, config.patch_px
        deviation = width**-0.5
        self.patches = nnx.Conv(
            3,
            width,
            (patch, patch),
            strides=(patch, patch),
            padding="VALID",
            use_bias=False,
            dtype=dtype,
            kernel_init=lambda key, shape, _: normal(key, shape, (3 * patch * patch) ** -0.5),
            rngs=rngs,
        )
        positions = 1 + (config.resolution_px // patch) ** 2
        self.time_embedding = _embedding(steps, width, deviation, rngs)
        self.position_embedding = _embedding(positions, width, deviation, rngs)
        self.input_norm = LayerNorm(width)

    def __call__(self, x_t: Image, t: Timesteps) -> Float[Array, "b d"]:
        """See `Clip.encode_image`."""
        x = ((x_t + 1) * 127.5 - jnp.array(MEAN)) / jnp.array(DEVIATION)
        patches = self.patches(x)  # b h/patch w/patch d
        patches = patches.reshape(len(x), -1, patches.shape[-1])
        token = self.time_embedding[...][t][:, None]
        x = jnp.concatenate([token, patches], 1) + self.position_embedding[...]
        return self._embed(self._run(self.input_norm(x))[:, 0])


class Clip(nnx.Module):
    """Both towers and the scale of their similarities."""

    def __init__(self, config: ClipConfig, rngs: nnx.Rngs) -> None:
        dtype, width = jnp.dtype(config.dtype), config.embedding_width
        self.config = config
        self.text = ClipText(config.text, width, dtype, config.remat, rngs)
        self.image = ClipImage(config.image, width, config.steps, dtype, config.remat, rngs)
        self.logit_scale = nnx.Param(np.float32(-math.log(INITIAL_TEMPERATURE)))

    def encode_text(self, tokens: Tokens, mask: TokenMask) -> Float[Array, "b d"]:
        """Embeddings of captions, of length 1.

        Args:
            tokens: (b, l) start token, caption, end token, then anything; l is the configured one.
            mask: (b, l) True from the start token to the end token.
        """
        return self.text(tokens, mask)

    def encode_image(self, x_t: Image, t: Timesteps) -> Float[Array, "b d"]:
        """Embeddings of noised images, of length 1.

        Args:
            x_t: (b, h, w, 3) in [-1, 1] where not noised, of the configured resolution.
            t: (b,) original step indices in [0, T); 0 for images without noise.
        """
        return self.image(x_t, t)


def clip_network(config: ClipConfig) -> Network[Clip]:
    """The network of a configuration."""
    return Network(lambda rngs: Clip(config, rngs))


def similarity_gradient(
    clip: Clip, text: Float[Array, "b d"], scale: float | Float[Array, ""]
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The direction in which images fit their captions better: a sampler's hook.

    Args:
        clip: the model.
        text: from `Clip.encode_text`, one caption an image.
        scale: of the guidance; may be traced.

    Returns:
        `(x_t, t) -> scale * grad_{x_t} exp(logit_scale) (z_text . z_image(x_t, t))`, float32.
    """

    def similarity(x_t: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.sum(text * clip.encode_image(x_t, t))

    def gradient(x_t: jax.Array, t: jax.Array) -> jax.Array:
        return scale * jnp.exp(clip.logit_scale[...]) * jax.grad(similarity)(x_t, t)

    return gradient
