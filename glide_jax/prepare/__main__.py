"""Turns captioned images in folders, tars or parquet files into shards for training.

    python -m glide_jax.prepare --from my_images 'cc12m/*.tar' --to data/mine --px 256
    python train.py --config configs/base64.py --data.source shards --data.path data/mine

Stopped at any moment, the same command goes on. docs/big-data.md says more.
"""

from collections.abc import Sequence

import tyro

from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.prepare.pipeline import PrepareConfig, prepare


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    arguments, others = tyro.cli(
        PrepareConfig,
        prog="python -m glide_jax.prepare",
        description=__doc__,
        args=argv,
        return_unknown_args=True,
    )
    if others and not arguments.beam:
        raise UserError(f"unknown flag {others[0]}: --help lists them; --beam takes Beam's as well")
    try:
        print(prepare(arguments, others).table())
    except KeyboardInterrupt:
        raise UserError("stopped; the same command goes on from here") from None


if __name__ == "__main__":
    with exit_on_user_error():
        main()
