"""Every example runs with small models."""

import runpy
import sys
from pathlib import Path

import pytest
from helpers.unclip_set import write_unclip

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_writes_images(models, monkeypatch, tmp_path, example):
    monkeypatch.chdir(tmp_path)
    given = write_unclip(tmp_path / "unclip") if example.stem == "unclip" else models
    monkeypatch.setattr(sys, "argv", [example.name, str(given)])
    runpy.run_path(str(example))
    assert list((tmp_path / "out").glob("*.png"))
