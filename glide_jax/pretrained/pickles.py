"""Pickles from others, read without running code.

A pickle is a program that calls functions by name, and sets attributes: by default of anything. The
unpickler here knows a fixed list of names with inert meanings, and a part of the operations. Its
memory is in proportion to the pickle's size.
"""

import io
import math
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from glide_jax.errors import UserError, shown

Globals = Mapping[tuple[str, str], Any]
"""What a pickle may name, by module and name."""

_OPERATIONS = """PROTO FRAME STOP MARK POP POP_MARK DUP GET BINGET LONG_BINGET PUT BINPUT
LONG_BINPUT MEMOIZE NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT
BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE
TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD
BINPERSID"""
MAX_NAME_CHARS = 80
"""Of a class or function, in errors."""
_KEYS = (str, bytes, int, float, bool, type(None))


class Unbuilt:
    """An object in a pickle before its state, which a pickle gives after it."""

    built: Any = None

    def build(self, state: Any) -> Any:
        """The object with this state."""
        raise NotImplementedError


class _Memo(dict):
    """A pickle's numbered objects."""

    def __getitem__(self, number: int) -> Any:
        value = super().__getitem__(number)
        return value.built if isinstance(value, Unbuilt) and value.built is not None else value


_LOAD: Mapping[int, Callable[[Any], None]] = pickle._Unpickler.dispatch


# The unpickler in C calls what an object or its class has, and sets attributes even of functions.
class RestrictedUnpickler(pickle._Unpickler):
    """An unpickler that knows only the given names, and sets only the state of `Unbuilt` objects.

    Args:
        file: is read from its position to the end of the pickle.
        known: what the pickle may name.
        persistent_load: what its persistent ids stand for; None refuses them.
    """

    stack: list[Any]

    def __init__(
        self, file: io.BytesIO, known: Globals, persistent_load: Callable | None = None
    ) -> None:
        super().__init__(file)
        self.memo = _Memo()
        self._known = known
        self._persistent_load = persistent_load

    def find_class(self, module: str, name: str) -> Any:
        """The meaning of a name. Raises UserError if it is not known."""
        if (module, name) not in self._known:
            text = f"{module}.{name}"
            if not text.isprintable() or len(text) > MAX_NAME_CHARS:
                text = shown(text)
            raise UserError(
                f"it contains {text}, not only arrays, and unpickling that could run code "
                "(none was run)"
            )
        return self._known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """The meaning of a persistent id."""
        if self._persistent_load is None:
            raise UserError("it refers to objects outside of the file")
        return self._persistent_load(pid)

    def load_build(self) -> None:
        """Sets the state of an object. Attributes of dicts are ignored: PyTorch's versions."""
        state = self.stack.pop()
        unbuilt = self.stack[-1]
        if isinstance(unbuilt, Unbuilt):
            self.stack[-1] = unbuilt.built = unbuilt.build(state)
        elif type(unbuilt) is not dict:
            raise UserError(f"it sets attributes of a {type(unbuilt).__name__}")

    def load_setitem(self) -> None:
        """Sets an item of a dict."""
        require_plain_keys(self.stack[-2:-1])
        _LOAD[pickle.SETITEM[0]](self)

    def load_setitems(self) -> None:
        """Sets items of a dict."""
        require_plain_keys(self.stack[::2])
        _LOAD[pickle.SETITEMS[0]](self)

    def load_dict(self) -> None:
        """Creates a dict of items."""
        require_plain_keys(self.stack[::2])
        _LOAD[pickle.DICT[0]](self)

    def refuse(self) -> None:
        """Any other operation."""
        raise pickle.UnpicklingError("it has an operation that no file of arrays needs")


def _dispatch() -> dict[int, Callable]:
    codes = [getattr(pickle, name)[0] for name in _OPERATIONS.split()]
    known = {code: _LOAD[code] for code in codes}
    own = {
        code: getattr(RestrictedUnpickler, load.__name__)
        for code, load in known.items()
        if load.__name__ in vars(RestrictedUnpickler)
    }
    return dict.fromkeys(range(256), RestrictedUnpickler.refuse) | known | own


RestrictedUnpickler.dispatch = _dispatch()


def require_plain_keys(keys: list) -> None:
    """Raises UserError for other keys of a dict: hashing nested ones could overflow the stack."""
    for key in keys:
        if type(key) not in _KEYS:
            raise UserError(f"it contains a dict whose key is a {type(key).__name__}")


_NDARRAY = "numpy.ndarray"
"""Stands for the class, which would allocate any size."""


class _Dtype(Unbuilt):
    """A type of numbers."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not (isinstance(code, str) and re.fullmatch(r"[<>|=]?[biufc]\d{1,2}", code)):
            raise UserError(f"it contains an array of {shown(code)}, not of numbers")
        self._code = code

    def build(self, state: Any) -> np.dtype:
        """The type, with its byte order."""
        _, order, *rest = state
        if rest != [None, None, None, -1, -1, 0]:
            raise UserError("it contains an array of records, not of numbers")
        return np.dtype(self._code).newbyteorder(order)


class _Array(Unbuilt):
    """An array."""

    def __init__(self, *_: Any) -> None:
        pass

    def build(self, state: Any) -> np.ndarray:
        """The array, read-only."""
        _, shape, dtype, fortran, content = state
        return _from_buffer(content, dtype, shape, "F" if fortran else "C")


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if type(content) is bytearray:
        content = memoryview(content).toreadonly()
    elif type(content) is not bytes:
        raise pickle.UnpicklingError("an array's content is not bytes")
    if not isinstance(dtype, np.dtype) or not all(type(n) is int and n >= 0 for n in shape):
        raise pickle.UnpicklingError("an array is not as NumPy writes it")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise UserError(f"it declares an array of {shown(shape)} in {len(content):,} bytes")
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def _scalar(dtype: Any, content: Any) -> Any:
    return _from_buffer(content, dtype, (), "C")[()]


def _encoder() -> Callable[[str, str], bytes]:
    encoded: dict[str, bytes] = {}

    def encode(text: str, encoding: str) -> bytes:
        """`codecs.encode`, with which pickles of protocol 2 store bytes."""
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"bytes are encoded as {encoding!r}")
        if text not in encoded:  # once, however often it is called
            encoded[text] = text.encode("latin1")
        return encoded[text]

    return encode


def _arrays() -> Globals:
    """Arrays and scalars of NumPy; plain numbers, texts, lists and dicts need no name."""
    return {
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _encoder(),
        **{
            (f"numpy.{core}.{module}", name): meaning
            for core in ("core", "_core")
            for module, name, meaning in (
                ("multiarray", "_reconstruct", _Array),
                ("multiarray", "scalar", _scalar),
                ("numeric", "_frombuffer", _from_buffer),
            )
        },
    }


def read_pickled_arrays(content: bytes) -> Any:
    """Numbers, texts and NumPy arrays (read-only), and lists and dicts of them, from a pickle.

    Raises:
        UserError: it contains anything else.
        Exception: it is truncated or corrupt; of many types.
    """
    found = RestrictedUnpickler(io.BytesIO(content), _arrays()).load()
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
