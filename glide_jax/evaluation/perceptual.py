"""LPIPS distances between images, and of the images of one caption."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
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
from glide_jax.sampling.flags import SamplingFlags
from glide_jax.shapes import Params

PAIRS = 16
"""Pairs of images per call by default."""
HEADS = Path(__file__).parent / "lpips_heads.npz"
"""Heads of lpips 0.1.4, by trunk and layer. BSD-2: lpips_heads.LICENSE."""

SOURCES = {
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
}
"""Where torchvision has the trunks' weights."""

TITLES: dict[Trunk, str] = {"alex": "AlexNet", "vgg": "VGG-16"}
"""Names of the trunks."""
MIN_PX: dict[Trunk, int] = {"alex": 31, "vgg": 16}
"""Smallest side for which the last layer of a trunk has an output."""

Pixels = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True, kw_only=True)
class LpipsFlags(SamplingFlags):
    """The network of LPIPS."""

    lpips: str = ""
    """For LPIPS: torchvision's file of AlexNet or VGG-16, local or hf://ORG/REPO/FILE."""
    lpips_trunk: Trunk = "alex"
    """Network of --lpips."""


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
        batch_size: int = PAIRS,
    ) -> None:
        self.trunk, self.title = trunk, TITLES[trunk]
        self.settings = {"network": f"lpips-{trunk}", "weights": weights}
        """What must be equal for distances to compare."""
        self.batch_size = batch_size
        network = lpips(trunk)
        self._params = jax.device_put(dict(params))

        def pairs(params: Params, a: jax.Array, b: jax.Array) -> jax.Array:
            with jax.default_matmul_precision("highest"):  # accelerators would round the factors
                return network.bind(params)(a / 127.5 - 1, b / 127.5 - 1)[0]

        self._distance = jax.jit(pairs)

    def __call__(
        self, a: UInt8[np.ndarray, "n h w 3"], b: UInt8[np.ndarray, "n h w 3"]
    ) -> Float[np.ndarray, "n"]:
        """The distance of each pair of images, in their own resolution."""
        return np.concatenate(list(self.stream(zip(a, b, strict=True))))

    def stream(self, pairs: Iterable[tuple[Pixels, Pixels]]) -> Iterator[Float[np.ndarray, "n"]]:
        """Distances of any number of pairs, in batches.

        Raises:
            UserError: the images are of several sizes, or smaller than MIN_PX.
        """
        iterator, shape = iter(pairs), None
        while batch := list(islice(iterator, self.batch_size)):
            shape = shape or (len(batch), *batch[0][0].shape)
            for image in (image for pair in batch for image in pair):
                self._check(image, shape[1:])
            padded = batch + batch[-1:] * (shape[0] - len(batch))
            a, b = (np.stack(images) for images in zip(*padded, strict=True))
            yield np.asarray(self._distance(self._params, a, b))[: len(batch)]

    def _check(self, image: Pixels, expected: tuple[int, ...]) -> None:
        """Raises UserError for an image whose distance is not defined."""
        height, width = image.shape[:2]
        if image.shape != expected:
            other = f"{expected[1]}x{expected[0]}"
            raise UserError(
                f"LPIPS needs images of one size, not {other} and {width}x{height} px: crop them"
            )
        self.require_size(height, width)

    def require_size(self, height: int, width: int) -> None:
        """Raises UserError for images whose distance is not defined."""
        least = MIN_PX[self.trunk]
        if min(height, width) < least:
            raise UserError(
                f"LPIPS with {self.trunk} needs images of at least {least} px a side, not "
                f"{width}x{height}"
            )


def load_lpips(trunk: Trunk, weights: str | Path, batch_size: int = PAIRS) -> PerceptualDistance:
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
    captions: Iterable[Sequence[Pixels]] | UInt8[np.ndarray, "n seeds h w 3"],
    distance: PerceptualDistance,
) -> Estimate:
    """The mean distance between a caption's images of different seeds.

    Args:
        captions: the images of each caption; those of a single image are left out.
        distance: of pairs.

    Returns:
        The mean over captions of the mean over pairs of seeds.

    Raises:
        UserError: no caption has two images, or the distance is not defined for them.
    """
    owners: list[int] = []

    def pairs() -> Iterator[tuple[Pixels, Pixels]]:
        for caption, images in enumerate(captions):
            for pair in combinations(images, 2):
                owners.append(caption)
                yield pair

    distances = list(distance.stream(pairs()))
    if not distances:
        raise UserError("LPIPS diversity needs several images of a caption: sample more of each")
    sums = np.bincount(owners, np.concatenate(distances))
    counts = np.bincount(owners)
    return mean_estimate(sums[counts > 0] / counts[counts > 0])
