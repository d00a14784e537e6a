"""Array types and their dimension letters, for annotations, einsum strings and shape comments.

    b  batch              l  text length (tokens)     s  sampling steps
    h  image height (px)  d  model width              T  diffusion steps (1000)
    w  image width (px)   n  attention heads
    c  channels           k  width of one head

Images are NHWC float32 in [-1, 1]. `t` is int32 in [0, T), always the original step index, also
when a sampler skips steps. Masks are True (or 1) where pixels or tokens are known.
"""

from collections.abc import Callable
from typing import NamedTuple, NotRequired, TypedDict

import jax
from jaxtyping import Array, Bool, Float, Int, UInt8

Image = Float[Array, "b h w 3"]
"""Images in [-1, 1]."""
Pixels = UInt8[Array, "b h w 3"]
"""Images as 8-bit levels in 0..255."""
Timesteps = Int[Array, "b"]
"""Original step indices in [0, T)."""
Tokens = Int[Array, "b l"]
"""Caption token ids."""
TokenMask = Bool[Array, "b l"]
"""True for caption tokens, False for padding."""
ModelOutput = Float[Array, "b h w 6"]
"""[eps | variance fraction], three channels each."""

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]
"""`(x_t, t) -> out`, a network as `diffusion/` sees it. Conditioning is closed over."""

Params = dict[str, jax.Array]
"""Parameters by path, for example `unet.down.0.res.conv1.kernel`. The optimizer, the EMA, the
sharding rules, checkpoints and conversion share this flat dict and its names."""


class TextStates(NamedTuple):
    """A CLIP's view of captions, which conditions unCLIP's models."""

    embedding: Float[Array, "b d"]
    """In the space of the image embeddings."""
    states: Float[Array, "b l d2"]
    """Normalized states of all positions."""
    mask: Bool[Array, "b l"]
    """True from the start token to the end token."""


class Batch(TypedDict):
    """The loader's output and the train step's input. Images are converted in the step."""

    image: NotRequired[UInt8[Array, "b h w 3"]]
    """8-bit levels in 0..255. Absent for a prior that learns from embeddings."""
    tokens: Int[Array, "b l"]
    token_mask: Bool[Array, "b l"]
    image_embedding: NotRequired[Float[Array, "b d"]]
    """unCLIP only: the images' CLIP embeddings, if the data set has them."""
    clip_image: NotRequired[UInt8[Array, "b h3 w3 3"]]
    """unCLIP's decoder only: the same images at the CLIP's resolution, if that is another."""
    low_res: NotRequired[UInt8[Array, "b h2 w2 3"]]
    """Upsamplers with data.low_res.degradation only: degraded low-resolution images."""
    mask: NotRequired[Bool[Array, "b h w 1"]]
    """Inpainting only: True for known pixels, False for pixels to generate."""
    clip_tokens: NotRequired[Int[Array, "b l2"]]
    """Auxiliary CLIP loss only: the captions in the CLIP model's own tokens."""
    clip_token_mask: NotRequired[Bool[Array, "b l2"]]
