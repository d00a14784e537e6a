import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from glide_jax.data.scenes.graph import (
    COLORS,
    HELD_OUT,
    SHAPES,
    SPLITS,
    TEXTURES,
    Scene,
    Thing,
    make,
)
from glide_jax.data.scenes.rendering import render
from glide_jax.data.scenes.workers import encoded_scene
from glide_jax.data.transforms import load_pixels
from glide_jax.errors import UserError
from glide_jax.evaluation.scenes import __main__ as evaluation
from glide_jax.evaluation.scenes import train_reader
from glide_jax.evaluation.scenes.__main__ import main
from glide_jax.evaluation.scenes.captions import (
    WORDS,
    Description,
    ObjectDescription,
    parse_caption,
)
from glide_jax.evaluation.scenes.reader import NETWORK, WEIGHTS, read_scenes
from glide_jax.evaluation.scenes.score import MEASURES, score_images
from glide_jax.pretrained.weight_files import read_tensors

N = 400
COMPLETE = 1
"""Index of the caption that states everything."""

LEFT = Thing("star", "red", "large", "striped", 0.26, 0.5, 0.42, 0.0)
RIGHT = Thing("ring", "blue", "large", "plain", 0.74, 0.5, 0.42, 0.0)
PAIR = Scene("fog", 0.0, (LEFT, RIGHT), "left of")
CAPTION = "a large striped red star left of a large blue ring on a fog background"


@cache
def files(split, closeup):
    """The first images of the split, as files, and their captions."""
    captions = [make(split, index, closeup=closeup)[1] for index in range(N)]
    return [encoded_scene(split, i, closeup=closeup).image for i in range(N)], captions


@cache
def real(split, size_px, closeup=False):
    """The first images of the split, as a model of this size sees them, and their captions."""
    encoded, captions = files(split, closeup)
    return np.stack([load_pixels(file, size_px) for file in encoded]), captions


@cache
def readings():
    return read_scenes(real("validation", 32)[0])


def shown(*things, background="fog", size_px=32):
    """An image of these things at this resolution."""
    return render(Scene(background, 0.0, things), size_px)[None]


# Captions


@pytest.mark.parametrize("closeup", [False, True])
@pytest.mark.parametrize("split", SPLITS)
def test_captions_are_parsed_to_the_content_of_their_scene(split, closeup):
    for index in range(500):
        scene, captions = make(split, index, closeup=closeup)
        for which, caption in enumerate(captions):
            parsed = parse_caption(caption)
            assert parsed.relation in ("", scene.relation)
            assert parsed.background in ("", scene.background)
            for one, thing in zip(parsed.objects, scene.things, strict=True):
                for name in ("color", "size", "texture"):
                    assert getattr(one, name) in ("", getattr(thing, name)), caption
                assert one.shape == thing.shape
                assert one.color or which == 2
            for name, words in WORDS.items():
                stated = [getattr(one, name) for one in parsed.objects]
                written = [word for word in caption.split() if word in words]
                assert sorted(filter(None, stated)) == sorted(written), caption
        complete = parse_caption(captions[COMPLETE])
        assert (complete.relation, complete.background) == (scene.relation, scene.background)
        for one, thing in zip(complete.objects, scene.things, strict=True):
            texture = "" if thing.texture == "plain" else thing.texture
            assert one == ObjectDescription(thing.shape, thing.color, thing.size, texture)


@pytest.mark.parametrize(
    ("caption", "relation"),
    [
        ("a red star left of a ring", "left of"),
        ("A red star to the LEFT of a ring", "left of"),
        ("there is a red star above a ring", "above"),
        ("a ring with a red star above it", "above"),
        ("a ring with a red star to the right of it", "right of"),
        ("a picture of a red star and a ring", ""),
        ("a red star with a ring", ""),
    ],
)
def test_the_relation_is_that_of_the_first_object(caption, relation):
    objects = (ObjectDescription("star", "red"), ObjectDescription("ring"))
    assert parse_caption(caption) == Description(objects, relation)


@pytest.mark.parametrize("caption", ["", "hello", "a red", "a star a ring", "a red star left of"])
def test_other_sentences_are_refused(caption):
    with pytest.raises(ValueError, match="is not a caption of the scenes data set"):
        parse_caption(caption)


# Real images


@pytest.mark.parametrize("size_px", [32, 64, 128])
@pytest.mark.parametrize("split", ["validation", "novel"])
def test_real_images_are_read_correctly(split, size_px):
    images, captions = real(split, size_px)
    scores = score_images(images, [four[COMPLETE] for four in captions])
    for measure in MEASURES:
        assert scores.stated[measure].sum() > 200
        assert scores.accuracy(measure) >= 0.98, f"{measure}\n{scores}"


@pytest.mark.parametrize("size_px", [24, 32, 64])
def test_real_closeups_are_read_correctly(size_px):
    images, captions = real("validation", size_px, closeup=True)
    scores = score_images(images, [four[COMPLETE] for four in captions])
    for measure in ("count", "shape", "color", "texture", "background"):
        assert scores.accuracy(measure) >= 0.98, f"{measure}\n{scores}"
    assert not scores.stated["size"].any() and not scores.stated["relation"].any()


