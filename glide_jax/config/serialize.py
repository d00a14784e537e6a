"""Settings as JSON and back, with errors that name the setting."""

import dataclasses
import json
import types
import typing
from typing import Any, Literal, TypeVar

from glide_jax.config.checks import Settings
from glide_jax.errors import UserError

Group = TypeVar("Group", bound=Settings)

RENAMED = {
    "data.caption_drop": "data.caption_dropout",
    "data.max_bad_share": "data.max_bad_fraction",
    "diffusion.low_res_deviation": "diffusion.low_res_std",
    "train.checkpoints_kept": "train.max_checkpoints",
}
"""Settings of older run folders and their present names, for error messages only."""


def to_json(settings: Settings) -> str:
    """A group of settings as indented JSON."""
    return json.dumps(dataclasses.asdict(settings), indent=2)  # type: ignore[call-overload]


def from_json(group: type[Group], text: str, where: str) -> Group:
    """The settings that `to_json` wrote; missing ones take their defaults.

    Args:
        group: the class of the settings.
        text: JSON.
        where: the name of the file, for errors.

    Raises:
        UserError: not JSON, an unknown setting, or a value of the wrong type.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error}") from None
    return _group(group, values, where, "")


def _group(group: Any, values: Any, where: str, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{where}: {prefix.rstrip('.') or 'the configuration'} must be an object")
    types_by_name = {field.name: field.type for field in dataclasses.fields(group)}
    for name in values.keys() - types_by_name.keys():
        full = prefix + name
        now = f": it is {RENAMED[full]} now" if full in RENAMED else ""
        raise UserError(f"{where}: unknown setting {full}{now}")
    hints = typing.get_type_hints(group)
    return group(
        **{name: _value(hints[name], value, where, prefix + name) for name, value in values.items()}
    )


def _value(expected: Any, value: Any, where: str, name: str) -> Any:
    if dataclasses.is_dataclass(expected):
        return _group(expected, value, where, name + ".")
    origin = typing.get_origin(expected)
    if origin is types.UnionType:  # of groups: the one with all of these settings
        fitting = (
            option
            for option in typing.get_args(expected)
            if isinstance(value, dict) and value.keys() <= typing.get_type_hints(option).keys()
        )
        return _value(next(fitting, typing.get_args(expected)[0]), value, where, name)
    if origin is Literal:
        ok = value in typing.get_args(expected)
    elif origin is tuple and isinstance(value, list):
        element = typing.get_args(expected)[0]
        return tuple(_value(element, item, where, name) for item in value)
    elif expected is float and type(value) is int:
        return float(value)
    else:
        ok = origin is None and type(value) is expected
    if not ok:
        raise UserError(f"{where}: {name} must be {_type_name(expected)}, not {value!r}")
    return value


def _type_name(expected: Any) -> str:
    return expected.__name__ if isinstance(expected, type) else str(expected)
