"""Parsing of a configuration and its flags, as a command without flags of its own does it."""

from dataclasses import dataclass

from glide_jax.cli import parse_command


@dataclass(frozen=True)
class NoFlags:
    """No flags beside those of the configuration."""


def parse_config(argv, prog, description):
    """The configuration's name, and its settings with the flags applied."""
    name, config, _ = parse_command(argv, prog, description, NoFlags)
    return name, config
