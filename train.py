"""Train a model: `python train.py --config configs/scenes_tiny.py`. See glide_jax/train.py."""

if __name__ == "__main__":  # the loader's worker processes import this file
    from glide_jax.errors import exit_on_user_error
    from glide_jax.train import main

    with exit_on_user_error():
        main()
