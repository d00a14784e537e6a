"""Every stage of GLIDE: it trains, validates, samples, and resumes bit for bit."""

import dataclasses
import json
import shutil
import signal

import numpy as np
import pytest
from helpers import model_set
from PIL import Image

from glide_jax import UserError
from glide_jax.config import DiffusionConfig, Folder, LowResConfig
from glide_jax.data.sources import open_source
from glide_jax.parallel.process_group import ProcessGroup
from glide_jax.runs.folder import Run
from glide_jax.train import train
from glide_jax.training.build import tokenizer_of
from glide_jax.training.profiling import Profile


@pytest.fixture(autouse=True)
def own_signal_handlers():
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def changed(config, part, **changes):
    return dataclasses.replace(
        config, **{part: dataclasses.replace(getattr(config, part), **changes)}
    )


def on_colors(config, folder, **settings):
    """The configuration on the eight colors, by default for six steps."""
    config = changed(
        config,
        "data",
        source=Folder(str(folder)),
        train_split="all",
        validation_split="all",
        loader_threads=1,
    )
    settings = {
        "steps": 6,
        "batch_examples": 8,
        "log_every_steps": 2,
        "checkpoint_every_steps": 3,
        "sample_every_steps": 6,
        "validate_every_steps": 6,
        "validation_examples": 8,
    } | settings
    return changed(config, "train", **settings)


def upsampler():
    config = model_set.upsampler_config(inpaint=False)
    config = changed(config, "model", low_res_noise=True)
    low_res = LowResConfig(crop_px=8, blur_px=0.6, noise_steps=5)
    config = changed(config, "data", low_res=low_res)
    diffusion = DiffusionConfig(
        schedule="linear",
        prediction="v",
        steps=30,
        zero_terminal_snr=True,
        low_res_std=0.2,
        timesteps="loss-second-moment",
    )
    return dataclasses.replace(config, diffusion=diffusion)


