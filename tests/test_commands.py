"""What all commands have in common."""

import os
from functools import partial
from pathlib import Path

import pytest

from glide_jax import UserError, sample
from glide_jax.convert import __main__ as convert
from glide_jax.evaluation import retrieval, upsampling
from glide_jax.evaluation.scenes import __main__ as scenes
from glide_jax.evaluation.scenes import guidance, inpainting, train_reader
from glide_jax.export import __main__ as export
from glide_jax.plot import __main__ as plot
from glide_jax.prepare import __main__ as prepare

COMMANDS = {
    guidance.main: ("--checkpoint", "a", "--out"),
    inpainting.main: ("--checkpoint", "a", "--out"),
    retrieval.main: ("--checkpoint", "a", "--out"),
    scenes.main: ("--checkpoint", "a", "--out"),
    upsampling.main: ("--checkpoint", "a", "--out"),
    sample.main: ("--checkpoint", "a", "--prompt", "b", "--out"),
    train_reader.main: ("--out",),
    plot.main: ("a", "--out"),
    partial(plot.main): ("a", "--samples"),
    convert.main: ("a.pt", "--to"),
    partial(convert.main): (".", "--to"),
    export.main: ("a", "--to"),
    prepare.main: ("--from", "a", "--to"),
}
"""Commands by their main function, with their flags up to an output."""


@pytest.mark.parametrize(("main", "flags"), COMMANDS.items(), ids=str)
def test_outputs_are_checked_before_the_work(main, flags, tmp_path, monkeypatch):
    name = "x.safetensors" if main is train_reader.main else "x.png"
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir()
    denied = tmp_path / "locked"
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != denied)  # of root, too
    for folder, why in (
        (tmp_path / "file", f"{tmp_path}/file is a file, not a folder"),
        (tmp_path / "locked" / "new", f"no permission to write in {denied}"),
    ):
        with pytest.raises(UserError, match=f"^{flags[-1]} {folder}/{name}: {why}$"):
            main([*flags, f"{folder}/{name}"])
    if main not in (export.main, prepare.main):  # which write to buckets
        url = f"gs://some/place/{name}"
        with pytest.raises(UserError, match=f"^{flags[-1]} {url}: use a local file or folder$"):
            main([*flags, url])
