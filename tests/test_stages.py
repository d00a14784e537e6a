"""--one-at-a-time samples all base images before the next model is loaded; with stubs of models."""

import dataclasses
import zlib

import numpy as np
import pytest
from PIL import Image

from glide_jax import Glide, UserError, sample
from glide_jax.runs.folder import Run
from glide_jax.sampling.clip import MAX_BATCH, ClipScorer
from glide_jax.sampling.commands import Edit, Generate, Inpaint
from glide_jax.sampling.model_set import role_of
from glide_jax.sampling.outputs import stage_folder
from glide_jax.sampling.stage import Stage

PROMPTS = ("all red", "all blue")


class Models:
    """Stubs of the shipped models: an image shows what it was sampled from."""

    def __init__(self):
        self.loaded: list[str] = []
        self.sampled: list[tuple[str, int]] = []
        """Role and seed of each image."""
        self.batch_sizes: list[tuple[str, int | None]] = []
        self.kill_at: tuple[str, int] | None = None

    def load(self, run, fsdp):
        self.loaded.append(role_of(run.config))
        return (StubClip if self.loaded[-1] == "clip" else StubStage)(self, run.config)


class StubStage(Stage):
    def __init__(self, models, config):
        self.models, self.config, self.role = models, config, role_of(config)

    def sample(
        self, prompts, seeds, settings, conditions, *, negative_prompt, strength, batch_size, **_
    ):
        self.models.batch_sizes.append((self.role, batch_size))
        if self.models.kill_at in [(self.role, seed) for seed in seeds]:
            raise KeyboardInterrupt
        self.models.sampled += [(self.role, seed) for seed in seeds]
        px = self.config.denoiser.resolution_px
        colors = []
        for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            known = conditions.known and conditions.known.mask[row].sum()
            given = [
                None if x is None else x[row].sum() for x in (conditions.low_res, conditions.start)
            ]
            text = (self.role, prompt, seed, given, known, negative_prompt)
            text += () if conditions.start is None else (strength,)
            colors.append(zlib.crc32(repr(text).encode()) % 256)
        return np.stack([np.full((px, px, 3), color, np.uint8) for color in colors])


class StubClip(ClipScorer):
    def __init__(self, models, config):
        pass

    def scores(self, images, captions):
        return np.stack(images).astype(np.float32).mean((1, 2, 3))


