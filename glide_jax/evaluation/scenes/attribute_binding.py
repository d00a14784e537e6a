"""Attribute binding: the rise of a base model's loss when captions are wrong.

    python -m glide_jax.evaluation.scenes.attribute_binding --checkpoint runs/scenes_base32

Scenes of two objects are noised and denoised, with their true captions and with captions that bind
the same words differently. The loss of a model that treats captions as bags of words does not rise.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from glide_jax.cli import parse_flags
from glide_jax.compilation import keep_compiled_programs
from glide_jax.config.bounds import SEED
from glide_jax.data.scenes.graph import RELATED, Scene, make, phrase
from glide_jax.data.scenes.workers import encoded_scene
from glide_jax.data.transforms import load_pixels
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.evaluation.scenes.flags import SCENES, SplitFlags, require_scenes
from glide_jax.runs.folder import Run
from glide_jax.sampling.model_set import role_of
from glide_jax.training.denoising import Denoising
from glide_jax.training.validation import buckets

BATCH = 64
TURNED = {"left of": "above", "above": "left of", "right of": "below", "below": "right of"}


def caption(scene: Scene) -> str:
    """The true caption: color and shape of the two objects, and their relation."""
    a, b = (phrase(thing, "color") for thing in scene.things)
    return RELATED[scene.relation][1].format(a=a, b=b)


def _exchanged(name: str) -> Callable[[Scene], str]:
    """Captions with the attribute of this name exchanged between the objects."""

    def wrong(scene: Scene) -> str:
        a, b = scene.things
        a, b = (replace(x, **{name: getattr(y, name)}) for x, y in ((a, b), (b, a)))
        return caption(replace(scene, things=(a, b)))

    return wrong


WRONG: dict[str, Callable[[Scene], str]] = {
    "objects exchanged": lambda scene: caption(replace(scene, things=scene.things[::-1])),
    "colors exchanged": _exchanged("color"),
    "shapes exchanged": _exchanged("shape"),
    "another relation": lambda scene: caption(replace(scene, relation=TURNED[scene.relation])),
    "no caption": lambda scene: "",
}
"""Wrong captions of a scene by kind."""


def has_distinct_pair(scene: Scene) -> bool:
    """Whether there are two objects that differ in shape and color, so that exchanges are wrong."""
    if not scene.relation:
        return False
    a, b = scene.things
    return a.shape != b.shape and a.color != b.color


@dataclass(frozen=True, kw_only=True)
class Arguments(SplitFlags):
    """Compares a base model's loss on true captions and on wrong ones.

    Prints the rise of the loss for each kind of wrong caption, overall and by timestep bucket.
    """

    checkpoint: str | Path
    """Run folder of a base model trained on scenes."""
    n: Annotated[int, SCENES] = 256
    """Number of scenes: the first of the split with two objects of different shapes and colors."""
    seed: Annotated[int, SEED] = 0
    """Seed of the noise, which is the same for all captions."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises UserError."""
    prog = "python -m glide_jax.evaluation.scenes.attribute_binding"
    arguments: Arguments = parse_flags(Arguments, prog, argv)
    arguments.check()
    keep_compiled_programs()
    t, losses, T = measure(arguments.checkpoint, arguments.split, arguments.n, arguments.seed)
    true = losses.pop("true")
    heads = ["all steps", *(f"t {low}-{high - 1}" for low, high in buckets(T))]
    print(" " * 18 + "".join(f"{head:>12}" for head in heads))
    parts = [t >= 0, *((t >= low) & (t < high) for low, high in buckets(T))]
    for name, wrong in losses.items():
        rises = (100 * (wrong[p].mean() / true[p].mean() - 1) if p.any() else np.nan for p in parts)
        print(f"{name:18}" + "".join(f"{rise:+11.1f}%" for rise in rises))
    print(f"rise of the loss over that of true captions, {len(t)} scenes of two objects")


def measure(
    checkpoint: str | Path, split: str, n: int, seed: int = 0
) -> tuple[Int[np.ndarray, "n"], dict[str, Float[np.ndarray, "n"]], int]:
    """Measures the loss of each scene with each kind of caption.

    Args:
        checkpoint: run folder of a base model.
        split: of the scenes data set.
        n: number of scenes.
        seed: of the noise.

    Returns:
        Timesteps; losses by kind of caption, "true" or one of WRONG; and T.

    Raises:
        UserError: not a base model's run folder, or a model of other data.
    """
    run = Run.open(checkpoint)
    config = run.config
    if role_of(config) != "base":
        raise UserError(f"{run.path} is a {role_of(config)} model: give a base model")
    require_scenes(config)
    objective = Denoising(replace(config, train=replace(config.train, micro_batches=1)))
    params = run.weights()
    validate = jax.jit(objective.validate)
    batches = []
    for number, part in enumerate(_batches(split, n)):
        filled = (part * BATCH)[:BATCH]  # so that one program serves the last batch too
        scenes = [make(split, i)[0] for i in filled]
        files = (encoded_scene(split, i).image for i in filled)
        images = np.stack([load_pixels(f, config.denoiser.resolution_px) for f in files])
        key = jax.random.fold_in(jax.random.key(seed), number)
        losses = {}
        for name, captioned in ({"true": caption} | WRONG).items():
            texts = [captioned(scene) for scene in scenes]
            tokens, token_mask = run.tokenizer.encode(texts, config.denoiser.text.length)
            batch = {"image": images, "tokens": tokens, "token_mask": token_mask}
            result = jax.device_get(validate(params, {}, jax.tree.map(jnp.asarray, batch), key))
            losses["t"], losses[name] = result.t[: len(part)], result.values["loss"][: len(part)]
        batches.append(losses)
    joined = {name: np.concatenate([losses[name] for losses in batches]) for name in batches[0]}
    return joined.pop("t"), joined, objective.timestep_count


def _batches(split: str, n: int) -> Iterator[list[int]]:
    """Indices of the first n scenes with a distinct pair, in batches."""
    chosen = islice((i for i in count() if has_distinct_pair(make(split, i)[0])), n)
    while part := list(islice(chosen, BATCH)):
        yield part


if __name__ == "__main__":
    with exit_on_user_error():
        main()
