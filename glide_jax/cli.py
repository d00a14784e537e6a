"""`--config configs/x.py --optim.learning-rate 3e-5`: a configuration file and changes to it."""

import argparse
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from glide_jax.config import Config
from glide_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ShardingFlags:
    """What every command that loads models for drawing or comparing takes."""

    fsdp: int = 1
    """Devices over which each model's parameters are shared out, for a model that one has no room
    for."""


def load_config(path: Path) -> Config:
    """The configuration that a file describes.

    Args:
        path: a Python file with `get_config() -> Config`, or a run's config.json.

    Raises:
        UserError: the file cannot be read or gives no Config.
    """
    if path.suffix == ".json":
        return Config.load(path)
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"--config {path}: no such .py or .json file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--config {path}: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise UserError(f"--config {path}: get_config() must return a glide_jax.config.Config")
    return config


def keep_compiled_programs() -> None:
    """Makes a second start quick: compiled programs are kept in ~/.cache/glide_jax.

    JAX_COMPILATION_CACHE_DIR names another folder; '' keeps none.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(cache) / "glide_jax"))


def parse_config(argv: Sequence[str], prog: str, description: str) -> tuple[Path, Config]:
    """Reads `--config FILE`, and then flags for every setting, whose defaults are the file's.

    Args:
        argv: the command's arguments, without its name.
        prog: the command, for --help.
        description: what it does, for --help.

    Returns:
        The file, and its configuration with the flags' changes.

    Raises:
        UserError: no such file, or a setting that cannot work.
        SystemExit: --help (status 0); an unknown or ill-typed flag (status 2).
    """
    first = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    given, flags = first.parse_known_args(argv)
    wants_help = "--help" in flags or "-h" in flags
    if given.config is None and not wants_help:
        raise UserError("--config FILE is needed, for example --config configs/scenes_tiny.py")

    import tyro  # late: a quarter of a second that `import glide_jax` need not pay

    description = (
        f"{description}\n\nFirst of all: --config FILE, a file of configs/ or a config.json."
    )
    default = Config() if given.config is None else load_config(given.config)
    return given.config, tyro.cli(
        tyro.conf.AvoidSubcommands[Config],
        default=default,
        args=flags,
        prog=f"{prog} --config FILE",
        description=description,
    )
