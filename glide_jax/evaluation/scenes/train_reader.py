"""Training of the reader's network, on images rendered during training.

    python -m glide_jax.evaluation.scenes.train_reader

The reader must read generated images, which vary more than the data set's: any shape in any color,
no object or three, intermediate sizes, blur and noise. Some training images are mixtures of two
renderings that differ in one object, with their labels mixed in the same proportion, so that the
network's confidence follows how far an object has turned into another. No image of validation or
novel is used.
"""

import io
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageFilter

from glide_jax.cli import parse_flags
from glide_jax.config.bounds import SEED, Between
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
from glide_jax.storage import require_file

FIRST_INDEX = 1_000_000
"""First scene whose layout is used: far beyond any training set's."""
MAX_OBJECTS = 3
SIZES_PX = (24, 32, 32, 32, 32, 48, 64, 128)
"""Resolutions of models; half of the images have 32 px, the hardest to read."""
NEAR = 0.8
"""Standard deviation of a center's Gaussian neighborhood, in cells."""

Labels = dict[str, Float[np.ndarray, "..."]]
"""Labels of images as `examples` returns them, or of one image."""


@dataclass(frozen=True)
class Arguments:
    """Trains the reader's network and writes its weights."""

    out: Path = WEIGHTS
    """File of the weights."""
    steps: Annotated[int, Between(1, 10**9)] = 2000
    """2,000 steps take 15 minutes on one core."""
    batch_examples: Annotated[int, Between(1, 2**16)] = 64
    """Images per step."""
    learning_rate: Annotated[float, Between(0, 1000)] = 2e-3
    """Peak learning rate, after 100 warm-up steps; it decays to 0 as a cosine."""
    seed: Annotated[int, SEED] = 0
    """Seed of the weights and of the images."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises UserError."""
    arguments: Arguments = parse_flags(
        Arguments, "python -m glide_jax.evaluation.scenes.train_reader", argv
    )
    require_file("--out", arguments.out, (".safetensors",))
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
    start_s = time.monotonic()
    for number in range(1, arguments.steps + 1):
        images, labels = examples(rng, arguments.batch_examples)
        params, state, parts = step(params, state, images, labels)
        if number % 100 == 0 or number == arguments.steps:
            losses = "  ".join(f"{name} {float(value):.4f}" for name, value in parts.items())
            print(f"{number}  {time.monotonic() - start_s:.0f} s  {losses}", flush=True)
    half = {name: np.asarray(value, np.float16) for name, value in params.items()}
    write_tensors(arguments.out, half)
    print(arguments.out)


