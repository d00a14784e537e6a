"""Sizes of unCLIP's diffusion prior."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from glide_jax.config.bounds import Between
from glide_jax.config.checks import Settings
from glide_jax.config.model import HEADS, LAYERS, MAX_PX, WIDTHS, Remat
from glide_jax.config.sizes import Size, transformer_size

EXTRA_TOKENS = 4
"""Text embedding, timestep, noised image embedding and the query, after the text states."""


@dataclass(frozen=True)
class ClipStatesConfig(Settings):
    """The text states of the frozen CLIP (defaults: OpenAI's ViT-L/14)."""

    vocab_size: Annotated[int, Between(1, 2**24)] = 49_408
    """Token embeddings of the CLIP."""
    length: Annotated[int, Between(1, 2**16)] = 77
    """Context length of the CLIP, in tokens."""
    width: Annotated[int, WIDTHS] = 768
    """Channels of the CLIP's text tower."""


@dataclass(frozen=True)
class PriorConfig(Settings):
    """Diffusion prior: the CLIP image embedding of a caption (sec. 2.2, arXiv 2204.06125).

    Defaults: Karlo's.
    """

    kind: ClassVar[str] = "prior"

    text: ClipStatesConfig = field(default_factory=ClipStatesConfig)
    embedding_width: Annotated[int, WIDTHS] = 768
    """Channels of the CLIP's joint embedding space of captions and images."""
    width: Annotated[int, WIDTHS] = 2048
    """Channels of the residual stream."""
    layers: Annotated[int, LAYERS] = 20
    """Transformer blocks."""
    heads: Annotated[int, HEADS] = 32
    """Attention heads per block."""
    resolution_px: Annotated[int, Between(1, MAX_PX)] = 224
    """Side of the training images of which the CLIP gives the embeddings, in pixels."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of matmuls. Parameters, norms and softmax are float32."""
    remat: Remat = "none"
    """Activations that the backward pass recomputes: glide_jax.models.remat."""

    def _check(self) -> None:
        self.require(
            self.width % self.heads == 0,
            "width",
            f"({self.width}) must be divisible by heads ({self.heads})",
        )
        self.require(self.width % 2 == 0, "width", f"({self.width}) must be even")
        self.require(not self.size.refusal, "", self.size.refusal)

    @property
    def length(self) -> int:
        """Length of the transformer's sequence."""
        return self.text.length + EXTRA_TOKENS

    @property
    def size(self) -> Size:
        """Rough size of the network."""
        inputs = self.text.width + 3 * self.embedding_width + 2 * self.width
        return transformer_size(self.width, self.layers, self.heads, self.length, inputs)
