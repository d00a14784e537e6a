"""Features of images by published networks, for metrics on features.

    extractor = load_extractor()  # EfficientNet-Lite0, from the extra `metrics`
    for features in extractor.stream(batches):
        statistics.add(features["pool"])

`NETWORKS` lists the networks. Numbers compare only if the network, its weights and the resizing
are the same: `FeatureExtractor.settings`.
"""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from glide_jax.errors import UserError
from glide_jax.evaluation.feature_networks import (
    NETWORKS,
    chosen_resizing,
    packaged_weights,
    read_params,
)
from glide_jax.evaluation.resizing import axis_weights, network_input
from glide_jax.hub import local_file
from glide_jax.models.network import Network
from glide_jax.models.platform import Platform
from glide_jax.parallel.sharding import batch_sharding, local_mesh, replicated
from glide_jax.sampling.user_images import as_image
from glide_jax.shapes import Params

Features = dict[str, Float[np.ndarray, "n d"]]
"""Features of images by output of the network."""
Images = UInt8[np.ndarray, "n h w 3"]

BATCH_SIZE = 32
"""Images per call of a network by default."""
MAX_CANVAS_PX = 2**25
"""Pixels that are resized at once: float32 levels of 400 MB."""
MAX_PER_CPU = 4
"""Images per call of a CPU device: the activations of more leave its caches."""
CANVAS_STEP_PX = 128
"""Images of different sizes are padded to multiples of this, for few compiled programs."""


