"""unCLIP's autoregressive prior: a CLIP image embedding as a sequence of codes.

The embedding is reduced to its principal components, the most important first, and each is
quantized. A causal transformer reads the CLIP's text states and text embedding and the quantized
dot product of text and image embedding, then predicts one code after another (sec. 2.2, arXiv
2204.06125). The paper does not publish the bounds of the buckets: here they divide the range of
LIMIT standard deviations on each side of the mean evenly.
"""

from collections.abc import Callable, Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from glide_jax.config import PriorConfig
from glide_jax.models.layers import LayerNorm, linear, mlp, normal, project_to_heads
from glide_jax.models.network import Network
from glide_jax.models.platform import Platform
from glide_jax.models.scan_blocks import apply_blocks
from glide_jax.models.text import TransformerBlock
from glide_jax.shapes import TextStates

LIMIT = 4.0
"""Largest component that is coded, in standard deviations."""
EMPTY_TOKENS = 2
"""Tokens of the empty caption: start and end."""
Pick = Callable[[jax.Array, jax.Array], jax.Array]
"""`(logits (b, buckets), index of the component) -> codes (b,)`."""


class ArPrior(nnx.Module):
    """The transformer, and the measured statistics that turn embeddings into codes and back.

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
        # Measured, not trained. All are vectors, which have no weight decay.
        self.mean = nnx.Param(np.zeros(d_image, np.float32))
        self.std = nnx.Param(np.ones(config.components, np.float32))
        basis = np.eye(d_image, config.components, dtype=np.float32)
        self.basis = nnx.Param(basis.reshape(-1))
        self.dot_edges = nnx.Param(np.linspace(-1, 1, config.dot_buckets - 1, dtype=np.float32))

        def embedding(*shape: int) -> nnx.Param:
            return nnx.Param(normal(rngs.params(), (*shape, width), width**-0.5))

        self.position_embedding = embedding(1, config.length)
        self.code_embedding = embedding(config.buckets)
        self.dot_embedding = embedding(config.dot_buckets)
        self.text_states = linear(config.text.width, width, dtype, rngs)
        self.text_embedding = linear(d_image, width, dtype, rngs)
        self.blocks = nnx.List(
            TransformerBlock(width, config.heads, dtype, platform, rngs, causal=True)
            for _ in range(config.layers)
        )
        self.norm_out = LayerNorm(width)
        self.out = linear(width, config.buckets, jnp.dtype("float32"), rngs)

    # Codes

    def encode(self, embedding: Float[Array, "b d"]) -> Int[Array, "b e"]:
        """The codes of image embeddings, in [0, buckets)."""
        basis = self.basis[...].reshape(-1, self.config.components)  # d e
        x = jnp.matmul(embedding - self.mean[...], basis, precision="highest") / self.std[...]
        place = (x / LIMIT + 1) / 2 * self.config.buckets  # b e
        return jnp.clip(place, 0, self.config.buckets - 1).astype(jnp.int32)

    def decode(self, codes: Int[Array, "b e"]) -> Float[Array, "b d"]:
        """Image embeddings with the centers of these buckets."""
        basis = self.basis[...].reshape(-1, self.config.components)  # d e
        x = ((codes + 0.5) / self.config.buckets * 2 - 1) * LIMIT * self.std[...]  # b e
        return jnp.matmul(x, basis.T, precision="highest") + self.mean[...]

    def dot_code(self, image: Float[Array, "b d"], text: TextStates) -> Int[Array, "b"]:
        """The quantized dot product of image and text embeddings, in [0, dot_buckets).

        Each code is as frequent as any other among the training images. The empty caption, which
        says nothing about the image, has 0.
        """
        code = jnp.searchsorted(self.dot_edges[...], jnp.sum(image * text.embedding, -1))
        return jnp.where(jnp.sum(text.mask, -1) > EMPTY_TOKENS, code, 0)

    # The transformer

    def __call__(
        self, codes: Int[Array, "b e"], dot: Int[Array, "b"], text: TextStates
    ) -> Float[Array, "b e2 d"]:
        """Logits of each code given those before it, float32.

        Args:
            codes: from `encode`.
            dot: from `dot_code`.
            text: of the captions.
        """
        later = self.code_embedding[...][codes[:, :-1]]  # b e-1 d
        x = jnp.concatenate([self._prefix(dot, text), later], 1)  # b l+e+1 d
        x = (x + self.position_embedding[...]).astype(self.dtype)
        x = apply_blocks(
            self.blocks, x, self.config.remat, self.platform, mask=self._seen(text.mask)
        )
        return self.out(self.norm_out(x[:, -self.config.components :]))

    def sample(self, dot: Int[Array, "b"], text: TextStates, pick: Pick) -> Int[Array, "b e"]:
        """Codes, each picked given those before it: one scan over all positions.

        Args:
            dot, text: as of the call.
            pick: chooses codes by their logits.
        """
        prefix, seen = self._prefix(dot, text), self._seen(text.mask)
        first, positions = prefix.shape[1] - 1, self.position_embedding[...]
        cache = jnp.zeros((len(self.blocks), 2, *seen.shape, self.config.width), self.dtype)

        def step(
            state: tuple[jax.Array, jax.Array], i: jax.Array
        ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            code, cache = state
            given = jnp.take(prefix, jnp.minimum(i, first), 1)  # b d
            x = jnp.where(i <= first, given, self.code_embedding[...][code])
            x = (x + positions[:, i]).astype(self.dtype)[:, None]  # b 1 d
            mask = seen & (jnp.arange(seen.shape[1]) <= i)  # b l
            layers = []
            for block, layer in zip(self.blocks, cache, strict=True):
                x, layer = self._cached(block, x, layer, i, mask)
                layers.append(layer)
            code = pick(self.out(self.norm_out(x[:, 0])), jnp.maximum(i - first, 0))
            return (code, jnp.stack(layers)), code

        state = jnp.zeros(len(dot), jnp.int32), cache
        _, codes = jax.lax.scan(step, state, jnp.arange(seen.shape[1]))  # l b
        return codes[first:].T

    def _prefix(self, dot: Int[Array, "b"], text: TextStates) -> Float[Array, "b l d"]:
        """Text states, text embedding and dot product."""
        tokens: Sequence[jax.Array] = (
            self.text_states(text.states),  # b l d
            self.text_embedding(text.embedding)[:, None],  # b 1 d
            self.dot_embedding[...][dot][:, None],
        )
        return jnp.concatenate([token.astype(jnp.float32) for token in tokens], 1)

    def _seen(self, text_mask: Bool[Array, "b l"]) -> Bool[Array, "b l2"]:
        """The positions that are not padding of the text."""
        b, l = text_mask.shape
        return jnp.concatenate([text_mask, jnp.ones((b, self.config.length - l), bool)], 1)

    def _cached(
        self,
        block: TransformerBlock,
        x: Float[Array, "b 1 d"],
        cache: Float[Array, "2 b l d"],
        i: Int[Array, ""],
        mask: Bool[Array, "b l"],
    ) -> tuple[Float[Array, "b 1 d"], Float[Array, "2 b l d"]]:
        """A block at position i, with the keys and values of all positions before."""
        attention, split = block.attention, self.platform.split_kernels
        h = block.norm1(x).astype(x.dtype)
        q, k, v = project_to_heads(attention.qkv, h, attention.heads, 3, split)  # b 1 d
        cache = jax.lax.dynamic_update_slice_in_dim(cache, jnp.stack([k, v]), i, 2)
        x = x + attention.out(self.platform.attend(q, *cache, attention.heads, mask=mask))
        return x + mlp(block.mlp_in, block.mlp_out, block.norm2(x).astype(x.dtype)), cache


@cache
def ar_prior(config: PriorConfig) -> Network[ArPrior]:
    """The network of a prior's configuration: one for all that have the same."""
    return Network(lambda rngs, platform: ArPrior(config, platform, rngs))
