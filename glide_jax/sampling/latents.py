"""Arithmetic of CLIP embeddings and of noise: interpolation, text differences, components."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from glide_jax.errors import UserError

PAPER_COMPONENTS = (20, 30, 40, 80, 120, 160, 200, 320)
"""Numbers of components in Fig. 7 of the paper, of 1,024."""
MAX_COMPONENTS = 2**16
"""Number of components that can be asked for."""
MAX_EMBEDDINGS = 50_000
"""Embeddings of which principal components are computed."""
PARALLEL = 1e-4
"""Angle, in radians, below which spherical interpolation is linear: its formula is 0/0 there."""


def slerp(
    a: Float[np.ndarray, "*x"], b: Float[np.ndarray, "*x"], thetas: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n *x"]:
    """Spherical interpolation of two arrays of any shape, each as one vector.

        slerp(a, b, theta) = (sin((1 - theta) angle) a + sin(theta angle) b) / sin(angle)

    with the angle between a and b (sec. 3.2, arXiv 2204.06125).

    Args:
        a, b: embeddings (d,) or noise (h, w, c).
        thetas: 0 is a, 1 is b.

    Returns:
        An array for each theta.
    """
    theta = np.asarray(thetas, np.float64).reshape(-1, *[1] * a.ndim)
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    cosine = np.sum(x * y) / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-12)
    angle = float(np.arccos(np.clip(cosine, -1, 1)))
    if min(angle, np.pi - angle) < PARALLEL:
        return ((1 - theta) * x + theta * y).astype(np.float32)
    mixed = np.sin((1 - theta) * angle) * x + np.sin(theta * angle) * y
    return (mixed / np.sin(angle)).astype(np.float32)


def text_difference(
    image: Float[np.ndarray, "d"],
    before: Float[np.ndarray, "d"],
    after: Float[np.ndarray, "d"],
    thetas: Float[np.ndarray, "n"],
) -> Float[np.ndarray, "n d"]:
    """An image embedding turned toward the difference of two text embeddings.

    slerp(z_i, z_d, theta) with z_d = norm(z_t - z_t0): sec. 3.3, arXiv 2204.06125. z_d has the
    length of z_i, as embeddings of OpenAI's CLIP are not normalized.

    Args:
        image: z_i.
        before: z_t0, of a caption of the image.
        after: z_t, of the caption to turn it into.
        thetas: fractions of the way, 0.25 to 0.5 in the paper.

    Raises:
        UserError: both captions are the same.
    """
    difference = after - before
    length = float(np.linalg.norm(difference))
    if length == 0:
        raise UserError("the two captions are the same: a text difference needs two")
    return slerp(image, difference * (float(np.linalg.norm(image)) / length), thetas)


class PrincipalComponents(NamedTuple):
    """The directions in which embeddings vary most."""

    mean: Float[np.ndarray, "d"]
    components: Float[np.ndarray, "k d"]
    """Orthonormal rows, the direction of largest variance first."""

    @classmethod
    def of(cls, embeddings: Float[np.ndarray, "n d"]) -> "PrincipalComponents":
        """The components of n embeddings: min(n - 1, d) of them.

        Raises:
            UserError: fewer than two embeddings.
        """
        if embeddings.ndim != 2 or len(embeddings) < 2:
            raise UserError(
                f"principal components need at least 2 embeddings (n, d), not {embeddings.shape}"
            )
        mean = embeddings.mean(0, dtype=np.float64)
        centered = embeddings - mean
        _, _, rows = np.linalg.svd(centered, full_matrices=False)
        count = min(len(embeddings) - 1, embeddings.shape[1])
        return cls(mean.astype(np.float32), rows[:count].astype(np.float32))

    def require(self, counts: Sequence[int]) -> None:
        """Raises UserError for more components than there are."""
        most = len(self.components)
        for count in counts:
            if count > most:
                raise UserError(
                    f"--components {count}: these embeddings have {most} principal components: "
                    f"give at most {most}"
                )

    def rebuilt(
        self, embedding: Float[np.ndarray, "d"], counts: Sequence[int]
    ) -> Float[np.ndarray, "n d"]:
        """An embedding rebuilt from its first components (sec. 4, arXiv 2204.06125).

        Args:
            embedding: of the space of the components.
            counts: numbers of components; 0 gives the mean.
        """
        weights = self.components @ (embedding - self.mean)
        kept = [weights[:count] @ self.components[:count] for count in counts]
        return self.mean + np.stack(kept)
