"""Converts captioned images in folders, tars or parquet files to shards for training.

    python -m glide_jax.prepare --from my_images 'cc12m/*.tar' --to data/mine --px 256
    python train.py --config configs/base64.py --data.source shards data/mine

An interrupted command resumes when it is run again. See docs/big-data.md.
"""

from collections.abc import Sequence

from glide_jax.cli import parse_flags
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.prepare.pipeline import PrepareConfig, prepare


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    arguments, others = parse_flags(
        PrepareConfig, "python -m glide_jax.prepare", argv, __doc__, return_unknown_args=True
    )
    if others and not arguments.beam:
        raise UserError(f"unknown flag {others[0]}: see --help (only --beam passes flags to Beam)")
    try:
        print(prepare(arguments, others).table())
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command again to resume") from None


if __name__ == "__main__":
    with exit_on_user_error():
        main()
