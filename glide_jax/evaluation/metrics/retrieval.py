"""Retrieval between images and captions by their embeddings."""

import numpy as np
from jaxtyping import Bool, Float


def retrieval_hits(
    image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "n d"], among: int
) -> Bool[np.ndarray, "m"]:
    """Whether each image is nearest to its own caption, in groups of `among`.

    Args:
        image, text: unit-length embeddings; row i of both belong together. Rows that do not fill a
            group are left out.
        among: captions per group.
    """
    groups = len(image) // among
    image, text = (x[: groups * among].reshape(groups, among, -1) for x in (image, text))
    nearest = np.einsum("gid,gjd->gij", image, text).argmax(-1)
    return (nearest == np.arange(among)).reshape(-1)


def retrieval_accuracy(
    image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "n d"], among: int
) -> float:
    """Top-1 accuracy of retrieving each image's caption: the mean of `retrieval_hits`."""
    return float(retrieval_hits(image, text, among).mean())
