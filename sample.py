"""Draws pictures for prompts with a trained model.

    python sample.py --checkpoint runs/scenes_tiny --prompt "a red star" --n 4 --out out.png

One picture becomes one PNG file. Several become a grid, and a folder beside it (out/) holds each
as a file of its own. PNG files keep prompt, seed and settings in their text chunks.
"""

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from glide_jax import Glide, UserError
from glide_jax.errors import exit_on_user_error
from glide_jax.pictures import save_grid, save_png
from glide_jax.pipeline import MAX_BATCH
from glide_jax.training.sharding import use_all_cores


@dataclass(frozen=True)
class Arguments:
    """Draws pictures for prompts with a trained model."""

    checkpoint: Path
    """Run folder, as train.py writes it."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What to draw; repeat the flag for more. An empty one is unconditional."""
    prompts_file: Path | None = None
    """A text file with one prompt a line; blank lines are passed over."""
    n: int = 1
    """Pictures for each prompt, with seeds seed, seed + 1, ..."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    guidance_scale: float | None = None
    """1 is no guidance. This and the next three default to the run's own settings."""
    steps: str | None = None
    """A number of steps, or a respacing such as 10,10,3,2,2."""
    sampler: str | None = None
    """ddpm or ddim."""
    eta: float | None = None
    """Noise of ddim: 0 is deterministic, 1 ancestral."""
    seed: int = 0
    batch_size: int | None = None
    """Pictures at a time."""
    out: Path = field(default=Path("out.png"))
    """PNG file."""


def read_prompts(arguments: Arguments) -> list[str]:
    """The prompts of the flags and of the file. Raises UserError if there are none."""
    prompts = list(arguments.prompt)
    if arguments.prompts_file is not None:
        try:
            lines = arguments.prompts_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts-file {arguments.prompts_file}: {error}") from None
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError("nothing to draw: give --prompt, or --prompts-file with a prompt a line")
    return prompts


def _either(given: object, default: object) -> object:
    return default if given is None else given


def main() -> None:
    """The command."""
    arguments = tyro.cli(Arguments, prog="sample.py")
    if arguments.n < 1:
        raise UserError(f"--n {arguments.n}: must be at least 1")
    if arguments.out.suffix.lower() != ".png":
        raise UserError(f"--out {arguments.out}: must end in .png")
    prompts = [prompt for prompt in read_prompts(arguments) for _ in range(arguments.n)]
    seeds = [arguments.seed + i % arguments.n for i in range(len(prompts))]

    use_all_cores(arguments.batch_size or min(len(prompts), MAX_BATCH))
    glide = Glide.load(arguments.checkpoint)
    pictures = glide.generate(
        prompts,
        negative_prompt=arguments.negative_prompt,
        guidance_scale=arguments.guidance_scale,
        steps=arguments.steps,
        sampler=arguments.sampler,
        eta=arguments.eta,
        seed=seeds,
        batch_size=arguments.batch_size,
        progress=True,
    )

    run = glide.config.sample
    settings = {
        "checkpoint": arguments.checkpoint,
        "negative_prompt": arguments.negative_prompt,
        "guidance_scale": _either(arguments.guidance_scale, run.guidance_scale),
        "steps": _either(arguments.steps, run.steps),
        "sampler": _either(arguments.sampler, run.sampler),
        "eta": _either(arguments.eta, run.eta),
    }
    metadata = {name: str(value) for name, value in settings.items()}
    files = [arguments.out]
    if len(pictures) > 1:
        columns = arguments.n if arguments.n > 1 else min(len(prompts), 4)
        grid_metadata = metadata | {"seed": str(arguments.seed)}
        save_grid(arguments.out, pictures, prompts, columns, grid_metadata)
        files = [arguments.out.with_suffix("") / f"{i:04d}.png" for i in range(len(pictures))]
    for file, picture, prompt, seed in zip(files, pictures, prompts, seeds, strict=True):
        save_png(file, picture, metadata | {"prompt": prompt, "seed": str(seed)})
    print(arguments.out)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
