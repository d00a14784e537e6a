"""The command: its output, resumption after interruptions, and errors."""

import io
import json
import random
import runpy
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.packed_images import image, open_shards, write_tar
from helpers.preparation import FLAGS, contents, inputs, prepare
from PIL import Image

from glide_jax.data.records import Record
from glide_jax.errors import UserError
from glide_jax.prepare import __main__, staging
from glide_jax.prepare.__main__ import main
from glide_jax.prepare.staging import shard_bounds

__all__ = ["inputs"]  # the fixture


def test_all_inputs_are_read_filtered_and_written(
    inputs: Sequence[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = prepare(tmp_path / "to", "--from", *inputs, *FLAGS)
    written = contents(tmp_path / "to")
    kept = [content for split in written.values() for content, _ in split]
    assert len(kept) == len(set(kept))
    assert set(kept) <= {image(i) for i in range(200)}
    assert report.kept == {"train": len(kept) - 20, "validation": 20}
    assert report.dropped["too_small"] == 4
    assert report.dropped["broken"] == 2  # the invalid image and the truncated tar
    assert report.dropped["duplicate"] >= 15
    assert report.read == len(kept) + sum(report.dropped.values())
    # The first of two duplicates is kept, with its own captions.
    captions = dict(written["train"] + written["validation"])
    assert captions[image(42)] == ("image 42",)
    assert report.bytes_written == sum(
        p.stat().st_size for p in (tmp_path / "to").glob("*record-*")
    )
    broken = (tmp_path / "to" / "broken.txt").read_text().splitlines()
    assert broken == report.problems
    assert "01.png: not an image" in broken[0]
    assert "00003.tar: truncated or damaged after" in broken[1]
    table = capsys.readouterr().out
    assert f"kept     {len(kept) - 20:12,}  train" in table
    assert "00003.tar: truncated" in table
    assert not (tmp_path / "to" / ".unfinished").exists()


def test_held_out_images_do_not_depend_on_the_order_of_inputs(
    inputs: Sequence[Path], tmp_path: Path
) -> None:
    for name, paths in (("a", inputs), ("b", inputs[::-1])):
        prepare(tmp_path / name, "--from", *paths, *FLAGS)
    one, other = (
        {split: {image for image, _ in pairs} for split, pairs in contents(tmp_path / name).items()}
        for name in "ab"
    )
    assert one == other


def test_validation_has_at_most_half_of_the_images(inputs: Sequence[Path], tmp_path: Path) -> None:
    many = prepare(tmp_path / "many", "--from", inputs[2], "--px", 30, "--validation", 1000)
    assert many.kept == {"train": 20, "validation": 20}
    none = prepare(tmp_path / "none", "--from", inputs[2], "--px", 30, "--validation", 0)
    assert none.kept == {"train": 40}
    assert [captions for _, captions in contents(tmp_path / "none")["train"]] == [
        (f"row {i}",) for i in range(40)
    ]


def test_shards_have_equal_sizes(tmp_path: Path) -> None:
    rng = random.Random(0)
    sizes = [rng.randrange(1, 100) for _ in range(1000)]
    bounds = shard_bounds(np.array(sizes), 5000)
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(1000))
    totals = [sum(sizes[start:stop]) for start, stop in bounds]
    assert len(bounds) == -(-sum(sizes) // 5000)
    assert max(totals) - min(totals) <= 200
    images = [io.BytesIO() for _ in range(20)]
    for number, file in enumerate(images):
        plain = Image.new("RGB", (300, 200), (number, 0, 0))
        plain.save(file, "PNG", compress_level=0)  # large and quick to write
    tar = write_tar(tmp_path / "x.tar", [file.getvalue() for file in images])
    report = prepare(tmp_path / "to", "--from", tar, "--px", 200, "--shard-mb", 1)
    assert report.shards == len([*(tmp_path / "to").glob("*record-*")]) > 2


def test_running_a_finished_command_changes_nothing(inputs: Sequence[Path], tmp_path: Path) -> None:
    first = prepare(tmp_path / "to", "--from", *inputs, *FLAGS)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "to").iterdir()}
    assert prepare(tmp_path / "to", "--from", *inputs, *FLAGS) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "to").iterdir()} == times


class StoppedError(Exception):
    """Interrupts the command."""