def metrics(run_dir):
    """metrics.jsonl without values that depend on the clock or count from the process's start."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    other = ("images_per_s", "step_s", "loader_wait_fraction", "truncated_captions")
    return [{k: v for k, v in line.items() if k not in other} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["upsample", "base-inpaint", "clip"])
def test_a_stage_trains_and_resumes_bit_for_bit(stage, color_folder, models, tmp_path):
    config = {
        "upsample": upsampler,
        "base-inpaint": model_set.inpaint_config,
        "clip": model_set.clip_config,
    }[stage]()
    start = {"init_from": str(models / "base")} if stage == "base-inpaint" else {}
    config = on_colors(config, color_folder, **start)
    train(config, tmp_path / "uninterrupted", ProcessGroup(), Profile())
    # As if it had been killed after its checkpoint at step 3.
    shutil.copytree(tmp_path / "uninterrupted", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "6")
    train(config, tmp_path / "resumed", ProcessGroup(), Profile())

    uninterrupted, resumed = (
        Run.open(tmp_path / run).weights() for run in ("uninterrupted", "resumed")
    )
    for name, value in uninterrupted.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    assert metrics(tmp_path / "resumed") == metrics(tmp_path / "uninterrupted")

    validated = [line for line in metrics(tmp_path / "uninterrupted") if "validation_loss" in line]
    assert [line["step"] for line in validated] == [6]
    assert {"validation_loss", "validation_loss_raw"} <= validated[0].keys()
    shown = "accuracy" if stage == "clip" else "mse"
    buckets = [name for name in validated[0] if name.startswith(f"validation_{shown}_t")]
    assert len(buckets) >= 5
    grid = tmp_path / "uninterrupted" / "samples" / "0000006.png"
    if stage == "clip":
        assert not grid.exists()
    else:
        assert Image.open(grid).size[0] > 6 * 192  # input, sample, original; twice in a row


def test_a_refused_fine_tune_leaves_no_run_folder(color_folder, models, tmp_path):
    run = tmp_path / "run"
    config = on_colors(model_set.clip_config(), color_folder, init_from=str(models / "base"))
    with pytest.raises(UserError, match="one of the two models is a CLIP"):
        train(config, run, ProcessGroup(), Profile())
    assert not run.exists()
    nowhere = changed(config, "train", init_from="demo/nothing")
    with pytest.raises(UserError, match="demo/nothing"):
        train(nowhere, run, ProcessGroup(), Profile())
    assert not run.exists()


def test_a_data_set_of_empty_captions_is_refused(color_folder, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("red", "green"):
        (folder / f"{name}.png").write_bytes((color_folder / f"{name}.png").read_bytes())
        (folder / f"{name}.txt").write_text(" \n")
    with pytest.raises(UserError, match="caption"):
        train(
            on_colors(model_set.clip_config(), folder), tmp_path / "run", ProcessGroup(), Profile()
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("part", "changes", "line"),
    [
        ("train", {"fsdp": 3}, r"train.fsdp \(3\) must divide"),
        ("sample", {"sampler": "magic"}, "magic"),
        ("sample", {"steps": "2000"}, "2000"),
    ],
)
def test_settings_that_cannot_work_leave_no_run_folder(color_folder, tmp_path, part, changes, line):
    config = on_colors(model_set.inpaint_config(), color_folder)
    with pytest.raises(UserError, match=line):
        train(changed(config, part, **changes), tmp_path / "run", ProcessGroup(), Profile())
    assert not (tmp_path / "run").exists()


def test_a_clip_with_too_few_held_out_images_leaves_no_run_folder(color_folder, tmp_path):
    config = on_colors(model_set.clip_config(), color_folder, validation_examples=7)
    with pytest.raises(UserError, match="needs at least 8 held-out images"):
        train(config, tmp_path / "run", ProcessGroup(), Profile())
    assert not (tmp_path / "run").exists()


class OtherProcess(ProcessGroup):
    """A process beside a lead whose run resumes."""

    def __init__(self):
        super().__init__()
        self.index = 1

    def gather(self, value):
        return [True if value is False else value]  # the lead has a checkpoint, we have none


def test_a_process_that_does_not_see_the_run_to_resume_is_refused(
    color_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("glide_jax.runs.folder.FILE_VISIBLE_S", 0)
    config = on_colors(model_set.inpaint_config(), color_folder)
    with pytest.raises(UserError, match=r"give a --train.run-dir on storage that all .* share"):
        train(config, tmp_path / "run", OtherProcess(), Profile())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_auxiliary_clip_is_loaded_from_its_run(color_folder, models, tmp_path):
    config = on_colors(
        model_set.inpaint_config(),
        color_folder,
        steps=2,
        sample_every_steps=0,
        validate_every_steps=0,
        clip_run=str(models / "clip"),
        clip_loss_weight=0.1,
    )
    train(config, tmp_path / "run", ProcessGroup(), Profile())
    (line,) = (line for line in metrics(tmp_path / "run") if "clip_loss" in line)
    assert 0 < line["clip_loss"] < 2


def test_no_image_occurs_twice_in_a_batch_of_a_clip(color_folder, tmp_path):
    config = on_colors(model_set.clip_config(), color_folder, batch_examples=16)
    with pytest.raises(UserError, match=r"train.batch_examples \(16\) must be at most"):
        train(config, tmp_path / "run", ProcessGroup(), Profile())


def test_a_tokenizer_is_trained_on_captions_that_a_pattern_excludes(color_folder):
    config = on_colors(model_set.inpaint_config(), color_folder)
    stage = changed(config, "data", caption_pattern="red")
    full, part = (open_source(c.data, "all") for c in (config, stage))
    assert (len(full), len(part)) == (8, 1)
    reference, filtered = (tokenizer_of(c, s) for c, s in ((config, full), (stage, part)))
    for ours, theirs in zip(
        filtered.encode(["all yellow"], 8), reference.encode(["all yellow"], 8), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    alone = tokenizer_of(config, part)
    assert not np.array_equal(
        alone.encode(["all yellow"], 8)[1], reference.encode(["all yellow"], 8)[1]
    )
