import pytest
from helpers.parsing import parse_config

from glide_jax.config import Folder, Mixture, MixturePart, Scenes, Shards, Tfds
from glide_jax.config.source_words import parse_source, spell_source
from glide_jax.errors import UserError

SOURCES = {
    "scenes": Scenes(),
    "scenes closeups": Scenes("closeups"),
    "folder images/": Folder("images/"),
    "folder a=b": Folder("a=b"),
    "shards gs://bucket/data cache_dir=/tmp/x": Shards("gs://bucket/data", "/tmp/x"),
    "tfds coco_captions caption_key=captions/text": Tfds("coco_captions", "image", "captions/text"),
}


@pytest.mark.parametrize(("words", "source"), SOURCES.items())
def test_a_source_is_given_in_words(words, source):
    flags = ["--config", "scenes_tiny", "--data.source", *words.split(), "--data.crop", "random"]
    _, config = parse_config(flags, "train.py", "")
    assert (config.data.source, config.data.crop) == (source, "random")
    assert parse_source(spell_source(source)) == source


def test_a_mixture_is_given_in_quoted_parts():
    words = ["mixture", "3 folder 'my cats/' train_split=all", "1.5 tfds coco_captions"]
    mixture = Mixture(
        (
            MixturePart(3.0, Folder("my cats/"), train_split="all"),
            MixturePart(1.5, Tfds("coco_captions")),
        )
    )
    assert parse_source(words) == mixture
    assert parse_source(spell_source(mixture)) == mixture


@pytest.mark.parametrize("path", ["path=x", "cache_dir=/x", "train_split=x", "a b='c'", "path="])
def test_paths_that_look_like_settings_survive(path):
    for source in (Folder(path), Shards(path, "path=y")):
        assert parse_source(spell_source(source)) == source
        mixture = Mixture((MixturePart(1.0, source, validation_split="all"),))
        assert parse_source(spell_source(mixture)) == mixture


def test_a_split_given_twice_is_refused():
    with pytest.raises(UserError, match=r"^--data.source mixture .*train_split is given twice"):
        parse_source(["mixture", "1 folder x train_split=a train_split=b"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "begin with one of scenes, tfds, folder, shards, embeddings, mixture"),
        ("images/", "begin with one of scenes, tfds, folder, shards, embeddings, mixture"),
        ("folder", "data.source.path is missing"),
        ("folder a b", "unexpected 'b'; give PATH, then NAME=VALUE with names of path"),
        ("scenes huge", "data.source.subset must be one of full, closeups, mini, not 'huge'"),
        ("mixture", "give its parts"),
    ],
)
def test_words_that_are_no_source_are_refused(words, line):
    with pytest.raises(UserError, match=f"^--data.source ?{words}: .*{line}"):
        parse_source(words.split())
