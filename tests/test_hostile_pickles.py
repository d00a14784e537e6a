"""Pickles that are made to run code, to read foreign memory, or to use up memory, stack or time."""

import pickle
import struct
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest

from glide_jax.errors import UserError
from glide_jax.pretrained import torch_files
from glide_jax.pretrained.pickles import read_pickled_arrays
from glide_jax.pretrained.torch_files import KNOWN, STORAGES
from glide_jax.pretrained.torch_writer import _name, _text
from glide_jax.pretrained.weight_files import read_tensors
from tests.helpers.torch_pickles import legacy, pickled, refused, saved, tensor

THREE = np.arange(3, dtype=np.float32).tobytes()
REBUILD = _name("torch._utils", "_rebuild_parameter")
ERRORS = (UserError, pickle.UnpicklingError, TypeError, AttributeError, IndexError, ValueError)
MODULE = _name("__torch__.M", "M") + b")\x81"


def value(x):
    """The operations of a plain value."""
    return pickle.dumps(x, 2)[2:-1]


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def hostile(target):
    """Pickles that would create the file `target`, or use up memory, stack or time."""
    run = Call(eval, f"open({str(target)!r}, 'w')")
    yield pickle.dumps({"a": run}, 2)
    yield pickle.dumps({"a": [{"b": (run,)}]}, 4)
    yield pickle.dumps({"a": run}, 0)
    yield pickle.dumps({run: 1}, 5)
    # A known class called in ways that it is not made for.
    yield b"\x80\x02" + _name("torch", "FloatStorage") + b"K\x7f\x85R."
    yield b"\x80\x02" + _name("numpy", "ndarray") + b"\x8a\x06\0\0\0\0\0\x01\x85R."
    yield b"\x80\x04\x8c\x09os.systemX\x01\0\0\0a\x93."
    yield b"\x80\x02cposix\nsystem\n(X\x02\0\0\0lstR."
    yield b"\x80\x02X\x01\0\0\0ar\xff\xff\xff\x7f."  # a table of two billion objects
    yield b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."  # nested
    yield b"\x80\x02}(X\x01\0\0\0a" + b"]q\x00h\x00a" + b"u."  # a list that contains itself
    doubled = b"]q\x00" + b"".join(
        b"(h" + bytes([i]) + b"h" + bytes([i]) + b"lq" + bytes([i + 1]) for i in range(60)
    )
    yield b"\x80\x02}(X\x01\0\0\0a" + doubled + b"u."  # 2**60 lists, if not counted once
    yield b"\x80\x02."
    yield b"\x80\x02}(u"
    yield b"\x80\x05\x97."  # an out-of-band buffer
    yield b"\x80\x02\x8b\xff\xff\xff\x7f."  # an integer of two billion bytes
    yield b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f."  # bytes that are not there


def test_hostile_pickles_do_nothing(tmp_path):
    target = tmp_path / "ran"
    for number, content in enumerate(hostile(target)):
        assert refused(saved(tmp_path / f"{number}.pt", content)), content[:60]
        old = tmp_path / f"{number}.pth"
        old.write_bytes(legacy(content, [], b""))
        assert refused(old)
        try:
            found = read_pickled_arrays(content)
        except Exception:
            continue
        assert isinstance(found, dict | list | str), content[:60]
    assert not target.exists()


def build(target, state):
    """The operations that would set attributes of a target, which is dropped after that."""
    return target + value(state) + b"b0"


def state_of_process():
    """What the reader itself uses, and a pickle can name."""
    names = [f for f in (*KNOWN.values(), torch_files._Module) if callable(f)]
    return [{**vars(f), "defaults": getattr(f, "__defaults__", 0)} for f in names] + [
        (dtype.str, dtype.itemsize, dtype.flags) for dtype in STORAGES.values()
    ]


@pytest.mark.parametrize(
    ("target", "state", "why"),
    [
        (tensor(), {"strides": (-(10**13),)}, "it sets attributes of a View"),
        (tensor(), {"offset": -1000}, "it sets attributes of a View"),
        (tensor(), (None, {"offset": -1000}), "it sets attributes of a View"),
        (REBUILD, {"a": 1}, "it sets attributes of a function"),
        (REBUILD, (None, {"__defaults__": (1,)}), "it sets attributes of a function"),
        (_name("__torch__.M", "M"), (None, {"build": 1}), "it sets attributes of a type"),
        (_name("__torch__", "M"), {"__setstate__": 1}, "it sets attributes of a type"),
        (MODULE, (None, {"build": 1}), "the state of a module is a tuple, not a dict"),
        (
            _name("torch", "BFloat16Storage"),
            (3, ">", None, None, None, 400, 1, 63),
            "it sets attributes of a str",
        ),
    ],
)
def test_pickles_set_no_attributes(tmp_path, target, state, why):
    before = state_of_process()
    content = b"\x80\x02" + build(target, state) + pickled(t=tensor())[2:]
    assert why in refused(saved(tmp_path / "x.pt", content, a=THREE))
    old = tmp_path / "x.pth"
    old.write_bytes(legacy(content, ["a"], struct.pack("<q", 3) + THREE))
    assert why in refused(old)
    assert state_of_process() == before
    # The same, for the tensor that is returned.
    if target == tensor():
        changed = pickled(t=target + value(state) + b"b")
        assert why in refused(saved(tmp_path / "x.pt", changed, a=THREE))


