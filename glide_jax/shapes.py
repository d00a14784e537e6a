"""The letters of this project, once: in annotations, einsum strings and shape comments.

    b  batch              l  text length (tokens)     s  sampling steps
    h  image height (px)  d  model width              T  diffusion steps (1000)
    w  image width (px)   n  attention heads
    c  channels           k  width of one head

Images are NHWC float32 in [-1, 1]. `t` is int32 in [0, T): always the original step index, also
when a sampler visits only some of the steps. Masks are True (or 1) where something is known.
"""

from collections.abc import Callable
from typing import NotRequired, TypedDict

import jax
from jaxtyping import Array, Bool, Float, Int, UInt8

Image = Float[Array, "b h w 3"]
"""Images in [-1, 1]."""
Pixels = UInt8[Array, "b h w 3"]
"""Images as 8-bit levels, 0..255."""
Timesteps = Int[Array, "b"]
"""Original step indices, in [0, T)."""
Tokens = Int[Array, "b l"]
TokenMask = Bool[Array, "b l"]
"""True where `Tokens` holds caption, False where it holds padding."""
ModelOutput = Float[Array, "b h w 6"]
"""[eps | variance fraction], three channels each."""

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]
"""`(x_t, t) -> out`: all that `diffusion/` knows about a network (text is closed over)."""

Params = dict[str, jax.Array]
"""Parameters by path, for example `unet.down.0.res.conv1.kernel`. One flat dict serves the
optimizer, the EMA, sharding rules, checkpoints and conversion: they all speak of one name."""


class Batch(TypedDict):
    """What the loader hands to a train step."""

    image: Float[Array, "b h w 3"]
    tokens: Int[Array, "b l"]
    token_mask: Bool[Array, "b l"]
    mask: NotRequired[Float[Array, "b h w 1"]]
    """For inpainting: 1 where the model sees the image, 0 where it paints."""
    clip_tokens: NotRequired[Int[Array, "b l2"]]
    """For an auxiliary CLIP loss: the same captions as that CLIP reads them."""
    clip_token_mask: NotRequired[Bool[Array, "b l2"]]
