"""Scene graphs and captions of the built-in data set.

`make(split, index)` generates a scene and its captions deterministically. Positions and lengths
are fractions of the image's side, x to the right and y down.
"""

import json
import random
from dataclasses import dataclass

Rgb = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "moon")
TEXTURES = ("plain", "striped", "dotted", "checkered")
COLORS: dict[str, Rgb] = {
    "red": (222, 32, 38),
    "orange": (250, 130, 10),
    "yellow": (250, 215, 30),
    "green": (35, 165, 60),
    "cyan": (20, 200, 215),
    "blue": (40, 85, 225),
    "purple": (135, 55, 195),
    "pink": (250, 95, 175),
}
"""sRGB. Hues differ by at least 28 degrees in OKLab, more than light and texture change them."""
BACKGROUNDS: dict[str, tuple[Rgb, Rgb]] = {
    "sand": ((228, 214, 188), (190, 171, 142)),
    "slate": ((126, 135, 144), (80, 88, 97)),
    "snow": ((248, 250, 252), (205, 212, 221)),
    "night": ((56, 58, 70), (22, 23, 30)),
    "meadow": ((172, 183, 152), (124, 138, 110)),
    "clay": ((190, 162, 148), (144, 117, 106)),
    "fog": ((208, 211, 209), (161, 166, 167)),
    "dusk": ((162, 154, 172), (106, 99, 120)),
}
"""sRGB near the light and far from it, muted to contrast with objects. No name contains a color
word, so a color word in a caption always describes an object."""
SIZES = {"small": (0.27, 0.31), "large": (0.39, 0.44)}
"""Range of diameters for each size word."""
CLOSEUP = (0.6, 0.8)
"""Range of diameters in close-ups."""
LIGHTS = (-0.9, -0.6, -0.3, 0.0, 0.3, 0.6, 0.9)
"""Directions of the light, in radians clockwise from straight above."""
RELATIONS = ("left of", "right of", "above", "below")
SPLITS = ("train", "validation", "novel")

HELD_OUT = (
    ("circle", "pink"),
    ("square", "orange"),
    ("triangle", "purple"),
    ("star", "green"),
    ("heart", "blue"),
    ("ring", "yellow"),
    ("cross", "cyan"),
    ("moon", "red"),
)
"""(shape, color) pairs of all objects in the `novel` split, absent from the other splits. Each
shape and each color is in one pair, so a model has seen both, but never combined."""
SEEN = tuple((s, c) for s in SHAPES for c in COLORS if (s, c) not in HELD_OUT)

MARGIN = 0.03
"""Minimum distance of an object from the border."""
GAP = 0.06
"""Minimum distance between two objects: two pixels at 32 px."""


@dataclass(frozen=True)
class Thing:
    """One object."""

    shape: str
    color: str
    size: str
    """One of SIZES, or '' in a close-up."""
    texture: str
    x: float
    """Center."""
    y: float
    diameter: float
    angle: float
    """Radians, clockwise."""


@dataclass(frozen=True)
class Scene:
    """The content of an image, for `rendering.render` and for captions."""

    background: str
    light: float
    """One of LIGHTS."""
    things: tuple[Thing, ...]
    """One object, or two that do not touch."""
    relation: str = ""
    """Position of the first object relative to the second, one of RELATIONS; '' for one object."""

    def to_json(self) -> str:
        """The scene as JSON text."""
        return json.dumps(self, default=vars)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Scene":
        """Parses the output of `to_json`."""
        values = json.loads(text)
        return cls(**values | {"things": tuple(Thing(**thing) for thing in values["things"])})


def make(split: str, index: int, *, closeup: bool = False) -> tuple[Scene, tuple[str, ...]]:
    """The scene at an index of a split, with four captions.

    Args:
        split: one of SPLITS.
        index: any index from 0. All three arguments together are the random seed.
        closeup: one object that fills most of the image. The caption then determines most pixels,
            so a model follows captions after minutes of training.

    Returns:
        The scene and captions of varying detail. All of them name the shape of every object. The
        first adds colors and the relation. The second is complete. The third omits the relation
        or some attributes. The fourth has colors, the relation and some other attributes.
    """
    rng = random.Random(f"{'closeup/' if closeup else ''}{split}/{index}")
    scene = _scene(rng, HELD_OUT if split == "novel" else SEEN, closeup)
    return scene, captions_of(scene, rng)


