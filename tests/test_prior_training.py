"""The prior's training: from images or from embeddings that were computed before."""

import json
import re
import signal

import numpy as np
import pytest
from helpers.one_device import one_device_mesh
from helpers.tiny_prior import changed, prior_config, write_clip

from glide_jax.config import Folder
from glide_jax.data.sources import open_source
from glide_jax.data.transforms import to_float
from glide_jax.errors import UserError
from glide_jax.evaluation import prior as prior_evaluation
from glide_jax.evaluation.held_out import held_out_images
from glide_jax.evaluation.prior import closeness
from glide_jax.models.ar_prior import EMPTY_TOKENS
from glide_jax.parallel import sharding
from glide_jax.parallel.process_group import ProcessGroup
from glide_jax.runs.folder import Run
from glide_jax.sampling.clip import ClipScorer
from glide_jax.train import train
from glide_jax.training import build
from glide_jax.training.build import clip_run_of
from glide_jax.training.frozen_clip import FrozenClip
from glide_jax.training.prior import statistics_of
from glide_jax.training.profiling import Profile


@pytest.fixture(autouse=True)
def own_signal_handlers():
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def clip_run(tmp_path_factory):
    """A CLIP with random weights."""
    return write_clip(tmp_path_factory.mktemp("clip") / "run")


def on(config, clip_run, source):
    config = changed(config, "train", clip_run=str(clip_run))
    return changed(config, "data", source=source)


@pytest.fixture(scope="module")
def trained(clip_run, color_folder, tmp_path_factory):
    """A prior trained on the eight colors."""
    folder = tmp_path_factory.mktemp("prior") / "run"
    config = on(prior_config(), clip_run, Folder(str(color_folder)))
    with pytest.MonkeyPatch.context() as patch:
        # Programs for eight devices take twice as long to compile.
        patch.setattr(sharding, "make_mesh", lambda config: one_device_mesh())
        train(config, folder, ProcessGroup(), Profile())
    return folder


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_prior_learns_the_embeddings_of_captions(trained, clip_run):
    losses = [line["loss"] for line in metrics(trained) if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    validated = [line for line in metrics(trained) if "validation_loss" in line]
    assert validated[-1]["validation_cosine"] > validated[0]["validation_cosine"]
    assert "validation_loss_shuffled_captions" in validated[-1]
    assert any(name.startswith("validation_cosine_t800") for name in validated[-1])
    # The tokenizer of the run is its CLIP's.
    ours, clips = (Run.open(run).tokenizer.encode(["all red"], 8) for run in (trained, clip_run))
    np.testing.assert_array_equal(ours, clips)


def test_the_statistics_are_measured_and_never_trained(trained, clip_run, color_folder):
    config = on(prior_config(), clip_run, Folder(str(color_folder)))
    pixels, _ = held_out_images(config, "all", 8, 8)
    clip = ClipScorer.load(Run.open(clip_run))
    expected = statistics_of(clip.encode_images(to_float(pixels), 0))
    params = Run.open(trained).weights()
    for name, value in expected.items():
        np.testing.assert_allclose(params[name], value, atol=2e-6)


@pytest.mark.parametrize(
    ("part", "changes", "line"),
    [
        ("train", {"clip_run": ""}, "train.clip_run is needed"),
        ("model", {"embedding_width": 32}, "give --model.embedding-width 16"),
        (
            "model",
            {"resolution_px": 64},
            "model.resolution_px is 64, but the CLIP of train.clip_run",
        ),
        ("model", {"layers": 2}, None),
    ],
)
def test_a_prior_must_fit_its_clip(clip_run, part, changes, line):
    config = changed(on(prior_config(), clip_run, Folder("x")), part, **changes)
    if line is None:
        assert clip_run_of(config).path == clip_run
        return
    with pytest.raises(UserError, match=re.escape(line)):
        clip_run_of(config)


def test_settings_of_denoisers_are_refused():
    with pytest.raises(UserError, match=r"diffusion\.timesteps must be uniform for a prior"):
        changed(prior_config(), "diffusion", timesteps="rising")
    with pytest.raises(UserError, match=r"diffusion\.prediction is not used by a prior"):
        changed(prior_config(), "diffusion", prediction="v")
    with pytest.raises(UserError, match=r"embedding_threshold must be above 0"):
        changed(prior_config(), "sample", embedding_threshold=0.0)


def test_statistics_are_of_all_captions(clip_run, color_folder, monkeypatch):
    """Empty ones would make up the lowest quantiles of an autoregressive prior's dot product."""
    config = on(prior_config(), clip_run, Folder(str(color_folder)))
    config = changed(config, "data", caption_dropout=1.0)
    lengths = []

    def embeddings(clip, batches, mesh, examples):
        lengths.extend(np.asarray(next(batches)["token_mask"]).sum(-1))
        return (np.eye(examples, 16, dtype=np.float32),) * 2

    monkeypatch.setattr(build, "embeddings_of", embeddings)
    run = Run.open(clip_run)
    objective = build.make_objective(config, FrozenClip.load(run))
    source = open_source(config.data, "all")
    share = build.share_of_batches(config, run)
    assert build.initial_params(objective, source, run.tokenizer, one_device_mesh(), **share)
    assert len(lengths) == 8 and min(lengths) > EMPTY_TOKENS


def test_a_dimension_that_never_varies_stays_at_its_mean():
    found = statistics_of(np.array([[1.0, 5.0], [3.0, 5.0]], np.float32))
    np.testing.assert_array_equal(found["mean"], [2, 5])
    assert found["std"][0] == 1 and 0 < found["std"][1] < 1e-3
    assert statistics_of(np.ones((2, 1), np.float32))["std"] == 1


def test_evaluation_prints_cosine_and_retrieval(trained, capsys):
    prior_evaluation.main(["--checkpoint", str(trained), "--steps", "3", "--scales", "2", "3"])
    lines = capsys.readouterr().out.splitlines()
    starts = ["scale 2: cosine ", "scale 3: cosine ", "captions: cosine ", "of 8 images"]
    assert [line.startswith(start) for line, start in zip(lines, starts, strict=True)] == [True] * 4


def test_closeness_is_measured_without_the_mean():
    mean = np.array([10.0, 10.0])
    true = mean + np.array([[1.0, 0.0], [0.0, 2.0]])
    assert closeness(true, true, mean) == (1.0, 1.0)
    swapped = closeness(true[::-1] - mean + 3, true, mean, np.array([3.0, 3.0]))
    assert swapped == (0.0, 0.0)