class FeatureExtractor:
    """A network with its weights on all devices, and its preprocessing.

    Args:
        network: a key of NETWORKS.
        params: by our names.
        weights: sha256 of their file.
        resize: a key of the network's `resizing`; "" is its default.
        batch_size: most images per call, rounded up to a multiple of the number of devices. CPUs
            take fewer, MAX_PER_CPU for each device.
        devices: all local ones unless given.

    Raises:
        UserError: the network or the resizing is unknown.
    """

    def __init__(
        self,
        network: str,
        params: Mapping[str, np.ndarray | jax.Array],
        weights: str,
        resize: str = "",
        batch_size: int = BATCH_SIZE,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        self.network, self.weights, self.resize = network, weights, chosen_resizing(network, resize)
        spec = NETWORKS[network]
        self.outputs, self.title = spec.outputs, spec.title
        self._side = spec.input_px
        self._preprocessing = spec.resizing[self.resize]
        mesh = local_mesh(given=devices)
        self._batch, self._everywhere = batch_sharding(mesh), replicated(mesh)
        self._devices = mesh.size
        per_device = max(-(-batch_size // mesh.size), 1)
        if mesh.devices.flat[0].platform == "cpu":
            per_device = min(per_device, MAX_PER_CPU)
        self.batch_size = per_device * mesh.size
        self.params = jax.device_put(dict(params), self._everywhere)
        platform = Platform.of(mesh, self._batch, training=False)
        self._features = _program(spec.network(), platform, self.outputs)

    @property
    def settings(self) -> dict[str, str]:
        """What must be the same for numbers to compare."""
        return {"network": self.network, "weights": self.weights, "resize": self.resize}

    def __call__(self, images: Any) -> Features:
        """Features of images of one size.

        Args:
            images: (n, h, w, 3), 8-bit levels, or floats in [0, 1], which are rounded as they
                would be saved. Gray ones (n, h, w, 1) become RGB; transparency (n, h, w, 4) white.

        Raises:
            UserError: the images are none or of another kind, or a feature is not finite.
        """
        parts = list(self.stream([images]))
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    def stream(self, batches: Iterable[Any]) -> Iterator[Features]:
        """Features of any number of images, in order, in constant memory.

        Args:
            batches: images as for a call, each of any number and size.

        Yields:
            Features of at most `batch_size` images.

        Raises:
            UserError: as a call; it names the image by its place among all.
        """
        running: deque[tuple[dict[str, jax.Array], int, int]] = deque()
        first = 0
        for images in self._regrouped(batches):
            running.append((self._start(images), first, len(images)))
            first += len(images)
            if len(running) > 1:  # the device computes one batch while the host reads another
                yield self._finish(*running.popleft())
        while running:
            yield self._finish(*running.popleft())
        if not first:
            raise UserError("no images: there is nothing to compute features of")

    def _regrouped(self, batches: Iterable[Any]) -> Iterator[list[np.ndarray]]:
        """`batch_size` images at a time; fewer at the end."""
        group: list[np.ndarray] = []
        count = 0
        for images in batches:
            for image in _levels(images, count):
                group.append(image)
                if len(group) == self.batch_size:
                    yield group
                    group = []
            count += len(images)
        if group:
            yield group

    def _start(self, images: list[np.ndarray]) -> dict[str, jax.Array]:
        """Starts to compute the features of at most `batch_size` images."""
        if on_host := self._preprocessing.resize.on_host:
            images = [on_host(image, self._side) for image in images]
        images = images + images[-1:] * (self.batch_size - len(images))
        largest = math.prod(np.max([image.shape[:2] for image in images], 0).tolist())
        size = max(MAX_CANVAS_PX // largest // self._devices, 1) * self._devices
        parts = [self._resized(images[i : i + size]) for i in range(0, len(images), size)]
        x = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
        return self._features(self.params, jax.device_put(x, self._batch))

    def _resized(self, images: list[np.ndarray]) -> jax.Array:
        """The network's input (b, side, side, 3), on the devices."""
        weights = self._preprocessing.resize.weights
        sizes = [image.shape[:2] for image in images]
        if len(set(sizes)) == 1:
            canvas, distinct = np.stack(images), sizes[:1]
        else:
            h, w = (-(-side // CANVAS_STEP_PX) * CANVAS_STEP_PX for side in np.max(sizes, 0))
            canvas, distinct = np.zeros((len(images), h, w, 3), np.uint8), sizes
            for place, image in zip(canvas, images, strict=True):
                place[: image.shape[0], : image.shape[1]] = image
        x = jax.device_put(canvas, self._batch)
        if weights is None:
            return network_input(x, None, None, self._preprocessing)
        placed = self._everywhere if len(distinct) == 1 else self._batch
        side, (_, h, w, _) = self._side, canvas.shape
        rows = np.stack([axis_weights(weights, y, side, h) for y, _ in distinct])
        columns = np.stack([axis_weights(weights, x, side, w) for _, x in distinct])
        axes = jax.device_put((rows, columns), placed)
        return network_input(x, *axes, self._preprocessing)

    def _finish(self, outputs: dict[str, jax.Array], first: int, count: int) -> Features:
        """Features on the host, without the padding of a batch."""
        features = {name: np.asarray(outputs[name])[:count] for name in self.outputs}
        for name, values in features.items():
            finite = np.isfinite(values).all(1)
            if not finite.all():
                raise UserError(
                    f"image {first + int(np.argmin(finite))}: the features {name!r} of "
                    f"{self.network} are not finite: the weights are damaged"
                )
        return features


def load_extractor(
    network: str = "efficientnet-lite0",
    weights: str | Path = "",
    resize: str = "",
    batch_size: int = BATCH_SIZE,
    devices: Sequence[jax.Device] | None = None,
) -> FeatureExtractor:
    """A feature extractor with published weights.

    Args:
        network: a key of NETWORKS.
        weights: their file, as published, local or hf://ORG/REPO/FILE; "" is the network's Python
            package, if it has one.
        resize, batch_size, devices: as for `FeatureExtractor`.

    Raises:
        UserError: the network or the resizing is unknown, the weights are not there, or they are
            those of another network.
    """
    resize = chosen_resizing(network, resize)
    path = local_file(weights) if weights else packaged_weights(network)
    params = read_params(network, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return FeatureExtractor(network, params, digest, resize, batch_size, devices)


def _levels(images: Any, first: int) -> UInt8[np.ndarray, "n h w 3"]:
    """Images as 8-bit levels, as `as_image` makes them.

    Args:
        images: (n, h, w, 3), or what `as_image` takes as (h, w) for each.
        first: place of the first among all, for errors.
    """
    shape = getattr(images, "shape", None)
    if shape is None or len(shape) != 4:
        what = type(images).__name__ if shape is None else f"of shape {tuple(shape)}"
        raise UserError(f"images must be an array (n, h, w, 3), not {what}")
    if (
        isinstance(images, np.ndarray)
        and images.dtype == np.uint8
        and shape[3] == 3
        and images.size
    ):
        return images
    if not shape[0]:
        return np.zeros((0, 1, 1, 3), np.uint8)
    return np.stack([as_image(image, f"image {first + i}") for i, image in enumerate(images)])


@cache
def _program(
    network: Network[Any], platform: Platform, outputs: tuple[str, ...]
) -> Callable[..., dict[str, jax.Array]]:
    """Features of `(params, input)`, compiled once for all resizings."""

    def forward(params: Params, x: jax.Array) -> dict[str, jax.Array]:
        # Accelerators would round the factors of products to fewer bits.
        with jax.default_matmul_precision("highest"):
            found = network.bind(params, platform)(x)
        return {name: found[name] for name in outputs}

    return jax.jit(forward)
