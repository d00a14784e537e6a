"""What a caption of the scenes data set asks for: its grammar, backwards.

The sentences are those that `scene_graph` writes, with each object's place in them made a pattern.
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
"""In the order in which a phrase says them."""


@dataclass(frozen=True)
class AskedObject:
    """What a phrase says of one object; '' is whatever it leaves open."""

    shape: str
    color: str = ""
    size: str = ""
    texture: str = ""
    """A plain texture goes unsaid in captions, so '' is any texture."""


@dataclass(frozen=True)
class Asked:
    """What a caption says of an image; '' is whatever it leaves open."""

    objects: tuple[AskedObject, ...]
    """All that the image may hold."""
    relation: str = ""
    """Where the first object is, seen from the second."""
    background: str = ""


def parse_caption(caption: str) -> Asked:
    """What the caption asks for.

    Args:
        caption: as `graph.make` writes it, in upper or lower case.

    Raises:
        ValueError: it is none of the data set's sentences.
    """
    text, background = caption.strip().lower(), ""
    for pattern in _grounds():
        if match := pattern.fullmatch(text):
            text, background = match["sentence"], match["background"]
            break
    for relation, sentence in _sentences():
        if match := sentence.fullmatch(text):
            phrases = [phrase for _, phrase in sorted(match.groupdict().items())]  # a before b
            return Asked(tuple(map(_object, phrases)), relation, background)
    raise ValueError(f"{caption!r} is not a caption of the scenes data set")


def _object(phrase: str) -> AskedObject:
    words = phrase.split()
    said = {name: [w for w in words if w in choice] for name, choice in WORDS.items()}
    return AskedObject(**{name: found[0] if found else "" for name, found in said.items()})


@cache
def _grounds() -> list[re.Pattern[str]]:
    background = f"(?P<background>{'|'.join(BACKGROUNDS)})"
    return [
        re.compile(g.format(sentence="(?P<sentence>.*)", background=background))
        for g in ON_BACKGROUND
    ]


@cache
def _sentences() -> list[tuple[str, re.Pattern[str]]]:
    """Relation ('' where none is said) and pattern, with the phrases as groups a and b."""
    return [(relation, re.compile(pattern)) for relation, pattern in _patterns()]


def _patterns() -> Iterator[tuple[str, str]]:
    *optional, shape = (f"(?:{'|'.join(words)})" for words in WORDS.values())
    phrase = "an? " + "".join(f"(?:{words} )?" for words in optional) + shape
    a, b = f"(?P<a>{phrase})", f"(?P<b>{phrase})"
    for relation, sentences in ({"": (*ALONE, *TOGETHER)} | RELATED).items():
        for sentence in sentences:
            yield relation, sentence.format(a=a, b=b)
