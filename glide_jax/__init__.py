"""GLIDE in JAX and Flax: text-guided diffusion, trained and sampled with one code."""

from glide_jax.errors import UserError
from glide_jax.sampling.pipeline import Glide

__all__ = ["Glide", "UserError"]
