"""Train a model: `python train.py --config configs/scenes_tiny.py`. See glide_jax/train.py."""

import sys

if __name__ == "__main__":  # the loader's worker processes import this file
    try:
        from glide_jax.errors import exit_on_user_error
        from glide_jax.train import main
    except KeyboardInterrupt:  # importing JAX takes seconds
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None
    with exit_on_user_error():
        main()
