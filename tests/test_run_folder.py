"""Run folders: created, resumed, opened."""

import dataclasses

import pytest
from helpers import model_set, tiny
from helpers.model_set import CAPTIONS

from glide_jax.config import ModelConfig, TextConfig
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.errors import UserError
from glide_jax.runs.folder import Run
from glide_jax.sampling.clip import ClipScorer
from glide_jax.sampling.stage import Stage


@pytest.fixture
def tokenizer():
    return Tokenizer.train(CAPTIONS, 300)


@pytest.mark.parametrize("before", ["denoiser", "clip"])
def test_a_run_does_not_resume_as_another_kind_of_model(before, tokenizer, tmp_path):
    clip = model_set.clip_config()
    text = TextConfig(**dataclasses.asdict(clip.clip.text))  # all that the two have in common
    denoiser = dataclasses.replace(clip, model=ModelConfig(text=text, dtype="float32"))
    (after, new), (_, old) = sorted(
        {"denoiser": denoiser, "clip": clip}.items(), key=lambda kind: kind[0] == before
    )
    (tmp_path / "checkpoints" / "3" / "optimizer").mkdir(parents=True)
    (tmp_path / "config.json").write_text(old.to_json())
    line = f"^model.kind is {after}, but the run in {tmp_path} was started with {before}: give"
    with pytest.raises(UserError, match=line):
        Run.create(tmp_path, new, tokenizer)
    assert Run.open(tmp_path).config == old


def test_an_interrupted_write_leaves_the_configuration(tokenizer, tmp_path, monkeypatch):
    before, after = (dataclasses.replace(tiny.get_config()) for _ in range(2))
    after = dataclasses.replace(after, train=dataclasses.replace(after.train, steps=7))
    Run.create(tmp_path, before, tokenizer)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot write"):
        patch.setattr("pathlib.Path.replace", None)
        Run.create(tmp_path, after, tokenizer)
    assert Run.open(tmp_path).config == before


def test_the_kind_of_model_is_checked_before_its_weights_are_read(tokenizer, tmp_path):
    """These runs have no weights."""
    for name, config in (("base", tiny.get_config()), ("clip", model_set.clip_config())):
        Run.create(tmp_path / name, config, tokenizer)
    with pytest.raises(UserError, match="this model is a CLIP"):
        Stage.load(Run.open(tmp_path / "clip"))
    with pytest.raises(UserError, match="a CLIP is needed"):
        ClipScorer.load(Run.open(tmp_path / "base"))
