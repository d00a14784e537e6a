"""Parser of captions of the scenes data set.

Its patterns are made from the sentence templates of glide_jax.data.scenes.graph.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from glide_jax.data.scenes.graph import (
    ALONE,
    BACKGROUNDS,
    COLORS,
    ON_BACKGROUND,
    RELATED,
    SHAPES,
    SIZES,
    TEXTURES,
    TOGETHER,
)

WORDS = {"size": tuple(SIZES), "texture": TEXTURES, "color": tuple(COLORS), "shape": SHAPES}
"""Words of each attribute, in the order of a phrase."""


@dataclass(frozen=True)
class ObjectDescription:
    """The attributes that a phrase states of an object; '' if unstated."""

    shape: str
    color: str = ""
    size: str = ""
    texture: str = ""
    """Captions never state a plain texture: '' is any texture."""


@dataclass(frozen=True)
class Description:
    """The content of a caption; '' if unstated."""

    objects: tuple[ObjectDescription, ...]
    """All objects of the image."""
    relation: str = ""
    """Position of the first object relative to the second."""
    background: str = ""


def parse_caption(caption: str) -> Description:
    """Parses a caption.

    Args:
        caption: as `graph.make` writes it, in upper or lower case.

    Raises:
        ValueError: it is not a sentence of the data set.
    """
    text, background = caption.strip().lower(), ""
    for pattern in _backgrounds():
        if match := pattern.fullmatch(text):
            text, background = match["sentence"], match["background"]
            break
    for relation, sentence in _sentences():
        if match := sentence.fullmatch(text):
            phrases = [phrase for _, phrase in sorted(match.groupdict().items())]  # a before b
            return Description(tuple(map(_object, phrases)), relation, background)
    raise ValueError(f"{caption!r} is not a caption of the scenes data set")


def _object(phrase: str) -> ObjectDescription:
    words = phrase.split()
    stated = {name: [w for w in words if w in choice] for name, choice in WORDS.items()}
    return ObjectDescription(**{name: found[0] if found else "" for name, found in stated.items()})


@cache
def _backgrounds() -> list[re.Pattern[str]]:
    background = f"(?P<background>{'|'.join(BACKGROUNDS)})"
    return [
        re.compile(g.format(sentence="(?P<sentence>.*)", background=background))
        for g in ON_BACKGROUND
    ]


@cache
def _sentences() -> list[tuple[str, re.Pattern[str]]]:
    """Each sentence's relation ('' for none) and pattern, with the phrases as groups a and b."""
    return [(relation, re.compile(pattern)) for relation, pattern in _patterns()]


def _patterns() -> Iterator[tuple[str, str]]:
    *optional, shape = (f"(?:{'|'.join(words)})" for words in WORDS.values())
    phrase = "an? " + "".join(f"(?:{words} )?" for words in optional) + shape
    a, b = f"(?P<a>{phrase})", f"(?P<b>{phrase})"
    for relation, sentences in ({"": (*ALONE, *TOGETHER)} | RELATED).items():
        for sentence in sentences:
            yield relation, sentence.format(a=a, b=b)
