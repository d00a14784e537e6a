"""GLIDE in JAX and Flax: text-guided diffusion, trained and sampled with one code."""
