"""Checks of settings, with errors that name a setting as its flag does: model.unet.channels."""

import typing
from typing import ClassVar

from glide_jax.errors import UserError


class Settings:
    """Base class of every group of settings.

    A group finds its own place in `Config` from the annotation of the group that holds it, so no
    check spells out a dotted name.
    """

    kind: ClassVar[str] = ""
    """Name of a class that is one of several in a union, in JSON and on the command line."""
    _holder: ClassVar["tuple[type[Settings], str] | None"] = None

    def __init_subclass__(cls) -> None:
        for name, hint in typing.get_type_hints(cls).items():
            for held in (hint, *typing.get_args(hint)):
                if isinstance(held, type) and issubclass(held, Settings):
                    held._holder = (cls, name)

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
            raise UserError(f"config: {self.dotted(name)} {why}")

    def require_at_least(self, minimum: int, *names: str) -> None:
        """Refuses numbers below `minimum`. Raises UserError."""
        for name in names:
            value = getattr(self, name)
            self.require(value >= minimum, name, f"must be at least {minimum}, not {value}")

    def require_fraction(self, *names: str) -> None:
        """Refuses numbers outside [0, 1]. Raises UserError."""
        for name in names:
            value = getattr(self, name)
            self.require(0 <= value <= 1, name, f"must be in [0, 1], not {value}")
