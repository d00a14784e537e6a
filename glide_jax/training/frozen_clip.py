"""A frozen CLIP in training: the embeddings and text states that other models learn from."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from glide_jax.config import ClipConfig
from glide_jax.models.build import build_network
from glide_jax.models.network import Network
from glide_jax.models.platform import ANY_PLATFORM, Platform
from glide_jax.parallel.sharding import local_mesh
from glide_jax.runs.folder import Run
from glide_jax.shapes import Image, Params, TextStates, TokenMask, Tokens


@dataclass(frozen=True)
class FrozenClip:
    """The CLIP of train.clip_run. Its methods are traced and take the parameters as `frozen`."""

    config: ClipConfig
    params: dict[str, Any]
    """Arrays, or their shapes to plan with."""

    @classmethod
    def load(cls, run: Run) -> "FrozenClip":
        """Loads a run's EMA parameters, in the types in which they are computed.

        Raises:
            UserError: the run is not a CLIP's, or it cannot be read.
        """
        config = run.config.clip  # before the weights, which may be large
        inference = Platform.of(local_mesh(), None, training=False)
        return cls(config, run.network.stored(run.weights(), inference))

    @cached_property
    def network(self) -> Network[Any]:
        """Of `models.clip.Clip` or `models.openai_clip.OpenAIClip`."""
        return build_network(self.config)

    def embed_image(
        self, frozen: Params, image: Image, platform: Platform = ANY_PLATFORM
    ) -> Float[Array, "b d"]:
        """Embeddings of square images of any size, as the CLIP makes them: normalized or not."""
        px = self.config.resolution_px
        if image.shape[1] != px:
            image = jax.image.resize(image, (len(image), px, px, 3), "cubic")  # antialiased
            image = jnp.clip(image, -1, 1)
        return self.network.bind(frozen, platform).embed_image(image)

    def embed_text(
        self, frozen: Params, tokens: Tokens, mask: TokenMask, platform: Platform = ANY_PLATFORM
    ) -> TextStates:
        """Embeddings and states of captions in the CLIP's own tokens."""
        return self.network.bind(frozen, platform).embed_text(tokens, mask)


def cosine(a: Float[Array, "b d"], b: Float[Array, "b d"]) -> Float[Array, "b"]:
    """Cosine similarity of each pair; 0 if one of them is zero."""
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.sum(a * b, -1) / jnp.maximum(norms, 1e-12)
