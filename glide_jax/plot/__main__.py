"""Plot training curves and sample strips of one or several runs.

    python -m glide_jax.plot runs/scenes_tiny --out curves.png
    python -m glide_jax.plot runs/a runs/b --out curves.png --samples strip.png

Curves come from metrics.jsonl, with a panel per logged metric. A sample strip comes from samples/:
the same prompts and seeds at several training steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from glide_jax.cli import parse_flags
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.images import require_figure, save_png
from glide_jax.plot.curves import PIXELS_PER_INCH, plot_curves, read_curves, run_names
from glide_jax.plot.sample_strip import sample_strip
from glide_jax.storage import path_of, require_file


@dataclass(frozen=True)
class Arguments:
    """Plot training curves and sample strips of one or several runs."""

    runs: tyro.conf.Positional[tuple[str | Path, ...]]
    """Run folders."""
    out: Path = Path("curves.png")
    """Output file of the curves: .png, .svg or .pdf."""
    samples: Path | None = None
    """Output PNG of the sample strips; none unless given."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command. Raises UserError."""
    arguments: Arguments = parse_flags(Arguments, "python -m glide_jax.plot", argv)
    runs = [path_of(run) for run in arguments.runs]
    require_figure("--out", arguments.out)
    require_file("--samples", arguments.samples, (".png",))
    if not runs:
        raise UserError("nothing to plot: give at least one run folder")
    figure = plot_curves(
        {name: read_curves(run) for name, run in zip(run_names(runs), runs, strict=True)}
    )
    try:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(arguments.out, dpi=PIXELS_PER_INCH)
    except (OSError, ValueError) as error:  # ValueError: unknown format
        raise UserError(f"cannot write {arguments.out}: {error}") from error
    print(arguments.out)
    if arguments.samples is not None:
        save_png(arguments.samples, sample_strip(runs))
        print(arguments.samples)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
