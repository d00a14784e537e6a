"""The command `python -m glide_jax.prepare`: captioned images to training shards."""
