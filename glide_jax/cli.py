"""Command lines: `--config base64 --optim.learning-rate 3e-5`, one parser per command."""

import argparse
import dataclasses
import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

from glide_jax.config import Config
from glide_jax.config.bounds import Between, out_of_bounds
from glide_jax.config.source_words import splits_for
from glide_jax.errors import UserError, first_line, shown
from glide_jax.flag_rules import flag_rules
from glide_jax.storage import expand_home

Flags = TypeVar("Flags")

UNRECORDED = {"unrecorded": True}
"""Metadata of a flag that images do not record: it changes none, or each has its own value."""

CONFIG_HELP = (
    "Configuration: a name (base64), a file (configs/base64.py) or a run's config.json. Its values "
    "are the defaults of the flags below."
)

OTHER_NAMES = {
    "batch_size": "batch_examples",
    "gradient_accumulation_steps": "micro_batches",
    "lr": "learning_rate",
    "max_steps": "steps",
    "max_train_steps": "steps",
    "mixed_precision": "dtype",
    "output_dir": "run_dir",
    "resolution": "resolution_px",
    "resume_from": "init_from",
    "save_every": "checkpoint_every_steps",
    "train_steps": "steps",
}
"""What other projects call some settings: for suggestions only."""


@dataclass(frozen=True, kw_only=True)
class ShardingFlags:
    """Flags of every command that loads models for sampling or scoring."""

    fsdp: Annotated[int, Between(1, 2**16)] = field(default=1, metadata=UNRECORDED)
    """Devices over which each model's parameters are sharded, for models larger than one device."""


def named_configs() -> dict[str, Path]:
    """The shipped configurations by name."""
    folder = (Path(__file__).parent / "configs").resolve()  # in a clone, a link to configs/
    return {file.stem: file for file in sorted(folder.glob("*.py"))}


def find_config(config: str | Path) -> Path:
    """The file of a configuration.

    Args:
        config: a path that ends in .py or .json, or a name of `named_configs`.

    Raises:
        UserError: there is no such file or name.
    """
    path = Path(expand_home(config))
    if path.suffix in (".py", ".json") and path.is_file():
        return path
    named = named_configs()
    if str(config) not in named:
        raise UserError(
            f"--config {config}: no such .py or .json file, and no such name; names are "
            f"{', '.join(named)}"
        )
    return named[str(config)]


