"""Parameter names of published feature networks, to and from this project's."""

from glide_jax.pretrained.names import NONE, Patterns, Rules

_NORM = {
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "variance": "running_var",
}
_LEAF = {"kernel": "weight", "bias": "bias"}
_TORCH = {"norm": _NORM, "leaf": _LEAF}

EFFICIENTNET = Rules((
    (r"stem\.kernel", "_conv_stem.weight"),
    (r"stem\.(?P<norm>\w+)", "_bn0.{norm}"),
    (r"blocks\.(?P<n>\d+)\.(?P<conv>\w+)\.kernel", "_blocks.{n}._{conv}_conv.weight"),
    (r"blocks\.(?P<n>\d+)\.(?P<conv_norm>\w+)\.(?P<norm>\w+)", "_blocks.{n}.{conv_norm}.{norm}"),
    (r"head\.kernel", "_conv_head.weight"),
    (r"head\.(?P<norm>\w+)", "_bn1.{norm}"),
    (r"classifier\.(?P<leaf>\w+)", "_fc.{leaf}"),
), _TORCH | {"conv_norm": {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}})  # fmt: skip
"""Names in efficientnet-lite0-57934424.pth, those of efficientnet_pytorch."""

_STEM = {
    "conv_1a": "Conv2d_1a_3x3",
    "conv_2a": "Conv2d_2a_3x3",
    "conv_2b": "Conv2d_2b_3x3",
    "conv_3b": "Conv2d_3b_1x1",
    "conv_4a": "Conv2d_4a_3x3",
}
INCEPTION = Rules((
    (r"(?P<stem>conv_\w+)\.kernel", "{stem}.conv.weight"),
    (r"(?P<stem>conv_\w+)\.(?P<norm>\w+)", "{stem}.bn.{norm}"),
    (r"mixed_(?P<block>\w+)\.(?P<branch>\w+)\.kernel", "Mixed_{block}.{branch}.conv.weight"),
    (r"mixed_(?P<block>\w+)\.(?P<branch>\w+)\.(?P<norm>\w+)", "Mixed_{block}.{branch}.bn.{norm}"),
    (r"classifier\.(?P<leaf>\w+)", "fc.{leaf}"),
), _TORCH | {"stem": _STEM})  # fmt: skip
"""Names in pt_inception-2015-12-05-6726825d.pth, those of torchvision."""


def _tensorflow() -> Rules:
    """Names in TensorFlow's classify_image_graph_def.pb."""
    blocks = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
    kinds = {"6a": _REDUCTION_A, "7a": _REDUCTION_C, "5": _A, "6": _C, "7": _E}
    leaves: Patterns = (
        (r"{ours}\.kernel", "{theirs}/conv2d_params"),
        (r"{ours}\.(?P<norm>\w+)", "{theirs}/batchnorm/{{norm}}"),
    )
    convs = {name: _numbered("conv", i) for i, name in enumerate(_STEM)}
    for i, block in enumerate(blocks):
        for branch, path in (kinds.get(block) or kinds[block[0]]).items():
            convs[rf"mixed_{block}\.{branch}"] = f"{_numbered('mixed', i)}/{path}"
    patterns = [
        (pattern.replace("{ours}", ours), template.format(theirs=theirs))
        for ours, theirs in convs.items()
        for pattern, template in leaves
    ]
    patterns.append((r"classifier\.(?P<classifier>\w+)", "softmax/{classifier}"))
    tables = {
        "norm": {
            "scale": "gamma",
            "bias": "beta",
            "mean": "moving_mean",
            "variance": "moving_variance",
        },
        "classifier": {"kernel": "weights", "bias": "biases"},
    }
    return Rules(tuple(patterns), tables, transposed=NONE)


def _numbered(name: str, i: int) -> str:
    """TensorFlow's name of the i-th of several."""
    return f"{name}_{i}" if i else name


def _tower(name: str, tower: str, count: int) -> dict[str, str]:
    """A branch of `count` convolutions."""
    return {f"{name}_{i + 1}": f"{tower}/{_numbered('conv', i)}" for i in range(count)}


_SINGLE, _POOL = {"branch1x1": "conv"}, {"branch_pool": "tower_2/conv"}
_A = _SINGLE | _tower("branch5x5", "tower", 2) | _tower("branch3x3dbl", "tower_1", 3) | _POOL
_REDUCTION_A = {"branch3x3": "conv"} | _tower("branch3x3dbl", "tower", 3)
_C = _SINGLE | _tower("branch7x7", "tower", 3) | _tower("branch7x7dbl", "tower_1", 5) | _POOL
_REDUCTION_C = _tower("branch3x3", "tower", 2) | _tower("branch7x7x3", "tower_1", 4)
_E = (
    _SINGLE
    | _tower("branch3x3", "tower", 1)
    | {"branch3x3_2a": "tower/mixed/conv", "branch3x3_2b": "tower/mixed/conv_1"}
    | _tower("branch3x3dbl", "tower_1", 2)
    | {"branch3x3dbl_3a": "tower_1/mixed/conv", "branch3x3dbl_3b": "tower_1/mixed/conv_1"}
    | _POOL
)
INCEPTION_TENSORFLOW = _tensorflow()
"""Names in classify_image_graph_def.pb of inception-2015-12-05; kernels are (h, w, in, out)."""
