"""PyTorch's files of tensors, read without PyTorch.

There are three kinds: zip archives of torch.save (.pt, .pth, .bin), its files before PyTorch 1.6,
and TorchScript archives. In all of them a pickle describes the tensors as strided views of
storages, and the storages' numbers lie beside it.
"""

import collections
import io
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from glide_jax.errors import UserError, shown
from glide_jax.pretrained.pickles import (
    Globals,
    RestrictedUnpickler,
    Unbuilt,
    require_plain_keys,
)

STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype("<f8"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
"""Types of numbers by PyTorch's class of storage."""

NESTED = ("state_dict", "model")
"""Entries of a training checkpoint that hold its tensors."""

MAX_DIMENSIONS = 64
"""Of NumPy's arrays."""
MAX_NAME_CHARS = 500
"""Of a tensor's name. Names of modules in modules could fill the memory."""
MAX_PICKLE_BYTES = 2**24
"""Of the pickle that describes the tensors: enough for 100,000. Its objects take more memory."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001


class Storage(NamedTuple):
    """Numbers in a file."""

    key: str
    dtype: np.dtype
    size: int


@dataclass(frozen=True, eq=False)
class View:
    """A tensor: a strided view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """The view of the storage's numbers."""
        strides = [stride * numbers.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(
            numbers[self.offset :], self.shape, strides, writeable=False
        )

    def fits(self) -> bool:
        """Whether it lies in its storage, and has no more elements."""
        last = sum(s * (n - 1) for s, n in zip(self.strides, self.shape, strict=True))
        inside = self.size == 0 or self.offset + last < self.storage.size
        return inside and self.size <= self.storage.size


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _requires_grad: Any = False,
    _hooks: Any = None,
    flags: Any = None,
) -> View:
    """torch._utils._rebuild_tensor_v2, and _rebuild_tensor of PyTorch before 0.4."""
    plain = type(storage) is Storage and type(shape) is tuple and type(strides) is tuple
    if not (plain and len(shape) == len(strides) <= MAX_DIMENSIONS) or not all(
        type(x) is int and 0 <= x < 2**63 for x in (offset, *shape, *strides)
    ):
        raise UserError("a tensor is not as PyTorch writes it")
    if flags:
        raise UserError("a tensor is negated or conjugated lazily, which is not supported")
    return View(storage, offset, shape, strides)


def _first(value: Any, *_: Any) -> Any:
    """A parameter's tensor, or a list of TorchScript, without what is said of it."""
    return value


def _ordered_dict(items: Any = None) -> dict[Any, Any]:
    """collections.OrderedDict, to which Python 2 gives a list of its items."""
    found = {}
    # Moved, not copied: a pickle can give one list many times.
    for key, value in items or ():
        require_plain_keys([key])
        found[key] = value
    if items:
        items.clear()
    return found


class _Module(Unbuilt):
    """A module of TorchScript: its attributes."""

    attributes: Mapping[str, Any] = {}

    def build(self, state: Any) -> "_Module":
        """The module with its attributes."""
        if type(state) is not dict:
            raise UserError(f"the state of a module is a {type(state).__name__}, not a dict")
        self.attributes = state
        return self


class _Names(dict):
    """What a pickle of PyTorch may name; the classes of TorchScript modules differ by file."""

    def __contains__(self, key: object) -> bool:
        module = key[0] if isinstance(key, tuple) else ""
        return super().__contains__(key) or module.partition(".")[0] == "__torch__"

    def __missing__(self, key: tuple[str, str]) -> type:
        return _Module


KNOWN = _Names(
    {
        ("collections", "OrderedDict"): _ordered_dict,
        ("torch._utils", "_rebuild_tensor"): _tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _first,
        **{("torch", name): name for name in STORAGES},
        **{
            ("torch.jit._pickle", name): _first
            for name in (
                "build_boollist",
                "build_doublelist",
                "build_intlist",
                "build_tensorlist",
                "restore_type_tag",
            )
        },
    }
)


def _storage(pid: Any) -> Storage:
    """The storage of a persistent id: ("storage", type, key, device, size, view)."""
    if not (type(pid) is tuple and len(pid) in (5, 6) and pid[0] == "storage"):
        raise UserError("a storage is not as PyTorch writes it")
    _, kind, key, _, size, *view = pid
    plain = type(kind) is str and kind in STORAGES and type(key) is str
    if not plain or type(size) is not int or not 0 <= size < 2**63 or view not in ([], [None]):
        raise UserError("a storage is not as PyTorch writes it")
    return Storage(key, STORAGES[kind], size)


def read_torch(path: Path, check: Callable[[int], None]) -> dict[str, np.ndarray]:
    """All tensors of a file by name.

    Tensors may be in a dict under one of NESTED, in a list, where their names are numbers, or in
    modules of TorchScript, whose attributes' names are joined with dots.

    Args:
        path: the file.
        check: called with the number of elements of all tensors before any is allocated.

    Raises:
        UserError: it contains anything else, or declares more than it holds.
        Exception: it is truncated or corrupt; of many types.
    """
    if zipfile.is_zipfile(path):
        return _read_zip(path, check)
    return _read_legacy(path, check)


def _read_zip(path: Path, check: Callable[[int], None]) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise ValueError("it has two members of one name")
        pickles = [name for name in members if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles) or 'no'} data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        order = f"{folder}byteorder"
        read = [
            m
            for name, m in members.items()
            if name.startswith((pickles[0], order, f"{folder}data/"))
        ]
        if any(member.compress_type != zipfile.ZIP_STORED for member in read):
            raise ValueError("it is compressed")
        if order in members and archive.read(order) != b"little":
            raise UserError("its numbers are big-endian")
        if members[pickles[0]].file_size > MAX_PICKLE_BYTES:
            raise UserError(f"its {pickles[0]} is larger than {MAX_PICKLE_BYTES / 1e6:.0f} MB")
        views = _views(io.BytesIO(archive.read(pickles[0])), check)

        def numbers(storage: Storage) -> np.ndarray:
            name = f"{folder}data/{storage.key}"
            if members[name].file_size != storage.size * storage.dtype.itemsize:
                raise UserError(
                    f"it declares {storage.size:,} numbers in {members[name].file_size:,} bytes"
                )
            return np.frombuffer(archive.read(name), storage.dtype)

        return _tensors(views, numbers)