def test_attributes_of_dicts_are_ignored(tmp_path):
    """PyTorch's `_metadata` of a state_dict, and one that would replace a method."""
    root = _name("collections", "OrderedDict") + b")R(" + _text("t") + tensor() + b"u"
    for attributes in ({"_metadata": {"": {"version": 1}}}, {"items": 1, "get": 2, "keys": 3}):
        content = b"\x80\x02" + root + value(attributes) + b"b."
        assert read_tensors(saved(tmp_path / "x.pt", content, a=THREE))["t"].shape == (3,)


def test_keys_do_not_overflow_the_stack(tmp_path):
    key = b")" + b"\x85" * 300_000
    items = b"](" + b"](" + key + b"K\x01ee\x85R"
    for root in (
        b"}" + key + b"K\x01s",
        b"}(" + key + b"K\x01u",
        b"(" + key + b"K\x01d",
        _name("collections", "OrderedDict") + items,
    ):
        content = b"\x80\x02" + root + b"."
        line = refused(saved(tmp_path / "x.pt", content))
        assert line == "is refused: it contains a dict whose key is a tuple"
    for operation in (b"(" + key + b"\x91", b"\x8f(" + key + b"\x90"):  # sets
        assert "an operation that no file" in refused(
            saved(tmp_path / "x.pt", b"\x80\x04" + operation + b".")
        )


@pytest.mark.parametrize(
    "operations",
    [b"P1\n", b"(cposix\nsystem\no", b"(iposix\nsystem\n", b"\x82\x01", b"\x83\x01\0",
     b"\x84\x01\0\0\0", b"}}}\x92", b"\x97", b"\x98", b"\xff"],
)  # fmt: skip
def test_operations_that_no_file_of_arrays_needs(tmp_path, operations):
    content = b"\x80\x05" + operations + b"."
    line = refused(saved(tmp_path / "x.pt", content))
    assert "an operation that no file" in line or "it contains posix.system" in line
    with pytest.raises(ERRORS, match=r"an operation that|it contains posix\.system"):
        read_pickled_arrays(content)


