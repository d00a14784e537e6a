"""Convert published weights to run folders, and models trained here back.

    python -m glide_jax.convert base.pt upsample.pt --to runs/released
    python -m glide_jax.convert karlo-v1-alpha ViT-L-14.pt --to runs/karlo
    python -m glide_jax.convert runs/mine --to base.pt

The first two commands recognize files by their tensors, and folders of diffusers' pipelines by
their components. They write one run folder per model inside --to: for GLIDE base, upsample,
base-inpaint, upsample-inpaint, and clip, which is two files; for unCLIP prior, decoder, upsample
and clip. The third writes the EMA parameters under the original's names, for PyTorch: .pt,
.safetensors or .npz, or .ckpt for Karlo's code; with a folder as --to, for diffusers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from glide_jax.cli import parse_flags
from glide_jax.convert.parts import is_published_folder
from glide_jax.convert.to_files import run_to_files
from glide_jax.convert.to_pipeline import runs_to_pipeline
from glide_jax.convert.to_runs import files_to_runs
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.pretrained.sizes import UnstoredSettings
from glide_jax.pretrained.weight_files import FORMATS
from glide_jax.storage import require_file, require_folder


@dataclass(frozen=True)
class Arguments:
    """Convert published weights to run folders, and models trained here back."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Files of weights (.pt, .ckpt, .safetensors, .npz) of one set of models, local or
    hf://ORG/REPO/FILE; folders of diffusers' unCLIP pipelines or of one of their components; or one
    run folder, or a folder of unCLIP's run folders."""
    to: Path
    """For published weights, the folder to write run folders to; for a run folder, the file to
    write; for run folders of unCLIP, also a folder: a pipeline of diffusers."""
    tokenizer: str = "gpt2"
    """Tokenizer of base models and upsamplers: a local folder or a name on the hub."""
    clip_tokenizer: str = ""
    """Tokenizer of CLIP and of models that read its text states: a local folder or file, or a name
    on the hub. By default that of a pipeline's folder, or openai/clip-vit-base-patch32."""
    unstored: tyro.conf.OmitArgPrefixes[UnstoredSettings] = field(default_factory=UnstoredSettings)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Raises UserError."""
    arguments: Arguments = parse_flags(Arguments, "python -m glide_jax.convert", argv)
    if not arguments.files:
        raise UserError("nothing to convert: give files of weights, or a run folder")
    runs = [path for path in arguments.files if path.is_dir() and not is_published_folder(path)]
    if not runs:
        require_folder("--to", arguments.to)
        files_to_runs(
            arguments.files,
            arguments.to,
            arguments.tokenizer,
            arguments.clip_tokenizer,
            arguments.unstored,
        )
        return
    if len(arguments.files) > 1:
        raise UserError("run folders are converted one by one: give one, and a file as --to")
    if arguments.to.suffix in FORMATS:
        require_file("--to", arguments.to)
        run_to_files(runs[0], arguments.to)
    else:
        require_folder("--to", arguments.to)
        runs_to_pipeline(runs[0], arguments.to)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
