import dataclasses
from pathlib import Path

import pytest

from glide_jax.command_line import load_config, parse_config
from glide_jax.config import ClipConfig, Config, ModelConfig, TextConfig, UNetConfig
from glide_jax.data.sources import SOURCES
from glide_jax.diffusion.samplers import SAMPLERS
from glide_jax.diffusion.schedule import SCHEDULES, Schedule
from glide_jax.errors import UserError
from glide_jax.models.clip import clip_network
from glide_jax.models.glide import glide_network

CONFIGS = Path(__file__).parent.parent / "configs"

PARAMETERS = {
    "base64": 385_030_726,  # as released
    "base64_inpaint": 385_037_638,
    "upsample256": 398_361_286,
    "upsample256_inpaint": 398_368_198,
    "noised_clip": 86_443_776 + 71_679_488 + 1,  # both towers, and logit_scale
    "base64_3b5": 3_554_414_086,  # the paper: about 2.3B + 1.2B
    "scenes_base64": 55_925_638,
}


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.py")), ids=lambda file: file.stem)
def test_every_config_works(file):
    config = load_config(file)
    assert config.data.source in SOURCES
    assert config.sample.sampler in SAMPLERS
    assert config.diffusion.schedule in SCHEDULES
    Schedule.create(config.diffusion.schedule, config.diffusion.steps, config.sample.steps)
    is_clip = isinstance(config.model, ClipConfig)
    network = clip_network(config.model) if is_clip else glide_network(config.model)
    count = network.parameter_count
    assert count == PARAMETERS.get(file.stem, count)
    assert count > 1e5
    assert load_config(file).to_json() == config.to_json()


@pytest.mark.parametrize("name", ["upsample256_inpaint", "noised_clip"])
def test_configs_of_every_kind_of_model_survive_json(name):
    config = load_config(CONFIGS / f"{name}.py")
    assert Config.from_json(config.to_json()) == config


def test_json_round_trip():
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
        ('{"model": {"dtype": "float8"}}', "model.dtype must be"),
        ('{"model": {"unet": {"channel_mult": [1, "2"]}}}', "model.unet.channel_mult must be int"),
        ('{"model": 3}', "model must be an object"),
    ],
)
def test_bad_json_is_refused_by_name(text, line):
    with pytest.raises(UserError, match=line):
        Config.from_json(text)


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


def test_flags_change_what_the_file_says():
    file = CONFIGS / "scenes_tiny.py"
    _, config = parse_config(
        ["--config", str(file), "--optim.learning-rate", "0.5", "--model.unet.channel-mult", "1",
         "2", "4", "--train.sample-prompts", "a b", "c"], "train.py", "Trains.",
    )  # fmt: skip
    before = load_config(file)
    assert config.optim == dataclasses.replace(before.optim, learning_rate=0.5)
    assert config.model.unet.channel_mult == (1, 2, 4)
    assert config.train.sample_prompts == ("a b", "c")
    assert config.data == before.data


def test_config_files_that_fail_are_named(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def get_config():\n    return 1 / 0\n")
    with pytest.raises(UserError, match=r"bad\.py: ZeroDivisionError"):
        load_config(bad)
    bad.write_text("def get_config():\n    return 3\n")
    with pytest.raises(UserError, match="must return a"):
        load_config(bad)
