"""Flags of the commands that sample are generated from SampleConfig."""

import dataclasses
import inspect

import pytest
import tyro

from glide_jax.config import SampleConfig
from glide_jax.evaluation import upsampling
from glide_jax.evaluation.scenes import __main__ as scenes
from glide_jax.evaluation.scenes import guidance, inpainting
from glide_jax.flag_rules import field_docs
from glide_jax.sampling.commands import Edit, Generate, Inpaint, Upsample
from glide_jax.sampling.flags import SamplingFlags
from glide_jax.sampling.settings import changed_settings

COMMANDS = (
    *(Generate, Inpaint, Edit, Upsample),
    *(scenes.Arguments, guidance.Arguments, inpainting.Arguments, upsampling.Arguments),
)


def test_every_sampling_setting_has_a_docstring():
    assert set(field_docs(SampleConfig)) == {one.name for one in dataclasses.fields(SampleConfig)}


def test_flags_do_not_need_the_source_of_the_settings(monkeypatch):
    def no_source(_):
        raise OSError("could not get source code")

    @dataclasses.dataclass
    class Settings:
        steps: int = 1
        """Number of steps."""

    monkeypatch.setattr(inspect, "getsource", no_source)
    assert field_docs(Settings) == {}  # another class than any: docstrings are read once


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__module__)
def test_every_sampling_command_has_every_setting(command):
    fields = {one.name for one in dataclasses.fields(command)}
    assert {one.name for one in dataclasses.fields(SampleConfig)} <= fields


def test_help_shows_the_docstrings_of_the_settings(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(SamplingFlags, args=["--help"])
    shown = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    for doc in field_docs(SampleConfig).values():
        assert " ".join(doc.split()[:2]) in shown


def test_flags_change_settings_and_unset_flags_do_not():
    given = ["--steps", "karras20", "--guidance-interval", "100", "900", "--seed", "3"]
    flags = tyro.cli(SamplingFlags, args=given)
    before = SampleConfig(eta=0.5)
    changed = changed_settings(before, **flags.settings)
    assert changed == dataclasses.replace(before, steps="karras20", guidance_interval=(100, 900))
    assert flags.seed == 3 and flags.batch_size is None
