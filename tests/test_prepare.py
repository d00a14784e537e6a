"""The command: what it writes, again after any stop, and what it refuses."""

import json
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.numbered_images import write_images
from helpers.packed_images import image, write_parquet, write_tar
from test_shards import opened

from glide_jax.data.records import Record
from glide_jax.errors import UserError
from glide_jax.prepare import staging
from glide_jax.prepare.__main__ import main
from glide_jax.prepare.pipeline import Report
from glide_jax.prepare.staging import cut

Contents = dict[str, list[tuple[bytes, tuple[str, ...]]]]


def prepare(to: Path, *arguments: object) -> Report:
    """Runs the command in this process and reads its report."""
    main([*map(str, arguments), "--to", str(to), "--workers", "1"])
    return Report(**json.loads((to / "report.json").read_text()))


def contents(folder: Path) -> Contents:
    """Every split's images with their captions, in order."""
    splits = json.loads((folder / "shards.json").read_text())["splits"]
    sources = {split: opened(folder, folder, split) for split in splits}
    return {
        split: [
            (record.image, record.captions)
            for record in map(source.__getitem__, range(len(source)))
        ]
        for split, source in sources.items()
    }


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A folder, tars and a parquet file: 200 images, some of them twice, and many faults."""
    base = tmp_path_factory.mktemp("inputs")
    folder = write_images(base / "folder", 5)  # too small
    (folder / "01.png").write_bytes(b"no image")
    for number in range(4):
        images = [image(i) for i in range(40 * number, 40 * number + 45)]  # the last 5 overlap
        write_tar(base / "tars" / f"{number:05}.tar", images, first=40 * number)
    short = base / "tars" / "00003.tar"
    short.write_bytes(short.read_bytes()[:-12_000])
    write_parquet(base / "x.parquet", [image(i) for i in range(160, 200)])
    return [folder, base / "tars", base / "x.parquet"]


FLAGS = ("--px", 30, "--validation", 20)


def test_everything_is_read_judged_and_written(
    inputs: Sequence[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = prepare(tmp_path / "to", "--from", *inputs, *FLAGS)
    written = contents(tmp_path / "to")
    kept = [content for split in written.values() for content, _ in split]
    assert len(kept) == len(set(kept))
    assert set(kept) <= {image(i) for i in range(200)}
    assert report.kept == {"train": len(kept) - 20, "validation": 20}
    assert report.dropped["too_small"] == 4
    assert report.dropped["broken"] == 2  # the image that is none, and the tar's end
    assert report.dropped["duplicate"] >= 15
    assert report.read == len(kept) + sum(report.dropped.values())
    # Of two, the first in the order of the inputs stays: with the captions of its place.
    captions = dict(written["train"] + written["validation"])
    assert captions[image(42)] == ("image 42",)
    assert report.bytes_written == sum(
        p.stat().st_size for p in (tmp_path / "to").glob("*record-*")
    )
    broken = (tmp_path / "to" / "broken.txt").read_text().splitlines()
    assert broken == report.problems
    assert "01.png: not an image" in broken[0]
    assert "00003.tar: cut short or damaged after" in broken[1]
    table = capsys.readouterr().out
    assert f"kept     {len(kept) - 20:12,}  train" in table
    assert "00003.tar: cut short" in table
    assert not (tmp_path / "to" / ".unfinished").exists()


def test_held_out_images_are_the_same_whatever_the_order(
    inputs: Sequence[Path], tmp_path: Path
) -> None:
    for name, paths in (("a", inputs), ("b", inputs[::-1])):
        prepare(tmp_path / name, "--from", *paths, *FLAGS)
    one, other = (
        {split: {image for image, _ in pairs} for split, pairs in contents(tmp_path / name).items()}
        for name in "ab"
    )
    assert one == other


def test_validation_takes_at_most_half_and_may_be_none(
    inputs: Sequence[Path], tmp_path: Path
) -> None:
    many = prepare(tmp_path / "many", "--from", inputs[2], "--px", 30, "--validation", 1000)
    assert many.kept == {"train": 20, "validation": 20}
    none = prepare(tmp_path / "none", "--from", inputs[2], "--px", 30, "--validation", 0)
    assert none.kept == {"train": 40}
    assert [captions for _, captions in contents(tmp_path / "none")["train"]] == [
        (f"row {i}",) for i in range(40)
    ]


def test_shards_are_of_even_size(tmp_path: Path) -> None:
    rng = random.Random(0)
    sizes = [rng.randrange(1, 100) for _ in range(1000)]
    bounds = cut(np.array(sizes), 5000)
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(1000))
    totals = [sum(sizes[start:stop]) for start, stop in bounds]
    assert len(bounds) == -(-sum(sizes) // 5000)
    assert max(totals) - min(totals) <= 200
    tar = write_tar(tmp_path / "x.tar", [image(i, 900, 600) for i in range(20)])
    report = prepare(tmp_path / "to", "--from", tar, "--px", 600, "--shard-mb", 1)
    assert report.shards == len([*(tmp_path / "to").glob("*record-*")]) > 2


def test_a_second_start_does_nothing(inputs: Sequence[Path], tmp_path: Path) -> None:
    first = prepare(tmp_path / "to", "--from", *inputs, *FLAGS)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "to").iterdir()}
    assert prepare(tmp_path / "to", "--from", *inputs, *FLAGS) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "to").iterdir()} == times


class StoppedError(Exception):
    """What these tests stop the work with."""


def test_stopped_anywhere_it_goes_on_to_the_same_files(
    inputs: Sequence[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path / "whole", "--from", *inputs, *FLAGS)
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
    # Six units and two shards, and one of these anew after each stop: it was not yet said done.
    assert done <= 2 * 8
    for path in (tmp_path / "whole").iterdir():
        if path.name != "report.json":
            assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes(), path.name
    one, other = (
        json.loads((tmp_path / n / "report.json").read_text()) for n in ("whole", "parts")
    )
    for name in ("cpu_ms_a_image", "images_per_s"):
        del one[name], other[name]
    assert one == other


@pytest.mark.slow
def test_killed_it_goes_on_without_what_is_done(tmp_path: Path, python) -> None:
    """SIGKILL, with worker processes; they end as well."""
    images = [image(i, 400, 300) for i in range(80)]
    for number in range(30):
        write_tar(tmp_path / "tars" / f"{number:05}.tar", images[2 * number :][:20])
    prepare(tmp_path / "whole", "--from", tmp_path / "tars", *FLAGS)
    to = tmp_path / "to"
    command = ("-m", "glide_jax.prepare", "--from", tmp_path / "tars", "--to", to, *FLAGS)
    process = python(*command, "--workers", 2)
    deadline = time.monotonic() + 120
    while not [*to.glob(".unfinished/unit-*.json")] and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()  # ends when nobody holds its pipes: the workers are gone
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
    assert contents(to) == contents(tmp_path / "whole")
    assert "images/s" in output


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--px", 20), "was begun with --px 30, not 20"),
        (("--min-caption-chars", 3), "was begun with --min-caption-chars 1, not 3"),
        (("--validation", 3), "was begun with --validation 20, not 3"),
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


def test_changed_inputs_are_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", [image(0), image(1)])
    prepare(tmp_path / "to", "--from", tar, "--px", 30)
    with pytest.raises(UserError, match="was begun with --from"):
        prepare(tmp_path / "to", "--from", tar, tar, "--px", 30)
    write_tar(tar, [image(i) for i in range(9)])
    with pytest.raises(UserError, match="--from: files in it have changed since"):
        prepare(tmp_path / "to", "--from", tar, "--px", 30)


def test_what_cannot_be_done_is_one_clear_line(inputs: Sequence[Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    source = ("--from", inputs[2])
    for to, arguments, why in (
        ("file/to", source, "--to .*file/to: Not a directory"),
        ("full", source, "--to .*full: is not empty"),
        ("to", (*source, "--px", 31), "of 40 images none is kept .40 too_small."),
        ("a", (*source, "--speed", 3), "unknown flag --speed"),
        ("b", ("--from",), "--from must name something to read"),
        ("c", (*source, "--shard-mb", 0), "--shard-mb must be at least 1"),
    ):
        with pytest.raises(UserError, match=why):
            prepare(tmp_path / to, *arguments)
    with pytest.raises(UserError, match="name a local folder"):
        main(["--from", str(inputs[2]), "--to", "gs://bucket/x"])


def test_the_command_ends_with_status_2(python, tmp_path: Path) -> None:
    process = python("-m", "glide_jax.prepare", "--from", "nowhere", "--to", tmp_path / "to")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (2, "")
    assert errors == "error: --from nowhere: there is no such file or folder\n"


def test_training_reads_what_it_wrote(inputs: Sequence[Path], tmp_path: Path) -> None:
    prepare(tmp_path / "to", "--from", *inputs, *FLAGS)
    record = opened(tmp_path / "to", tmp_path)[0]
    assert isinstance(record, Record)
    assert record.name.endswith("record 0")
