"""Scene graphs and captions of the built-in data set."""

import hashlib
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glide_jax.data.scenes.graph import (
    BACKGROUNDS,
    COLORS,
    GAP,
    HELD_OUT,
    MARGIN,
    SHAPES,
    SPLITS,
    Scene,
    make,
)
from glide_jax.data.scenes.rendering import render

records = st.tuples(st.sampled_from(SPLITS), st.integers(0, 10**6))


def words(caption: str, vocabulary) -> Counter:
    return Counter(word for word in re.findall("[a-z]+", caption) if word in vocabulary)


# Trained models and published results depend on the exact data set.


@pytest.mark.parametrize(
    ("split", "captions_sha256", "images_sha256"),
    [
        (
            "train",
            "fa40ba260cfc7d49ab2f23283be593a419847fa27b5058c46b11d903e8b40ba0",
            "81b1732bbe89b6c026b610b6f2bf6540971d338a4be927f17ed800dda0db4dfd",
        ),
        (
            "validation",
            "9838051d9b8c59ef76f9ecbe6e5f35fb8e511b1d6748fe7df43cdb897020892f",
            "8895c94616af3f1844f07e742b546bdb14b669d393f58e128eb0f3654f37aebc",
        ),
        (
            "novel",
            "59cd112508e68caac49aafc30c795a02a3a101a5583cce3c3718ff06dffd83bb",
            "1241e31afa2146c23dc5caa5a6a8ad75185078edc3d7763ea79aa5e34176acbb",
        ),
    ],
)
def test_captions_and_images_never_change(split, captions_sha256, images_sha256):
    captions_digest, images_digest = hashlib.sha256(), hashlib.sha256()
    for index in range(1000):
        scene, captions = make(split, index)
        captions_digest.update("\n".join(captions).encode())
        images_digest.update(render(scene, 128).tobytes())
    assert captions_digest.hexdigest() == captions_sha256
    assert images_digest.hexdigest() == images_sha256


# Scene graphs


@given(records)
def test_a_scene_depends_only_on_its_split_and_index(record):
    scene, captions = make(*record)
    assert make(*record) == (scene, captions)
    assert make(record[0], record[1] + 1)[0] != scene
    assert Scene.from_json(scene.to_json()) == scene
    assert Scene.from_json(scene.to_json().encode()) == scene


def test_held_out_pairs_occur_only_in_novel():
    for split in SPLITS:
        pairs = {(t.shape, t.color) for index in range(500) for t in make(split, index)[0].things}
        assert pairs == set(HELD_OUT) if split == "novel" else len(pairs) == 56
        assert split == "novel" or pairs.isdisjoint(HELD_OUT)
    shapes, colors = zip(*HELD_OUT, strict=True)
    assert sorted(shapes) == sorted(SHAPES) and sorted(colors) == sorted(COLORS)


@given(records)
def test_objects_keep_their_distance_and_satisfy_the_relation(record):
    scene, _ = make(*record)
    for thing in scene.things:
        for center in (thing.x, thing.y):
            assert center - thing.diameter / 2 >= MARGIN - 1e-3
            assert center + thing.diameter / 2 <= 1 - MARGIN + 1e-3
    assert bool(scene.relation) == (len(scene.things) == 2)
    if scene.relation:
        a, b = scene.things
        assert (a.shape, a.color) != (b.shape, b.color)
        ahead, aside = {
            "left of": (b.x - a.x, a.y - b.y),
            "right of": (a.x - b.x, a.y - b.y),
            "above": (b.y - a.y, a.x - b.x),
            "below": (a.y - b.y, a.x - b.x),
        }[scene.relation]
        assert ahead >= (a.diameter + b.diameter) / 2 + GAP - 1e-3
        assert abs(aside) <= ahead / 2 + 1e-3


# Captions


@given(records)
def test_captions_have_the_documented_detail(record):
    scene, captions = make(*record)
    shapes = Counter(thing.shape for thing in scene.things)
    colors = Counter(thing.color for thing in scene.things)
    named, full, partial, between = captions
    for caption in captions:
        assert words(caption, SHAPES) == shapes
        assert words(caption, COLORS) <= colors
    for caption in (named, full, between):
        assert words(caption, COLORS) == colors
    assert scene.background in full
    for thing in scene.things:
        texture = "" if thing.texture == "plain" else f"{thing.texture} "
        assert f"a {thing.size} {texture}{thing.color} {thing.shape}" in full
    assert len(partial) < len(full) and len(named) < len(full)


@given(records)
def test_captions_are_grammatical(record):
    for caption in make(*record)[1]:
        assert re.fullmatch("[a-z]+([ ,][ a-z]+)*", caption) and "  " not in caption
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption)


@given(records)
def test_captions_state_the_relation_in_the_right_direction(record):
    scene, captions = make(*record)
    if not scene.relation:
        return
    first, second = (thing.shape for thing in scene.things)
    word = scene.relation.split()[0]
    for caption in captions:
        direct = f"{first} (to the )?{scene.relation} an? [a-z ]*{second}"
        turned = f"{second} with an? [a-z ]*{first} (to the )?{scene.relation} it"
        if word in caption and first != second:
            assert re.search(direct, caption) or re.search(turned, caption), caption
    assert word in captions[0] and word in captions[1]


def test_background_names_contain_no_color():
    assert not any(color in background for background in BACKGROUNDS for color in COLORS)
