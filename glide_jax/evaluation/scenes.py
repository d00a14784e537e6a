"""Does a drawn scene show what its caption asks for? Read back from the pixels.

    python -m glide_jax.evaluation.scenes --checkpoint runs/scenes_tiny --n 64
    python -m glide_jax.evaluation.scenes --real --n 1000 --size-px 32

`scene_reader` says what a picture shows, `captions` what a caption asks for, and this module
compares the two. With `--real` it judges the data set's own pictures: what a perfect model would
score. docs/results.md has the measured figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Bool, Int, UInt8

from glide_jax.command_line import SharedOut, keep_compiled_programs
from glide_jax.data.scene_graph import SPLITS, make
from glide_jax.data.scene_workers import encoded_scene
from glide_jax.data.transforms import load_pixels
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.evaluation.captions import Asked, AskedObject, parse_caption
from glide_jax.evaluation.scene_reader import Found, Reading, read_scenes
from glide_jax.pictures import save_grid
from glide_jax.pipeline import Glide
from glide_jax.stage import MAX_BATCH
from glide_jax.storage import require_here
from glide_jax.training.sharding import use_all_cores

ATTRIBUTES = ("shape", "colour", "size", "texture")
"""Of an object; each is judged where the caption gives it."""
MEASURES = ("count", *ATTRIBUTES, "relation", "background")
MOST_LISTED = 20
"""Captions of wrong pictures that the command prints."""


@dataclass(frozen=True)
class Verdicts:
    """How many things captions ask for, and how many of them the pictures show."""

    asked: dict[str, Int[np.ndarray, "n"]]
    """By measure, of each picture: up to 2 for an attribute of objects, up to 1 for the others."""
    right: dict[str, Int[np.ndarray, "n"]]

    @property
    def all_right(self) -> Bool[np.ndarray, "n"]:
        """Which pictures show everything asked for, and no object more."""
        asked, right = (
            np.stack([counts[m] for m in MEASURES]) for counts in (self.asked, self.right)
        )
        return (asked == right).all(0)

    def share(self, measure: str) -> float:
        """The share that is right of what is asked for, 0..1; NaN if nothing is."""
        asked = int(self.asked[measure].sum())
        return int(self.right[measure].sum()) / asked if asked else float("nan")

    def wrong(self, index: int) -> list[str]:
        """The measures in which a picture is not what its caption asks for."""
        return [m for m in MEASURES if self.right[m][index] < self.asked[m][index]]

    def __str__(self) -> str:
        """A line for each measure that any caption asks for, and one for all together."""
        totals = {m: (self.right[m].sum(), self.asked[m].sum()) for m in MEASURES}
        totals["all right"] = self.all_right.sum(), self.all_right.size
        return "\n".join(
            f"{measure} {right} of {asked} ({right / asked:.1%})"
            for measure, (right, asked) in totals.items()
            if asked
        )


def judge(pictures: UInt8[np.ndarray, "n h w 3"], captions: Sequence[str]) -> Verdicts:
    """Which of the things that captions ask for the pictures show.

    Objects asked for are matched with objects found in the way that makes most of them right. What
    is asked of an object that is not there is wrong. What a caption leaves open cannot be wrong;
    but it names every object, so another one makes the count wrong.

    Args:
        pictures: 8-bit sRGB; validated from 32 to 128 px.
        captions: in the words of the data set, one a picture.

    Raises:
        ValueError: a caption is none of the data set's sentences.
    """
    asked = [parse_caption(caption) for caption in captions]
    both = [_compare(a, r) for a, r in zip(asked, read_scenes(pictures), strict=True)]
    of_asked, of_right = (
        {m: np.array([counts[side][m] for counts in both], np.int64) for m in MEASURES}
        for side in (0, 1)
    )
    return Verdicts(of_asked, of_right)


def _compare(asked: Asked, reading: Reading) -> tuple[dict[str, int], dict[str, int]]:
    """How often each measure is asked for, and how often it is right."""
    counts = {
        name: sum(bool(getattr(one, name)) for one in asked.objects) for name in ATTRIBUTES
    } | {"count": 1, "relation": bool(asked.relation), "background": bool(asked.background)}
    candidates = permutations((*reading.objects, *[None] * len(asked.objects)), len(asked.objects))
    right = max((_right(asked, found) for found in candidates), key=_merit)
    right["count"] = len(reading.objects) == len(asked.objects)
    right["background"] = bool(asked.background) and asked.background == reading.background
    return counts, right


def _right(asked: Asked, found: tuple[Found | None, ...]) -> dict[str, int]:
    """How often attributes and relation are right if the found objects are those asked for."""
    right = {
        name: sum(_shows(f, a, name) for f, a in zip(found, asked.objects, strict=True))
        for name in ATTRIBUTES
    }
    right["relation"] = bool(asked.relation) and asked.relation == _relation(*found)
    return right


def _merit(right: dict[str, int]) -> tuple[int, int]:
    """Attributes decide which object is which; the relation decides only between equals."""
    return sum(right[name] for name in ATTRIBUTES), right["relation"]


def _shows(found: Found | None, asked: AskedObject, name: str) -> bool:
    wanted = getattr(asked, name)
    return bool(wanted) and found is not None and getattr(found, name) == wanted


def _relation(first: Found | None, second: Found | None) -> str:
    """Where the first is, seen from the second: along the axis on which they are further apart."""
    if first is None or second is None:
        return ""
    x, y = first.x - second.x, first.y - second.y
    if abs(x) > abs(y):
        return "left of" if x < 0 else "right of"
    return "above" if y < 0 else "below"


@dataclass(frozen=True)
class Arguments(SharedOut):
    """Draws pictures for captions of the scenes data set and counts what they show of them.

    Prints the share that is right of each thing captions ask for, and captions of wrong pictures.
    """

    checkpoint: str | Path | None = None
    """Run folder of the model that draws."""
    real: bool = False
    """Judge the data set's own pictures instead: the best share the judge lets anyone reach."""
    n: int = 64
    """Captions: one of each of the split's first n records."""
    split: str = "validation"
    """train, validation or novel (shapes in colours they never have in training)."""
    caption_index: int = 0
    """Which of a record's four captions: 0 gives colours and relation, 1 says everything."""
    closeups: bool | None = None
    """Whether captions and real pictures are close-ups. Follows the model's own data set."""
    size_px: int = 64
    """Side of real pictures; a model has its own."""
    guidance_scale: float | None = None
    """1 is no guidance. This and the next two default to the run's own settings."""
    steps: str | None = None
    """A number of steps, or a respacing such as 10,10,3,2,2."""
    sampler: str | None = None
    """A key of glide_jax.diffusion.samplers.SAMPLERS."""
    seed: int = 0
    """Of the first picture; the next has seed + 1, and so on."""
    out: Path | None = None
    """PNG file for a grid of the pictures, eight in a row."""


