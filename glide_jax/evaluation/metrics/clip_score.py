"""CLIP score: how well images match their captions, by the cosines of CLIP embeddings.

Scores of different CLIPs do not compare: state the model, such as ViT-B/16.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float

from glide_jax.evaluation.metrics.estimate import Estimate, mean_estimate

Embeddings = Float[np.ndarray, "n d"]
ClipScore = Literal["glide", "torchmetrics", "hessel"]
"""glide: the mean of 100 cos, as in the GLIDE paper's plots. torchmetrics: the same, at least 0.
hessel: the mean of 2.5 max(cos, 0), for captions after PROMPT_PREFIX (arXiv 2104.08718)."""

PROMPT_PREFIX = "A photo depicts "
"""Put before captions by Hessel's CLIPScore."""


def clip_score(image: Embeddings, text: Embeddings, rule: ClipScore = "glide") -> Estimate:
    """The mean score of pairs.

    Args:
        image, text: embeddings, of any length; row i of both belong together.
        rule: see `ClipScore`.
    """
    cosines = paired_cosines(image, text)
    if rule == "hessel":
        return mean_estimate(2.5 * np.maximum(cosines, 0))
    found = mean_estimate(100 * cosines)
    return found._replace(value=max(found.value, 0.0)) if rule == "torchmetrics" else found


def paired_cosines(image: Embeddings, text: Embeddings) -> Float[np.ndarray, "n"]:
    """The cosine of each image with its caption."""
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    return (image * text).sum(1)
