"""Settings as JSON and back, with errors that name the setting.

Where several classes are possible, as for model and data.source, the object's "kind" says which.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

from glide_jax.config.bounds import checked
from glide_jax.config.checks import PREFIX, Settings
from glide_jax.errors import UserError, first_line, shown

Group = TypeVar("Group", bound=Settings)

RENAMED = {
    'model.remat "products"': 'model.remat "matmuls"',
    "diffusion.low_res_deviation": "diffusion.low_res_std",
    "data.name": "data.source.name (tfds) or data.source.subset (scenes)",
    "data.path": "data.source.path",
    "data.mixture": "data.source of kind mixture",
    "data.data_dir": "data.source.data_dir",
    "data.cache_dir": "data.source.cache_dir",
    "data.image_key": "data.source.image_key",
    "data.caption_key": "data.source.caption_key",
    "data.caption_drop": "data.caption_dropout",
    "data.masks.whole": "data.masks.full",
    "data.masks.place_caption": "data.masks.caption_location",
    "data.max_bad_share": "data.max_bad_fraction",
    "train.checkpoints_kept": "train.max_checkpoints",
}
"""Settings in config.json files of earlier versions, and what they are now: for errors only."""


def to_json(settings: Settings) -> str:
    """A group of settings as indented JSON."""
    return json.dumps(_plain(settings), indent=2, allow_nan=False)


def flat_settings(settings: Settings) -> dict[str, Any]:
    """Every setting of a group by its dotted name."""
    return dict(_flat(json.loads(to_json(settings)), ""))


def from_json(group: type[Group], text: str, where: str) -> Group:
    """The settings that `to_json` wrote; missing ones take their defaults.

    Args:
        group: the class of the settings.
        text: JSON.
        where: the name of the file, for errors.

    Raises:
        UserError: not JSON, an unknown or missing setting, or a value of the wrong type or out of
            bounds.
    """
    try:
        values = json.loads(text, object_pairs_hook=_object, parse_constant=_not_a_number)
    except RecursionError:
        raise UserError(f"{where} is not a configuration: it is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {first_line(error)}") from None
    if old := [name for name in RENAMED if _has(values, name)]:
        changes = "; ".join(f"{name} is {RENAMED[name]} now" for name in old)
        raise UserError(f"{where} has settings of an earlier version: {changes}")
    return from_plain(group, values, where, "")


def from_plain(group: Any, values: Any, where: str, prefix: str) -> Any:
    """A group of settings from JSON values.

    Args:
        group: its class.
        values: an object with names of settings.
        where: the file or flag they come from, for errors.
        prefix: of the settings' names in errors: "" or "data.source.".

    Raises:
        UserError: an unknown or missing setting, or a value of the wrong type or out of bounds.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: {prefix.rstrip('.') or 'the configuration'} must be an object")
    fields = {field.name: field for field in dataclasses.fields(group)}
    for name in values:
        if name not in fields:
            raise UserError(f"{where}: unknown setting {prefix}{_shown_name(name)}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise UserError(f"{where}: {prefix}{name} is missing")
    hints = typing.get_type_hints(group, include_extras=True)
    given = {
        name: _value(hints[name], value, where, prefix + name) for name, value in values.items()
    }
    try:
        return group(**given)
    except UserError as error:
        raise UserError(f"{where}: {str(error).removeprefix(PREFIX)}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        kind = {"kind": value.kind} if value.kind else {}
        fields: Any = dataclasses.fields(value)  # type: ignore[arg-type]
        return kind | {field.name: _plain(getattr(value, field.name)) for field in fields}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError if a name is given twice: readers differ in which counts."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{_shown_name(name)} is given twice")
        values[name] = value
    return values


def _not_a_number(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _has(values: Any, old: str) -> bool:
    """Whether JSON values have a setting of an earlier version: a key of RENAMED."""
    dotted, _, old_value = old.partition(" ")
    for name in dotted.split("."):
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return not old_value or values == json.loads(old_value)


def _shown_name(name: str) -> str:
    """A setting's name in an error; any text may be one in a file."""
    return name if name.isidentifier() and len(name) < 50 else shown(name)


def _value(expected: Any, value: Any, where: str, name: str) -> Any:
    """The value of a setting from JSON."""
    options = typing.get_args(expected)
    if typing.get_origin(expected) is types.UnionType:
        return _one_of(options, value, where, name)
    if dataclasses.is_dataclass(expected):
        return from_plain(expected, value, where, name + ".")
    if isinstance(value, list) and dataclasses.is_dataclass(next(iter(options), None)):
        value = [from_plain(options[0], item, where, name + ".") for item in value]
    try:
        return checked(expected, value)
    except ValueError as error:
        raise UserError(f"{where}: {name} {error}") from None


def _one_of(options: Any, value: Any, where: str, name: str) -> Any:
    """The group that the object's "kind" names."""
    kinds = {option.kind: option for option in options}
    if isinstance(value, str) and value in kinds:  # as in files of earlier versions
        raise UserError(f'{where}: {name} "{value}" is {{"kind": "{value}"}} now')
    if not isinstance(value, dict):
        raise UserError(f"{where}: {name} must be an object")
    if "kind" not in value:
        raise UserError(f"{where}: {name}.kind is missing: {' or '.join(kinds)}")
    kind = value["kind"]
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(
            f"{where}: {name}.kind must be one of {', '.join(kinds)}, not {shown(kind)}"
        )
    values = {key: item for key, item in value.items() if key != "kind"}
    return from_plain(kinds[kind], values, where, name + ".")
