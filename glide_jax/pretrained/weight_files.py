"""Files of named tensors: PyTorch's, .safetensors and .npz, read without running code in them."""

import collections
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from glide_jax.errors import UserError, first_line, shown
from glide_jax.pretrained.torch_files import MAX_NAME_CHARS, read_torch
from glide_jax.pretrained.torch_writer import write_torch
from glide_jax.storage import AnyPath

Tensors = dict[str, np.ndarray]

MAX_EXPANSION = 8
"""Memory of the tensors as float32, per byte of their file. Half precision and compressed, mostly
zero weights stay below it; a hostile file of a few kilobytes can declare any size."""
SMALL_BYTES = 2**26
"""Memory of tensors that needs no large file."""


def read_tensors(path: AnyPath) -> Tensors:
    """All floating-point tensors of a file by name, as float32.

    Single integers, such as the counters of batch norms, and `position_ids`, which transformers
    saved in 2022, are left out. Sizes that a file declares are checked before memory is allocated.

    Raises:
        UserError: the file is missing, corrupt, of another format, declares more than it holds, or
            contains anything but tensors of finite values.
    """
    read, _ = _format(path)
    if not path.is_file():
        raise UserError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
    try:
        tensors = read(path)
    except UserError as error:
        text = str(error)
        raise UserError(
            text if text.startswith(str(path)) else f"{path} is refused: {text}"
        ) from None
    except MemoryError:
        raise UserError(f"{path}: not enough memory to read it") from None
    # On truncated or corrupt files each library raises many exceptions of its own, even KeyError.
    except Exception as error:
        raise UserError(
            f"{path} is not a valid {path.suffix} file of tensors: it is truncated, corrupt or of "
            f"another format ({first_line(error)})"
        ) from error
    tensors = {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.dtype.kind not in "iub"
        or (tensor.size != 1 and not name.endswith(".position_ids"))
    }
    for name, tensor in tensors.items():
        if not name.isprintable() or len(name) > MAX_NAME_CHARS:
            raise UserError(f"{path} is refused: the name of a tensor is {shown(name)}")
        if not (np.issubdtype(tensor.dtype, np.floating) or tensor.dtype.name == "bfloat16"):
            raise UserError(f"{path}: {name} is of type {tensor.dtype}, not floating-point")
    with np.errstate(over="ignore"):  # refused below
        floats = {name: tensor.astype(np.float32, copy=False) for name, tensor in tensors.items()}
    for name, tensor in floats.items():
        require_finite(tensor, f"{path}: {name}")
    return floats


def require_finite(tensor: np.ndarray, name: str) -> None:
    """Raises UserError if a tensor of weights has NaN or infinite values."""
    if not np.isfinite(tensor).all():
        raise UserError(f"{name} is not finite: the file is damaged, or its training diverged")


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a complete file for `read_tensors`, or none.

    Raises:
        UserError: the file cannot be written, or its suffix is none of the three.
    """
    _, write = _format(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(unfinished, {name: np.asarray(x, order="C") for name, x in tensors.items()})
        unfinished.replace(path)
    except UserError:
        raise
    except Exception as error:  # each library raises its own
        raise UserError(f"cannot write {path}: {first_line(error)}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _format(path: AnyPath) -> tuple[Callable[[Any], Tensors], Callable[[Path, Tensors], None]]:
    if path.suffix not in FORMATS:
        raise UserError(f"{path}: the name must end in {', '.join(FORMATS)}")
    return FORMATS[path.suffix]


def _read_torch(path: AnyPath) -> Tensors:
    with _local_copy(path) as copy:
        return read_torch(copy, partial(_require_plausible, copy))


def _read_npz(path: Path) -> Tensors:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                raise UserError(f"{path} contains one array, not arrays by name")
        raise ValueError("it is not a zip archive")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            if not member.filename.endswith(".npy"):
                raise UserError(f"{path} must contain only arrays, but it has {member.filename!r}")
        (_, times), *_ = collections.Counter(archive.namelist()).most_common(1) or [("", 0)]
        if times > 1:
            raise ValueError("it has two arrays of one name")
        # First: NumPy reads a header of any size.
        _require_plausible(path, sum(member.file_size for member in members) // 4)
        _require_plausible(path, sum(_npy_numbers(archive, member) for member in members))
        tensors = {}
        for member in members:
            with archive.open(member) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
            tensors[member.filename.removesuffix(".npy")] = array
        return tensors


def _npy_numbers(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """How many numbers an array has. Raises ValueError unless the archive holds them."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{member.filename} is of an unknown version")
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
        size = member.file_size - file.tell()
    count = math.prod(shape)
    if not dtype.hasobject and count * dtype.itemsize != size:
        raise ValueError(f"{member.filename} declares {count:,} numbers in {size:,} bytes")
    return count


def _write_npz(path: Path, tensors: Tensors) -> None:
    np.savez(path, allow_pickle=False, **tensors)


def _read_safetensors(path: AnyPath) -> Tensors:
    with _local_copy(path) as copy:
        return safetensors.numpy.load_file(copy)  # load(bytes) does not support bfloat16


@contextmanager
def _local_copy(path: AnyPath) -> Iterator[Path]:
    """A local file with the content of one that may be in a bucket."""
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as here:
        copy = Path(here) / path.name
        with path.open("rb") as remote, copy.open("wb") as local:
            shutil.copyfileobj(remote, local)
        yield copy


def _write_safetensors(path: Path, tensors: Tensors) -> None:
    # Not save_file: it would make the file readable by its owner only.
    path.write_bytes(safetensors.numpy.save(tensors))


def _require_plausible(path: Path, numbers: int) -> None:
    """Raises UserError if this many float32 numbers cannot be the contents of the file."""
    size = path.stat().st_size
    if 4 * numbers > max(MAX_EXPANSION * size, SMALL_BYTES):
        raise UserError(
            f"{path} is refused: it declares {numbers:,} numbers, more than its {size:,} bytes "
            "can hold"
        )


FORMATS: dict[str, tuple[Callable[[Any], Tensors], Callable[[Path, Tensors], None]]] = {
    **dict.fromkeys((".pt", ".pth", ".bin"), (_read_torch, write_torch)),
    ".safetensors": (_read_safetensors, _write_safetensors),
    ".npz": (_read_npz, _write_npz),
    ".ckpt": (_read_torch, partial(write_torch, under="state_dict")),
    ".th": (_read_torch, write_torch),
}
"""Reader and writer of each format by suffix. Karlo's models are .ckpt and its statistics .th."""