def test_plain_objects_are_read_as_plain():
    scenes = [make("validation", index)[0] for index in range(N)]
    plain = [
        found.texture == "plain"
        for scene, reading in zip(scenes, readings(), strict=True)
        for thing in scene.things
        if thing.texture == "plain"
        for found in reading.objects
        if np.hypot(found.x - thing.x, found.y - thing.y) < 0.05
    ]
    assert len(plain) > 200
    assert np.mean(plain) >= 0.98


def test_places_and_sizes_of_objects_are_read_correctly():
    scenes = [make("validation", index)[0] for index in range(N)]
    apart, larger = [], []
    for scene, reading in zip(scenes, readings(), strict=True):
        if len(reading.objects) == len(scene.things):
            things = sorted(scene.things, key=lambda thing: (thing.x, thing.y))
            found = sorted(reading.objects, key=lambda one: (one.x, one.y))
            pairs = list(zip(found, things, strict=True))
            apart += [max(abs(one.x - thing.x), abs(one.y - thing.y)) for one, thing in pairs]
            larger += [abs(one.diameter - thing.diameter) for one, thing in pairs]
    # Half a pixel; half of what lies between the ranges of small and large.
    assert np.quantile(apart, 0.9) < 0.5 / 32
    assert np.quantile(larger, 0.98) < 0.04


# Wrong images: each wrong in what was changed, and in nothing else.


CHANGED = [
    ((LEFT, RIGHT), []),
    ((replace(LEFT, shape="heart"), RIGHT), ["shape"]),
    ((replace(LEFT, color="yellow"), RIGHT), ["color"]),
    ((replace(LEFT, texture="dotted"), RIGHT), ["texture"]),
    ((replace(LEFT, texture="plain"), RIGHT), ["texture"]),
    ((LEFT, replace(RIGHT, diameter=0.29)), ["size"]),
    ((replace(LEFT, x=0.74), replace(RIGHT, x=0.26)), ["relation"]),
    ((replace(LEFT, x=0.5, y=0.26), replace(RIGHT, x=0.5, y=0.74)), ["relation"]),
    ((replace(LEFT, color="blue"), replace(RIGHT, color="red")), ["color"]),
    ((LEFT,), ["count", "shape", "color", "size", "relation"]),
    ((), ["count", "shape", "color", "size", "texture", "relation"]),
]


@cache
def scores_of_changed(size_px):
    """A single batch: to read one image takes as long."""
    images = np.concatenate([shown(*things, size_px=size_px) for things, _ in CHANGED])
    return score_images(images, [CAPTION] * len(CHANGED))


@pytest.mark.parametrize("size_px", [32, 64, 128])
@pytest.mark.parametrize("index", range(len(CHANGED)))
def test_wrong_images_are_wrong_only_in_the_changed_attribute(index, size_px):
    scores, (_, wrong) = scores_of_changed(size_px), CHANGED[index]
    assert scores.wrong(index) == wrong
    assert scores.exact_match[index] == (not wrong)


def test_another_background_is_wrong():
    scores = score_images(shown(LEFT, RIGHT, background="night"), [CAPTION])
    assert scores.wrong(0) == ["background"]


@pytest.mark.parametrize("size_px", [32, 64])
def test_an_extra_object_makes_the_count_wrong(size_px):
    extra = Thing("square", "green", "small", "plain", 0.5, 0.82, 0.28, 0.0)
    above = [replace(thing, y=0.3) for thing in (LEFT, RIGHT)]
    scores = score_images(shown(*above, extra, size_px=size_px), [CAPTION])
    assert scores.wrong(0) == ["count"]


def test_unstated_attributes_are_not_scored():
    captions = ["a star left of a ring", "a red star and a ring", "a ring and a star", CAPTION]
    scores = score_images(np.repeat(shown(LEFT, RIGHT), 4, axis=0), captions)
    assert scores.exact_match.all()
    assert scores.stated["color"].tolist() == [0, 1, 0, 2]
    assert scores.stated["relation"].tolist() == [1, 0, 0, 1]
    assert scores.stated["texture"].tolist() == [0, 0, 0, 1]
    assert scores.accuracy("texture") == 1
    assert np.isnan(score_images(shown(LEFT, RIGHT), captions[:1]).accuracy("texture"))


def test_real_images_are_wrong_for_the_captions_of_others():
    images, captions = real("validation", 32)
    scenes = [make("validation", index)[0] for index in range(N)]
    other = [(index + 1) % N for index in range(N)]
    scores = score_images(images, [captions[o][0] for o in other])

    def content(scene):  # the content of the first caption, in any order
        things = sorted((thing.shape, thing.color, thing.x, thing.y) for thing in scene.things)
        return [thing[:2] for thing in things]

    differ = np.array([content(scenes[i]) != content(scenes[o]) for i, o in enumerate(other)])
    assert differ.sum() > 390
    assert not scores.exact_match[differ].any()


