"""Sample: `python sample.py --checkpoint demo --prompt "a red star"`. See glide_jax/sample.py."""

import sys

try:
    from glide_jax.errors import exit_on_user_error
    from glide_jax.sample import main
except KeyboardInterrupt:  # importing JAX takes seconds
    sys.stderr.write("interrupted\n")
    raise SystemExit(130) from None

if __name__ == "__main__":
    with exit_on_user_error():
        main()
