"""Guidance: one denoiser made into another, or a gradient for the sampler to follow."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from glide_jax.diffusion.loop import Gradient
from glide_jax.diffusion.process import split_output
from glide_jax.shapes import Denoiser

Number = float | Float[Array, ""]
Index = int | Int[Array, ""]
LogProb = Callable[[jax.Array, jax.Array], jax.Array]
"""`(x_t, t) -> (b,)`; t is the original step index."""


def classifier_free(
    denoise: Denoiser,
    scale: Number,
    *,
    interval: tuple[Index, Index] | None = None,
    rescale: Number | None = None,
) -> Denoiser:
    """eps = eps(x|empty) + scale (eps(x|caption) - eps(x|empty)). Sec. 2.3, arXiv 2112.10741.

    Both halves go through the network in one pass. The variance fraction is the conditional one.

    Args:
        denoise: closed over the conditions of 2b examples: b captions, then the b empty (or
            negative) captions that they are pushed away from.
        scale: 1 is the conditional denoiser, 0 the unconditional one, more than 1 exaggerates
            the difference. This and all that follows may be traced, so that one compiled program
            serves every value.
        interval: the least and largest t, original step indices, at which to guide; elsewhere the
            scale is 1 (arXiv 2404.07724: guidance harms at the noisiest steps and is lost on the
            cleanest). The network still sees both halves.
        rescale: see `rescaled`; None, as 0, leaves eps as it is.

    Returns:
        A denoiser of b examples; float32.
    """

    def guided(x_t: jax.Array, t: jax.Array) -> jax.Array:
        out = denoise(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]))
        eps, v = split_output(out)
        eps_caption, eps_empty = jnp.split(eps, 2)
        v_caption, _ = jnp.split(v, 2)
        scale_now = scale
        if interval is not None:
            inside = (interval[0] <= t) & (t <= interval[1])
            scale_now = jnp.where(inside, scale, 1)[:, None, None, None]
        eps = eps_empty + scale_now * (eps_caption - eps_empty)
        if rescale is not None:
            eps = rescaled(eps, eps_caption, rescale)
        return jnp.concatenate([eps, v_caption], axis=-1)

    return guided


def rescaled(
    eps: Float[Array, "b h w c"], eps_caption: Float[Array, "b h w c"], phi: Number
) -> Float[Array, "b h w c"]:
    """Gives guided eps back the spread that it had: Eqs. 15 and 16, arXiv 2305.08891.

    phi std(eps_caption) / std(eps) eps + (1 - phi) eps, with the standard deviations over all the
    values of an image. As in the paper it is the network's output that is rescaled, so here eps
    and not x_0.

    Args:
        eps: guided.
        eps_caption: the conditional prediction.
        phi: 0 changes nothing, 1 restores the spread in full; 0.7 is usual.

    Returns:
        eps.
    """
    spread_caption, spread = (jnp.std(x, axis=(1, 2, 3), keepdims=True) for x in (eps_caption, eps))
    factor = spread_caption / jnp.maximum(spread, 1e-12)
    return phi * factor * eps + (1 - phi) * eps


def classifier(log_prob: LogProb, scale: Number = 1.0) -> Gradient:
    """The gradient by which any log probability guides: scale * grad_x log p(y | x_t).

    Sec. 4, arXiv 2105.05233. For `gradient` of `sample`.

    Args:
        log_prob: closed over what is asked for, y. Each example's depends on its own image
            only; a constant factor of the probability does not matter.
        scale: more than 1 sharpens the probability.
    """

    def gradient(x_t: jax.Array, t: jax.Array) -> jax.Array:
        return scale * jax.grad(lambda x: log_prob(x, t).sum())(x_t)

    return gradient
