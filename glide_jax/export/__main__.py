"""Publish a run's EMA parameters as a folder.

    python -m glide_jax.export runs/base64 --to base64
    python sample.py --checkpoint base64 --prompt "a red star"

The folder holds only config.json, tokenizer/, weights.safetensors (in bfloat16, an eighth of a
checkpoint's size) and MODEL_CARD.md. Every command that samples, scores or fine-tunes reads it like
a run folder; training cannot resume in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from glide_jax.cli import parse_flags
from glide_jax.errors import exit_on_user_error
from glide_jax.export.publish import Dtype, export
from glide_jax.storage import path_of, require_folder


@dataclass(frozen=True)
class Arguments:
    """Publish a run's EMA parameters as a folder."""

    run: tyro.conf.Positional[str | Path]
    """Run folder of train.py or glide_jax.convert."""
    to: str | Path
    """Output folder, local or gs://BUCKET/FOLDER."""
    dtype: Dtype = "bfloat16"
    """Data type of the weights. float32 is exact; bfloat16 has 8 significant bits, float16 11."""
    license: str = ""
    """License of the weights for MODEL_CARD.md, such as MIT or CC-BY-4.0. Default: not stated."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command. Raises UserError."""
    arguments: Arguments = parse_flags(Arguments, "python -m glide_jax.export", argv)
    to = path_of(arguments.to)
    require_folder("--to", to)
    export(path_of(arguments.run), to, arguments.dtype, arguments.license)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
