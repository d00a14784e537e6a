"""Retrieval between images and captions by their embeddings."""

import numpy as np
from jaxtyping import Float


def retrieval_accuracy(
    image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "n d"], among: int
) -> float:
    """Top-1 accuracy of retrieving each image's caption, in groups of `among`.

    Args:
        image, text: unit-length embeddings; row i of both belong together. Rows that do not fill a
            group are left out.
        among: captions per group.
    """
    groups = len(image) // among
    image, text = (x[: groups * among].reshape(groups, among, -1) for x in (image, text))
    nearest = np.einsum("gid,gjd->gij", image, text).argmax(-1)
    return float((nearest == np.arange(among)).mean())