def _scene(rng: random.Random, pairs: tuple[tuple[str, str], ...], closeup: bool) -> Scene:
    chosen = rng.sample(pairs, 2 if not closeup and rng.random() < 0.6 else 1)
    relation = rng.choice(RELATIONS) if len(chosen) == 2 else ""
    sizes = ["" if closeup else rng.choice(tuple(SIZES)) for _ in chosen]
    diameters = [rng.uniform(*SIZES.get(size, CLOSEUP)) for size in sizes]
    places = _places(rng, diameters, relation)
    things = tuple(
        Thing(
            *pair,
            size=size,
            texture="plain" if rng.random() < 0.4 else rng.choice(TEXTURES[1:]),
            x=round(x, 4),
            y=round(y, 4),
            diameter=round(diameter, 4),
            angle=round(rng.uniform(-0.2, 0.2), 4),
        )
        for pair, size, diameter, (x, y) in zip(chosen, sizes, diameters, places, strict=True)
    )
    return Scene(rng.choice(tuple(BACKGROUNDS)), rng.choice(LIGHTS), things, relation)


def _places(rng: random.Random, diameters: list[float], relation: str) -> list[tuple[float, float]]:
    """Random centers (x, y) that satisfy the relation without overlap."""
    low = [MARGIN + diameter / 2 for diameter in diameters]
    high = [1 - limit for limit in low]
    if not relation:
        return [(rng.uniform(low[0], high[0]), rng.uniform(low[0], high[0]))]
    # Along the relation's axis, the free space is split randomly before, between and after the
    # objects. Across it, they differ by at most half their distance, so the relation is obvious.
    first, second = (0, 1) if relation in ("left of", "above") else (1, 0)
    room = 1 - 2 * MARGIN - sum(diameters) - GAP
    before, until = sorted((room * rng.random(), room * rng.random()))
    along, across = [0.0, 0.0], [0.0, 0.0]
    along[first], along[second] = low[first] + before, high[second] - (room - until)
    reach = (along[second] - along[first]) / 4
    middle = rng.uniform(max(low), min(high))
    for i in (0, 1):
        across[i] = min(max(middle + rng.uniform(-reach, reach), low[i]), high[i])
    x, y = (along, across) if relation in ("left of", "right of") else (across, along)
    return list(zip(x, y, strict=True))


# Captions: a phrase describes one object, a sentence combines phrases.

ALONE = ("{a}", "{a}", "a picture of {a}", "there is {a}")
TOGETHER = ("{a} and {b}", "{a} next to {b}", "{a} with {b}", "a picture of {a} and {b}")
RELATED = {
    relation: (
        f"{{a}} {relation} {{b}}",
        f"{{a}} {by} {{b}}",
        f"there is {{a}} {by} {{b}}",
        f"{{b}} with {{a}} {by} it",
    )
    for relation, by in zip(
        RELATIONS, ("to the left of", "to the right of", "above", "below"), strict=True
    )
}
ON_BACKGROUND = (
    "{sentence} on a {background} background",
    "{sentence} against a {background} background",
    "on a {background} background, {sentence}",
)


def captions_of(scene: Scene, rng: random.Random) -> tuple[str, str, str, str]:
    """Four captions of a scene, see `make`."""
    things = scene.things
    related = RELATED.get(scene.relation, ALONE)
    unrelated = TOGETHER if scene.relation else ALONE
    named = _say(rng, related, things, color=1.0)
    full = _say(rng, related, things, size=1.0, texture=1.0, color=1.0)
    full = _add_background(rng, full, scene)
    if rng.random() < 0.5:
        partial = _say(rng, unrelated, things, color=1.0)
    else:
        partial = _say(rng, related, things, size=0.5, texture=0.5, color=0.5)
    between = _say(rng, related, things, size=0.5, texture=0.5, color=1.0)
    if rng.random() < 0.3:
        between = _add_background(rng, between, scene)
    return named, full, partial, between


def _say(
    rng: random.Random, sentences: tuple[str, ...], things: tuple[Thing, ...], **attributes: float
) -> str:
    """A random sentence that mentions each attribute of each object with a given probability."""
    phrases = (
        phrase(thing, *(name for name, p in attributes.items() if rng.random() < p))
        for thing in things
    )
    return rng.choice(sentences).format(**dict(zip("ab", phrases, strict=False)))


def _add_background(rng: random.Random, sentence: str, scene: Scene) -> str:
    return rng.choice(ON_BACKGROUND).format(sentence=sentence, background=scene.background)


def phrase(thing: Thing, *attributes: str) -> str:
    """A noun phrase for an object, such as "an orange heart". Plain textures are not mentioned.

    Args:
        thing: the object.
        attributes: names of its fields to mention, in order.
    """
    words = [getattr(thing, attribute) for attribute in attributes]
    words = [word for word in words if word not in ("", "plain")] + [thing.shape]
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])
