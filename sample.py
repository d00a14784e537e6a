"""Sample: `python sample.py --checkpoint demo --prompt "a red star"`. See glide_jax/sample.py."""

from glide_jax.errors import exit_on_user_error
from glide_jax.sample import main

if __name__ == "__main__":
    with exit_on_user_error():
        main()
