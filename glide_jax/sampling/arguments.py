"""Checks of arguments of the Python API. Each error names the argument."""

import numbers
import operator
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from glide_jax.config.bounds import Between
from glide_jax.errors import UserError, shown

Seed = int | np.integer | Sequence[int] | None

SEEDS = 2**32
"""Seeds are below this."""
MAX_IMAGES = 2**20
"""Images per call: more do not fit into memory."""
MAX_BATCH_SIZE = 2**16
"""Images per batch, at most."""


def require_whole(name: str, value: Any, low: int, high: int) -> int:
    """A whole number in [low, high].

    Raises:
        UserError: another type or out of range.
    """
    try:
        whole = _index(value)
    except TypeError:
        raise UserError(f"{name} must be a whole number, not {shown(value)}") from None
    if refusal := Between(low, high).refusal(whole):
        raise UserError(f"{name} {refusal}, not {shown(whole)}")
    return whole


def require_fraction(name: str, value: Any) -> None:
    """Raises UserError unless this is a number above 0 and at most 1."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (is_number and 0 < value <= 1):  # NaN is refused too
        raise UserError(f"{name} {shown(value)} must be above 0 and at most 1")


def require_numbers(name: str, value: Any, ndim: int) -> Float[np.ndarray, "..."]:
    """An array of finite numbers with this many dimensions.

    Raises:
        UserError: another type, shape or value.
    """
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise UserError(f"{name} must be numbers, not {shown(value)}") from None
    if array.ndim != ndim or not array.size:
        raise UserError(f"{name} must have {ndim} dimensions, but has shape {array.shape}")
    if not np.isfinite(array).all():
        raise UserError(f"{name} has numbers that are not finite")
    return array


def require_text(name: str, value: Any) -> str:
    """A string. Raises UserError if it is none."""
    if not isinstance(value, str):
        raise UserError(f"{name} must be a string, not {shown(value)}")
    return str(value)


def prompt_list(prompts: Any) -> list[str]:
    """One or several prompts, as a list of at least one.

    Raises:
        UserError: there are none, or they are no strings.
    """
    if isinstance(prompts, str):
        return [prompts]
    try:
        listed = list(prompts)
    except TypeError:
        raise UserError(f"prompts must be strings, not {shown(prompts)}") from None
    if not listed:
        raise UserError("no prompts: give at least one")
    return [require_text("every prompt", prompt) for prompt in listed]


def broadcast_prompts(prompts: Any, count: int) -> list[str]:
    """A prompt for each image, from one for all or one each. Raises UserError."""
    listed = prompt_list(prompts)
    if len(listed) == 1:
        return listed * count
    if len(listed) != count:
        raise UserError(f"{len(listed)} prompts for {count} images: give one, or one each")
    return listed


def image_seeds(seed: Any, prompts: int, n: int) -> list[int]:
    """The seeds of n images of each prompt: its first seed, and the numbers after it.

    Args:
        seed: the first seed of all prompts, or one for each; None for a random one.
        prompts: number of prompts.
        n: images per prompt.

    Raises:
        UserError: another number of seeds than prompts, not whole numbers, or out of range.
    """
    if seed is None:
        seed = secrets.randbelow(SEEDS - n)
    try:
        first = list(seed)
    except TypeError:
        first = [seed] * prompts
    if len(first) != prompts:
        raise UserError(
            f"{len(first)} seeds for {prompts} prompts: give one seed, or one per prompt"
        )
    seeds = [start + i for start in map(_seed, first) for i in range(n)]
    require_seeds(seeds)
    return seeds


def require_seeds(seeds: Sequence[int]) -> None:
    """Raises UserError if a seed is out of range."""
    if not all(0 <= seed < SEEDS for seed in seeds):
        least, most = shown(min(seeds)), shown(max(seeds))
        raise UserError(f"seeds must be in [0, 2**32), not {least} to {most}")


def _seed(value: Any) -> int:
    try:
        return _index(value)
    except TypeError:
        raise UserError(f"seed must be a whole number, not {shown(value)}") from None


def _index(value: Any) -> int:
    """A whole number of any type as int; True and False are none. Raises TypeError."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError
    return operator.index(value)