def loss(
    params: Params, images: Float[Array, "b 32 32 3"], labels: dict[str, Array]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The sum of all losses, each a mean over images or objects, and the losses by name.

    Centers have the quality focal loss, |y - p|^2 times the cross-entropy (Eq. 4, arXiv
    2006.04388), with a lower weight for cells near another cell's center (Eq. 1, arXiv
    1904.07850). An object's place and attributes are predicted by the cells near its center.
    """
    cells, background = NETWORK.bind(params)(images)
    middles = jnp.arange(CELLS) + 0.5
    dx = labels["place"][..., 0, None, None] * CELLS - middles  # b n 1 w
    dy = labels["place"][..., 1, None, None] * CELLS - middles[:, None]  # b n h 1
    present = labels["present"][..., None, None]  # b n 1 1
    near = jnp.exp(-(dx**2 + dy**2) / (2 * NEAR**2)) * (present > 0)  # b n h w
    own = (jnp.abs(dx) <= 0.5) & (jnp.abs(dy) <= 0.5)  # b n h w
    truth = jnp.max(own * present, 1)  # b h w
    logits = cells["object"][..., 0]
    focus = jnp.abs(truth - jax.nn.sigmoid(logits)) ** 2
    focus *= jnp.where(truth > 0, 1, (1 - jnp.max(near * present, 1)) ** 4)
    center_loss = focus * optax.sigmoid_binary_cross_entropy(logits, truth)

    weight = jnp.where(near > 0.4, near, 0) * (present > 0.5)
    weight /= jnp.maximum(jnp.sum(weight, (2, 3), keepdims=True), 1e-6)
    objects = jnp.maximum(jnp.sum(present > 0.5), 1)

    diameter = jnp.broadcast_to(labels["place"][..., 2, None, None] * CELLS, near.shape)
    target = jnp.stack([*jnp.broadcast_arrays(dx, dy), diameter], -1)  # b n h w 3
    error = jnp.sum(jnp.abs(cells["place"][:, None] - target), -1)  # b n h w
    parts = {
        "object": jnp.mean(jnp.sum(center_loss, (1, 2))),
        "place": jnp.sum(weight * error) / objects,
    }
    for name in ATTRIBUTES:
        log_p = jax.nn.log_softmax(cells[name])
        cross_entropy = -jnp.einsum("bhwk,bnk->bnhw", log_p, labels[name])
        parts[name] = jnp.sum(weight * cross_entropy) / objects
    log_p = jax.nn.log_softmax(background)
    parts["background"] = -jnp.mean(jnp.sum(log_p * labels["background"], -1))
    return sum(parts.values(), jnp.zeros(())), parts


def examples(rng: random.Random, n: int) -> tuple[Float[np.ndarray, "n 32 32 3"], Labels]:
    """Training images and labels.

    Returns:
        Images in [-1, 1]. For each of MAX_OBJECTS objects `present` (its weight in a mixture,
        0..1), `place` (x, y, diameter) and the probability of each word of ATTRIBUTES; for each
        image the probability of each `background`.
    """
    labels = {
        "present": np.zeros((n, MAX_OBJECTS), np.float32),
        "place": np.zeros((n, MAX_OBJECTS, 3), np.float32),
        "background": np.zeros((n, len(BACKGROUNDS)), np.float32),
    }
    for name, words in ATTRIBUTES.items():
        labels[name] = np.zeros((n, MAX_OBJECTS, len(words)), np.float32)
    images = []
    for i in range(n):
        one = {name: values[i] for name, values in labels.items()}
        images.append(_noise_image(rng, one) if rng.random() < 0.03 else _scene_image(rng, one))
    return to_float(np.stack(images)), labels


def _noise_image(rng: random.Random, labels: Labels) -> UInt8[np.ndarray, "32 32 3"]:
    """Noise, as from an untrained model: no object and no background."""
    labels["background"][:] = 1 / len(BACKGROUNDS)
    level = np.array([rng.randrange(256) for _ in range(3)])
    numpy_rng = np.random.default_rng(rng.getrandbits(64))
    grains = rng.choice((2, 4, 8, 16, 32))
    noisy = level + numpy_rng.normal(0, rng.choice((0, 30, 100)), (grains, grains, 3))
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    return np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))


def _scene_image(rng: random.Random, labels: Labels) -> UInt8[np.ndarray, "32 32 3"]:
    """A scene at the resolution of some model; fills in its labels."""
    scene = _any_scene(rng)
    fraction, other = 1.0, scene
    if scene.things and rng.random() < 0.25:
        fraction, other = rng.random(), _with_change(rng, scene)
    for weight, version in ((fraction, scene), (1 - fraction, other)):
        labels["background"][list(BACKGROUNDS).index(version.background)] += weight
        for place, thing in enumerate(version.things):
            labels["present"][place] += weight
            labels["place"][place] = thing.x, thing.y, thing.diameter
            for name, words in ATTRIBUTES.items():
                labels[name][place][words.index(getattr(thing, name))] += weight
    for name in ATTRIBUTES:  # probabilities sum to 1, also of partly present objects
        labels[name] /= np.maximum(labels["present"], 1e-6)[:, None]
    image = render(scene, SIZE_PX)
    if fraction < 1:
        mixed = fraction * image + (1 - fraction) * render(other, SIZE_PX)
        image = mixed.round().astype(np.uint8)
    file = io.BytesIO()
    quality = rng.choice((QUALITY, 70))
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=0)
    return _degraded(rng, load_pixels(file.getvalue(), rng.choice(SIZES_PX)))


def _degraded(
    rng: random.Random, pixels: UInt8[np.ndarray, "h w 3"]
) -> UInt8[np.ndarray, "32 32 3"]:
    """The image at READ_PX, often blurred, noisy, lighter or darker, as generated images are."""
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
    """A scene of the data set with any shapes and colors, or one of random objects."""
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
    """Up to MAX_OBJECTS objects of any size and place that do not overlap."""
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


def _with_change(rng: random.Random, scene: Scene) -> Scene:
    """The scene without its last object, or with another shape or texture of it."""
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
        main()