def load_config(config: str | Path) -> Config:
    """The settings of a configuration.

    Args:
        config: a name, a Python file with `get_config() -> Config`, or a run's config.json.

    Raises:
        UserError: the file does not exist, cannot be read or returns no Config.
    """
    path = find_config(config)
    if path.suffix == ".json":
        return Config.load(path)
    # Not the file's own name: a numpy.py must not replace that module.
    spec = importlib.util.spec_from_file_location(f"config {path.absolute()}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # for dataclasses
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        loaded = get_config() if callable(get_config) else None
    except Exception as error:
        why = first_line(error)
        if not isinstance(error, UserError):
            why = f"{type(error).__name__}: {why}"
        raise UserError(f"--config {path}{_failed_line(path, error)}: {why}") from error
    if not isinstance(loaded, Config):
        raise UserError(f"--config {path}: get_config() must return a glide_jax.config.Config")
    return loaded


def _failed_line(path: Path, error: Exception) -> str:
    """The line of a file at which an error was raised, as ', line 3'; empty if unknown."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f", line {error.lineno}"
    frames = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if frame.f_code.co_filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def parse_flags(
    flags: type[Flags],
    prog: str,
    argv: Sequence[str] | None = None,
    description: str | None = None,
    **options: Any,
) -> Any:
    """Parses a command's flags: an instance of `flags`, unless `options` say otherwise.

    Args:
        flags: a dataclass.
        prog: the command, for --help.
        argv: its arguments; None for those of this process.
        description: of the command, for --help; the class's docstring by default.
        options: of `tyro.cli`.

    Raises:
        UserError: an argument is not UTF-8, or a number is out of bounds.
        SystemExit: --help (status 0); an unknown or ill-typed flag (status 2).
    """
    from tyro import cli  # here: `import glide_jax` would take a quarter of a second longer

    args = require_utf8(sys.argv[1:] if argv is None else argv)
    parsed = cli(
        flags, prog=prog, args=args, description=description, registry=flag_rules(), **options
    )
    require_in_bounds(parsed[0] if options.get("return_unknown_args") else parsed)
    return parsed


def require_in_bounds(flags: Any) -> None:
    """Raises UserError for a number out of the bounds that a dataclass of flags declares."""
    hints = get_type_hints(type(flags), include_extras=True)
    for one in dataclasses.fields(flags):
        value = getattr(flags, one.name)
        if dataclasses.is_dataclass(value):
            require_in_bounds(value)
        refusal, number = out_of_bounds(hints[one.name], value)
        if refusal:
            raise UserError(f"--{one.name.replace('_', '-')} {shown(number)}: {refusal}")


def require_utf8(argv: Sequence[str]) -> list[str]:
    """The arguments. Raises UserError if one is not UTF-8, which no caption and no PNG can be."""
    for word in argv:
        try:
            word.encode()
        except UnicodeEncodeError:
            shown = repr(word.encode(errors="surrogateescape"))[1:]
            raise UserError(f"the argument {shown} is not UTF-8: retype it") from None
    return list(argv)


def parse_command(
    argv: Sequence[str],
    prog: str,
    description: str,
    flags: type[Flags],
    fill: Callable[[str, Config], Config] = lambda name, config: config,
) -> tuple[str, Config, Flags]:
    """Parses --config, a command's own flags, and a flag for every setting of the configuration.

    Args:
        argv: the command's arguments, without its name.
        prog: the command, for --help.
        description: of the command, for --help.
        flags: a dataclass of the command's own flags, which all have defaults.
        fill: changes the values of settings without a flag, given the configuration's name and the
            configuration with the flags --train.run-dir and --train.init-from applied.

    Returns:
        The configuration's name, its settings with the flags applied, and the command's flags.

    Raises:
        UserError: no such configuration, or an invalid setting.
        SystemExit: --help (status 0); an unknown or ill-typed flag (status 2).
    """
    argv = require_utf8(argv)
    first = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    first.add_argument("--train.run-dir", "--train.run_dir", dest="run_dir")
    first.add_argument("--train.init-from", "--train.init_from", dest="init_from")
    first.add_argument("--data.source", dest="source", nargs="*", default=[])
    given, rest = first.parse_known_args(argv)
    wants_help = bool({"-h", "--help"} & set(rest))
    if given.config is None and not wants_help:
        raise UserError("--config is needed: a name or a file, for example --config scenes_tiny")
    settings = Config() if given.config is None else load_config(given.config)
    _require_known(argv, settings, flags)
    if not wants_help:
        folders = {k: v for k in ("run_dir", "init_from") if (v := getattr(given, k)) is not None}
        train = dataclasses.replace(settings.train, **folders)
        changes: Any = {"train": train, "data": splits_for(given.source, settings.data)}
        settings = fill(Path(given.config).stem, dataclasses.replace(settings, **changes))
    parsed = _parse(argv, prog, description, given.config or "", flags, settings)
    require_in_bounds(parsed.command)
    return Path(parsed.config).stem, parsed.settings, parsed.command


def _parse(
    argv: Sequence[str], prog: str, description: str, config: str, flags: Any, settings: Config
) -> Any:
    """All flags of a command, by one parser; the arguments after `description` are defaults."""
    from tyro import cli, conf  # here: `import glide_jax` would take a quarter of a second longer

    config_flag = conf.arg(metavar="NAME|FILE", help=CONFIG_HELP, help_behavior_hint="(required)")
    command = dataclasses.make_dataclass(
        "Command",
        [
            ("config", Annotated[str, config_flag]),
            ("command", Annotated[flags, conf.OmitArgPrefixes, conf.FlagCreatePairsOff]),
            ("settings", Annotated[conf.AvoidSubcommands[Config], conf.arg(name="")]),
        ],
    )
    return cli(
        command,
        default=command(config, flags(), settings),
        args=argv,
        prog=prog,
        description=description,
        registry=flag_rules(),
    )


def _require_known(argv: Sequence[str], settings: Config, flags: type) -> None:
    """Raises UserError for a flag that does not exist if a setting has a similar name."""
    names = list(settings.flat())
    known = {*names, "config", *(one.name for one in dataclasses.fields(flags))}
    last = [name.rpartition(".")[2] for name in names]
    for word in argv:
        flag = word.partition("=")[0]
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name in known:
            continue
        own = name.rpartition(".")[2]
        meant = OTHER_NAMES.get(own, own)
        if last.count(meant) == 1:
            setting = names[last.index(meant)].replace("_", "-")
            raise UserError(f"{flag}: there is no such flag; did you mean --{setting}?")