def require_scenes(n: int, split: str) -> None:
    """Raises UserError unless `--n` and `--split` name records of the data set."""
    if n < 1:
        raise UserError(f"--n {n}: must be at least 1")
    if split not in SPLITS:
        raise UserError(f"--split {split}: must be one of {', '.join(SPLITS)}")


def main(arguments: Arguments) -> None:
    """The command. Raises UserError."""
    require_here(arguments.out)
    require_scenes(arguments.n, arguments.split)
    if arguments.real == (arguments.checkpoint is not None):
        raise UserError("give --checkpoint RUN to judge a model, or --real: one of the two")
    if arguments.caption_index not in range(4):
        raise UserError(f"--caption-index {arguments.caption_index}: must be 0, 1, 2 or 3")
    keep_compiled_programs()
    use_all_cores(min(arguments.n, MAX_BATCH))
    glide = (
        None
        if arguments.checkpoint is None
        else Glide.load(arguments.checkpoint, fsdp=arguments.fsdp)
    )
    closeup = bool(arguments.closeups)
    if glide is not None and arguments.closeups is None:
        closeup = glide.config("base").data.name == "closeups"
    indices = range(arguments.n)
    each = (make(arguments.split, index, closeup=closeup)[1] for index in indices)
    captions = [captions[arguments.caption_index] for captions in each]
    if glide is None:
        files = (encoded_scene(arguments.split, i, closeup=closeup).image for i in indices)
        pictures = np.stack([load_pixels(file, arguments.size_px) for file in files])
    else:
        pictures = _generated(glide, arguments, captions)
    verdicts = judge(pictures, captions)
    wrong = {i: ", ".join(verdicts.wrong(i)) for i in indices if not verdicts.all_right[i]}
    for index in list(wrong)[:MOST_LISTED]:
        print(f"wrong in {wrong[index]}: {captions[index]}")
    if len(wrong) > MOST_LISTED:
        print(f"and {len(wrong) - MOST_LISTED} more")
    print(verdicts)
    if arguments.out is not None:
        marked = [f"{c} (wrong in {wrong[i]})" if i in wrong else c for i, c in enumerate(captions)]
        save_grid(arguments.out, pictures, marked, columns=8)
        print(arguments.out)


def _generated(
    glide: Glide, arguments: Arguments, captions: list[str]
) -> UInt8[np.ndarray, "n h w 3"]:
    return glide.generate(
        captions,
        upsample=False,
        guidance_scale=arguments.guidance_scale,
        steps=arguments.steps,
        sampler=arguments.sampler,
        seed=[arguments.seed + index for index in range(arguments.n)],
        progress=True,
    )


if __name__ == "__main__":
    with exit_on_user_error():
        main(tyro.cli(Arguments, prog="python -m glide_jax.evaluation.scenes"))
