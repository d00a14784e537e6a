"""Scenes drawn and encoded, by as many processes as there are cores.

A worker is this module run as a command that writes pickled records to its standard output. A
multiprocessing pool would import the caller's main module again in every process, and so fail in
a script without an `if __name__ == "__main__"` guard, or in one read from standard input.
"""

import io
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from glide_jax.data.scenes.graph import make
from glide_jax.data.scenes.rendering import render

SIZE_PX = 128
QUALITY = 92
"""JPEG at full chroma resolution: a third of a PNG's bytes, a ninth of its time, and within one
level of the drawing on average."""


class EncodedScene(NamedTuple):
    """One record of the data set."""

    image: bytes
    """JPEG of 128 px."""
    captions: tuple[str, ...]
    scene: str
    """The scene graph as JSON."""


def encoded_scene(split: str, index: int, *, closeup: bool = False) -> EncodedScene:
    """Makes one record; see `graph.make` for the arguments."""
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
        count: how many records.
        workers: processes to start; with 1, this one does the work.
        closeup: see `graph.make`.

    Raises:
        RuntimeError: a worker died; what it said is on stderr.
    """
    if workers == 1:
        yield from (encoded_scene(split, index, closeup=closeup) for index in range(count))
        return
    shares = [range(first, count, workers) for first in range(workers)]
    processes = [_start(split, share, closeup) for share in shares]
    try:
        for index in range(count):
            output = processes[index % workers].stdout
            assert output is not None
            try:
                yield EncodedScene(*pickle.load(output))
            except EOFError:
                raise RuntimeError(f"a process that draws scenes ended before {index}") from None
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _start(split: str, share: range, closeup: bool) -> subprocess.Popen[bytes]:
    """Starts a process for the records whose indices are in `share`."""
    numbers = (share.start, share.stop, share.step, int(closeup))
    return subprocess.Popen(
        [sys.executable, "-m", __name__, split, *map(str, numbers)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,  # Ctrl-C is the parent's to handle
    )


def _work(split: str, start: str, stop: str, step: str, closeup: str) -> None:
    """What a worker does."""
    for index in range(int(start), int(stop), int(step)):
        record = encoded_scene(split, index, closeup=bool(int(closeup)))
        pickle.dump(tuple(record), sys.stdout.buffer)
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        _work(*sys.argv[1:])
    except BrokenPipeError:  # the parent is gone
        os._exit(0)
