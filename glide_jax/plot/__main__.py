"""Draws what metrics.jsonl tells: learning curves, of several runs over each other.

    python -m glide_jax.plot runs/scenes_tiny --out curves.png
    python -m glide_jax.plot runs/a runs/b --out curves.png --samples film.png

There is a panel for whatever a run has logged, and none for the rest. `--samples` puts the grids of
samples/ together to a film strip: the same prompts and seeds, as training goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.images import save_png
from glide_jax.plot.curves import PIXELS_PER_INCH, draw_curves, read_curves, run_names
from glide_jax.plot.sample_strip import sample_strip
from glide_jax.storage import path_of, require_local


@dataclass(frozen=True)
class Arguments:
    """Draws what metrics.jsonl tells: learning curves, of several runs over each other."""

    runs: tyro.conf.Positional[tuple[str | Path, ...]]
    """Run folders, as train.py writes them."""
    out: Path = Path("curves.png")
    """File for the curves: .png, .svg or .pdf."""
    samples: Path | None = None
    """PNG file for a film strip of each run's samples/."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command. Raises UserError."""
    arguments = tyro.cli(Arguments, prog="python -m glide_jax.plot", args=argv)
    runs = [path_of(run) for run in arguments.runs]
    require_local(arguments.out, arguments.samples)
    if not runs:
        raise UserError("nothing to draw: give at least one run folder")
    figure = draw_curves(
        {name: read_curves(run) for name, run in zip(run_names(runs), runs, strict=True)}
    )
    try:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(arguments.out, dpi=PIXELS_PER_INCH)
    except (OSError, ValueError) as error:  # ValueError: no such format
        raise UserError(f"cannot write {arguments.out}: {error}") from error
    print(arguments.out)
    if arguments.samples is not None:
        save_png(arguments.samples, sample_strip(runs))
        print(arguments.samples)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
