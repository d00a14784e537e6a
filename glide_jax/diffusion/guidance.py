"""Guidance turns one denoiser into another."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from glide_jax.diffusion.process import split_output
from glide_jax.shapes import Denoiser


def classifier_free(denoise: Denoiser, scale: float | Float[Array, ""]) -> Denoiser:
    """eps = eps(x|empty) + scale (eps(x|caption) - eps(x|empty)). Sec. 2.3, arXiv 2112.10741.

    Both halves go through the network in one pass. The variance fraction is the conditional one.

    Args:
        denoise: closed over the conditions of 2b examples: b captions, then the b empty (or
            negative) captions that they are pushed away from.
        scale: 1 is the conditional denoiser, 0 the unconditional one, more than 1 exaggerates
            the difference. May be traced, so that one compiled program serves every scale.

    Returns:
        A denoiser of b examples; float32.
    """

    def guided(x_t: jax.Array, t: jax.Array) -> jax.Array:
        out = denoise(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]))
        eps, v = split_output(out)
        eps_caption, eps_empty = jnp.split(eps, 2)
        v_caption, _ = jnp.split(v, 2)
        eps = eps_empty + scale * (eps_caption - eps_empty)
        return jnp.concatenate([eps, v_caption], axis=-1)

    return guided
