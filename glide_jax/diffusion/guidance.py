"""Guidance: functions from Denoiser to Denoiser, and gradients for the sampling loop."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from glide_jax.diffusion.loop import GuidanceGradient
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
    """out = out(x|empty) + scale (out(x|caption) - out(x|empty)). Sec. 2.3, arXiv 2112.10741.

    The network sees both halves in one pass. The prediction, eps, v or x_0, is guided; the variance
    fraction is the conditional one. A prediction of v is guided before it is converted to eps: the
    result is the same without `rescale`, which is defined for the network's own prediction.

    Args:
        denoise: closed over the conditions of 2b examples: b captions, then b empty or negative
            captions.
        scale: 1 is the conditional denoiser, 0 the unconditional one; above 1 extrapolates. Scale,
            interval and rescale may be traced, so one compiled program serves every value.
        interval: (least, largest) t to guide at, as original step indices; elsewhere the scale is 1
            (arXiv 2404.07724: guidance harms the noisiest steps and has no effect on the cleanest).
            The network still sees both halves.
        rescale: phi of `rescaled`; None and 0 change nothing.

    Returns:
        A denoiser of b examples, float32.
    """

    def guided(x_t: jax.Array, t: jax.Array) -> jax.Array:
        out = denoise(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]))  # (2b, *x2)
        predicted, variance_fraction = split_output(out)
        caption, empty = jnp.split(predicted, 2)  # (b, *x) each
        variance_fraction, _ = jnp.split(variance_fraction, 2)
        scale_now = scale
        if interval is not None:
            inside = (interval[0] <= t) & (t <= interval[1])
            scale_now = jnp.where(inside, scale, 1).reshape(-1, *[1] * (x_t.ndim - 1))
        predicted = empty + scale_now * (caption - empty)
        if rescale is not None:
            predicted = rescaled(predicted, caption, rescale)
        return jnp.concatenate([predicted, variance_fraction], axis=-1)

    return guided


def rescaled(
    guided: Float[Array, "b *x"], caption: Float[Array, "b *x"], phi: Number
) -> Float[Array, "b *x"]:
    """Guidance rescale: phi std(caption) / std(guided) guided + (1 - phi) guided.

    Eqs. 15 and 16, arXiv 2305.08891. Standard deviations are over all values of an image. As in the
    paper, the rescaled quantity is the network's output, eps or v, not x_0.

    Args:
        guided: the guided prediction.
        caption: the conditional prediction.
        phi: in [0, 1]; 0 changes nothing, 1 restores the conditional standard deviation; 0.7 is
            usual.

    Returns:
        The rescaled prediction.
    """
    axes = tuple(range(1, guided.ndim))
    std_caption, std = (jnp.std(x, axis=axes, keepdims=True) for x in (caption, guided))
    factor = std_caption / jnp.maximum(std, 1e-12)
    return phi * factor * guided + (1 - phi) * guided


def classifier(log_prob: LogProb, scale: Number = 1.0) -> GuidanceGradient:
    """Classifier guidance: scale * grad_x log p(y | x_t). Sec. 4, arXiv 2105.05233.

    Args:
        log_prob: closed over the condition y. Each example's value must depend on its own image
            only; additive constants have no effect.
        scale: above 1 sharpens the probability.

    Returns:
        For `Hooks.gradient`.
    """

    def gradient(x_t: jax.Array, t: jax.Array) -> jax.Array:
        return scale * jax.grad(lambda x: log_prob(x, t).sum())(x_t)

    return gradient
