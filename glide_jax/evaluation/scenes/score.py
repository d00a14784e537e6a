"""The scorer: whether images show what captions of the scenes data set state.

`reader` detects the objects of an image, `captions` parses a caption, and this module compares
them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from jaxtyping import Bool, Int, UInt8

from glide_jax.evaluation.scenes.captions import Description, ObjectDescription, parse_caption
from glide_jax.evaluation.scenes.reader import Detection, Reading, read_scenes

ATTRIBUTES = ("shape", "color", "size", "texture")
"""Attributes of an object, each scored where the caption states it."""
MEASURES = ("count", *ATTRIBUTES, "relation", "background")


@dataclass(frozen=True)
class Scores:
    """Counts by measure: what captions state, and how much of it the images show."""

    stated: dict[str, Int[np.ndarray, "n"]]
    """By image: up to 2 for an attribute of objects, up to 1 for the other measures."""
    correct: dict[str, Int[np.ndarray, "n"]]

    @property
    def exact_match(self) -> Bool[np.ndarray, "n"]:
        """Images that match their caption in every measure, with no extra object."""
        stated, correct = (
            np.stack([counts[m] for m in MEASURES]) for counts in (self.stated, self.correct)
        )
        return (stated == correct).all(0)

    def accuracy(self, measure: str) -> float:
        """Fraction correct of what captions state, 0..1; NaN if they state nothing."""
        stated = int(self.stated[measure].sum())
        return int(self.correct[measure].sum()) / stated if stated else float("nan")

    def wrong(self, index: int) -> list[str]:
        """The measures in which an image does not match its caption."""
        return [m for m in MEASURES if self.correct[m][index] < self.stated[m][index]]

    def __str__(self) -> str:
        """A line for each measure that any caption states, and one for exact matches."""
        totals = {m: (self.correct[m].sum(), self.stated[m].sum()) for m in MEASURES}
        totals["exact match"] = self.exact_match.sum(), self.exact_match.size
        return "\n".join(
            f"{measure} {correct} of {stated} ({correct / stated:.1%})"
            for measure, (correct, stated) in totals.items()
            if stated
        )


def score_images(images: UInt8[np.ndarray, "n h w 3"], captions: Sequence[str]) -> Scores:
    """Scores images against captions.

    Stated objects are assigned to detected ones so that most attributes are correct. Attributes of
    a missing object are wrong. Attributes that a caption leaves open are not scored. A caption
    names every object, so an extra one makes the count wrong.

    Args:
        images: 8-bit sRGB; validated from 32 to 128 px.
        captions: sentences of the data set, one per image.

    Raises:
        ValueError: a caption is not a sentence of the data set.
    """
    described = [parse_caption(caption) for caption in captions]
    both = [_compare(d, r) for d, r in zip(described, read_scenes(images), strict=True)]
    stated, correct = (
        {m: np.array([counts[side][m] for counts in both], np.int64) for m in MEASURES}
        for side in (0, 1)
    )
    return Scores(stated, correct)


def _compare(described: Description, reading: Reading) -> tuple[dict[str, int], dict[str, int]]:
    """The counts of one image by measure: stated, and correct."""
    stated = {
        name: sum(bool(getattr(one, name)) for one in described.objects) for name in ATTRIBUTES
    } | {
        "count": 1,
        "relation": bool(described.relation),
        "background": bool(described.background),
    }
    missing = [None] * len(described.objects)
    assignments = permutations((*reading.objects, *missing), len(described.objects))
    correct = max((_correct(described, detected) for detected in assignments), key=_rank)
    correct["count"] = len(reading.objects) == len(described.objects)
    correct["background"] = (
        bool(described.background) and described.background == reading.background
    )
    return stated, correct


def _correct(described: Description, detected: tuple[Detection | None, ...]) -> dict[str, int]:
    """The correct attributes and relation, for one assignment of detections to stated objects."""
    correct = {
        name: sum(_shows(d, o, name) for d, o in zip(detected, described.objects, strict=True))
        for name in ATTRIBUTES
    }
    correct["relation"] = bool(described.relation) and described.relation == _relation(*detected)
    return correct


def _rank(correct: dict[str, int]) -> tuple[int, int]:
    """Order of assignments: by attributes, then by the relation."""
    return sum(correct[name] for name in ATTRIBUTES), correct["relation"]


def _shows(detected: Detection | None, described: ObjectDescription, name: str) -> bool:
    stated = getattr(described, name)
    return bool(stated) and detected is not None and getattr(detected, name) == stated


def _relation(first: Detection | None, second: Detection | None) -> str:
    """Position of the first relative to the second, along the axis of the larger distance."""
    if first is None or second is None:
        return ""
    x, y = first.x - second.x, first.y - second.y
    if abs(x) > abs(y):
        return "left of" if x < 0 else "right of"
    return "above" if y < 0 else "below"
