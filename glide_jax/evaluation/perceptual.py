"""LPIPS distances between images, and of the images of one caption."""

import hashlib
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, UInt8

from glide_jax.errors import UserError
from glide_jax.evaluation.metrics.estimate import Estimate, mean_estimate
from glide_jax.hub import local_file
from glide_jax.models.lpips import Trunk, lpips
from glide_jax.pretrained.names import from_original
from glide_jax.pretrained.vision_names import LPIPS
from glide_jax.pretrained.weight_files import read_tensors

HEADS = Path(__file__).parent / "lpips_heads.npz"
"""Heads of lpips 0.1.4, by trunk and layer. BSD-2: lpips_heads.LICENSE."""

SOURCES = {
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
}
"""Where torchvision has the trunks' weights."""


class PerceptualDistance:
    """LPIPS with a trunk's published weights.

    Args:
        trunk: "alex" or "vgg".
        params: by our names.
        weights: sha256 of the file that they come from.
        batch_size: pairs per call.
    """

    def __init__(
        self,
        trunk: Trunk,
        params: Mapping[str, np.ndarray],
        weights: str,
        batch_size: int = 16,
    ) -> None:
        self.settings = {"network": f"lpips-{trunk}", "weights": weights}
        """What must be equal for distances to compare."""
        self._batch_size = batch_size
        network = lpips(trunk)
        self._params = jax.device_put(dict(params))
        self._distance = jax.jit(
            lambda params, a, b: network.bind(params)(a / 127.5 - 1, b / 127.5 - 1)[0]
        )

    def __call__(
        self, a: UInt8[np.ndarray, "n h w 3"], b: UInt8[np.ndarray, "n h w 3"]
    ) -> Float[np.ndarray, "n"]:
        """The distance of each pair of images, in their own resolution (at least 64 px)."""
        found, size = [], min(self._batch_size, len(a))
        for start in range(0, len(a), size):
            pair = [x[start : start + size] for x in (a, b)]
            count = len(pair[0])
            pair = [np.concatenate([x, x[-1:].repeat(size - count, 0)]) for x in pair]
            found.append(np.asarray(self._distance(self._params, *pair))[:count])
        return np.concatenate(found)


def load_lpips(trunk: Trunk, weights: str | Path, batch_size: int = 16) -> PerceptualDistance:
    """LPIPS with weights from torchvision's file of its trunk.

    Args:
        trunk: "alex" or "vgg".
        weights: the file, local or hf://ORG/REPO/FILE; SOURCES says where it is.
        batch_size: pairs per call.

    Raises:
        UserError: the file is missing, or of another network.
    """
    if not weights:
        raise UserError(f"LPIPS needs the weights of its trunk: download {SOURCES[trunk]}")
    path = local_file(weights)
    tensors = {
        name: tensor
        for name, tensor in read_tensors(path).items()
        if not name.startswith("classifier.")
    }
    shapes = {name: x for name, x in lpips(trunk).shapes.items() if name.startswith("features.")}
    try:
        params = from_original(tensors, shapes, LPIPS)
    except UserError as error:
        raise UserError(f"{path} is not torchvision's file of {trunk}: {error}") from None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return PerceptualDistance(trunk, params | heads(trunk), digest, batch_size)


def heads(trunk: Trunk) -> dict[str, np.ndarray]:
    """The weights of the layers' features in the distance, by our names."""
    with np.load(HEADS) as file:
        return {
            f"heads.{name.partition('.')[2]}": file[name]
            for name in file.files
            if name.startswith(f"{trunk}.")
        }


def lpips_diversity(
    images: UInt8[np.ndarray, "n seeds h w 3"], distance: PerceptualDistance
) -> Estimate:
    """The mean distance between a caption's images of different seeds.

    Args:
        images: of n captions, at least two seeds each.
        distance: of pairs.

    Returns:
        The mean over captions of the mean over pairs of seeds.
    """
    pairs = list(combinations(range(images.shape[1]), 2))
    by_pair = [distance(images[:, i], images[:, j]) for i, j in pairs]
    return mean_estimate(np.mean(by_pair, axis=0))