def test_an_interrupted_command_resumes_to_the_same_files(
    inputs: Sequence[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path / "uninterrupted", "--from", *inputs, *FLAGS)
    real, done = staging.write_records, 0

    def stopping(path: Path, records: object) -> None:
        nonlocal done
        real(path, records)
        done += 1
        if done % 2 == 0:
            raise StoppedError

    monkeypatch.setattr(staging, "write_records", stopping)
    starts = 0
    while True:
        starts += 1
        try:
            prepare(tmp_path / "parts", "--from", *inputs, *FLAGS)
            break
        except StoppedError:
            continue
    assert starts > 3
    # Six units and two shards. The interrupted one is repeated after each restart.
    assert done <= 2 * 8
    for path in (tmp_path / "uninterrupted").iterdir():
        if path.name != "report.json":
            assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes(), path.name
    one, other = (
        json.loads((tmp_path / n / "report.json").read_text()) for n in ("uninterrupted", "parts")
    )
    for name in ("cpu_ms_per_image", "images_per_s"):
        del one[name], other[name]
    assert one == other


@pytest.mark.slow
def test_a_killed_command_resumes_without_repeating_finished_units(tmp_path: Path, python) -> None:
    """SIGKILL ends the worker processes too."""
    images = [image(i, 400, 300) for i in range(80)]
    for number in range(30):
        write_tar(tmp_path / "tars" / f"{number:05}.tar", images[2 * number :][:20])
    prepare(tmp_path / "uninterrupted", "--from", tmp_path / "tars", *FLAGS)
    to = tmp_path / "to"
    command = ("-m", "glide_jax.prepare", "--from", tmp_path / "tars", "--to", to, *FLAGS)
    process = python(*command, "--workers", 2)
    deadline = time.monotonic() + 120
    while not [*to.glob(".unfinished/unit-*.json")] and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()  # returns once all workers, which hold the pipes, have exited
    done = {path: path.stat().st_mtime_ns for path in to.glob(".unfinished/unit-*.json")}
    assert 0 < len(done) < 30
    process = python(*command, "--workers", 2)
    seen = dict[Path, int]()
    while process.poll() is None:
        seen |= {p: p.stat().st_mtime_ns for p in done if p.exists()}
        time.sleep(0.01)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert seen == done
    assert contents(to) == contents(tmp_path / "uninterrupted")
    assert "images/s" in output


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--px", 20), "was started with --px 30, not 20"),
        (("--min-caption-chars", 3), "was started with --min-caption-chars 1, not 3"),
        (("--validation", 3), "was started with --validation 20, not 3"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_changed_settings_are_refused_by_name(
    inputs: Sequence[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[object, ...],
    why: str,
    finished: bool,
) -> None:
    if not finished:
        with monkeypatch.context() as patch:
            patch.setattr(staging, "write_records", lambda *_: (_ for _ in ()).throw(StoppedError))
            with pytest.raises(StoppedError):
                prepare(tmp_path, "--from", inputs[2], *FLAGS)
    else:
        prepare(tmp_path, "--from", inputs[2], *FLAGS)
    with pytest.raises(UserError, match=why):
        prepare(tmp_path, "--from", inputs[2], *FLAGS, *flags)


OLD_SELECTION = {
    **{"px": 30, "least_px": None, "most_aspect": 0.0},
    **{"least_caption": 1, "most_caption": 0, "quality": 92},
}
"""Settings of version 0.1.0 before its release."""


@pytest.mark.parametrize("finished", [False, True])
def test_a_folder_of_an_earlier_version_is_refused(
    inputs: Sequence[Path], tmp_path: Path, finished: bool
) -> None:
    old = {"from": [str(inputs[2])], "validation": 20, "shard_mb": 500, **OLD_SELECTION}
    report = {"settings": old, "read": 40, "cpu_ms_a_picture": 1.0, "pictures_per_s": None}
    file = tmp_path / ("report.json" if finished else ".unfinished/settings.json")
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(report if finished else old))
    with pytest.raises(UserError, match="was prepared by an earlier version: delete that folder"):
        prepare(tmp_path, "--from", inputs[2], *FLAGS)
    assert file.exists()


def test_a_report_of_an_earlier_version_is_refused(inputs: Sequence[Path], tmp_path: Path) -> None:
    prepare(tmp_path, "--from", inputs[2], *FLAGS)
    report = json.loads((tmp_path / "report.json").read_text())
    report["cpu_ms_a_picture"] = report.pop("cpu_ms_per_image")
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match="was prepared by an earlier version"):
        prepare(tmp_path, "--from", inputs[2], *FLAGS)


def test_changed_inputs_are_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", [image(0), image(1)])
    prepare(tmp_path / "to", "--from", tar, "--px", 30)
    with pytest.raises(UserError, match="was started with --from"):
        prepare(tmp_path / "to", "--from", tar, tar, "--px", 30)
    write_tar(tar, [image(i) for i in range(9)])
    with pytest.raises(UserError, match="--from: files have changed since"):
        prepare(tmp_path / "to", "--from", tar, "--px", 30)


def test_the_table_says_how_many_images_are_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = write_tar(tmp_path / "x.tar", [image(i) for i in range(5)])
    for validation, limited in ((1000, True), (2, False)):
        flags = ("--px", 30, "--validation", validation)
        prepare(tmp_path / str(validation), "--from", tar, *flags)
        table = capsys.readouterr().out
        assert "kept                2  validation\n" in table
        assert ("2  of them held out: at most half of all" in table) == limited


def test_errors_name_the_flag(inputs: Sequence[Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    source = ("--from", inputs[2])
    for to, arguments, why in (
        ("file/to", source, "--to .*file/to: .*file is a file, not a folder"),
        ("full", source, "--to .*full: the folder is not empty"),
        ("to", (*source, "--px", 31), r"none of 40 images is kept: 40 .* \(--min-px 31\)"),
        ("a", (*source, "--speed", 3), "unknown flag --speed"),
        ("b", ("--from",), "--from needs at least one input"),
        ("c", (*source, "--shard-mb", 0), "--shard-mb must be at least 1"),
    ):
        with pytest.raises(UserError, match=why):
            prepare(tmp_path / to, *arguments)
    with pytest.raises(UserError, match="use a local folder"):
        main(["--from", str(inputs[2]), "--to", "gs://bucket/x"])


def test_the_command_exits_with_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", "--from", "nowhere", "--to", str(tmp_path / "to")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="2"):
        # Not run_module: it would write bytecode that checks annotations where users' runs read it.
        runpy.run_path(__main__.__file__, run_name="__main__")
    assert capsys.readouterr() == ("", "error: --from nowhere: no such file or folder\n")


def test_training_reads_the_shards(inputs: Sequence[Path], tmp_path: Path) -> None:
    prepare(tmp_path / "to", "--from", *inputs, *FLAGS)
    record = open_shards(tmp_path / "to", tmp_path)[0]
    assert isinstance(record, Record)
    assert record.name.endswith("record 0")
