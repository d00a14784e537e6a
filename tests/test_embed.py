"""Embeddings written as shards, read back, and refused if they are another CLIP's."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from helpers import model_set, tiny
from helpers.tiny_prior import changed, prior_config, write_clip

from glide_jax import embed
from glide_jax.config import Embeddings, Folder, Mixture, MixturePart
from glide_jax.data.embeddings import require_clip
from glide_jax.data.loader import Loader
from glide_jax.data.sources import open_source
from glide_jax.data.transforms import load_pixels, to_float
from glide_jax.errors import UserError
from glide_jax.runs.folder import Run
from glide_jax.training.build import (
    clip_run_of,
    make_objective,
    require_startable,
    with_clip,
)
from glide_jax.training.flops import abstract_batch
from glide_jax.training.frozen_clip import FrozenClip


@pytest.fixture(scope="module")
def clip_run(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "run")


@pytest.fixture(scope="module")
def flags(clip_run, color_folder):
    data = ("--data.source", "folder", color_folder, "--data.train-split", "all")
    more = ("--data.validation-split", "all", "--shard-records", "3", "--batch-size", "8")
    return [*map(str, ("--clip", clip_run, *data, *more))]


@pytest.fixture(scope="module")
def folder(flags, tmp_path_factory):
    """The embeddings of the eight colors, written in two parts."""
    folder = tmp_path_factory.mktemp("embeddings")
    for part in ("1", "0"):
        assert not (folder / "shards.json").exists()
        embed.main([*flags, "--to", str(folder), "--part", part, "--parts", "2"])
    return folder


def source_of(folder, split="train"):
    config = changed(prior_config(), "data", source=Embeddings(str(folder)))
    return open_source(config.data, split)


def test_records_have_the_embeddings_of_their_images(folder, clip_run, color_folder):
    clip = FrozenClip.load(Run.open(clip_run))
    source = source_of(folder)
    images = open_source(
        changed(prior_config(), "data", source=Folder(str(color_folder))).data, "all"
    )
    assert len(source) == len(images) == 8
    pixels = np.stack([load_pixels(images[i].image, 8) for i in range(8)])
    expected = jax.jit(clip.embed_image)(clip.params, to_float(pixels))
    for i, embedding in enumerate(expected):
        np.testing.assert_allclose(source[i].embedding, embedding, atol=1e-6)
        assert (source[i].captions, source[i].image) == (images[i].captions, b"")


def test_what_is_written_is_not_written_again(folder, flags, monkeypatch):
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*array_record*")}
    monkeypatch.setattr(embed.Embedder, "__call__", None)
    embed.main([*flags, "--to", str(folder)])
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*array_record*")} == before


def test_other_settings_are_refused(folder, flags):
    with pytest.raises(UserError, match=r"was begun with other settings \(images was False"):
        embed.main([*flags, "--to", str(folder), "--images"])
    with pytest.raises(UserError, match=r"--data\.crop: embeddings are of square images"):
        embed.main([*flags, "--to", str(folder), "--data.crop", "random"])
    with pytest.raises(UserError, match=r"--part 2: must be below --parts \(2\)"):
        embed.main([*flags, "--to", str(folder), "--part", "2", "--parts", "2"])


def test_a_prior_learns_from_embeddings_without_images(folder, clip_run):
    config = changed(prior_config(), "data", source=Embeddings(str(folder)))
    config = changed(config, "train", clip_run=str(clip_run))
    run = Run.open(clip_run)
    with Loader(source_of(folder), run.tokenizer, config) as loader:
        batch = next(loader)
    assert batch.keys() == {"tokens", "token_mask", "image_embedding"}
    objective = make_objective(config, FrozenClip.load(run))
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = (objective.network.shapes, objective.frozen, batch, key, None)
    found = jax.eval_shape(objective.gradient, *shapes)
    assert found.losses.shape == (8,)
    mixture = Mixture((MixturePart(1.0, config.data.source),))
    for source in (config.data.source, mixture):
        assert abstract_batch(changed(config, "data", source=source), run.config.clip) == {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()
        }
    require_clip(config.data.source, run.fingerprint)


def test_a_decoder_learns_from_embeddings_with_images(folder, clip_run, monkeypatch):
    """Without the CLIP, which is recorded all the same."""
    run = Run.open(clip_run)
    width = run.config.clip.embedding_width
    base = tiny.get_config()
    config = changed(base, "model", image_embedding_width=width)
    config = changed(config, "data", source=Embeddings(str(folder)))
    assert clip_run_of(config) is None
    recorded = with_clip(config, None).train
    assert (recorded.clip_fingerprint, recorded.clip_px) == (run.fingerprint, 0)
    records = source_of(folder)
    clip = changed(model_set.clip_config(), "data", source=Embeddings(str(folder)))
    for learner in (config, clip):
        with pytest.raises(UserError, match=r"have no images, .*glide_jax.embed --images"):
            require_startable(learner, records, 8)
    record = dataclasses.replace(records[0], image=b"an image")
    monkeypatch.setattr(type(records), "__getitem__", lambda *_: record)
    for other, line in (
        (changed(config, "model", image_embedding_width=99), "99, but .* has embeddings of"),
        (changed(config, "data", crop="random"), "are of center crops: give --data.crop center"),
    ):
        with pytest.raises(UserError, match=line):
            require_startable(other, records, 8)


def test_embeddings_of_another_clip_are_refused(folder):
    with pytest.raises(UserError, match="its embeddings are of another CLIP"):
        require_clip(Embeddings(str(folder)), "0123456789abcdef")


def test_a_truncated_shard_is_refused(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shard = sorted(copy.glob("images-train.array_record-*-of-00003"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"00001-of-00003 has [0-9,]+ bytes, but shards.json says"):
        source_of(copy)


def test_a_folder_without_embeddings_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"has no shards.json: .*glide_jax\.embed"):
        source_of(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    index = json.loads((copy / "shards.json").read_text(encoding="utf-8"))
    (copy / "shards.json").write_text(json.dumps({"splits": index["splits"]}), encoding="utf-8")
    with pytest.raises(UserError, match="has no embeddings: write them with"):
        source_of(copy)
