"""Rendering and encoding of scenes in parallel worker processes.

A worker runs this module as a command and writes pickled records to its standard output. A
multiprocessing pool would import the caller's main module in every process, which fails for a
script without an `if __name__ == "__main__"` guard or one read from standard input.
"""

import io
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from glide_jax.data.scenes.graph import make
from glide_jax.data.scenes.rendering import render
from glide_jax.errors import UserError

SIZE_PX = 128
QUALITY = 92
"""JPEG quality, at full chroma resolution: a third of the bytes of PNG, a ninth of its time, and a
mean error below one level."""


class EncodedScene(NamedTuple):
    """One record of the data set."""

    image: bytes
    """JPEG, 128 px."""
    captions: tuple[str, ...]
    scene: str
    """The scene graph as JSON."""


def encoded_scene(split: str, index: int, *, closeup: bool = False) -> EncodedScene:
    """Makes one record. Args as in `graph.make`."""
    scene, captions = make(split, index, closeup=closeup)
    file = io.BytesIO()
    Image.fromarray(render(scene, SIZE_PX)).save(file, "JPEG", quality=QUALITY, subsampling=0)
    return EncodedScene(file.getvalue(), captions, scene.to_json())


def encoded_scenes(
    split: str, count: int, workers: int = 1, *, closeup: bool = False
) -> Iterator[EncodedScene]:
    """Makes the first `count` records of a split, in order.

    Args:
        split: one of SPLITS.
        count: number of records.
        workers: number of worker processes. With 1, the work is done in this process.
        closeup: see `graph.make`.

    Raises:
        UserError: a worker died. Its error is on stderr, unless a signal ended it.
    """
    if workers == 1:
        yield from (encoded_scene(split, index, closeup=closeup) for index in range(count))
        return
    parts = [range(first, count, workers) for first in range(workers)]
    processes = [_start(split, part, closeup) for part in parts]
    try:
        for index in range(count):
            process = processes[index % workers]
            assert process.stdout is not None
            try:
                yield EncodedScene(*pickle.load(process.stdout))
            except (EOFError, pickle.UnpicklingError):
                raise UserError(_death(process, index)) from None
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _death(process: subprocess.Popen[bytes], index: int) -> str:
    status = process.wait()
    cause = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    return f"a worker process ended {cause} before scene {index}: start again"


def _start(split: str, indices: range, closeup: bool) -> subprocess.Popen[bytes]:
    """Starts a worker process for these records."""
    numbers = (indices.start, indices.stop, indices.step, int(closeup))
    return subprocess.Popen(
        [sys.executable, "-m", __name__, split, *map(str, numbers)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,  # only the parent handles Ctrl-C
    )


def _work(split: str, start: str, stop: str, step: str, closeup: str) -> None:
    """The worker's main function."""
    for index in range(int(start), int(stop), int(step)):
        record = encoded_scene(split, index, closeup=bool(int(closeup)))
        pickle.dump(tuple(record), sys.stdout.buffer)
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        _work(*sys.argv[1:])
    except BrokenPipeError:  # the parent has exited
        os._exit(0)
