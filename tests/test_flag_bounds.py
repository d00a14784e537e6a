"""Numbers of every command's flags have bounds, and are refused by the flag's name."""

import dataclasses
import typing

import pytest

from glide_jax.cli import parse_flags, require_in_bounds
from glide_jax.config.bounds import bounds_of
from glide_jax.convert import __main__ as convert
from glide_jax.errors import UserError
from glide_jax.evaluation import retrieval, upsampling
from glide_jax.evaluation.scenes import __main__ as scenes
from glide_jax.evaluation.scenes import attribute_binding, guidance, inpainting, train_reader
from glide_jax.export import __main__ as export
from glide_jax.parallel.launch import LaunchFlags
from glide_jax.plan import __main__ as plan
from glide_jax.plot import __main__ as plot
from glide_jax.prepare.pipeline import PrepareConfig
from glide_jax.sampling.commands import Edit, Generate, Inpaint, Rank, Upsample

MODULES = (retrieval, upsampling, scenes, attribute_binding, guidance, inpainting, train_reader)
FLAGS = [
    *(module.Arguments for module in (*MODULES, convert, export, plot)),
    *(plan.Flags, LaunchFlags, PrepareConfig, Generate, Inpaint, Edit, Upsample, Rank),
]
FINITE_ONLY = {"scales", "clip_scales", "strength"}
"""Numbers with the bounds of all numbers, or checks of their own."""


def leaves(hint):
    parts = typing.get_args(hint)
    return {leaf for part in parts for leaf in leaves(part)} if parts else {hint}


def number_flags(flags):
    """Each number of a command's flags, with its annotation."""
    types, hints = (typing.get_type_hints(flags, include_extras=extras) for extras in (False, True))
    for field in dataclasses.fields(flags):
        if dataclasses.is_dataclass(types[field.name]):
            yield from number_flags(types[field.name])
        elif leaves(types[field.name]) & {int, float}:
            yield field.name, hints[field.name]


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: f"{flags.__module__}.{flags.__name__}")
def test_every_number_is_refused_by_name_out_of_its_bounds(flags):
    for name, hint in number_flags(flags):
        bounds = bounds_of(hint)
        assert bounds is not None or name in FINITE_ONLY, name
        one = dataclasses.make_dataclass("One", [(name, hint)])
        for value in (float("nan"), float("inf"), 10**5000, -(10**5000), [1.0, float("nan")]):
            with pytest.raises(UserError, match=f"^--{name.replace('_', '-')} ") as error:
                require_in_bounds(one(value))
            assert len(str(error.value)) < 200


MODEL = ("--checkpoint", "x")


@pytest.mark.parametrize(
    ("flags", "argv", "line"),
    [
        (guidance.Arguments, (*MODEL, "--scales", "1", "nan"), "--scales nan: must be a number"),
        (guidance.Arguments, (*MODEL, "--eta", "inf"), "--eta inf: must be a number"),
        (retrieval.Arguments, (*MODEL, "--t", "0", "-1"), "--t -1: must be at least 0"),
        (convert.Arguments, ("x.pt", "--to", "x", "--text-heads", "0"), "--text-heads 0: must be"),
        (train_reader.Arguments, ("--learning-rate", "nan"), "--learning-rate nan: must be a n"),
        (PrepareConfig, ("--from", "x", "--to", "y", "--max-aspect", "inf"), "--max-aspect inf: "),
    ],
)
def test_commands_refuse_numbers_by_the_flags_name(flags, argv, line):
    with pytest.raises(UserError) as error:
        parse_flags(flags, "command", argv)
    assert str(error.value).startswith(line)
