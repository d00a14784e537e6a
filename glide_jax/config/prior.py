"""Sizes of unCLIP's priors."""

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
    """Prior: from a caption to the CLIP embedding of its image (sec. 2.2, arXiv 2204.06125).

    Defaults: Karlo's diffusion prior, and the paper's of what Karlo lacks.
    """

    kind: ClassVar[str] = "prior"

    architecture: Literal["diffusion", "autoregressive"] = "diffusion"
    """Diffusion, or a sequence of quantized principal components."""
    text: ClipStatesConfig = field(default_factory=ClipStatesConfig)
    embedding_width: Annotated[int, WIDTHS] = 768
    """Channels of the CLIP's joint embedding space of captions and images."""
    width: Annotated[int, WIDTHS] = 2048
    """Channels of the residual stream."""
    layers: Annotated[int, LAYERS] = 20
    """Transformer blocks."""
    heads: Annotated[int, HEADS] = 32
    """Attention heads per block."""
    components: Annotated[int, Between(1, 2**16)] = 319
    """Principal components of the embedding. Autoregressive only."""
    buckets: Annotated[int, Between(2, 2**16)] = 1024
    """Values of a quantized component. Autoregressive only."""
    dot_buckets: Annotated[int, Between(2, 2**16)] = 64
    """Values of the quantized dot product of image and text embedding. Not published.
    Autoregressive only."""
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
        self.require(
            self.architecture == "diffusion" or self.components <= self.embedding_width,
            "components",
            f"({self.components}) must be at most embedding_width ({self.embedding_width})",
        )
        self.require(not self.size.refusal, "", self.size.refusal)

    @property
    def length(self) -> int:
        """Length of the transformer's sequence."""
        if self.architecture == "autoregressive":
            # The text embedding and the dot product; the last component is never read.
            return self.text.length + 2 + self.components - 1
        return self.text.length + EXTRA_TOKENS

    @property
    def size(self) -> Size:
        """Rough size of the network."""
        inputs = self.text.width + 3 * self.embedding_width + 2 * self.width
        if self.architecture == "autoregressive":
            inputs += 2 * self.buckets + self.dot_buckets
        return transformer_size(self.width, self.layers, self.heads, self.length, inputs)