def test_clear_objects_are_detected_and_faint_ones_are_not():
    things = [replace(LEFT, shape=shape, x=0.5) for shape in SHAPES]
    with_them = np.concatenate([shown(thing) for thing in things]).astype(np.float32)
    mixed = (share * with_them + (1 - share) * shown() for share in (0.15, 0.9))
    faint, clear = (read_scenes(images.round().astype(np.uint8)) for images in mixed)
    assert not any(reading.objects for reading in faint)
    found = [[(one.shape, one.color) for one in reading.objects] for reading in clear]
    assert found == [[(shape, "red")] for shape in SHAPES]


def test_no_object_is_detected_in_blank_images_and_noise():
    rng = np.random.default_rng(0)
    levels = [(0, 0, 0), (255, 255, 255), (128, 128, 128), *COLORS.values()]
    flat = np.stack([np.full((64, 64, 3), rgb, np.uint8) for rgb in levels])
    noise = rng.integers(0, 256, (100, 32, 32, 3)).astype(np.uint8)
    for images in (flat, noise):
        assert not any(reading.objects for reading in read_scenes(images))


def test_any_shape_is_read_in_any_color_and_texture():
    things = [
        replace(LEFT, x=0.5, shape=shape, color=color, texture=texture)
        for shape in SHAPES
        for color in COLORS
        for texture in TEXTURES
    ]
    found = read_scenes(np.concatenate([shown(thing) for thing in things]))
    correct = [
        [(f.shape, f.color, f.texture) for f in reading.objects]
        == [(thing.shape, thing.color, thing.texture)]
        for thing, reading in zip(things, found, strict=True)
    ]
    assert np.mean(correct) >= 0.97  # all three at once; each is correct in 98% or more
    held_out = [(thing.shape, thing.color) in HELD_OUT for thing in things]
    assert np.mean(np.array(correct)[held_out]) >= 0.9  # 3 of 32 may fail


def test_a_reading_does_not_depend_on_its_batch():
    images, _ = real("validation", 32)
    assert read_scenes(images[:70])[60:] == read_scenes(images[60:70])
    assert read_scenes(images[:0]) == []


# Training


def test_training_writes_weights_that_fit(tmp_path, capsys):
    out = tmp_path / "reader.safetensors"
    train_reader.main(["--out", str(out), "--steps", "2", "--batch-examples", "4"])
    assert str(out) in capsys.readouterr().out
    shapes = {name: tensor.shape for name, tensor in read_tensors(out).items()}
    shipped = {name: tensor.shape for name, tensor in read_tensors(WEIGHTS).items()}
    assert shapes == shipped == {name: spec.shape for name, spec in NETWORK.shapes.items()}
    assert WEIGHTS.stat().st_size < 2**20 * 1.5


# The command


def run(*flags):
    main([str(flag) for flag in flags])


def test_the_command_scores_real_images(tmp_path, capsys):
    out = tmp_path / "grid.png"
    run("--real", "--n", 8, "--size-px", 32, "--caption-index", COMPLETE, "--out", out)
    lines = capsys.readouterr().out.splitlines()
    objects = sum(len(make("validation", index)[0].things) for index in range(8))
    assert f"color {objects} of {objects} (100.0%)" in lines
    assert f"size {objects} of {objects} (100.0%)" in lines
    assert any(line.startswith("exact match ") for line in lines)
    assert out.is_file()


def test_the_command_omits_what_no_caption_states(capsys):
    run("--real", "--n", 8, "--size-px", 32, "--closeups", True)
    names = [line.split(" 8 of 8")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["count", "shape", "color", "exact match"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--checkpoint RUN"),
        (("--real", "--n", 0), "--n 0"),
        (("--real", "--n", 10**9), "--n 1000000000: must be at most 1,000,000"),
        (("--real", "--split", "test"), "--split test"),
        (("--real", "--caption-index", 4), "--caption-index 4"),
        (("--checkpoint", "demo/base", "--n", 1, "--fsdp", 3), "--fsdp 3"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(flags, message):
    with pytest.raises(UserError, match=message):
        run(*flags)


def test_the_command_scores_a_models_images(trained_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "require_scenes", lambda config: None)
    out = tmp_path / "grid.png"
    run("--checkpoint", trained_run, "--n", 22, "--steps", 2, "--out", out)
    lines = capsys.readouterr().out.splitlines()
    # A model of plain color squares generates no scene: only 20 of the wrong captions are listed.
    assert sum(line.startswith("wrong ") for line in lines) == 20
    assert "and 2 more" in lines
    assert re.fullmatch(r"color \d+ of \d+ \(.*%\)", lines[lines.index("and 2 more") + 3])
    assert lines[-2:] == ["exact match 0 of 22 (0.0%)", str(out)]
    assert out.stat().st_size > 1000
