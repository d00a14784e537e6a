"""Train a model: `python train.py --config configs/scenes_tiny.py`. See glide_jax/train.py."""

import runpy

runpy.run_module("glide_jax.train", run_name="__main__")
