"""Batches that are made ahead: copied to devices, and made in worker processes."""

import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import grain
import psutil
import pytest
from helpers.numbered_images import numbers, write_images
from test_loader import TOKENIZER, clip_settings, config, seen

from glide_jax.config import Config
from glide_jax.data.folder import FolderSource, open_folder
from glide_jax.data.loader import Loader
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.errors import UserError
from glide_jax.shapes import Batch


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    return open_folder(write_images(tmp_path_factory.mktemp("images"), 20), "all", 0.0)


def test_batches_are_placed_ahead_and_only_used_ones_are_counted(source: FolderSource) -> None:
    def place(batch: Batch) -> Batch:
        if len(placed) == 4:
            raise UserError("no memory")
        placed.append(numbers(batch["image"]))
        return batch

    placed: list[list[int]] = []
    expected = seen(Loader(source, TOKENIZER, config()), 3)
    with Loader(source, TOKENIZER, config(), place=place) as loader:
        found = [numbers(next(loader)["image"]) for _ in range(2)]
        while len(placed) < 4:
            time.sleep(0.01)
        assert found == placed[:2]
        assert loader.state() == {"examples": 16}
        assert numbers(next(loader)["image"]) == [number for number, _ in expected[16:]]
        next(loader)
        with pytest.raises(UserError, match="no memory"):  # once that batch is needed
            next(loader)
        assert loader.state() == {"examples": 32}


def with_workers(settings: Config, workers: int) -> Config:
    return dataclasses.replace(
        settings, data=dataclasses.replace(settings.data, loader_workers=workers)
    )


def same_in_workers(tmp_path: Path, settings: Config, workers: int) -> None:
    """Batches and counts are those without worker processes, from the start and resumed."""
    write_images(tmp_path, 20)
    (tmp_path / "03.png").write_bytes(b"no image")
    (tmp_path / "05.txt").write_text("a caption of more tokens than the model's context has")
    source = open_folder(tmp_path, "all", 0.0)

    def found(settings: Config, state: dict[str, int] | None = None) -> tuple[Any, ...]:
        tokenizer = Tokenizer.train(["number or"] * 2, 300)
        loader = Loader(source, tokenizer, settings, state=state)
        return seen(loader, 6), loader.bad_records, loader.state(), tokenizer.truncated > 0

    expected = found(settings)
    assert expected[1:] == (1, {"examples": 48}, True)
    assert found(with_workers(settings, workers)) == expected
    resumed = found(with_workers(settings, workers), {"examples": 16})
    assert resumed[0][:32] == expected[0][16:]


@pytest.mark.parametrize("kind", ["denoiser", "clip"])
def test_a_worker_makes_the_batches_of_a_thread(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker, which is a copy in this process."""
    monkeypatch.setattr(
        grain.IterDataset,
        "mp_prefetch",
        lambda batches, options, start: cloudpickle.loads(cloudpickle.dumps(batches)),
    )
    settings = {"denoiser": config, "clip": clip_settings}[kind](8, max_bad_fraction=0.2)
    same_in_workers(tmp_path, settings, workers=1)


def test_workers_get_no_signals_from_the_start(
    source: FolderSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that starts them blocks signals, which they inherit; the main thread does not."""

    def place(batch: Batch) -> Batch:
        blocked.update(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return batch

    blocked: set[int] = set()
    monkeypatch.setattr(grain.IterDataset, "mp_prefetch", lambda batches, options, start: batches)
    with Loader(source, TOKENIZER, config(loader_workers=1), place=place) as loader:
        next(loader)
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} <= blocked
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_lost_worker_is_named(source: FolderSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended() -> Iterator[Batch]:
        raise RuntimeError("Worker process was terminated unexpectedly with exit code -9. Search")
        yield

    with Loader(source, TOKENIZER, config()) as loader:
        monkeypatch.setattr(loader, "_iterator", ended())
        with pytest.raises(UserError, match=r"exit code -9; .*fewer --data.loader-workers"):
            next(loader)
        monkeypatch.undo()


@pytest.mark.slow
def test_processes_make_the_batches_of_threads(tmp_path: Path) -> None:
    same_in_workers(tmp_path, config(max_bad_fraction=0.2), workers=2)


PROGRAM = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_loader import TOKENIZER, config
from glide_jax.data.folder import open_folder
from glide_jax.data.loader import Loader
if __name__ == "__main__":
    source = open_folder(Path(sys.argv[2]), "all", 0.0)
    loader = Loader(source, TOKENIZER, config(loader_workers=2), place=lambda batch: batch)
    next(loader), next(loader)  # one of each
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_worker_processes_end_with_their_program(killed: bool, tmp_path: Path) -> None:
    """Without `close`, and if it is killed. Until then, no signal ends them."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    write_images(tmp_path / "images", 4)
    program = subprocess.Popen(
        [sys.executable, file, Path(__file__).parent, tmp_path / "images"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout.readline() == "ready\n"
    workers = psutil.Process(program.pid).children()
    assert ["spawn_main" in str(p.cmdline()) for p in workers].count(True) == 2
    assert len(workers) == 3  # and Python's own, which removes their shared memory
    for worker in workers:
        worker.terminate()  # as a cluster that signals all processes
        worker.send_signal(signal.SIGHUP)  # as a terminal that closes
    time.sleep(1)
    assert all(worker.is_running() for worker in workers)
    if killed:
        program.kill()
    program.communicate(timeout=20)
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
