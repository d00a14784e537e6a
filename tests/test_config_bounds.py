"""Configurations of strangers: refused in one line, or small enough to load."""

import dataclasses
import json
import random
import re
import tracemalloc
import typing

import pytest
from test_config import PARAMETERS

from glide_jax import config as settings
from glide_jax.cli import load_config
from glide_jax.config import ClipConfig, Config, DataConfig, Folder, Mixture, MixturePart
from glide_jax.config.bounds import Between
from glide_jax.config.checks import Settings
from glide_jax.config.run import MAX_CONFIG_BYTES
from glide_jax.config.sizes import MAX_PARAMETERS
from glide_jax.errors import UserError

VALID = [
    Config().to_json(),
    Config(model=ClipConfig()).to_json(),
    Config(data=DataConfig(source=Mixture((MixturePart(1.0, Folder("a")),)))).to_json(),
]
STRANGE = [
    *(None, True, -1, 0, 1, 3, 10**9, 10**18, 10**400, -(10**400), 1e-300, 1e300, -0.0, 0.5),
    *("", "a", "x" * 10**5, "\0", "\ud800", "ddim", "a\nb\x1b[31m", "(" * 900, "a{99999999999999}"),
    *([], [1], [[]], [1] * 20_000, ["a"] * 300, [None, {}], {}, {"kind": "clip"}, {"a": {"b": []}}),
]


def unet(**values):
    return json.dumps({"model": {"kind": "denoiser", "unet": values}})


def clip(**values):
    return json.dumps({"model": {"kind": "clip", **values}})


def refusal(text):
    with pytest.raises(UserError) as error:
        Config.from_json(text, "x/config.json")
    line = str(error.value)
    assert line.startswith("x/config.json") and len(line) < 400 and "\n" not in line
    return line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param("[" * 100_000, "is nested too deeply", id="deep"),
        pytest.param('{"a":' * 900 + "1" + "}" * 900, "unknown setting a", id="deep object"),
        ('{"train": {"steps": 1, "steps": 2}}', "is not JSON: steps is given twice"),
        ('{"optim": {"eps": NaN}}', "is not JSON: NaN is not a number"),
        ('{"optim": {"eps": -Infinity}}', "is not JSON: -Infinity is not a number"),
        ('{"optim": {"eps": 1e999}}', "optim.eps must be a number, not inf"),
        pytest.param('{"train":{"seed":' + "1" * 5000 + "}}", "is not JSON", id="digits"),
        pytest.param('{"optim":{"eps":1' + "0" * 400 + "}}", "at most 1, not 1000", id="float"),
        ('{"train": {"seed": -1}}', "train.seed must be at least 0, not -1"),
        ('{"train": {"seed": 4294967296}}', "train.seed must be at most 4,294,967,295, not"),
        ('{"optim": {"b1": 1}}', r"optim.b1 must be in \[0, 1\), not 1"),
        ('{"diffusion": {"steps": 1000000000000}}', "steps must be at most 100,000, not 1000000"),
        ('{"sample": {"sampler": "\\u0000"}}', "sample.sampler must be UTF-8 text"),
        ('{"sample": {"sampler": "\\ud800"}}', "sample.sampler must be UTF-8 text"),
        ('{"sample": {"sampler": ["ddim"]}}', r"sample.sampler must be str, not \['ddim'\]"),
        ('{"data": {"tokenizer": {"a": 1}}}', "data.tokenizer must be str, not {'a': 1}"),
        ('{"data": {"caption_pattern": "a{99999999999999}"}}', "is no regular expression: "),
        ('{"train": {"a\\nb": 1}}', r"unknown setting train.'a\\nb'"),
        ('{"data": {"source": {"kind": "mixture", "parts": 3}}}', "parts must be a list, not 3"),
        ('{"data": {"source": {"kind": "mixture", "parts": [3]}}}', "source.parts must be an ob"),
        (json.dumps({"data": {"tokenizer": "x" * 2001}}), "at most 2,000 characters, not 2,001"),
        (json.dumps({"train": {"sample_prompts": ["x"] * 257}}), "at most 256 values, not 257"),
        (unet(channel_mult=[1] * 20), "model.unet.channel_mult has more than 12 levels"),
        (unet(channels=2**15), "model has about .* parameters, more than 1e"),
        (unet(resolution_px=2**14, attention_px=[]), "model has activations of about .* elements"),
        (clip(image={"resolution_px": 2**10, "patch_px": 1}), "model has activations of about "),
        (clip(text={"layers": -3}), "model.text.layers must be at least 1, not -3"),
    ],
)
def test_configurations_of_strangers_are_refused_in_one_line(text, line):
    assert re.search(line, refusal(text))


def mutated(rng, text):
    """A valid configuration with one or two values replaced, at any level."""
    values = json.loads(text)
    for _ in range(rng.randint(1, 2)):
        at, key = values, rng.choice(list(values))
        while isinstance(at[key], (dict, list)) and at[key] and rng.random() < 0.9:
            at = at[key]
            key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
        near = isinstance(at[key], (int, float)) and rng.random() < 0.5
        at[key] = at[key] * rng.choice((1, 2, 4)) if near else rng.choice(STRANGE)
    return json.dumps(values)


def test_random_mutations_of_a_configuration_load_or_are_refused():
    rng, loaded = random.Random(0), 0
    for _ in range(150):
        text = mutated(rng, rng.choice(VALID))
        try:
            config = Config.from_json(text)
        except UserError as error:
            assert len(str(error)) < 400, error
        else:
            loaded += 1
            assert Config.from_json(config.to_json()) == config
    assert 15 < loaded < 135


def test_long_names_of_many_values_take_no_memory():
    text = json.dumps({"model": {"a" * 10**5: {str(i): i for i in range(2000)}}})
    tracemalloc.start()
    refusal(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def groups(base=Settings):
    return [one for cls in base.__subclasses__() for one in (cls, *groups(cls))]


def test_every_number_of_a_configuration_has_bounds():
    assert {settings.TextConfig, settings.MixturePart, Config} <= set(groups())
    for group in groups():
        hints = typing.get_type_hints(group, include_extras=True)
        for field in dataclasses.fields(group):
            kinds = set(typing.get_args(hints[field.name])) | {hints[field.name]}
            if kinds & {int, float, tuple[int, ...], tuple[int, int]}:
                assert any(isinstance(kind, Between) for kind in kinds), (group, field.name)


@pytest.mark.parametrize("name", PARAMETERS)
def test_rough_sizes_are_right_within_a_factor_of_two(name):
    model = load_config(name).model
    assert 0.5 < model.size.parameters / PARAMETERS[name] < 2
    assert PARAMETERS[name] < MAX_PARAMETERS / 20


def test_a_configuration_is_a_small_regular_file(tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes(b" " * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(UserError, match="larger than 4 MB"):
        Config.load(file)
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="not a regular file"):
        Config.load(file)
