import dataclasses
from pathlib import Path

import pytest

from glide_jax.cli import load_config
from glide_jax.config import (
    ClipConfig,
    Config,
    DataConfig,
    DiffusionConfig,
    Folder,
    LowResConfig,
    MaskConfig,
    ModelConfig,
    Shards,
    TextConfig,
    Tfds,
    TrainConfig,
    UNetConfig,
)
from glide_jax.config.serialize import RENAMED
from glide_jax.data.sources import SOURCES
from glide_jax.diffusion.samplers import SAMPLERS
from glide_jax.diffusion.schedule import SCHEDULES, Schedule
from glide_jax.errors import UserError
from glide_jax.models.build import build_network
from glide_jax.pretrained.defaults import RELEASED

CONFIGS = Path(__file__).parent.parent / "configs"

PARAMETERS = {
    "base64": 385_030_726,  # as released
    "base64_cfg": 385_030_726,
    "base64_inpaint": 385_037_638,
    "upsample256": 398_361_286,
    "upsample256_inpaint": 398_368_198,
    "noised_clip": 86_443_776 + 71_679_488 + 1,  # both towers, and logit_scale
    "noised_clip_vit_l": 440_439_041,  # CLIP's ViT-L/14 has 428M: here are more tokens and times
    "base64_3b5": 3_554_938_374,  # the paper: about 2.3B + 1.2B
    "upsample256_1b5": 1_641_964_934,  # the paper: 1.5B, text depth not given
    "unclip_prior": 1_225_561_088,  # the paper: 1B
    "unclip_prior_ar": 805_879_806,  # the paper: 1B, with a text encoder
    "unclip_karlo_prior": 1_022_028_544 + 2 * 768,  # as released, and mean and deviation
    "scenes_base32": 4_176_454,
    "scenes_base32_inpaint": 4_177_606,
    "scenes_base64": 55_925_638,
    "scenes_clip32": 1_669_505,
    "scenes_tiny": 2_339_750,
    "scenes_upsample128": 3_303_526,
    "scenes_upsample128_inpaint": 3_304_678,
    "unclip_clip": 986_274_305,
    "unclip_decoder64": 3_565_435_398,  # the paper: 3.5B
    "unclip_karlo_decoder": 893_318_086,
    "unclip_karlo_upsample256": 691_579_523,
    "unclip_scenes_decoder32": 4_259_142,
    "unclip_scenes_prior": 1_960_320,
    "unclip_upsample1024": 282_064_326,  # the paper: 300M
    "unclip_upsample256": 729_710_726,  # the paper: 700M
}


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.py")), ids=lambda file: file.stem)
def test_every_config_works(file):
    config = load_config(file)
    assert type(config.data.source) in SOURCES
    assert config.sample.sampler in SAMPLERS
    assert config.diffusion.schedule in SCHEDULES
    Schedule.of(config.diffusion, config.sample.steps)
    assert build_network(config.model).parameter_count == PARAMETERS[file.stem]
    assert load_config(file).to_json() == config.to_json()


FINE_TUNES = {
    "base64_cfg": "base64",
    "base64_inpaint": "base64",
    "upsample256_inpaint": "upsample256",
    "scenes_base32_inpaint": "scenes_base32",
    "scenes_upsample128_inpaint": "scenes_upsample128",
}


@pytest.mark.parametrize(("name", "start"), FINE_TUNES.items())
def test_fine_tunes_start_from_the_run_of_the_config_they_vary(name, start):
    config, before = (load_config(CONFIGS / f"{stem}.py") for stem in (name, start))
    assert config.train.init_from == f"runs/{start}"
    assert not before.train.init_from
    assert dataclasses.replace(config.denoiser, inpaint=False) == before.denoiser
    assert config.diffusion == before.diffusion


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("base64_cfg", "base"),
        ("base64_inpaint", "base-inpaint"),
        ("upsample256", "upsample"),
        ("upsample256_inpaint", "upsample-inpaint"),
    ],
)
def test_configs_of_released_models_sample_like_them(name, role):
    config = load_config(CONFIGS / f"{name}.py")
    assert (config.diffusion, config.sample) == RELEASED[role]


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_config_survives_json(name):
    config = load_config(name)
    assert Config.from_json(config.to_json()) == config


