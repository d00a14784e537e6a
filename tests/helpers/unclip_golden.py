"""Golden files of unCLIP, recorded from Karlo's PyTorch code and OpenAI's CLIP.

`w/NAME` are weights under the released names, and `meta` has the sizes. Numbers that float16 holds
exactly are stored in it. The weights are random, 4 million of them: PyTorch's generator with a
seed, scaled. A file may have `random` in their place, from which they follow:

    {"seed": 2205, "tensors": [[NAME, shape, scale, offset], ...]}

in the order of drawing, rounded to float16; [null, N] passes over N of the generator's numbers,
from which PyTorch made a tensor of fewer than 16, stored as `w/NAME`. A few weights, at `random_at`
of all in a row, round to the neighbor, as NumPy's logarithms differ in the last digit:
`random_value` has them.
"""

import json
import math
from functools import cache
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent.parent / "golden" / "unclip"
CHUNK = 16
"""PyTorch draws normal numbers in chunks of this size, from 8 pairs of uniform ones."""


@cache
def unclip_golden(name: str) -> tuple[dict, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Metadata of a golden file, weights under the original's names, and other arrays.

    Floats are float32, float64 in tables. The dicts are shared: copy them to change them.
    """
    return read_unclip_golden(GOLDEN / f"{name}.npz")


def read_unclip_golden(path: Path) -> tuple[dict, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """`unclip_golden` of a file anywhere."""
    with np.load(path) as file:
        arrays = {name: _single(file[name]) for name in file.files}
    weights = {}
    if "random" in arrays:
        recipe = json.loads(str(arrays.pop("random")))
        weights = _random_weights(recipe, arrays.pop("random_at"), arrays.pop("random_value"))
    names = [name for name in arrays if name.startswith("w/")]
    weights |= {name.removeprefix("w/"): arrays.pop(name) for name in names}
    return json.loads(str(arrays.pop("meta"))), weights, arrays


def overridden(weights: dict[str, np.ndarray], arrays: dict[str, np.ndarray]):
    """The weights with the tensors `override/NAME` of a file of trajectories in their place."""
    overrides = {
        name.removeprefix("override/"): value
        for name, value in arrays.items()
        if name.startswith("override/")
    }
    assert overrides.keys() <= weights.keys()
    return weights | overrides


def torch_normal(draw, count: int) -> np.ndarray:
    """`torch.randn` of at least 16 numbers on a CPU, in float64.

    Args:
        draw: the next `count` 32-bit numbers of a Mersenne Twister.
        count: how many.
    """

    def box_muller(count: int) -> np.ndarray:
        uniform = (draw(count) & 0xFFFFFF) / 2**24
        first, second = np.moveaxis(uniform.reshape(-1, 2, CHUNK // 2), 1, 0)
        radius, angle = np.sqrt(-2 * np.log1p(-first)), 2 * np.pi * second
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()

    rest = count % CHUNK
    if not rest:
        return box_muller(count)
    # The last chunk is drawn again, over the end of the one before.
    uniform_tail = count - rest
    values = np.empty(count)
    values[:uniform_tail] = box_muller(uniform_tail)
    draw(rest)
    values[-CHUNK:] = box_muller(CHUNK)
    return values


def _random_weights(recipe: dict, at: np.ndarray, value: np.ndarray) -> dict[str, np.ndarray]:
    generator = np.random.MT19937()
    generator._legacy_seeding(recipe["seed"])
    parts, shapes = [], {}
    for name, shape, *affine in recipe["tensors"]:
        if name is None:
            generator.random_raw(shape)
            continue
        scale, offset = affine
        numbers = torch_normal(generator.random_raw, math.prod(shape))
        parts.append((numbers * scale + offset).astype(np.float16))
        shapes[name] = shape
    flat = np.concatenate(parts)
    flat[at] = value
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    pieces = np.split(flat.astype(np.float32), ends[:-1])
    return {
        name: piece.reshape(shape)
        for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
    }


def _single(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float16 else array
