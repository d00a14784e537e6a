"""Run folders: created, resumed, opened."""

import dataclasses
import os
import shutil
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import model_set, tiny
from helpers.model_set import CAPTIONS

from glide_jax.config import ModelConfig, TextConfig
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.errors import UserError
from glide_jax.models.clip import clip_network
from glide_jax.runs.checkpoint import Checkpoints
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


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer/x.json", "checkpoints/3/params/d", "metrics.jsonl", "samples/3.png"],
)
@pytest.mark.parametrize("kind", ["a link", "not a regular file"])
def test_links_and_special_files_in_a_run_folder_are_refused(name, kind, tokenizer, tmp_path):
    run = tmp_path / "run"
    Run.create(run, tiny.get_config(), tokenizer)
    (tmp_path / "linked").symlink_to(run)
    assert Run.open(tmp_path / "linked").config == tiny.get_config()  # itself may be a link
    file = run / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        shutil.move(file, tmp_path / "elsewhere")
    if kind == "a link":
        file.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(file)
    # A link to a file that is missing, and a pipe as config.json, are no files: no run folder.
    with pytest.raises(UserError, match=f"{name} is {kind}|is not a run folder"):
        Run.open(run)
    with pytest.raises(UserError, match=f"{name} is {kind}"):  # nor is anything written to it
        Run.create(run, tiny.get_config(), tokenizer)


def test_an_interrupted_write_leaves_the_configuration(tokenizer, tmp_path, monkeypatch):
    before, after = (dataclasses.replace(tiny.get_config()) for _ in range(2))
    after = dataclasses.replace(after, train=dataclasses.replace(after.train, steps=7))
    Run.create(tmp_path, before, tokenizer)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot write"):
        patch.setattr("pathlib.Path.replace", None)
        Run.create(tmp_path, after, tokenizer)
    assert Run.open(tmp_path).config == before


def test_the_fingerprint_is_of_the_weights_that_are_loaded(tokenizer, tmp_path):
    config = model_set.clip_config()
    params = clip_network(config.model).init(seed=0)

    for name in ("a", "copy"):
        Run.create(tmp_path / name, config, tokenizer)

    def save(folder, scale):
        with closing(Checkpoints(tmp_path / folder, max_checkpoints=9)) as checkpoints:
            step = (checkpoints.latest_step or 0) + 1
            ema = {name: value + np.float32(scale) for name, value in params.items()}
            checkpoints._save(step, {"ema": jax.device_put(ema)}, {})

    save("a", 0)
    save("copy", 0)
    first = Run.open(tmp_path / "a")
    assert first.fingerprint == Run.open(tmp_path / "copy").fingerprint
    save("a", 1)  # training continues, before the weights are loaded
    second = Run.open(tmp_path / "a").fingerprint
    assert second != first.fingerprint
    first.weights()
    assert first.fingerprint == second
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "2" / "ema")  # damaged: the first is used
    loaded = Run.open(tmp_path / "a")
    loaded.weights()
    assert loaded.fingerprint == Run.open(tmp_path / "copy").fingerprint
    text = (tmp_path / "copy" / "config.json").read_text()
    changed = text.replace('"embedding_width": 16', '"embedding_width": 32')
    (tmp_path / "copy" / "config.json").write_text(changed)
    assert changed != text and Run.open(tmp_path / "copy").fingerprint != loaded.fingerprint
    (tmp_path / "copy" / "weights.safetensors").write_bytes(b"exported")
    assert Run.open(tmp_path / "copy").fingerprint not in (loaded.fingerprint, second)


def test_the_kind_of_model_is_checked_before_its_weights_are_read(tokenizer, tmp_path):
    """These runs have no weights."""
    for name, config in (("base", tiny.get_config()), ("clip", model_set.clip_config())):
        Run.create(tmp_path / name, config, tokenizer)
    with pytest.raises(UserError, match="this model is a CLIP"):
        Stage.load(Run.open(tmp_path / "clip"))
    with pytest.raises(UserError, match="a CLIP is needed"):
        ClipScorer.load(Run.open(tmp_path / "base"))


def test_checkpoints_that_are_not_finite_are_refused(tokenizer, tmp_path, monkeypatch):
    run = Run.create(tmp_path / "run", tiny.get_config(), tokenizer)
    params = {name: jnp.zeros(spec.shape) for name, spec in run.network.shapes.items()}
    monkeypatch.setattr(Checkpoints, "restore_ema", lambda *arguments: params)
    monkeypatch.setattr(Checkpoints, "ema_fingerprint", lambda checkpoints: "")
    assert run.weights() is params
    last = list(params)[-1]
    params[last] = params[last] + jnp.inf
    with pytest.raises(UserError, match=f"run: {last} is not finite: .* its training diverged"):
        run.weights()
