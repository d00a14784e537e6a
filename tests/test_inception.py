"""FID's Inception: every name and shape, and its features, against the implementations in use."""

from pathlib import Path

import numpy as np
import pytest
from helpers.rule_weights import inception_shapes, rule_weight

from glide_jax.models import inception as module
from glide_jax.pretrained.feature_names import INCEPTION, INCEPTION_TENSORFLOW
from glide_jax.pretrained.names import original_names, original_shape

GOLDEN = np.load(Path(__file__).parent / "golden" / "evaluation" / "inception.npz")
RULES = sorted({name.split("/")[1] for name in GOLDEN.files if name.startswith("pool/")})
KEYS = [name.removeprefix("images/") for name in GOLDEN.files if name.startswith("images/")]
OTHERS = {
    "pytorch_fid/64": ("torch", "pool_64"),
    "pytorch_fid/192": ("torch", "pool_192"),
    "pytorch_fid/768": ("torch", "pool_768"),
    "pytorch_fid/2048": ("torch", "pool"),
    "torch_fidelity/64": ("tf1", "pool_64"),
    "torch_fidelity/192": ("tf1", "pool_192"),
    "torch_fidelity/768": ("tf1", "pool_768"),
    "torch_fidelity/2048": ("tf1", "pool"),
    "torch_fidelity/logits_unbiased": ("tf1", "logits"),
}
"""Outputs of other packages: (our resizing, our output)."""
TOLERANCE = 1e-5
"""Of the largest value."""


def test_every_tensor_maps_both_ways():
    """Names and shapes of all 472 tensors, of which none is allocated."""
    shapes = module.inception().shapes
    names = original_names(shapes, INCEPTION)
    theirs = {
        names[name]: list(original_shape(name, x.shape, INCEPTION)) for name, x in shapes.items()
    }
    assert theirs == inception_shapes()
    assert len(theirs) == len(shapes) == 472


def test_names_of_the_tensorflow_graph():
    """94 convolutions by TensorFlow's name; kernels keep their layout."""
    shapes = module.inception().shapes
    names = original_names(shapes, INCEPTION_TENSORFLOW)
    assert len(set(names.values())) == len(names) == 472
    torch = {theirs: ours for ours, theirs in original_names(shapes, INCEPTION).items()}
    same = {
        "Conv2d_2a_3x3.conv.weight": "conv_1/conv2d_params",
        "Mixed_5b.branch3x3dbl_3.bn.running_var": "mixed/tower_1/conv_2/batchnorm/moving_variance",
        "Mixed_6a.branch3x3dbl_3.bn.bias": "mixed_3/tower/conv_2/batchnorm/beta",
        "Mixed_6d.branch1x1.conv.weight": "mixed_6/conv/conv2d_params",
        "Mixed_7a.branch7x7x3_4.bn.running_mean": "mixed_8/tower_1/conv_3/batchnorm/moving_mean",
        "Mixed_7c.branch3x3dbl_3b.bn.weight": "mixed_10/tower_1/mixed/conv_1/batchnorm/gamma",
        "Mixed_7c.branch_pool.conv.weight": "mixed_10/tower_2/conv/conv2d_params",
        "fc.weight": "softmax/weights",
    }
    assert {theirs: names[torch[theirs]] for theirs in same} == same
    kernel = torch["Conv2d_4a_3x3.conv.weight"]
    assert original_shape(kernel, shapes[kernel].shape, INCEPTION_TENSORFLOW) == (3, 3, 80, 192)


def test_the_rule_of_the_golden_weights():
    for name in GOLDEN.files:
        if name.startswith("rule/"):
            tensor = name.removeprefix("rule/")
            values = rule_weight(tensor, tuple(inception_shapes()[tensor]), int(GOLDEN["seed"]))
            np.testing.assert_array_equal(values.ravel()[:8], GOLDEN[name])


@pytest.mark.parametrize("rule", RULES)
def test_features_agree(inception, rule):
    """Images of all sizes in one stream, against each implementation with this resizing."""
    keys = [key for key in KEYS if f"pool/{rule}/{key}" in GOLDEN.files]
    extractor = inception(rule)
    counts = [len(GOLDEN[f"pool/{rule}/{key}"]) for key in keys]
    images = [GOLDEN[f"images/{key}"][:n] for key, n in zip(keys, counts, strict=True)]
    parts = list(extractor.stream(images))
    found = {name: np.concatenate([part[name] for part in parts]) for name in extractor.outputs}
    for i, key in enumerate(keys):
        rows = slice(sum(counts[:i]), sum(counts[: i + 1]))
        expected = {f"{output}/{rule}/{key}": output for output in ("pool", "spatial", "logits")}
        expected |= {f"{name}/{key}": out for name, (by, out) in OTHERS.items() if by == rule}
        for name, output in expected.items():
            if name in GOLDEN.files:
                values = GOLDEN[name]
                difference = np.abs(found[output][rows] - values).max()
                assert difference <= TOLERANCE * np.abs(values).max(), name
