"""Pairs of images of two models for the same captions, for people to vote on.

    python -m glide_jax.evaluate.pairs --a samples_a/ --b samples_b/ --out pairs/

Writes pairs/0000-left.png, pairs/0000-right.png, ..., and pairs/votes.csv with a row per pair. Its
empty columns `photorealism` and `caption_match` take `left`, `right` or `tie`. Which model is on
the left is random; pairs/key.csv says it: keep it from voters. `glide_jax.evaluate.elo` counts the
votes.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Bool

from glide_jax.cli import parse_flags
from glide_jax.config.bounds import SEED, Between
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.evaluation.image_sets import open_images
from glide_jax.images import save_png
from glide_jax.storage import require_folder, write_atomically

VOTES_FILE, KEY_FILE = "votes.csv", "key.csv"
SIDES = ("left", "right")
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
    folders = (arguments.a, arguments.b)
    of_a, of_b = (dict.fromkeys(_captions(folder)) for folder in folders)
    captions = [caption for caption in of_a if caption in of_b]
    if not captions:
        raise UserError(f"{arguments.a} and {arguments.b} have no caption in common")
    random = np.random.default_rng(arguments.seed)
    random.shuffle(captions)
    captions = captions[: arguments.n]
    a_is_left = random.random(len(captions)) < 0.5
    votes, key = [], []
    for number, (caption, left) in enumerate(zip(captions, a_is_left, strict=True)):
        sides = names if left else names[::-1]
        files = [_file(number, side) for side in SIDES]
        votes.append([str(number), caption, *files, *[""] * len(QUESTIONS)])
        key.append([str(number), *sides])
    for folder, is_left in zip(folders, (a_is_left, ~a_is_left), strict=True):
        _save(folder, captions, is_left, arguments.out)
    _write(arguments.out / KEY_FILE, ["pair", *SIDES], key)
    _write(arguments.out / VOTES_FILE, ["pair", "caption", *SIDES, *QUESTIONS], votes)
    print(f"{arguments.out}: {len(votes):,} pairs; fill in {arguments.out / VOTES_FILE}")


def _captions(folder: Path) -> Iterator[str]:
    """The caption of each image.

    Raises:
        UserError: an image has none.
    """
    for image in open_images([folder]):
        if not image.captions:
            raise UserError(
                f"{folder}: {image.name} has no prompt in its metadata, and no .txt file beside it"
            )
        yield image.captions[0]


def _save(folder: Path, captions: Sequence[str], is_left: Bool[np.ndarray, "n"], out: Path) -> None:
    """Writes the first image of each caption, on its side of the pair."""
    left = {caption: number for number, caption in enumerate(captions)}
    for image in open_images([folder]):
        number = left.pop(image.captions[0], None)
        if number is not None:
            side = SIDES[0] if is_left[number] else SIDES[1]
            save_png(out / _file(number, side), image.pixels)


def _file(pair: int, side: str) -> str:
    return f"{pair:04d}-{side}.png"


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    write_atomically(path, text.getvalue().encode())


if __name__ == "__main__":
    with exit_on_user_error():
        main()
