"""Rough sizes of networks from their settings, to refuse what no machine could hold.

Exact counts are those of `Network.parameter_count`, and of `glide_jax.plan` for memory.
"""

from collections.abc import Iterable
from dataclasses import dataclass

MAX_PARAMETERS = 10**11
MAX_TENSOR = 2**33
"""Elements of one activation of one image: 34 GB in float32."""


@dataclass(frozen=True)
class Size:
    """Size of a network, within a factor of two."""

    parameters: int
    largest_tensor: int
    """Elements of its largest activation, for one image or caption."""

    def __add__(self, other: "Size") -> "Size":
        largest_tensor = max(self.largest_tensor, other.largest_tensor)
        return Size(self.parameters + other.parameters, largest_tensor)

    @property
    def refusal(self) -> str:
        """Why the network is refused, as the end of a sentence; empty if it is not."""
        if self.parameters > MAX_PARAMETERS:
            return f"has about {self.parameters:.0e} parameters, more than {MAX_PARAMETERS:.0e}"
        if self.largest_tensor > MAX_TENSOR:
            return (
                f"has activations of about {self.largest_tensor:.0e} elements for one image, more "
                f"than {MAX_TENSOR:.0e}"
            )
        return ""


def transformer_size(width: int, layers: int, heads: int, tokens: int, inputs: int) -> Size:
    """Size of a transformer.

    Args:
        width: channels of the residual stream.
        layers: blocks.
        heads: attention heads per block.
        tokens: context length.
        inputs: rows of its embeddings besides those of positions.
    """
    parameters = width * (inputs + tokens) + layers * 12 * width**2
    return Size(parameters, max(tokens * 4 * width, heads * tokens**2))


def unet_size(
    levels: Iterable[tuple[int, int, bool]],
    res_blocks: int,
    head_width: int,
    text_width: int,
    text_tokens: int,
) -> Size:
    """Size of a U-Net.

    Args:
        levels: resolution in pixels, width, and whether there is attention, for each level.
        res_blocks: residual blocks per level on the way down.
        head_width: channels per attention head.
        text_width: width of the text transformer.
        text_tokens: context length.
    """
    parameters = largest_tensor = 0
    for px, width, attends in levels:
        # Two 3 x 3 convolutions a block; on the way up, inputs are concatenated with skips.
        parameters += (18 * res_blocks + 29 * (res_blocks + 1)) * width**2
        largest_tensor = max(largest_tensor, px**2 * 2 * width)
        if attends:
            parameters += (2 * res_blocks + 1) * (4 * width + 2 * text_width) * width
            weights = width // head_width * px**2 * (px**2 + text_tokens)
            largest_tensor = max(largest_tensor, weights)
    return Size(parameters, largest_tensor)
