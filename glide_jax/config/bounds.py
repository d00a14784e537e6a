"""Types and bounds of settings and flags, from the annotations that declare them.

    width: Annotated[int, Between(1, 65_536)] = 512

Bounds are far beyond any use: they refuse settings that would exhaust the machine.
"""

import math
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from glide_jax.errors import shown

MAX_CHARS = 2_000
"""Characters of a setting's text."""
MAX_ITEMS = 256
"""Items of a setting's list."""


@dataclass(frozen=True)
class Between:
    """Bounds of a number, or of each number of a tuple: metadata of its annotation."""

    low: int | float
    high: int | float

    def refusal(self, value: int | float) -> str:
        """Why a number is refused, as the end of a sentence; empty if it is in bounds."""
        if self.low <= value <= self.high:
            return ""
        if isinstance(value, float) and not math.isfinite(value):
            return "must be a number"
        bound = f"at least {self.low:,}" if value < self.low else f"at most {self.high:,}"
        return f"must be {bound}"


FRACTION = Between(0, 1)
NOT_NEGATIVE = Between(0, 1e30)
ANY_NUMBER = Between(-1e30, 1e30)
"""Numbers far within the range of float32."""
SEED = Between(0, 2**32 - 1)
WHOLE = Between(-(2**63), 2**63 - 1)
"""Whole numbers of 64 bits."""


def out_of_bounds(hint: Any, value: Any) -> tuple[str, Any]:
    """A number that is out of bounds, and why it is refused; see `Between.refusal`.

    Args:
        hint: the annotation of its field, with extras.
        value: a number, or a list or tuple of them. Other values are ignored.

    Returns:
        The refusal, empty if there is none, and the number.
    """
    declared = bounds_of(hint)
    for number in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            default = WHOLE if isinstance(number, int) else ANY_NUMBER
            if refusal := (declared or default).refusal(number):
                return refusal, number
    return "", None


def checked(hint: Any, value: Any) -> Any:
    """A value as its field holds it: an int as a float, a list as a tuple.

    Args:
        hint: the annotation of the field, with extras.
        value: any value.

    Raises:
        ValueError: it is of another type, out of bounds, or too long. The message is the end of a
            sentence that begins with the field's name.
    """
    value = _converted(hint, value)
    refusal, number = out_of_bounds(hint, value)
    if refusal:
        raise ValueError(f"{refusal}, not {shown(number)}")
    return value


def _converted(hint: Any, value: Any) -> Any:
    """`checked`, without bounds."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _converted(options[0], value)
    if origin is tuple:
        return _items(options, value)
    if origin is Literal:
        ok, wanted = isinstance(value, str) and value in options, f"one of {', '.join(options)}"
    elif origin is types.UnionType:
        ok, wanted = isinstance(value, options), " or ".join(one.__name__ for one in options)
    elif hint is float and type(value) is int:
        return float(value) if abs(value) < 2**1023 else value  # its bounds refuse it
    else:
        ok = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
        wanted = hint.__name__
    if not ok:
        raise ValueError(f"must be {wanted}, not {shown(value)}")
    if isinstance(value, str):
        _require_text(value)
    return value


def _items(kinds: tuple[Any, ...], values: Any) -> tuple[Any, ...]:
    """The items of `tuple[X, ...]`, or of a tuple of fixed length such as `tuple[X, Y]`."""
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"must be a list, not {shown(values)}")
    if len(values) > MAX_ITEMS:
        raise ValueError(f"must have at most {MAX_ITEMS} values, not {len(values):,}")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(values)
    if len(values) != len(kinds):
        raise ValueError(f"must have {len(kinds)} values, not {shown(values)}")
    return tuple(_converted(kind, item) for kind, item in zip(kinds, values, strict=True))


def _require_text(text: str) -> None:
    """Raises ValueError unless this can be a path, a name or a prompt."""
    if len(text) > MAX_CHARS:
        raise ValueError(f"must have at most {MAX_CHARS:,} characters, not {len(text):,}")
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"must be UTF-8 text, not {shown(text)}")


def bounds_of(hint: Any) -> Between | None:
    """The bounds in an annotation, those of the outermost `Annotated` first."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        for one in parts[1:]:
            if isinstance(one, Between):
                return one
        return bounds_of(parts[0])
    found = (bounds_of(part) for part in parts)
    return next((bounds for bounds in found if bounds is not None), None)
