"""Sample: `python sample.py --checkpoint demo --prompt "a red star"`. See glide_jax/sample.py."""

import runpy

runpy.run_module("glide_jax.sample", run_name="__main__", alter_sys=True)
