"""The noised CLIP that guides GLIDE (sections 2.4 and 3.4, arXiv 2112.10741).

As in CLIP (arXiv 2103.00020), one tower embeds captions and the other images, in one space, where
the embeddings of a matching pair point in the same direction. Here the images are noised, and the
image tower is conditioned on t by a learned class token for each timestep.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from glide_jax.config import ClipConfig, ClipImageConfig, ClipTextConfig, Remat
from glide_jax.models.layers import LayerNorm, Linear, mlp, normal
from glide_jax.models.network import Network
from glide_jax.models.platform import Platform
from glide_jax.models.scan_blocks import apply_blocks
from glide_jax.shapes import Image, TextStates, Timesteps, TokenMask, Tokens

CHANNEL_MEAN = (122.77093945, 116.74601272, 104.09373519)
"""Mean of each channel over CLIP's training images, in levels 0..255."""
CHANNEL_STD = (68.50053285, 66.63215831, 70.32316309)
"""Per-channel standard deviation."""

INITIAL_TEMPERATURE = 0.07
"""exp(-logit_scale) at the start of training (section 2.5, arXiv 2103.00020)."""


def _embedding(rows: int, width: int, std: float, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(normal(rngs.params(), (rows, width), std))


def _linear(d_in: int, d_out: int, std: float, bias: bool = True, **options: Any) -> Linear:
    return Linear(
        d_in,
        d_out,
        use_bias=bias,
        kernel_init=lambda key, shape, _: normal(key, shape, std),
        bias_init=lambda key, shape, _: np.zeros(shape, np.float32),
        **options,
    )


class ClipBlock(nnx.Module):
    """Pre-norm residual attention and MLP (4 times as wide, exact GELU); keys have no bias.

    Initialized as in CLIP: layers that add to the residual stream are scaled down with depth.

    Args:
        config: of the tower.
        causal: whether a position attends only to itself and those before it.
        dtype: of the matmuls.
        platform: of the program.
        rngs: initial values.
    """

    def __init__(
        self,
        config: ClipTextConfig | ClipImageConfig,
        causal: bool,
        dtype: jnp.dtype,
        platform: Platform,
        rngs: nnx.Rngs,
    ) -> None:
        self.heads = config.heads
        self.causal = causal
        self.platform = platform
        width = config.width
        inner = width**-0.5
        residual = inner * (2 * config.layers) ** -0.5
        self.norm1 = LayerNorm(width)
        dense = partial(_linear, dtype=dtype, rngs=rngs, matmul=platform.matmul)
        self.q = dense(width, width, inner)
        self.k = dense(width, width, inner, bias=False)
        self.v = dense(width, width, inner)
        self.out = dense(width, width, residual)
        self.norm2 = LayerNorm(width)
        self.mlp_in = dense(width, 4 * width, (2 * width) ** -0.5)
        self.mlp_out = dense(4 * width, width, residual)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """x + attention(norm(x)), then x + mlp(norm(x))."""
        h = self.norm1(x).astype(x.dtype)
        q, k, v = self.q(h), self.k(h), self.v(h)
        x = x + self.out(self.platform.attend(q, k, v, self.heads, causal=self.causal))
        return x + mlp(self.mlp_in, self.mlp_out, self.norm2(x).astype(x.dtype))


class _Tower(nnx.Module):
    """The blocks of a tower, and the projection of one position's feature to the embedding."""

    def __init__(
        self,
        config: ClipTextConfig | ClipImageConfig,
        d_embedding: int,
        causal: bool,
        dtype: jnp.dtype,
        remat: Remat,
        platform: Platform,
        rngs: nnx.Rngs,
    ) -> None:
        self.dtype = dtype
        self.remat = remat
        self.platform = platform
        self.blocks = nnx.List(
            [ClipBlock(config, causal, dtype, platform, rngs) for _ in range(config.layers)]
        )
        self.final_norm = LayerNorm(config.width)
        float32 = jnp.dtype("float32")
        std = config.width**-0.5
        self.projection = _linear(
            config.width, d_embedding, std, bias=False, dtype=float32, rngs=rngs
        )

    def _run(self, x: Float[Array, "b l d"], unrolled: bool = False) -> Float[Array, "b l d"]:
        x = x.astype(self.dtype)
        return apply_blocks(self.blocks, x, self.remat, self.platform, unrolled=unrolled)

    def _embed(self, feature: Float[Array, "b d"]) -> Float[Array, "b d2"]:
        z = self.projection(self.final_norm(feature))  # b d2
        return z / (jnp.linalg.norm(z, axis=-1, keepdims=True) + 1e-12)


class ClipText(_Tower):
    """Captions to embeddings: a causal transformer, read at the end token."""

    def __init__(
        self,
        config: ClipTextConfig,
        d_embedding: int,
        dtype: jnp.dtype,
        remat: Remat,
        platform: Platform,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(config, d_embedding, True, dtype, remat, platform, rngs)
        self.token_embedding = _embedding(config.vocab_size, config.width, 0.02, rngs)
        self.position_embedding = _embedding(config.length, config.width, 0.01, rngs)

    def __call__(self, tokens: Tokens, mask: TokenMask) -> Float[Array, "b d"]:
        """See `Clip.encode_text`."""
        return self._embed(self._at_end(self._through_blocks(tokens), mask))

    def embed(self, tokens: Tokens, mask: TokenMask) -> TextStates:
        """See `Clip.embed_text`."""
        x = self._through_blocks(tokens)
        return TextStates(self._embed(self._at_end(x, mask)), self.final_norm(x), mask)

    def _through_blocks(self, tokens: Tokens) -> Float[Array, "b l d"]:
        x = self.token_embedding[...][tokens] + self.position_embedding[...]  # b l d
        return self._run(x)

    def _at_end(self, x: Float[Array, "b l d"], mask: TokenMask) -> Float[Array, "b d"]:
        """The features at the end tokens."""
        # A one-hot matmul: indexing rows would gather a sharded batch.
        is_end = jax.nn.one_hot(jnp.sum(mask, -1) - 1, x.shape[1], dtype=x.dtype)  # b l
        return jnp.einsum("bld,bl->bd", x, is_end)


class ClipImage(_Tower):
    """Noised images to embeddings: a vision transformer, read at its class token."""

    def __init__(
        self,
        config: ClipImageConfig,
        d_embedding: int,
        steps: int,
        dtype: jnp.dtype,
        remat: Remat,
        platform: Platform,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(config, d_embedding, False, dtype, remat, platform, rngs)
        width, patch = config.width, config.patch_px
        std = width**-0.5
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
        self.time_embedding = _embedding(steps, width, std, rngs)
        self.position_embedding = _embedding(positions, width, std, rngs)
        self.input_norm = LayerNorm(width)

    def __call__(self, x_t: Image, t: Timesteps) -> Float[Array, "b d"]:
        """See `Clip.encode_image`."""
        x = ((x_t + 1) * 127.5 - jnp.array(CHANNEL_MEAN)) / jnp.array(CHANNEL_STD)
        patches = self.patches(x)  # b h/patch w/patch d
        patches = patches.reshape(len(x), -1, patches.shape[-1])  # b l-1 d
        token = self.time_embedding[...][t][:, None]  # b 1 d
        x = jnp.concatenate([token, patches], 1) + self.position_embedding[...]  # b l d
        x = self._run(self.input_norm(x), unrolled=not self.platform.training)
        return self._embed(x[:, 0])


class Clip(nnx.Module):
    """Both towers and the scale of their similarities.

    Args:
        config: sizes of both towers, types and rematerialization policy.
        platform: of the program.
        rngs: initial values.
    """

    def __init__(self, config: ClipConfig, platform: Platform, rngs: nnx.Rngs) -> None:
        dtype, width, remat = jnp.dtype(config.dtype), config.embedding_width, config.remat
        self.config = config
        self.text = ClipText(config.text, width, dtype, remat, platform, rngs)
        self.image = ClipImage(config.image, width, config.steps, dtype, remat, platform, rngs)
        self.logit_scale = nnx.Param(np.float32(-math.log(INITIAL_TEMPERATURE)))

    def encode_text(self, tokens: Tokens, mask: TokenMask) -> Float[Array, "b d"]:
        """L2-normalized embeddings of captions.

        Args:
            tokens: (b, l) start token, caption, end token, then padding; l is the configured
                length.
            mask: (b, l) True from the start token to the end token.
        """
        return self.text(tokens, mask)

    def encode_image(self, x_t: Image, t: Timesteps) -> Float[Array, "b d"]:
        """L2-normalized embeddings of noised images.

        Args:
            x_t: (b, h, w, 3) noised images of the configured resolution, from images in [-1, 1].
            t: (b,) original step indices in [0, T); 0 for images without noise.
        """
        return self.image(x_t, t)

    def embed_image(self, image: Image) -> Float[Array, "b d"]:
        """`encode_image` of images without noise."""
        return self.encode_image(image, jnp.zeros(len(image), jnp.int32))

    def embed_text(self, tokens: Tokens, mask: TokenMask) -> TextStates:
        """`encode_text`, with the states of all positions, for unCLIP."""
        return self.text.embed(tokens, mask)


@cache
def clip_network(config: ClipConfig) -> Network[Clip]:
    """The network of a CLIP configuration: one for all that have the same."""
    return Network(lambda rngs, platform: Clip(config, platform, rngs))


def similarity_gradient(
    clip: Clip, text: Float[Array, "b d"], scale: float | Float[Array, ""]
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Gradient of the caption similarity, a hook of the sampling loop (section 2.4).

    Args:
        clip: the model.
        text: (b, d) from `Clip.encode_text`, one caption per image.
        scale: guidance scale; may be traced.

    Returns:
        `(x_t, t) -> scale * grad_{x_t} exp(logit_scale) (z_text . z_image(x_t, t))`,
        (b, h, w, 3) float32.
    """

    def similarity(x_t: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.sum(text * clip.encode_image(x_t, t))

    def gradient(x_t: jax.Array, t: jax.Array) -> jax.Array:
        return scale * jnp.exp(clip.logit_scale[...]) * jax.grad(similarity)(x_t, t)

    return gradient
