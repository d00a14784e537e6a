"""Train a model: `python train.py --config configs/scenes_tiny.py`. See glide_jax/train.py."""

from glide_jax.errors import exit_on_user_error
from glide_jax.train import main

if __name__ == "__main__":
    with exit_on_user_error():
        main()
