"""Convert OpenAI's published weights to run folders, and models trained here back.

    python -m glide_jax.convert base.pt upsample.pt --to runs/released
    python -m glide_jax.convert runs/mine --to base.pt

The first command recognizes each file by its tensors and writes one run folder per model inside
--to: base, upsample, base-inpaint, upsample-inpaint, and clip, which is two files. The second
writes the EMA parameters under the original's names, for PyTorch: .pt, .safetensors or .npz.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from glide_jax.cli import parse_flags
from glide_jax.convert.to_files import run_to_files
from glide_jax.convert.to_runs import files_to_runs
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.pretrained.sizes import UnstoredSettings
from glide_jax.storage import require_file, require_folder


@dataclass(frozen=True)
class Arguments:
    """Convert OpenAI's published weights to run folders, and models trained here back."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Files of weights (.pt, .safetensors, .npz) of one set of models, local or
    hf://ORG/REPO/FILE; or one run folder."""
    to: Path
    """For files, the folder to write run folders to; for a run folder, the file to write."""
    tokenizer: str = "gpt2"
    """Tokenizer of base models and upsamplers: a local folder or a name on the hub."""
    clip_tokenizer: str = "openai/clip-vit-base-patch32"
    """Tokenizer of CLIP: a local folder or file, or a name on the hub."""
    unstored: tyro.conf.OmitArgPrefixes[UnstoredSettings] = field(default_factory=UnstoredSettings)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Raises UserError."""
    arguments: Arguments = parse_flags(Arguments, "python -m glide_jax.convert", argv)
    if not arguments.files:
        raise UserError("nothing to convert: give files of weights, or a run folder")
    if any(path.is_dir() for path in arguments.files):
        if len(arguments.files) > 1:
            raise UserError("run folders are converted one by one: give one, and a file as --to")
        require_file("--to", arguments.to)
        run_to_files(arguments.files[0], arguments.to)
    else:
        require_folder("--to", arguments.to)
        files_to_runs(
            arguments.files,
            arguments.to,
            arguments.tokenizer,
            arguments.clip_tokenizer,
            arguments.unstored,
        )


if __name__ == "__main__":
    with exit_on_user_error():
        main()
