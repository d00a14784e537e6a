"""Eight fake CPU devices for all tests, so that sharding is tested wherever the tests run.

Their time goes into compiling, so LLVM is told not to optimise: half the time, the same results.
"""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import jax
from hypothesis import settings

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# Property tests have no time limit, since the first example compiles, and draw the same examples
# every time, so that whoever runs the tests again sees the same failure.
settings.register_profile("same_every_time", deadline=None, derandomize=True)
settings.load_profile("same_every_time")
