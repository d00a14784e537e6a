import configparser
import dataclasses
import os
import sys
from pathlib import Path

import pytest
from helpers.parsing import parse_config

from glide_jax import cli
from glide_jax.cli import find_config, load_config, named_configs, parse_command
from glide_jax.config import (
    Config,
    DataConfig,
    LowResConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    UNetConfig,
)
from glide_jax.errors import UserError
from glide_jax.flag_rules import field_docs
from glide_jax.train import Flags

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
PACKAGE = ROOT / "glide_jax"


def test_a_path_is_relative_to_the_current_directory(monkeypatch, tmp_path):
    relative = os.path.relpath(CONFIGS / "base64_3b5.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert load_config(Path(relative)).denoiser.unet.channels == 512


def test_a_name_is_found_from_any_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert find_config("base64_3b5") == CONFIGS / "base64_3b5.py"
    name, config = parse_config(["--config", "scenes_tiny"], "train.py", "")
    assert name == "scenes_tiny"
    assert config == load_config(CONFIGS / "scenes_tiny.py")


def test_a_run_is_a_configuration(tmp_path):
    before = load_config("scenes_tiny")
    (tmp_path / "config.json").write_text(before.to_json())
    assert load_config(tmp_path / "config.json") == before


@pytest.mark.parametrize("name", ["base46", "nowhere/base64.py", "config.json"])
def test_an_unknown_name_is_refused_with_all_names(name):
    with pytest.raises(
        UserError, match=f"^--config {name}: no such .*names are base64, base64_3b5,"
    ):
        load_config(name)


def test_an_installed_package_has_its_configurations(monkeypatch, tmp_path):
    folder = tmp_path / "glide_jax" / "configs"
    folder.mkdir(parents=True)
    for name in "ba":
        (folder / f"{name}.py").write_text("")
    monkeypatch.setattr(cli, "__file__", str(folder.parent / "cli.py"))
    assert named_configs() == {name: folder / f"{name}.py" for name in "ab"}


def test_a_wheel_has_all_configurations():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    patterns = settings["options.package_data"]["glide_jax"].split()
    packaged = {file.resolve() for pattern in patterns for file in PACKAGE.glob(pattern)}
    assert set(CONFIGS.glob("*.py")) <= packaged


def test_the_license_is_the_one_that_the_metadata_state():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    (file,) = settings["metadata"]["license_files"].split()
    name = settings["metadata"]["license"]
    assert (ROOT / file).read_text().startswith(f"{name} License")


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.py")), ids=lambda file: file.stem)
def test_a_configuration_varies_the_file_beside_it(file, monkeypatch):
    """Not an installed copy: an edited clone or a copy of configs/ is used as a set."""
    monkeypatch.setattr(cli, "named_configs", dict)
    load_config(file)


def test_flags_override_the_file():
    file = CONFIGS / "scenes_tiny.py"
    _, config = parse_config(
        ["--config", str(file), "--optim.learning-rate", "0.5", "--model.unet.channel-mult", "1",
         "2", "4", "--train.sample-prompts", "a b", "c"], "train.py", "Trains.",
    )  # fmt: skip
    before = load_config(file)
    assert config.optim == dataclasses.replace(before.optim, learning_rate=0.5)
    assert config.model.unet.channel_mult == (1, 2, 4)
    assert config.train.sample_prompts == ("a b", "c")
    assert config.data == before.data


def test_splits_are_of_one_kind_of_source():
    """--data.source folder images/ needs no flag for the splits that a configuration's TFDS has."""
    for words, split in (
        (["folder", "x"], "validation"),
        (["embeddings", "x"], "validation"),
        (["tfds", "coco_captions", "caption_key=captions/text"], "val"),
        (["folder", "x", "--data.validation-split", "all"], "all"),
    ):
        argv = ["--config", "unclip_prior", "--data.source", *words]
        assert parse_config(argv, "train.py", "Trains.")[1].data.validation_split == split


@dataclasses.dataclass(frozen=True)
class Paths:
    out: Path = Path("x.png")
    samples: Path | None = None
    prompt: str = ""


def test_the_home_directory_is_expanded_in_flags(monkeypatch, capsys):
    monkeypatch.setenv("HOME", "/home/me")
    given = ["--out=~/x.png", "--samples", "~/y.png", "--prompt", "~/z"]
    found = cli.parse_flags(Paths, "x", given)
    assert found == Paths(Path("/home/me/x.png"), Path("/home/me/y.png"), "~/z")
    assert cli.parse_flags(Paths, "x", []) == Paths()
    with pytest.raises(SystemExit):
        cli.parse_flags(Paths, "x", ["--out", ""])  # not the current directory
    assert "--out: give a file or folder" in capsys.readouterr().err


def test_arguments_that_are_not_utf8_are_refused():
    with pytest.raises(UserError, match=r"^the argument 'caf\\xe9' is not UTF-8"):
        cli.parse_flags(Paths, "x", ["--prompt", "caf\udce9"])
    with pytest.raises(UserError, match="is not UTF-8"):
        parse_config(["--config", "scenes_tiny", "--train.run-dir", "\udce9"], "train.py", "")


def test_configurations_may_have_a_byte_order_mark_and_crlf(tmp_path):
    text = (CONFIGS / "scenes_tiny.py").read_text().replace("\n", "\r\n")
    (tmp_path / "tiny.py").write_bytes(b"\xef\xbb\xbf" + text.encode())
    loaded = load_config(tmp_path / "tiny.py")
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + loaded.to_json().encode())
    assert load_config(tmp_path / "config.json") == loaded == load_config("scenes_tiny")


