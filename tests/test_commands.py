"""What all commands have in common."""

import os
from pathlib import Path

import jax
import pytest

from glide_jax import UserError, sample, train
from glide_jax.config import Config
from glide_jax.convert import __main__ as convert
from glide_jax.errors import exit_on_user_error
from glide_jax.evaluation import retrieval, upsampling
from glide_jax.evaluation.scenes import __main__ as scenes
from glide_jax.evaluation.scenes import guidance, inpainting, train_reader
from glide_jax.export import __main__ as export
from glide_jax.parallel.process_group import ProcessGroup
from glide_jax.plot import __main__ as plot
from glide_jax.prepare import __main__ as prepare
from glide_jax.sampling.commands import Generate
from glide_jax.training.profiling import Profile


def test_ctrl_c_in_prepare_says_how_to_resume(monkeypatch, tmp_path, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "prepare", interrupt)
    with pytest.raises(SystemExit, match="130"), exit_on_user_error():
        prepare.main(["--from", "a", "--to", str(tmp_path)])
    error = capsys.readouterr().err
    assert error == "interrupted: run the same command again to resume\n"


COMMANDS = (
    (guidance, ("--checkpoint", "a", "--out")),
    (inpainting, ("--checkpoint", "a", "--out")),
    (retrieval, ("--checkpoint", "a", "--out")),
    (scenes, ("--checkpoint", "a", "--out")),
    (upsampling, ("--checkpoint", "a", "--out")),
    (sample, ("--checkpoint", "a", "--prompt", "b", "--out")),
    (train_reader, ("--out",)),
    (plot, ("a", "--out")),
    (plot, ("a", "--samples")),
    (convert, ("a.pt", "--to")),
    (convert, (".", "--to")),
    (export, ("a", "--to")),
    (prepare, ("--from", "a", "--to")),
)
"""Commands, with their flags up to an output."""


@pytest.mark.parametrize(
    ("command", "flags"),
    COMMANDS,
    ids=[f"{c.__name__}{flags[-1]}{flags[0]}" for c, flags in COMMANDS],
)
def test_outputs_are_checked_before_the_work(command, flags, tmp_path, monkeypatch):
    name = "x.safetensors" if command is train_reader else "x.png"
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir()
    denied = tmp_path / "locked"
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != denied)  # of root, too
    for folder, why in (
        (tmp_path / "file", f"{tmp_path}/file is a file, not a folder"),
        (tmp_path / "locked" / "new", f"no permission to write in {denied}"),
    ):
        with pytest.raises(UserError, match=f"^{flags[-1]} {folder}/{name}: {why}$"):
            command.main([*flags, f"{folder}/{name}"])
    if command not in (export, prepare):  # which write to buckets
        url = f"gs://some/place/{name}"
        with pytest.raises(UserError, match=f"^{flags[-1]} {url}: use a local file or folder$"):
            command.main([*flags, url])


@pytest.mark.parametrize(
    ("function", "begins", "given", "flag"),
    [
        (
            train.train,
            "open_source",
            (Config(), Path("run"), ProcessGroup(), Profile()),
            "more --train.micro-batches",
        ),
        (sample.run, "is_folder", (Generate(checkpoint=("b",), prompt=("a",)),), "--batch-size"),
        *(
            (command.main, "parse_flags", (), "--batch-size")
            for command in (guidance, inpainting, scenes, upsampling)
        ),
    ],
    ids=lambda value: getattr(value, "__module__", "x"),
)
def test_lack_of_memory_names_the_flags_that_help(function, begins, given, flag, monkeypatch):
    def exhaust(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 bytes")

    monkeypatch.setattr(f"{function.__module__}.{begins}", exhaust)
    with pytest.raises(UserError, match=f"^out of memory: .*{flag}.*RESOURCE_EXHAUSTED: 9 bytes"):
        function(*given)
