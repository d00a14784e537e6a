"""The Inception Score (arXiv 1606.03498): exp of the mean KL divergence of p(y|x) from p(y)."""

import numpy as np
import scipy.special
from jaxtyping import Float

from glide_jax.errors import UserError
from glide_jax.evaluation.metrics.estimate import (
    Estimate,
    groups_of,
    jackknife_error,
    require_features,
)

Logits = Float[np.ndarray, "n classes"]

SPLIT = 5000
"""Images per split of guided-diffusion's evaluator."""


def inception_score(logits: Logits, split_size: int = SPLIT) -> Estimate:
    """The mean score of consecutive splits, as guided-diffusion's evaluator computes it.

    Args:
        logits: of the FID Inception, without bias, all 1008 classes.
        split_size: images per split; the last may have fewer. The score of a split grows with its
            size, so only scores of equal splits compare.

    Raises:
        UserError: a logit is not finite.
    """
    require_features(logits)
    log_p = scipy.special.log_softmax(logits.astype(np.float64), axis=1)
    splits = [log_p[i : i + split_size] for i in range(0, len(log_p), split_size)]
    groups = len(groups_of(min(map(len, splits))))

    def without(group: int) -> float:
        """The score without one of the groups of each split."""
        kept = [part[np.arange(len(part)) % groups != group] for part in splits]
        return float(np.mean([_score(part) for part in kept]))

    error = jackknife_error([without(g) for g in range(groups)]) if groups > 1 else None
    return Estimate(float(np.mean([_score(part) for part in splits])), error)


def inception_score_torch_fidelity(
    logits: Logits, splits: int = 10, shuffle: bool = True, seed: int = 2020
) -> tuple[float, float]:
    """The score as torch-fidelity computes it, over equal splits of the shuffled images.

    Returns:
        Mean and standard deviation over the splits.

    Raises:
        UserError: there are fewer images than splits.
    """
    if len(logits) < splits:
        raise UserError(
            f"the Inception Score of {splits} splits needs {splits} images, not {len(logits)}"
        )
    if shuffle:
        logits = logits[np.random.RandomState(seed).permutation(len(logits))]
    log_p = scipy.special.log_softmax(logits.astype(np.float64), axis=1)
    n = len(logits)
    scores = [_score(log_p[i * n // splits : (i + 1) * n // splits]) for i in range(splits)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(log_p: Logits) -> float:
    p = np.exp(log_p)
    # rel_entr is 0 for a class whose probability rounds to 0 in all images.
    return float(np.exp(scipy.special.rel_entr(p, p.mean(0)).sum(1).mean()))