@pytest.fixture
def models(monkeypatch):
    models = Models()
    monkeypatch.setattr(Stage, "load", models.load)
    monkeypatch.setattr(ClipScorer, "load", models.load)
    monkeypatch.setattr(Run, "fingerprint", property(lambda run: run.path.name))
    monkeypatch.setattr(sample, "use_cores_to_sample", lambda *_: None)
    return models


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4)).astype(np.uint8)
    pixels[:, :, 3] = 255
    pixels[5:15, 8:20, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def images(folder):
    """Pixels and metadata of the images in a folder."""
    found = {}
    for file in sorted(folder.iterdir()):
        with Image.open(file) as image:
            found[file.name] = (np.asarray(image).tobytes(), image.text)
    return found


@pytest.mark.parametrize(
    ("kind", "flags", "out"),
    [
        (Generate, {}, "folder"),
        (Generate, {"keep": 2}, "grid.png"),
        (Generate, {"keep": 1, "upsample": False}, "folder"),
        (Inpaint, {"fit": "pad"}, "folder"),
        (Inpaint, {"keep": 2, "fit": "pad"}, "folder"),
        (Edit, {"keep": 2, "strength": 0.5}, "folder"),
    ],
)
def test_every_model_is_loaded_once_for_the_same_images(models, photo, tmp_path, kind, flags, out):
    if kind is not Generate:
        flags = flags | {"image": photo}
    common = {"checkpoint": ("demo",), "prompt": PROMPTS, "n": 3, "batch_size": 3}
    command = kind(**common, **flags, negative_prompt="a ring", out=tmp_path / "a" / out)
    sample.run(command)
    expected = images(tmp_path / "a" / out.removesuffix(".png"))
    models.loaded.clear()
    sample.run(dataclasses.replace(command, one_at_a_time=True, out=tmp_path / "b" / out))
    kept = ["clip"] * ("keep" in flags)
    roles = ["base", *kept] + ["upsample"] * flags.get("upsample", True)
    assert models.loaded == [r + "-inpaint" * (kind is Inpaint and r != "clip") for r in roles]
    assert images(tmp_path / "b" / out.removesuffix(".png")) == expected
    assert len(expected) == 2 * flags.get("keep", 3)


def test_a_killed_command_resumes_in_both_stages(models, tmp_path, capsys):
    command = Generate(
        checkpoint=("demo",), prompt=PROMPTS, n=4, keep=2, seed=5, batch_size=2,
        one_at_a_time=True, out=tmp_path / "night",
    )  # fmt: skip
    stage = stage_folder(command.out)
    expected = Glide.load("demo").generate(PROMPTS, n=4, keep=2, seed=5)

    def run(kill_at=None, command=command):
        models.loaded.clear(), models.sampled.clear()
        models.kill_at = kill_at
        sample.run(command)

    with pytest.raises(KeyboardInterrupt, match="the same command resumes"):
        run(("base", 8))
    assert models.loaded == ["base"] and len(list(stage.iterdir())) == 2
    with pytest.raises(UserError, match=r"base-images/00000-0-0.png was sampled with guidance_sc"):
        run(command=dataclasses.replace(command, guidance_scale=9.0))
    damaged = stage / "00000-0-1.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    with pytest.raises(KeyboardInterrupt):
        run(("upsample", expected.seeds[2]))
    assert models.loaded == ["base", "clip", "upsample"]
    assert [s for role, s in models.sampled if role == "base"] == [6, 7, 8, 5, 6, 7, 8]
    assert "base-images: 7 of 8 base images left to sample" in capsys.readouterr().out
    run()
    assert models.loaded == ["clip", "upsample"]
    assert not stage.exists()
    texts = [text for _, text in images(command.out).values()]
    assert [int(text["seed"]) for text in texts] == expected.seeds
    run(command=dataclasses.replace(command, one_at_a_time=False))  # the same metadata
    assert models.loaded == []


@pytest.mark.parametrize("n", [1, 2])
def test_a_grid_of_the_same_name_leaves_the_base_images_of_a_folder(models, tmp_path, n):
    night = Generate(
        checkpoint=("demo",), prompt=PROMPTS, n=2, batch_size=2, one_at_a_time=True,
        out=tmp_path / "night",
    )  # fmt: skip
    models.kill_at = ("upsample", 0)
    with pytest.raises(KeyboardInterrupt):
        sample.run(night)
    models.kill_at = None
    sample.run(dataclasses.replace(night, prompt=("x",), n=n, out=tmp_path / "night.png"))
    assert len(list(stage_folder(night.out).iterdir())) == 4


def test_only_kept_images_are_upsampled(models):
    kept = Glide.load("demo").generate(PROMPTS, n=8, keep=2)
    assert [role for role, _ in models.sampled] == ["base"] * 16 + ["upsample"] * 4
    assert [seed for _, seed in models.sampled[16:]] == kept.seeds


@pytest.mark.parametrize(
    ("count", "n", "keep", "sizes"), [(1, 16, 2, [2]), (5, 4, 1, [3, 3]), (2, 64, 24, [16, 16])]
)
def test_kept_images_are_not_padded_to_all_that_were_sampled(
    models, tmp_path, monkeypatch, count, n, keep, sizes
):
    monkeypatch.setattr("jax.local_device_count", lambda: 1)
    sample.run(
        Generate(
            checkpoint=("demo",), prompt=("all red",) * count, n=n, keep=keep, out=tmp_path / "a"
        )
    )
    assert [size for role, size in models.batch_sizes if role == "upsample"] == sizes
    models.batch_sizes.clear()
    Glide.load("demo").generate(PROMPTS * 2, n=16, keep=2, batch_size=16)
    assert models.batch_sizes == [("base", 16), ("upsample", 8)]


@pytest.mark.parametrize("out", ["folder", "grid.png"])
def test_nothing_is_sampled_without_the_models_of_later_stages(models, tmp_path, out):
    command = Generate(
        checkpoint=("demo/base",), prompt=PROMPTS, n=2, keep=1, one_at_a_time=True,
        out=tmp_path / out,
    )  # fmt: skip
    with pytest.raises(UserError, match="no clip model is given"):
        sample.run(command)
    assert models.sampled == []


def test_inpainted_images_are_upsampled_with_their_known_pixels(models, photo):
    glide = Glide.load("demo")
    pixels = np.asarray(Image.open(photo).convert("RGB"))
    known = np.asarray(Image.open(photo))[:, :, 3] > 0
    given = {"image": pixels, "known": known, "fit": "pad"}
    once = glide.inpaint(prompts=PROMPTS, **given)
    low_res = glide.inpaint(prompts=PROMPTS, **given, upsample=False)
    np.testing.assert_array_equal(glide.upsample(low_res, PROMPTS, **given), once)
    assert not np.array_equal(glide.upsample(low_res, PROMPTS), once)
    with pytest.raises(UserError, match="known must be a file, a Pillow image or an array"):
        glide.upsample(low_res, PROMPTS, image=pixels)


def test_a_guiding_clip_stays_with_the_model_that_it_guides(models):
    glide = Glide.load("demo", one_at_a_time=True)
    for _ in range(2):
        glide.guided_stage("base")
    glide.stage("upsample")
    assert models.loaded == ["base", "clip", "upsample"] and set(glide._loaded) == {"upsample"}


def test_clip_compiles_once_for_all_numbers_of_images_of_a_bucket():
    scorer = StubClip(None, None)
    scorer.params = None
    shapes = []
    for first, last, buckets in (
        (49, 64, {64}),
        (65, 200, {MAX_BATCH}),
        (1, 8, {1, 2, 3, 4, 6, 8}),
    ):
        shapes.clear()
        for count in range(first, last + 1):
            rows = np.arange(count, dtype=np.float32)
            encode = lambda _, x, y: shapes.append(len(x)) or np.stack([x, y], 1)  # noqa: E731
            embedded = scorer._in_buckets(encode, rows, -rows)
            np.testing.assert_array_equal(embedded, np.stack([rows, -rows], 1))
        assert set(shapes) == buckets


def test_clip_waits_for_each_batch():
    """On CPU devices, programs with collectives deadlock if several are dispatched at a time."""
    scorer, events = StubClip(None, None), []
    scorer.params = None

    class Embeddings:
        def __init__(self, rows):
            events.append("dispatched")
            self.rows = rows

        def __array__(self, dtype=None, copy=None):
            events.append("read")
            return self.rows

    scorer._in_buckets(lambda _, x: Embeddings(x), np.zeros((3 * MAX_BATCH, 2)))
    assert events == ["dispatched", "read"] * 3
