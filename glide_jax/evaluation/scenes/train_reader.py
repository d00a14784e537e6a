"""Trains the network that reads scenes, on images drawn as it goes.

    python -m glide_jax.evaluation.scenes.train_reader

It must read what models draw, not only what the data set holds: any shape in any color, no object
or three, sizes between the drawn ones, blurred and noisy images. Undecided ones too, mixed of two
drawings that differ in one object: their labels are mixed alike, and so the network's confidence
follows how far an object has become one thing and not another. No image of validation or novel
is among them.
"""

import io
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageFilter

from glide_jax.data.scenes.graph import (
    BACKGROUNDS,
    COLORS,
    GAP,
    MARGIN,
    SHAPES,
    TEXTURES,
    Scene,
    Thing,
    make,
)
from glide_jax.data.scenes.rendering import render
from glide_jax.data.scenes.workers import QUALITY, SIZE_PX
from glide_jax.data.transforms import load_pixels, to_float
from glide_jax.errors import exit_on_user_error
from glide_jax.evaluation.scenes.reader import (
    ATTRIBUTES,
    CELLS,
    NETWORK,
    WEIGHTS,
    at_reading_size,
)
from glide_jax.pretrained.weight_files import write_tensors
from glide_jax.shapes import Params
from glide_jax.storage import require_local

FIRST_INDEX = 1_000_000
"""Of the records whose layouts are borrowed: far beyond those of any training set."""
MAX_OBJECTS = 3
SIZES_PX = (24, 32, 32, 32, 32, 48, 64, 128)
"""Sides that models may have; half of the images are shown at 32 px, the hardest to read."""
NEAR = 0.8
"""Width of a center's neighborhood, in cells: the deviation of a Gaussian."""

Labels = dict[str, Float[np.ndarray, "..."]]
"""As `examples` returns them, or those of one image."""


@dataclass(frozen=True)
class Arguments:
    """Trains the network that reads scenes, and writes its weights."""

    out: Path = WEIGHTS
    """File for the weights."""
    steps: int = 2000
    """2000 take a quarter of an hour on a core of their own."""
    batch_examples: int = 64
    """Images a step."""
    learning_rate: float = 2e-3
    """The highest; it rises over 100 steps and falls to 0 as a cosine."""
    seed: int = 0
    """Of the weights and of the images."""


def main(arguments: Arguments) -> None:
    """The command. Raises UserError."""
    require_local(arguments.out)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, arguments.learning_rate, min(100, arguments.steps // 2), arguments.steps
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99))

    @jax.jit
    def step(
        params: Params, state: optax.OptState, images: Array, labels: dict[str, Array]
    ) -> tuple[Params, optax.OptState, dict[str, Array]]:
        (_, parts), gradients = jax.value_and_grad(loss, has_aux=True)(params, images, labels)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, parts

    params = jax.device_put(NETWORK.init(arguments.seed))
    state = optimizer.init(params)
    rng = random.Random(arguments.seed)
    began_s = time.monotonic()
    for number in range(1, arguments.steps + 1):
        images, labels = examples(rng, arguments.batch_examples)
        params, state, parts = step(params, state, images, labels)
        if number % 100 == 0 or number == arguments.steps:
            said = "  ".join(f"{name} {float(value):.4f}" for name, value in parts.items())
            print(f"{number}  {time.monotonic() - began_s:.0f} s  {said}", flush=True)
    half = {name: np.asarray(value, np.float16) for name, value in params.items()}
    write_tensors(arguments.out, half)
    print(arguments.out)


