"""Elo scores and win rates from votes on pairs of images (App. A.2, arXiv 2112.10741)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse.csgraph
import scipy.special
import scipy.stats
from jaxtyping import Float

from glide_jax.errors import UserError

SCALE = 400 / np.log(10)
"""Elo points per unit of log odds: 400 points are odds of 10 to 1."""
MAX_STEPS, TOLERANCE = 200, 1e-9
"""Of Newton's method; the tolerance is in log odds."""


class Vote(NamedTuple):
    """One comparison of two models."""

    a: str
    b: str
    a_wins: float
    """1 if a is better, 0 if b is, 0.5 for a tie."""


class Ranking(NamedTuple):
    """Scores of models, best first."""

    models: list[str]
    elo: Float[np.ndarray, "n"]
    """Mean zero."""
    low: Float[np.ndarray, "n"]
    """Lower bounds of the scores' confidence intervals."""
    high: Float[np.ndarray, "n"]
    wins: Float[np.ndarray, "n n"]
    """Comparisons in which the model of the row beat that of the column; ties count half."""


def rank(
    votes: Sequence[Vote], confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Ranking:
    """Elo scores by maximum likelihood, with bootstrap intervals over votes.

    P(i beats j) = 1 / (1 + 10^((s_j - s_i) / 400)), the Bradley-Terry model.

    Args:
        votes: of any number of models.
        confidence: of the intervals.
        resamples: of the votes.
        seed: of the resamples.

    Raises:
        UserError: there are no votes, or scores are not determined: a group of models was never
            compared with the others, or won or lost all comparisons with them.
    """
    if not votes:
        raise UserError("no votes")
    models = sorted({name for vote in votes for name in (vote.a, vote.b)})
    place = {name: i for i, name in enumerate(models)}
    first = np.array([place[vote.a] for vote in votes])
    second = np.array([place[vote.b] for vote in votes])
    won = np.array([vote.a_wins for vote in votes], np.float64)
    wins = _wins(first, second, won, len(models))
    _require_determined(wins, models)
    elo = _scores(wins)
    random = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        some = random.integers(0, len(votes), len(votes))
        # Half a win for either side of each compared pair keeps every resample determined.
        resampled = _wins(first[some], second[some], won[some], len(models))
        found.append(_scores(resampled + 0.5 * _compared(wins)))
    tail = 50 * (1 - confidence)
    low, high = np.percentile(found, [tail, 100 - tail], axis=0)
    order = np.argsort(-elo)
    return Ranking(
        [models[i] for i in order], elo[order], low[order], high[order], wins[np.ix_(order, order)]
    )


def win_rate(wins: float, losses: float, confidence: float = 0.95) -> tuple[float, float, float]:
    """The fraction of comparisons won, and Wilson's interval (1927).

    Args:
        wins, losses: numbers of comparisons; ties count half on both sides.
        confidence: of the interval.
    """
    n = wins + losses
    z = float(scipy.stats.norm.ppf(0.5 + confidence / 2))
    rate = wins / n
    center = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return rate, float(center - half), float(center + half)


def _wins(
    first: np.ndarray, second: np.ndarray, won: np.ndarray, models: int
) -> Float[np.ndarray, "n n"]:
    wins = np.zeros((models, models))
    np.add.at(wins, (first, second), won)
    np.add.at(wins, (second, first), 1 - won)
    return wins


def _compared(wins: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """1 for pairs that were compared."""
    return ((wins + wins.T) > 0).astype(np.float64)


def _scores(wins: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n"]:
    """Maximum-likelihood scores, mean zero, by Newton's method on the convex problem."""
    counts = wins + wins.T
    s = np.zeros(len(wins))
    for _ in range(MAX_STEPS):
        p = scipy.special.expit(s[:, None] - s)
        gradient = (wins - counts * p).sum(1)
        weights = counts * p * (1 - p)
        hessian = np.diag(weights.sum(1)) - weights
        # Any constant may be added to the scores: the ones matrix fixes their mean.
        step = np.linalg.solve(hessian + 1 / len(wins), gradient)
        s += np.clip(step, -1, 1)
        if np.abs(step).max() < TOLERANCE:
            break
    return SCALE * (s - s.mean())


def _require_determined(wins: Float[np.ndarray, "n n"], models: Sequence[str]) -> None:
    """Checks that every model reaches every other along wins (Ford, 1957)."""
    count, group = scipy.sparse.csgraph.connected_components(wins > 0, connection="strong")
    if count == 1:
        return
    for i in range(count):
        inside = group == i
        names = ", ".join(name for name, its in zip(models, inside, strict=True) if its)
        won, lost = wins[inside][:, ~inside].sum(), wins[~inside][:, inside].sum()
        if not won and not lost:
            raise UserError(f"{names}: never compared with the other models: collect such votes")
        if not lost or not won:
            what = "won" if won else "lost"
            raise UserError(
                f"{names}: {what} every comparison with the other models, so the score is "
                "infinite: collect more votes, or leave it out"
            )
