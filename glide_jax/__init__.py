"""GLIDE in JAX and Flax: text-guided diffusion, trained and sampled with one code."""

import os
import sys

from glide_jax.errors import UserError, is_command, quiet_interrupts

if is_command(sys.argv):
    quiet_interrupts()

# XLA reads it when JAX is imported. Its alarm about a compilation of two minutes is logged as an
# error, with advice to file a bug. Real errors are raised as well; fatal ones are still printed.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from glide_jax.sampling.pipeline import Glide
from glide_jax.sampling.unclip import UnCLIP

__all__ = ["Glide", "UnCLIP", "UserError"]
