"""Flags of the commands that sample, generated from `SampleConfig`."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, get_type_hints

import tyro

from glide_jax.cli import UNRECORDED, ShardingFlags
from glide_jax.config import SampleConfig
from glide_jax.config.bounds import SEED, Between
from glide_jax.flag_rules import field_docs
from glide_jax.sampling.arguments import MAX_BATCH_SIZE


def _optional_flags(cls: type) -> Any:
    """A dataclass with the fields of `cls`, all None unless given."""
    docs, types = field_docs(cls), get_type_hints(cls, include_extras=True)
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


LESS_MEMORY = "use a smaller --batch-size, or --fsdp if there are several devices"
"""What helps if memory runs out in a command with `SamplingFlags`."""


@dataclass(frozen=True, kw_only=True)
class SamplingFlags(SettingFlags, ShardingFlags):
    """Flags of every command that samples. Unset settings default to the run's own."""

    seed: Annotated[int, SEED] = 0
    """Seed of the first image."""
    batch_size: Annotated[int, Between(1, MAX_BATCH_SIZE)] | None = field(
        default=None, metadata=UNRECORDED
    )
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
