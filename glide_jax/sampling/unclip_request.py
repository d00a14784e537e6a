"""Arguments of `UnCLIP`'s methods, checked."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from glide_jax.errors import UserError, shown
from glide_jax.sampling.request import Request

PriorChoice = Literal["model", "text", "none"]
"""Where a caption's image embedding comes from: the prior; the caption's text embedding in its
place; or none, the decoder has the caption alone (sec. 5.1, arXiv 2204.06125)."""
Noise = Literal["shared", "slerp"]
"""x_T of an interpolation's images: one for all, or from that of a to that of b."""
Start = Literal["inverted", "random"]
"""x_T of an image's edits: its own, by DDIM inversion, or random noise."""
RECONSTRUCTING = {"sampler": "ddim", "guidance_scale": 1.0}
"""Settings of the decoder with which DDIM returns to an inverted image, unless others are given."""
OPTIONS = ("negative_prompt", "upsample", "batch_size", "progress")


def unclip_request(
    prompts: Any,
    seed: Any,
    options: Mapping[str, Any],
    n: Any = 1,
    defaults: Mapping[str, Any] | None = None,
) -> Request:
    """A request for n images of each prompt.

    Args:
        prompts, seed, n: as for `Request.of`.
        options: those of OPTIONS; all others are settings of the decoder, None where unset.
        defaults: settings that differ from the run's unless given.

    Raises:
        UserError: as `Request.of`.
    """
    given = {name: value for name, value in options.items() if name in OPTIONS}
    settings = {name: value for name, value in options.items() if name not in OPTIONS}
    kept = {name: value for name, value in settings.items() if value is not None}
    return Request.of(prompts, seed, n=n, settings={**(defaults or {}), **kept}, **given)


def edit_request(
    prompt: str, seed: int, options: Mapping[str, Any], count: int, inverts: bool
) -> Request:
    """A request for images of one caption and one seed.

    Args:
        prompt, seed, options: as for `unclip_request`.
        count: number of images.
        inverts: whether they start from an inverted image.

    Raises:
        UserError: as `Request.of`.
    """
    request = unclip_request(prompt, seed, options, count, RECONSTRUCTING if inverts else {})
    return replace(request, seeds=[request.seeds[0]] * count)


def require_no_file(text: Any) -> None:
    """Raises UserError for a prompt that is the name of a file."""
    if isinstance(text, str) and len(text) < 255 and "\0" not in text and Path(text).is_file():
        raise UserError(
            f"'{text}' is a file, but a string is a prompt here: give pathlib.Path('{text}')"
        )


def require_choice(name: str, value: Any, choices: Any) -> None:
    """Raises UserError for a value that is none of a Literal's."""
    if value not in get_args(choices):
        raise UserError(f"{name} must be {' or '.join(get_args(choices))}, not {shown(value)}")
