"""Pairs of images of two models for the same captions, for people to vote on.

    python -m glide_jax.evaluate.pairs --a samples_a/ --b samples_b/ --out pairs/

Writes pairs/0000-left.png, pairs/0000-right.png, ..., and pairs/votes.csv with a row per pair. Its
empty columns `photorealism` and `caption_match` take `left`, `right` or `tie`. Which model is on
the left is random; pairs/key.csv says it: keep it from voters. `glide_jax.evaluate.elo` counts the
votes.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from glide_jax.cli import parse_flags
from glide_jax.config.bounds import SEED, Between
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.evaluation.image_sets import EvaluatedImage, open_images
from glide_jax.images import save_png
from glide_jax.storage import require_folder, write_atomically

VOTES_FILE, KEY_FILE = "votes.csv", "key.csv"
QUESTIONS = ("photorealism", "caption_match")
"""Columns of votes; the two questions of the paper."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Writes pairs of images of two models for the same captions."""

    a: Path
    """Folder of one model's samples, with prompts in their metadata as sample.py writes them."""
    b: Path
    """Folder of the other's."""
    out: Path
    """Folder for the pairs."""
    names: tuple[str, str] = ("", "")
    """Names of the two models; by default those of the folders."""
    n: Annotated[int | None, Between(1, 10**6)] = None
    """Number of pairs; by default one for each caption that both have."""
    seed: Annotated[int, SEED] = 0
    """Of the order of pairs and of sides."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises UserError."""
    arguments: Arguments = parse_flags(
        Arguments, "python -m glide_jax.evaluate.pairs", argv, __doc__
    )
    require_folder("--out", arguments.out)
    if (arguments.out / VOTES_FILE).exists():
        raise UserError(f"{arguments.out / VOTES_FILE} exists: give another --out, or remove it")
    names = [
        name or folder.resolve().name
        for name, folder in zip(arguments.names, (arguments.a, arguments.b), strict=True)
    ]
    if names[0] == names[1]:
        raise UserError(f"both models are named {names[0]}: give --names")
    of_a, of_b = (_by_caption(folder) for folder in (arguments.a, arguments.b))
    captions = [caption for caption in of_a if caption in of_b]
    if not captions:
        raise UserError(f"{arguments.a} and {arguments.b} have no caption in common")
    random = np.random.default_rng(arguments.seed)
    random.shuffle(captions)
    votes, key = [], []
    for number, caption in enumerate(captions[: arguments.n]):
        pair = f"{number:04d}"
        sides = [(names[0], of_a[caption]), (names[1], of_b[caption])]
        if random.random() < 0.5:
            sides.reverse()
        for side, (_, image) in zip(("left", "right"), sides, strict=True):
            save_png(arguments.out / f"{pair}-{side}.png", image.pixels)
        votes.append(
            [pair, caption, f"{pair}-left.png", f"{pair}-right.png", *[""] * len(QUESTIONS)]
        )
        key.append([pair, sides[0][0], sides[1][0]])
    _write(arguments.out / KEY_FILE, ["pair", "left", "right"], key)
    _write(arguments.out / VOTES_FILE, ["pair", "caption", "left", "right", *QUESTIONS], votes)
    print(f"{arguments.out}: {len(votes):,} pairs; fill in {arguments.out / VOTES_FILE}")


def _by_caption(folder: Path) -> dict[str, EvaluatedImage]:
    """The first image of each caption.

    Raises:
        UserError: an image has no caption.
    """
    found: dict[str, EvaluatedImage] = {}
    for image in open_images([folder]):
        if not image.captions:
            raise UserError(f"{folder}: {image.name} has no prompt in its metadata")
        found.setdefault(image.captions[0], image)
    return found


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    write_atomically(path, text.getvalue().encode())


if __name__ == "__main__":
    with exit_on_user_error():
        main()
