"""Flags of the commands that sample, generated from `SampleConfig`."""

import ast
import dataclasses
import inspect
from dataclasses import dataclass, field
from typing import Annotated, Any, get_type_hints

import tyro

from glide_jax.cli import UNRECORDED, ShardingFlags
from glide_jax.config import SampleConfig


def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a class, in one line; none if there is no source file."""
    try:
        source = inspect.getsource(cls)
    except OSError:  # compiled packages; flags work without their help
        return {}
    (body,) = ast.parse(inspect.cleandoc("\n" + source)).body
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for declared, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(declared, ast.AnnAssign) and isinstance(declared.target, ast.Name):
            text = below.value if isinstance(below, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                docs[declared.target.id] = " ".join(text.value.split())
    return docs


def _optional_flags(cls: type) -> Any:
    """A dataclass with the fields of `cls`, all None unless given."""
    docs, types = field_docs(cls), get_type_hints(cls)
    fields = [
        (
            one.name,
            Annotated[
                types[one.name] | None,
                tyro.conf.arg(
                    help=docs.get(one.name, ""), help_behavior_hint="(default: the run's own)"
                ),
            ],
            field(default=None, kw_only=True),
        )
        for one in dataclasses.fields(cls)
    ]
    return dataclasses.make_dataclass(
        "SettingFlags", fields, frozen=True, namespace={"__doc__": f"Fields of {cls.__name__}."}
    )


SettingFlags: Any = _optional_flags(SampleConfig)
"""A flag for each sampling setting; unset ones default to the run's own."""


@dataclass(frozen=True, kw_only=True)
class SamplingFlags(SettingFlags, ShardingFlags):
    """Flags of every command that samples. Unset settings default to the run's own."""

    seed: int = 0
    """Seed of the first image."""
    batch_size: int | None = field(default=None, metadata=UNRECORDED)
    """Images per batch."""

    @property
    def settings(self) -> dict[str, Any]:
        """The sampling settings, None where unset."""
        return {one.name: getattr(self, one.name) for one in dataclasses.fields(SettingFlags)}


def recorded_flags(flags: Any) -> dict[str, Any]:
    """The flags of a command that affect its images, by name, without the sampling settings.

    Args:
        flags: a dataclass; fields marked UNRECORDED are omitted.
    """
    settings = {one.name for one in dataclasses.fields(SettingFlags)}
    return {
        one.name: getattr(flags, one.name)
        for one in dataclasses.fields(flags)
        if one.name not in settings and one.metadata != UNRECORDED
    }