def test_config_files_that_fail_are_named(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def get_config():\n    return 1 / 0\n")
    with pytest.raises(UserError, match=r"bad\.py, line 2: ZeroDivisionError: division by zero$"):
        load_config(bad)
    bad.write_text("import json\n\njson.loads('{')\n")
    with pytest.raises(UserError, match=r"bad\.py, line 3: JSONDecodeError: "):
        load_config(bad)
    bad.write_text("x = 1\ndef get_config(:\n")
    with pytest.raises(UserError, match=r"bad\.py, line 2: SyntaxError: "):
        load_config(bad)
    bad.write_text("from glide_jax import UserError\nraise UserError('give x')\n")
    with pytest.raises(UserError, match=r"bad\.py, line 2: give x$"):
        load_config(bad)
    for text in ("def get_config():\n    return 3\n", "x = 1\n", "get_config = 1\n"):
        bad.write_text(text)
        with pytest.raises(UserError, match="must return a"):
            load_config(bad)


def test_config_files_may_define_dataclasses_with_postponed_annotations(tmp_path):
    file = tmp_path / "json.py"  # a module's name, which the file must not replace
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from glide_jax.config import Config\n"
        "@dataclass\n"
        "class Mine:\n"
        "    x: int = 1\n"
        "def get_config() -> Config:\n"
        "    return Config()\n"
    )
    before = sys.modules["json"]
    assert load_config(file) == Config()
    assert sys.modules["json"] is before


def test_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_command(["--config", "scenes_tiny", "--help"], "train.py", "", Flags)
    assert ended.value.code == 0
    text = capsys.readouterr().out
    own = ("--config", "--coordinator", "--processes", "--distributed", "--profile")
    settings = (f"--{name}".replace("_", "-") for name in Config().flat() if "kind" not in name)
    for flag in (*own, *(flag for flag in settings if "source" not in flag), "--data.source"):
        assert flag in text or f"{flag.rpartition('.')[0]}.no-" in text, flag


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--train.batch-size", "--train.batch-examples"),
        ("--batch_size=8", "--train.batch-examples"),
        ("--lr", "--optim.learning-rate"),
        ("--steps", None),  # of training or of sampling
        ("--optim.speed", None),
    ],
)
def test_a_flag_that_does_not_exist_suggests_the_one_that_does(flag, meant, capsys):
    argv = ["--config", "scenes_tiny", flag, "8"]
    with pytest.raises(UserError if meant else SystemExit) as refused:
        parse_command(argv, "train.py", "", Flags)
    if meant:
        name = flag.partition("=")[0]
        assert str(refused.value) == f"{name}: there is no such flag; did you mean {meant}?"
    else:
        assert flag in "".join(capsys.readouterr())


@pytest.mark.parametrize("config", ["scenes_tiny", "scenes_clip32"])
def test_suggestions_are_settings(config):
    names = [name.rpartition(".")[2] for name in load_config(config).flat()]
    assert set(cli.OTHER_NAMES.values()) <= set(names)
    assert not set(cli.OTHER_NAMES) & set(names)


def test_help_has_no_line_breaks_of_docstrings(capsys, monkeypatch):
    """In a wide terminal, each flag's help is one line."""
    monkeypatch.setenv("COLUMNS", "2000")
    with pytest.raises(SystemExit):
        parse_command(["--config", "scenes_upsample128", "--help"], "train.py", "", Flags)
    shown = capsys.readouterr().out
    for group in (ModelConfig, UNetConfig, DataConfig, LowResConfig, TrainConfig, OptimConfig):
        docs = field_docs(group)
        assert len(docs) > 1
        for doc in docs.values():
            assert doc in shown