def loss(
    params: Params, images: Float[Array, "b 32 32 3"], labels: dict[str, Array]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The sum of all parts, each a mean over images or objects, and the parts by name.

    Whether a cell holds a center: quality focal loss, |y - p|^2 times the cross-entropy (Eq. 4,
    arXiv 2006.04388), with cells near a center that is not theirs let off as in Eq. 1 of arXiv
    1904.07850. An object's other properties are asked of the cells near its center.
    """
    cells, background = NETWORK.bind(params)(images)
    middles = jnp.arange(CELLS) + 0.5
    dx = labels["place"][..., 0, None, None] * CELLS - middles  # b n 1 w
    dy = labels["place"][..., 1, None, None] * CELLS - middles[:, None]  # b n h 1
    there = labels["there"][..., None, None]  # b n 1 1
    near = jnp.exp(-(dx**2 + dy**2) / (2 * NEAR**2)) * (there > 0)  # b n h w
    own = (jnp.abs(dx) <= 0.5) & (jnp.abs(dy) <= 0.5)  # b n h w
    truth = jnp.max(own * there, 1)  # b h w
    logits = cells["object"][..., 0]
    focus = jnp.abs(truth - jax.nn.sigmoid(logits)) ** 2
    focus *= jnp.where(truth > 0, 1, (1 - jnp.max(near * there, 1)) ** 4)
    found = focus * optax.sigmoid_binary_cross_entropy(logits, truth)

    weight = jnp.where(near > 0.4, near, 0) * (there > 0.5)
    weight /= jnp.maximum(jnp.sum(weight, (2, 3), keepdims=True), 1e-6)
    objects = jnp.maximum(jnp.sum(there > 0.5), 1)

    diameter = jnp.broadcast_to(labels["place"][..., 2, None, None] * CELLS, near.shape)
    target = jnp.stack([*jnp.broadcast_arrays(dx, dy), diameter], -1)  # b n h w 3
    apart = jnp.sum(jnp.abs(cells["place"][:, None] - target), -1)
    parts = {"object": jnp.mean(jnp.sum(found, (1, 2))), "place": jnp.sum(weight * apart) / objects}
    for name in ATTRIBUTES:
        logs = jax.nn.log_softmax(cells[name])
        wrong = -jnp.einsum("bhwk,bnk->bnhw", logs, labels[name])
        parts[name] = jnp.sum(weight * wrong) / objects
    logs = jax.nn.log_softmax(background)
    parts["background"] = -jnp.mean(jnp.sum(logs * labels["background"], -1))
    return sum(parts.values(), jnp.zeros(())), parts


def examples(rng: random.Random, n: int) -> tuple[Float[np.ndarray, "n 32 32 3"], Labels]:
    """Images in [-1, 1] and their labels.

    Returns:
        The images; of each of MAX_OBJECTS objects `there` (how far it is, 0..1), `place` (x, y,
        diameter) and the share of each word of ATTRIBUTES; the share of each `background`.
    """
    labels = {
        "there": np.zeros((n, MAX_OBJECTS), np.float32),
        "place": np.zeros((n, MAX_OBJECTS, 3), np.float32),
        "background": np.zeros((n, len(BACKGROUNDS)), np.float32),
    }
    for name, words in ATTRIBUTES.items():
        labels[name] = np.zeros((n, MAX_OBJECTS, len(words)), np.float32)
    images = []
    for i in range(n):
        one = {name: values[i] for name, values in labels.items()}
        images.append(_scribble(rng, one) if rng.random() < 0.03 else _drawing(rng, one))
    return to_float(np.stack(images)), labels


def _scribble(rng: random.Random, labels: Labels) -> UInt8[np.ndarray, "32 32 3"]:
    """What a model might draw that has learned nothing: no scene, no object, no ground."""
    labels["background"][:] = 1 / len(BACKGROUNDS)
    level = np.array([rng.randrange(256) for _ in range(3)])
    numpy_rng = np.random.default_rng(rng.getrandbits(64))
    grains = rng.choice((2, 4, 8, 16, 32))
    noisy = level + numpy_rng.normal(0, rng.choice((0, 30, 100)), (grains, grains, 3))
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    return np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))


def _drawing(rng: random.Random, labels: Labels) -> UInt8[np.ndarray, "32 32 3"]:
    """A scene, seen at the size of some model; fills its labels in."""
    scene = _any_scene(rng)
    share, other = 1.0, scene
    if scene.things and rng.random() < 0.25:
        share, other = rng.random(), _with_another(rng, scene)
    for weight, version in ((share, scene), (1 - share, other)):
        labels["background"][list(BACKGROUNDS).index(version.background)] += weight
        for place, thing in enumerate(version.things):
            labels["there"][place] += weight
            labels["place"][place] = thing.x, thing.y, thing.diameter
            for name, words in ATTRIBUTES.items():
                labels[name][place][words.index(getattr(thing, name))] += weight
    for name in ATTRIBUTES:  # of an object that is half there, still the whole
        labels[name] /= np.maximum(labels["there"], 1e-6)[:, None]
    image = render(scene, SIZE_PX)
    if share < 1:
        mixed = share * image + (1 - share) * render(other, SIZE_PX)
        image = mixed.round().astype(np.uint8)
    file = io.BytesIO()
    quality = rng.choice((QUALITY, 70))
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=0)
    return _worn(rng, load_pixels(file.getvalue(), rng.choice(SIZES_PX)))


def _worn(rng: random.Random, pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "32 32 3"]:
    """Half of the time blurred, noisy, or lighter or darker, as a model's images are."""
    image = at_reading_size(pixels[None])[0]
    if rng.random() < 0.25:
        blur = ImageFilter.GaussianBlur(rng.uniform(0, 0.7))
        image = np.asarray(Image.fromarray(image).filter(blur))
    if rng.random() < 0.25:
        numpy_rng = np.random.default_rng(rng.getrandbits(64))
        noise = numpy_rng.normal(0, rng.uniform(0, 12), image.shape)
        light = np.array([rng.uniform(0.93, 1.07) for _ in range(3)]) * rng.uniform(0.9, 1.1)
        image = (image * light + noise).round().clip(0, 255).astype(np.uint8)
    return image


def _any_scene(rng: random.Random) -> Scene:
    """As the data set's, in any pair of shape and color; or with objects anyhow many and large."""
    closeup = rng.random() < 0.2
    scene, _ = make("train", FIRST_INDEX + rng.getrandbits(40), closeup=closeup)
    things = scene.things
    if rng.random() < 0.25:
        things = _scattered(rng)
    recast = (
        replace(thing, shape=rng.choice(SHAPES), color=rng.choice(tuple(COLORS)))
        for thing in things
    )
    return replace(scene, things=tuple(recast))


def _scattered(rng: random.Random) -> tuple[Thing, ...]:
    """None to three objects of any size, wherever there is room."""
    things: list[Thing] = []
    for _ in range(rng.randrange(MAX_OBJECTS + 1)):
        diameter = rng.uniform(0.2, 0.6)
        low = MARGIN + diameter / 2
        x, y = rng.uniform(low, 1 - low), rng.uniform(low, 1 - low)
        clear = (
            math.hypot(x - t.x, y - t.y) > (diameter + t.diameter) / 2 + GAP / 2 for t in things
        )
        if all(clear):
            texture, angle = rng.choice(TEXTURES), rng.uniform(-0.3, 0.3)
            things.append(Thing("", "", "", texture, x, y, diameter, angle))
    return tuple(things)


def _with_another(rng: random.Random, scene: Scene) -> Scene:
    """The scene, its last object gone, or of another shape or texture."""
    *others, last = scene.things
    change: Callable[[], tuple[Thing, ...]] = rng.choice(
        (
            lambda: (),
            lambda: (replace(last, shape=rng.choice(SHAPES)),),
            lambda: (replace(last, texture=rng.choice(TEXTURES)),),
        )
    )
    return replace(scene, things=(*others, *change()))


if __name__ == "__main__":
    with exit_on_user_error():
        main(tyro.cli(Arguments, prog="python -m glide_jax.evaluation.scenes.train_reader"))
