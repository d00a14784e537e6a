"""Frozen TensorFlow graphs, written here field by field."""

import numpy as np
import pytest

from glide_jax.errors import UserError
from glide_jax.evaluation.feature_networks import read_params
from glide_jax.models.inception import inception
from glide_jax.pretrained.feature_names import INCEPTION_TENSORFLOW
from glide_jax.pretrained.names import original_names
from glide_jax.pretrained.tensorflow_graph import read_graph


def varint(value):
    head = bytes([value & 0x7F | (0x80 if value > 0x7F else 0)])
    return head + varint(value >> 7) if value > 0x7F else head


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def node(name, shape, numbers, op=b"Const", dtype=1, how=4):
    dims = b"".join(field(2, field(1, n)) for n in shape)
    tensor = field(1, dtype) + field(2, dims) + field(how, np.asarray(numbers, "<f4").tobytes())
    attributes = field(5, field(1, b"dtype") + field(2, field(6, dtype)))
    attributes += field(5, field(1, b"value") + field(2, field(8, tensor)))
    return field(1, field(1, name.encode()) + field(2, op) + field(3, b"input") + attributes)


def test_float_constants_are_read(tmp_path):
    path = tmp_path / "graph.pb"
    kernel = np.arange(6, dtype=np.float32)
    path.write_bytes(
        node("conv/conv2d_params", (1, 2, 3), kernel)
        + node("conv/batchnorm/gamma", (3,), [1.0])  # one number stands for all
        + node("packed", (2,), [1.0, 2.0], how=5)
        + node("Sub/y", (), [128.0])
        + node("size", (2,), [0.0, 0.0], dtype=3)
        + node("conv", (2,), [0.0, 0.0], op=b"Conv2D")
    )
    found = read_graph(path)
    assert list(found) == ["conv/conv2d_params", "conv/batchnorm/gamma", "packed"]
    np.testing.assert_array_equal(found["conv/conv2d_params"], kernel.reshape(1, 2, 3))
    np.testing.assert_array_equal(found["conv/batchnorm/gamma"], np.ones(3))


def test_a_graph_that_lacks_tensors_is_refused(tmp_path):
    path = tmp_path / "classify_image_graph_def.pb"
    shapes = inception().shapes
    names = original_names(shapes, INCEPTION_TENSORFLOW)
    small = (ours for ours, x in shapes.items() if x.size < 2**16)
    path.write_bytes(b"".join(node(names[ours], shapes[ours].shape, [1.0]) for ours in small))
    with pytest.raises(
        UserError, match=r"not a file of inception: the weights lack softmax/weights"
    ):
        read_params("inception", path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no float32 constants"),
        (b"\x80\x02}q\x00.", "damaged"),  # a pickle
        (node("x", (3,), [1.0, 2.0, 3.0])[:-2], "ends too early"),
        (node("x", (2**40,), [1.0]), "has 1 numbers"),
        (node("x", (2,), [1.0, 2.0, 3.0]), "has 3 numbers"),
        (b"\xff" * 20, "more than 64 bits"),
        (field(1, 5), "a number where a message is expected"),
    ],
)
def test_damaged_graphs_are_refused(tmp_path, content, message):
    path = tmp_path / "graph.pb"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_graph(path)
    assert message in str(error.value)
    with pytest.raises(UserError, match="No such file"):
        read_graph(tmp_path / "absent.pb")
