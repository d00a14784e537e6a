"""Checks of settings, with errors that name a setting as its flag does: model.unet.channels."""

import dataclasses
import functools
import typing
from typing import Any, ClassVar

from glide_jax.config.bounds import checked
from glide_jax.errors import UserError

PREFIX = "config: "
"""Start of an error about a setting whose file is unknown."""


class Settings:
    """Base class of every group of settings.

    A group finds its own place in `Config` from the annotation of the group that holds it, so no
    check spells out a dotted name. Annotations are also what values are checked against.
    """

    kind: ClassVar[str] = ""
    """Name of a class that is one of several in a union, in JSON and on the command line."""
    _holder: ClassVar["tuple[type[Settings], str] | None"] = None

    def __init_subclass__(cls) -> None:
        for name, hint in typing.get_type_hints(cls).items():
            for held in (hint, *typing.get_args(hint)):
                if isinstance(held, type) and issubclass(held, Settings):
                    held._holder = (cls, name)

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():  # type: ignore[arg-type]
            try:
                object.__setattr__(self, name, checked(hint, getattr(self, name)))
            except ValueError as error:
                self.require(False, name, str(error))
        self._check()

    def _check(self) -> None:
        """Checks of several settings together, in each group's own override. Raises UserError."""

    @classmethod
    def dotted(cls, name: str = "") -> str:
        """The full name of a setting: `TextConfig.dotted("width")` is "model.text.width".

        Args:
            name: a field of this class; empty for the group itself.
        """
        names, group = [name] if name else [], cls
        while group._holder is not None:
            group, field = group._holder
            names.append(field)
        return ".".join(reversed(names))

    def require(self, ok: bool, name: str, why: str) -> None:
        """Refuses a setting.

        Args:
            ok: whether its value is valid.
            name: the field, relative to this class; empty for the group itself.
            why: the end of a sentence that begins with the setting's name.

        Raises:
            UserError: `ok` is false.
        """
        if not ok:
            raise UserError(f"{PREFIX}{self.dotted(name)} {why}")


@functools.cache
def _hints(group: type[Settings]) -> dict[str, Any]:
    """The annotations of a group's fields, with extras."""
    hints = typing.get_type_hints(group, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(group)}  # type: ignore[arg-type]