def _read_legacy(path: Path, check: Callable[[int], None]) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        for expected in (_LEGACY_MAGIC, _LEGACY_VERSION):
            if _load(file) != expected:
                raise ValueError("it is not a file of torch.save")
        _load(file)  # sizes of C types where it was written
        views = _views(file, check)
        keys = _load(file)
        declared = {view.storage.key: view.storage for view in views.values()}
        found = {}
        for key in keys:
            (size,) = struct.unpack("<q", file.read(8))
            storage = declared.get(key)
            if storage is None or storage.size != size:
                raise ValueError(f"storage {shown(key)} is not as declared")
            n_bytes = size * storage.dtype.itemsize
            if n_bytes > path.stat().st_size - file.tell():
                raise ValueError(f"storage {shown(key)} has {n_bytes:,} bytes, more than the file")
            found[key] = np.frombuffer(file.read(n_bytes), storage.dtype, size)
        return _tensors(views, lambda storage: found[storage.key])


def _load(file: Any, known: Globals | None = None, storage: Callable | None = None) -> Any:
    """The object of a pickle, at whose end the file is then."""
    start = file.tell()
    content = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    found = RestrictedUnpickler(content, {} if known is None else known, storage).load()
    file.seek(start + content.tell())
    return found


def _views(file: Any, check: Callable[[int], None]) -> dict[str, View]:
    """The tensors of a pickle by name, checked against the storages that they declare."""
    root = _load(file, KNOWN, _storage)
    if isinstance(root, View):
        raise UserError("it contains one Tensor, not tensors by name")
    if isinstance(root, dict):
        nested = [root[name] for name in NESTED if isinstance(root.get(name), dict)]
        views = dict(nested[0] if nested else root)
    elif isinstance(root, (list, tuple)) and root:
        views = {str(i): view for i, view in enumerate(root)}
    else:
        views = dict(_attributes(root))
    for name, view in views.items():
        if not isinstance(name, str):
            raise UserError(f"it must contain tensors by name, but one is named {shown(name)}")
        if not isinstance(view, View):
            raise UserError(
                f"it must contain only tensors, but {shown(name)} is of type {type(view).__name__}"
            )
        if not view.fits():
            raise UserError(f"{shown(name)} has more numbers than the file holds")
    check(sum(view.size for view in views.values()))
    return views


def _attributes(root: Any) -> list[tuple[str, View]]:
    """The tensors among the attributes of a TorchScript module and of those in it."""
    found: list[tuple[str, View]] = []
    waiting, seen = [("", root)], set()
    while waiting:
        prefix, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        for name, value in module.attributes.items() if isinstance(module, _Module) else ():
            if type(name) is not str or len(prefix) + len(name) > MAX_NAME_CHARS:
                raise UserError(f"it contains a module with an attribute {shown(name)}")
            if isinstance(value, View):
                found.append((f"{prefix}{name}", value))
            elif isinstance(value, _Module):
                waiting.append((f"{prefix}{name}.", value))
    if not found:
        raise UserError(f"it contains one {type(root).__name__}, not tensors by name")
    return found


def _tensors(
    views: Mapping[str, View], numbers: Callable[[Storage], np.ndarray]
) -> dict[str, np.ndarray]:
    """The tensors, contiguous. Each storage is read once, and dropped after its last view."""
    by_storage = collections.defaultdict(list)
    for name, view in views.items():
        by_storage[view.storage].append(name)
    tensors = {}
    for storage, names in by_storage.items():
        whole = numbers(storage)
        if (whole.dtype, len(whole)) != (storage.dtype, storage.size):
            raise ValueError(f"storage {storage.key} is not as declared")
        for name in names:
            part = views[name].of(whole)
            # A part that is not copied would keep the storage in memory.
            tensors[name] = np.array(part, order="C", copy=part.size < storage.size or None)
    return {name: tensors[name] for name in views}