def peak(read, *arguments):
    """Bytes of memory that a refused file takes."""
    tracemalloc.start()
    try:
        with pytest.raises(ERRORS):
            read(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_in_proportion_to_the_file(tmp_path):
    path = tmp_path / "x.pt"
    text = _text("a" * 10**5) + b"q\x00" + _text("latin1") + b"q\x01"
    encoded = _name("_codecs", "encode") + b"q\x02]" + b"(" + b"h\x02h\x00h\x01\x86R" * 1000 + b"e"
    assert peak(read_pickled_arrays, b"\x80\x02" + text + encoded + b"}}s.") < 2e6
    items = b"](" + b"".join(value([f"{i}", 1]) for i in range(1000)) + b"eq\x00"
    dicts = _name("collections", "OrderedDict") + b"q\x01](" + b"h\x01h\x00\x85R" * 1000 + b"e"
    assert peak(read_tensors, saved(path, b"\x80\x02" + items + dicts + b".")) < 2e6
    # Modules in modules: the names would be of quadratic length.
    module = MODULE
    for _ in range(200):
        module = MODULE + b"}(" + _text("n" * 20) + module + _text("w") + tensor() + b"ub"
    assert "with an attribute" in refused(saved(path, b"\x80\x02" + module + b".", a=THREE))
    long = MODULE + b"}" + _text("n" * 10**4) + tensor() + b"sb."
    assert "with an attribute 'nnnn" in refused(saved(path, b"\x80\x02" + long, a=THREE))


def test_old_files_allocate_what_they_hold(tmp_path):
    path = tmp_path / "x.pth"
    huge = tensor(size=2**40, shape=(1,))
    path.write_bytes(legacy(pickled(t=huge), ["a"], struct.pack("<q", 2**40) + THREE))
    assert peak(read_tensors, path) < 2e7
    assert "has 4,398,046,511,104 bytes, more than the file" in refused(path)
    long_bytes = b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc."
    path.write_bytes(legacy(long_bytes, ["a"], THREE))
    assert peak(read_tensors, path) < 2e7


def test_a_part_does_not_keep_its_storage(tmp_path):
    whole = np.arange(2**18, dtype=np.float32)
    part = pickled(t=tensor(size=whole.size), u=tensor(size=whole.size, shape=(2,), strides=(7,)))
    found = read_tensors(saved(tmp_path / "x.pt", part, a=whole.tobytes()))
    assert [x.base is None or x.base.size <= 3 for x in found.values()] == [True, True]
    np.testing.assert_array_equal(found["u"], [0, 7])


def test_archives_that_are_not_as_pytorch_writes_them(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    content = pickled(t=tensor())

    def archive(*members, compression=zipfile.ZIP_STORED):
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as file:
            warnings.simplefilter("ignore")  # of two members of one name
            for name, data in members:
                file.writestr(name, data, compression)
        return refused(path)

    data = ("archive/data.pkl", content)
    a = ("archive/data/a", THREE)
    assert "it has two members of one name" in archive(data, a, a)
    assert "it has 2 data.pkl" in archive(data, ("other/data.pkl", content), a)
    assert "is not a valid .pt file" in archive(data)
    assert "is not a valid .pt file" in archive(data, ("../data/a", THREE))
    assert "is not a valid .pt file" in archive(("archive/data.pkl", b""), a)
    assert "are big-endian" in archive(data, a, ("archive/byteorder", b"big"))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(*data)
        file.writestr(*a)
        file.writestr("archive/byteorder", bytes(10**6), zipfile.ZIP_DEFLATED)
    assert "it is compressed" in refused(path)
    monkeypatch.setattr(torch_files, "MAX_PICKLE_BYTES", 100)
    assert "its archive/data.pkl is larger than 0 MB" in archive(data, a)


def test_errors_are_one_printable_line(tmp_path):
    path = tmp_path / "x.pt"
    for name in ("a\nb", "\x1b[2J", "a" * 10**4):
        for content in (
            pickled(**{name: tensor()}),
            pickled(**{name: tensor(offset=5)}),
            pickled(**{name: b"K\x01"}),
            b"\x80\x04" + _text(name) + _text("x") + b"\x93.",
            pickled(t=tensor(key=name)),
        ):
            line = refused(saved(path, content, a=THREE))
            assert line.isprintable()
            assert len(line) < 500
    by_number = b"\x80\x02}(K\x01" + tensor() + _text("1") + tensor() + b"u."
    assert "tensors by name, but one is named 1" in refused(saved(path, by_number, a=THREE))


def ndarray(dtype, shape, content, fortran=b"\x89"):
    """The operations of a NumPy array."""
    empty = _name("numpy", "ndarray") + b"K\x00\x85" + value(b"b") + b"\x87R"
    state = b"(K\x01" + value(shape) + dtype + fortran + value(content) + b"t"
    return _name("numpy.core.multiarray", "_reconstruct") + empty + state + b"b"


def dtype(code, *state):
    operations = _name("numpy", "dtype") + _text(code) + b"\x89\x88\x87R"
    return operations + value((3, *state)) + b"b"


PLAIN = (None, None, None, -1, -1, 0)


def test_arrays_hold_the_numbers_that_they_declare():
    def read(operations):
        return read_pickled_arrays(b"\x80\x02" + operations + b".")

    eight = dtype("f8", "<", *PLAIN)
    np.testing.assert_array_equal(read(ndarray(eight, (2,), bytes(16))), [0, 0])
    big = read(ndarray(dtype("i4", ">", *PLAIN), (1,), b"\0\0\0\x07"))
    np.testing.assert_array_equal(big, [7])
    for wrong in (
        ndarray(eight, (3,), bytes(16)),
        ndarray(eight, (-2, -1), bytes(16)),
        ndarray(eight, (2**62, 2**62), bytes(16)),
        ndarray(eight, (2**61,), b""),
        ndarray(eight, (2.0,), bytes(16)),
        ndarray(eight, (2,), [1, 2]),
        ndarray(dtype("f8", ">", None, None, None, -1, -1, 63), (2,), bytes(16)),  # of objects
        ndarray(dtype("f8", ">", None, ("a",), {"a": 1}, 100, -1, 0), (2,), bytes(16)),
        ndarray(dtype("f8", "<", *PLAIN) + value({}) + b"b", (2,), bytes(16)),
        ndarray(_name("numpy", "dtype") + _text("f8") + b"\x85R", (2,), bytes(16)),
        ndarray(dtype("O8", "|", *PLAIN), (2,), bytes(16)),
        ndarray(dtype("f8" * 10**5, "|", *PLAIN), (2,), bytes(16)),
        ndarray(eight, (2,), bytes(16)) + value((1, (9,), 0, False, b"")) + b"b",
        _name("numpy", "ndarray") + value((2**40,)) + b"\x85R",
        _name("numpy", "ndarray") + value((2**40,)) + b"\x85\x81",
        _name("numpy.core.multiarray", "scalar") + eight + value(b"1") + b"\x86R",
        _name("numpy.core.numeric", "_frombuffer")
        + (b"(" + ndarray(eight, (2,), bytes(16)) + eight + value((2,)) + value("C") + b"tR"),
    ):
        with pytest.raises(ERRORS) as error:
            read(wrong)
        assert len(str(error.value)) < 200, wrong[:80]