def test_json_preserves_changed_sizes():
    config = Config(model=ModelConfig(unet=UNetConfig(channel_mult=(1, 2), attention_px=(32,))))
    assert Config.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[", "config.json is not JSON"),
        ('{"speed": 1}', "unknown setting speed"),
        ('{"optim": {"speed": 1}}', "unknown setting optim.speed"),
        ('{"optim": {"learning_rate": "fast"}}', "optim.learning_rate must be float"),
        ('{"train": {"steps": 1.5}}', "train.steps must be int"),
        ('{"train": {"steps": true}}', "train.steps must be int"),
        ('{"model": {"kind": "clip", "dtype": "float8"}}', "model.dtype must be"),
        (
            '{"model": {"kind": "denoiser", "unet": {"channel_mult": [1, "2"]}}}',
            "model.unet.channel_mult must be int",
        ),
        ('{"model": {"image": {}}}', "model.kind is missing: denoiser or clip"),
        (
            '{"model": {"kind": ["clip"]}}',
            "model.kind must be one of denoiser, clip, prior, not .'clip'",
        ),
        (
            '{"sample": {"guidance_interval": [1]}}',
            r"sample.guidance_interval must have 2 values, not \[1\]",
        ),
        (
            '{"sample": {"guidance_interval": [1, 2, 3]}}',
            r"sample.guidance_interval must have 2 values, not \[1, 2, 3\]",
        ),
        ('{"sample": {"guidance_interval": [1, "2"]}}', "guidance_interval must be int, not '2'"),
        ('{"model": 3}', "model must be an object"),
        ('{"data": {"source": {"kind": "web"}}}', "data.source.kind must be one of scenes, tfds,"),
        ('{"data": {"source": {"kind": "folder"}}}', "data.source.path is missing"),
        ('{"data": {"source": {"kind": "scenes", "path": "x"}}}', "unknown setting data.source.p"),
        ('{"data": {"source": {"path": "x"}}}', "data.source.kind is missing: scenes or tfds or"),
        ('{"data": {"source": "scenes"}}', 'data.source "scenes" is {"kind": "scenes"} now'),
    ],
)
def test_bad_json_is_refused_by_name(text, line):
    with pytest.raises(UserError, match=line):
        Config.from_json(text)


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ('{"data": {"caption_drop": 0.1}}', "data.caption_drop is data.caption_dropout now"),
        ('{"data": {"max_bad_share": 0.1}}', "data.max_bad_share is data.max_bad_fraction now"),
        ('{"data": {"source": "folder", "path": "x"}}', "data.path is data.source.path now"),
        ('{"data": {"source": "tfds", "name": "x"}}', r"data.name is data.source.name \(tfds\) or"),
        ('{"data": {"mixture": []}}', "data.mixture is data.source of kind mixture now"),
        ('{"train": {"checkpoints_kept": 3}}', "train.checkpoints_kept is train.max_checkpoints"),
        ('{"diffusion": {"low_res_deviation": 0.1}}', "is diffusion.low_res_std now"),
        ('{"model": {"remat": "products"}}', 'model.remat "products" is model.remat "matmuls" now'),
    ],
)
def test_settings_of_earlier_versions_are_refused_with_their_new_names(old, now):
    with pytest.raises(UserError, match=f"^config.json has settings of an .*{now}") as error:
        Config.from_json(old)
    assert "\n" not in str(error.value)


def test_new_names_in_errors_exist():
    flat = Config(data=DataConfig(source=Tfds("x", data_dir="x"))).flat() | Config().flat()
    shards = Config(data=DataConfig(source=Shards("x", "x"))).flat()
    for new in RENAMED.values():
        assert new.split()[0] in {**flat, **shards, "data.source": None}


@pytest.mark.parametrize(
    ("cls", "changes", "line"),
    [
        (UNetConfig, {"channels": 48}, r"model.unet.channels \(48\)"),
        (UNetConfig, {"resolution_px": 60}, r"model.unet.resolution_px \(60\)"),
        (UNetConfig, {"attention_px": (20,)}, "model.unet.attention_px has 20"),
        (UNetConfig, {"head_width": 100}, "model.unet.head_width"),
        (UNetConfig, {"dropout": 1.0}, "model.unet.dropout"),
        (UNetConfig, {"channel_mult": ()}, "model.unet.channel_mult"),
        (TextConfig, {"heads": 7}, "model.text.width"),
        (TextConfig, {"length": 0}, "model.text.length"),
    ],
)
def test_sizes_that_cannot_work_are_refused_by_name(cls, changes, line):
    with pytest.raises(UserError, match=line):
        cls(**changes)


@pytest.mark.parametrize(
    ("cls", "changes", "line"),
    [
        (ModelConfig, {"low_res_px": 24}, r"model.low_res_px \(24\) must divide"),
        (ModelConfig, {"low_res_noise": True}, "model.low_res_noise is for upsamplers"),
        (Folder, {"path": ""}, "data.source.path is empty"),
        (DataConfig, {"caption_pattern": "(a"}, "data.caption_pattern is no regular expression"),
        (
            DiffusionConfig,
            {"zero_terminal_snr": True},
            "diffusion.zero_terminal_snr needs diffusion.prediction v",
        ),
        (
            DiffusionConfig,
            {"low_res_std": 0.1},
            "diffusion.low_res_std needs diffusion.prediction v",
        ),
        (
            Config,
            {"diffusion": DiffusionConfig(prediction="v", low_res_std=0.1)},
            "diffusion.low_res_std is for upsamplers",
        ),
        (
            Config,
            {"data": DataConfig(low_res=LowResConfig(degradation="bsr"))},
            "data.low_res.degradation is for upsamplers",
        ),
        (
            MaskConfig,
            {"rectangle": 0.0, "brush": 0.0, "half_plane": 0.0, "full": 0.0},
            "data.masks needs frequencies",
        ),
        (TrainConfig, {"clip_loss_weight": 0.1}, "train.clip_run is needed"),
        (
            Config,
            {"model": ClipConfig(), "train": TrainConfig(batch_examples=1)},
            "train.batch_examples must be at least 2",
        ),
        (
            Config,
            {
                "model": ModelConfig(low_res_px=32),
                "data": DataConfig(low_res=LowResConfig(noise_steps=100)),
            },
            "data.low_res.noise_steps needs model.low_res_noise",
        ),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_by_name(cls, changes, line):
    with pytest.raises(UserError, match=line):
        cls(**changes)


def test_settings_that_fit_together_are_accepted():
    upsampler = ModelConfig(low_res_px=32, low_res_noise=True)
    Config(model=upsampler, data=DataConfig(low_res=LowResConfig(noise_steps=100)))
    Config(model=ClipConfig(), train=TrainConfig(batch_examples=2))
    Config(model=ModelConfig(), train=TrainConfig(batch_examples=1))
    DiffusionConfig(prediction="v", zero_terminal_snr=True)
    MaskConfig(rectangle=0.0, brush=0.0, half_plane=0.0)
    TrainConfig(clip_run="runs/clip", clip_loss_weight=0.1)
