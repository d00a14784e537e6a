"""The Beam pipeline and the plain command write the same records."""

import json
import sys
from pathlib import Path

import pytest
from helpers.packed_images import open_shards
from helpers.preparation import FLAGS, contents, inputs, prepare

from glide_jax.data.shards import write_index
from glide_jax.errors import UserError
from glide_jax.prepare.__main__ import main
from glide_jax.prepare.inputs import find_units
from glide_jax.prepare.selection import Selection
from glide_jax.prepare.units import Keys

__all__ = ["inputs"]  # the fixture


@pytest.mark.slow
def test_a_pipeline_writes_the_same_records(inputs: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("apache_beam")
    plain = prepare(tmp_path / "plain", "--from", *inputs, *FLAGS)
    command = ["--beam", "--from", *map(str, inputs), *map(str, FLAGS)]
    command += ["--to", str(tmp_path / "beam"), "--runner", "DirectRunner"]
    main(command)
    ours, theirs = contents(tmp_path / "plain"), contents(tmp_path / "beam")
    assert ours.keys() == theirs.keys()
    assert all(sorted(ours[split]) == sorted(theirs[split]) for split in ours)
    report = json.loads((tmp_path / "beam" / "report.json").read_text())
    for name in ("settings", "read", "kept", "dropped", "bytes_read", "problems"):
        assert report[name] == getattr(plain, name), name
    names = {path.name for path in (tmp_path / "beam").iterdir()}
    assert names == {path.name for path in (tmp_path / "plain").iterdir()}
    main(command)  # already finished
    with pytest.raises(UserError, match="was started with --px 30, not 20"):
        main([*command, "--px", "20"])


@pytest.mark.slow
def test_shards_without_a_record_are_written_empty(tmp_path: Path, inputs: list[Path]) -> None:
    pytest.importorskip("apache_beam")
    from glide_jax.prepare import beam

    units = find_units([str(inputs[2])], Keys())
    arguments = (units, Keys(), Selection(px=30), str(tmp_path), 4, 300)
    tally, duplicates, splits = beam.run(*arguments, ["--runner", "DirectRunner"])
    assert (tally.read, duplicates) == (40, 0)
    assert sum(shard.records for shard in splits["train"]) == 36
    assert len(splits["train"]) > 36 / 2
    assert min(shard.records for shard in splits["train"]) == 0
    assert all((tmp_path / shard.file).stat().st_size == shard.bytes for shard in splits["train"])
    write_index(str(tmp_path), splits, "of this test")
    source = open_shards(tmp_path, tmp_path)
    assert len({source[i].captions for i in range(36)}) == 36


def test_without_beam_the_error_names_the_package(
    inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "glide_jax.prepare.beam", raising=False)
    monkeypatch.delattr("glide_jax.prepare.beam", raising=False)
    with pytest.raises(UserError, match=r"--beam needs Apache Beam: pip install"):
        main(["--beam", "--from", str(inputs[2]), "--to", str(tmp_path / "to")])
