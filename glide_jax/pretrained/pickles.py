"""Pickles from others, read without running code.

A pickle is a program that calls functions by name: by default any function. The unpickler here
knows a fixed list of names with inert meanings, and checks a program before it runs.
"""

import io
import pickle
import pickletools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from glide_jax.errors import UserError

Globals = Mapping[tuple[str, str], Any]
"""What a pickle may name, by module and name."""


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that knows only the given names.

    Args:
        file: is read from its position to the end of the pickle.
        known: what the pickle may name.
        persistent_load: what its persistent ids stand for; None refuses them.
    """

    def __init__(
        self,
        file: io.BytesIO | io.BufferedReader,
        known: Globals,
        persistent_load: Callable | None = None,
    ) -> None:
        super().__init__(file)
        self._known = known
        self._persistent_load = persistent_load

    def find_class(self, module: str, name: str) -> Any:
        """The meaning of a name. Raises UserError if it is not known."""
        if (module, name) not in self._known:
            raise UserError(
                f"it contains {module}.{name}, not only arrays, and unpickling that could run code "
                "(none was run)"
            )
        return self._known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """The meaning of a persistent id."""
        if self._persistent_load is None:
            raise UserError("it refers to objects outside of the file")
        return self._persistent_load(pid)


_NUMBERED = ("PUT", "LONG_BINPUT")


def require_small_memo(file: io.BytesIO | io.BufferedReader) -> None:
    """Checks one pickle, and returns to its start.

    A few bytes could make the unpickler allocate a table of any size.

    Raises:
        UserError: the pickle numbers more objects than it has bytes.
        Exception: it is truncated or corrupt; of many types.
    """
    start = file.tell()
    largest = max(
        (int(arg or 0) for op, arg, _ in pickletools.genops(file) if op.name in _NUMBERED),
        default=0,
    )
    if largest > file.tell() - start:
        raise UserError(f"it numbers {largest:,} objects in {file.tell() - start:,} bytes")
    file.seek(start)


class _Ndarray:
    """Stands for the class numpy.ndarray, which would allocate any size."""


def _dtype(code: str, align: bool = False, copy: bool = True) -> np.dtype:
    """A type of numbers."""
    if not (isinstance(code, str) and re.fullmatch(r"[<>|=]?[biufc]\d{1,2}", code)):
        raise UserError(f"it contains an array of {code!r}, not of numbers")
    return np.dtype(code)


def _encode(text: str, encoding: str) -> bytes:
    """`codecs.encode`, with which pickles of protocol 2 store bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes are encoded as {encoding!r}")
    return text.encode("latin1")


def _reconstruct(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """An empty array, whose state, set next, has the shape, type and data."""
    if kind is not _Ndarray or shape != (0,):
        raise pickle.UnpicklingError("an array is not as NumPy writes it")
    return np.ndarray((0,), np.uint8)


def _scalar(dtype: np.dtype, content: bytes) -> np.generic:
    return np.frombuffer(content, dtype, 1)[0]


def _from_buffer(
    content: bytes | bytearray, dtype: np.dtype, shape: tuple[int, ...], order: Any
) -> np.ndarray:
    return np.frombuffer(content, dtype).reshape(shape, order=order)


ARRAYS: Globals = {
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    **{
        (f"numpy.{core}.{module}", name): meaning
        for core in ("core", "_core")
        for module, name, meaning in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}
"""Arrays and scalars of NumPy; plain numbers, texts, lists and dicts need no name."""


def read_pickled_arrays(content: bytes) -> Any:
    """Numbers, texts and NumPy arrays, and lists and dicts of them, from a pickle.

    Raises:
        UserError: it contains anything else.
        Exception: it is truncated or corrupt; of many types.
    """
    file = io.BytesIO(content)
    require_small_memo(file)
    found = RestrictedUnpickler(file, ARRAYS).load()
    seen: set[int] = set()
    waiting = [found]
    while waiting:  # neither recursive nor twice into one object: a pickle may nest or repeat them
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value
        elif not isinstance(value, np.ndarray | np.generic | str | bytes | bool | int | float):
            raise UserError(f"it contains a {type(value).__name__}, not only arrays")
    return found
