"""Does a drawn scene show what its caption asks for? Read back from the pixels.

    python -m glide_jax.evaluation.scenes --checkpoint runs/scenes_tiny --n 64
    python -m glide_jax.evaluation.scenes --real --n 1000 --size-px 32

`scene_reader` says what an image shows, `captions` what a caption asks for, and this module
compares the two. With `--real` it judges the data set's own images: what a perfect model would
score. docs/results.md has the measured figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from jaxtyping import Bool, Int, UInt8

from glide_jax.data.scenes.graph import SPLITS
from glide_jax.errors import UserError
from glide_jax.evaluation.scenes.captions import Asked, AskedObject, parse_caption
from glide_jax.evaluation.scenes.reader import Found, Reading, read_scenes

ATTRIBUTES = ("shape", "color", "size", "texture")
"""Of an object; each is judged where the caption gives it."""
MEASURES = ("count", *ATTRIBUTES, "relation", "background")


@dataclass(frozen=True)
class Verdicts:
    """How many things captions ask for, and how many of them the images show."""

    asked: dict[str, Int[np.ndarray, "n"]]
    """By measure, of each image: up to 2 for an attribute of objects, up to 1 for the others."""
    right: dict[str, Int[np.ndarray, "n"]]

    @property
    def all_right(self) -> Bool[np.ndarray, "n"]:
        """Which images show everything asked for, and no object more."""
        asked, right = (
            np.stack([counts[m] for m in MEASURES]) for counts in (self.asked, self.right)
        )
        return (asked == right).all(0)

    def share(self, measure: str) -> float:
        """The share that is right of what is asked for, 0..1; NaN if nothing is."""
        asked = int(self.asked[measure].sum())
        return int(self.right[measure].sum()) / asked if asked else float("nan")

    def wrong(self, index: int) -> list[str]:
        """The measures in which an image is not what its caption asks for."""
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


def score_images(images: UInt8[np.ndarray, "n h w 3"], captions: Sequence[str]) -> Verdicts:
    """Which of the things that captions ask for the images show.

    Objects asked for are matched with objects found in the way that makes most of them right. What
    is asked of an object that is not there is wrong. What a caption leaves open cannot be wrong;
    but it names every object, so another one makes the count wrong.

    Args:
        images: 8-bit sRGB; validated from 32 to 128 px.
        captions: in the words of the data set, one an image.

    Raises:
        ValueError: a caption is none of the data set's sentences.
    """
    asked = [parse_caption(caption) for caption in captions]
    both = [_compare(a, r) for a, r in zip(asked, read_scenes(images), strict=True)]
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


def require_scenes(n: int, split: str) -> None:
    """Raises UserError unless `--n` and `--split` name records of the data set."""
    if n < 1:
        raise UserError(f"--n {n}: must be at least 1")
    if split not in SPLITS:
        raise UserError(f"--split {split}: must be one of {', '.join(SPLITS)}")
