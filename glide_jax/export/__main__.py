"""Writes a run's averaged weights as a folder to give away.

    python -m glide_jax.export runs/base64 --to base64
    python sample.py --checkpoint base64 --prompt "a red star"

The folder holds config.json, tokenizer/ and weights.safetensors, nothing else: an eighth of a
checkpoint's size in bfloat16. It does wherever a run folder is read, but no training goes on in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from glide_jax.errors import exit_on_user_error
from glide_jax.export.publish import Dtype, export
from glide_jax.storage import path_of


@dataclass(frozen=True)
class Arguments:
    """Writes a run's averaged weights as a folder to give away."""

    run: tyro.conf.Positional[str | Path]
    """Run folder, as train.py or glide_jax.convert writes it."""
    to: str | Path
    """Folder to write, here or as gs://BUCKET/FOLDER."""
    dtype: Dtype = "bfloat16"
    """Type of the stored numbers: float32 keeps them exactly, the others to 8 or 11 bits."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command. Raises UserError."""
    arguments = tyro.cli(Arguments, prog="python -m glide_jax.export", args=argv)
    export(path_of(arguments.run), path_of(arguments.to), arguments.dtype)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
