"""Does a model read captions, or only see which words they hold? Its loss tells.

    python -m glide_jax.evaluation.scenes.attribute_binding --checkpoint runs/scenes_base32

Scenes of two objects are noised and denoised with right captions, and with the same words in
another order. A model that only knows which words a caption has loses nothing by it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float, Int

from glide_jax.cli import keep_compiled_programs
from glide_jax.data.scenes.graph import RELATED, Scene, make, phrase
from glide_jax.data.scenes.workers import encoded_scene
from glide_jax.data.transforms import load_pixels, to_float
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.evaluation.scenes.score import require_scenes
from glide_jax.runs.folder import Run
from glide_jax.sampling.pipeline import role_of
from glide_jax.training.denoising import Denoising
from glide_jax.training.validation import buckets

BATCH = 64
TURNED = {"left of": "above", "above": "left of", "right of": "below", "below": "right of"}


def caption(scene: Scene) -> str:
    """What the two objects of a scene are, and where the first is."""
    a, b = (phrase(thing, "color") for thing in scene.things)
    return RELATED[scene.relation][1].format(a=a, b=b)


def _exchanged(name: str) -> Callable[[Scene], str]:
    """Captions of scenes whose objects had each other's attribute of this name."""

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
"""Captions that are not a scene's, by what is wrong."""


def all_differs(scene: Scene) -> bool:
    """Whether there are two objects, in neither shape nor color alike: every exchange is wrong."""
    if not scene.relation:
        return False
    a, b = scene.things
    return a.shape != b.shape and a.color != b.color


@dataclass(frozen=True)
class Arguments:
    """Compares a model's loss with right captions and with wrong ones.

    Prints by how much each kind of wrong caption raises it, in all and in each fifth of the steps.
    """

    checkpoint: str | Path
    """Run folder of a base model trained on scenes."""
    n: int = 256
    """Scenes: the first of the split with two objects of different shapes and colors."""
    split: str = "validation"
    """train, validation or novel."""
    seed: int = 0
    """Of the noise, which is the same for all captions."""


def main(arguments: Arguments) -> None:
    """The command. Raises UserError."""
    require_scenes(arguments.n, arguments.split)
    keep_compiled_programs()
    t, losses, T = measure(arguments)
    right = losses.pop("right")
    heads = ["all steps", *(f"t {low}-{high - 1}" for low, high in buckets(T))]
    print(" " * 18 + "".join(f"{head:>12}" for head in heads))
    parts = [t >= 0, *((t >= low) & (t < high) for low, high in buckets(T))]
    for name, wrong in losses.items():
        rises = (
            100 * (wrong[p].mean() / right[p].mean() - 1) if p.any() else np.nan for p in parts
        )
        print(f"{name:18}" + "".join(f"{rise:+11.1f}%" for rise in rises))
    print(f"rise of the loss over that of right captions, {len(t)} scenes of two objects")


def measure(
    arguments: Arguments,
) -> tuple[Int[np.ndarray, "n"], dict[str, Float[np.ndarray, "n"]], int]:
    """The steps that scenes were noised to, their losses by kind of caption, and T.

    The kinds are "right" and those of WRONG. Raises UserError.
    """
    run = Run.open(arguments.checkpoint)
    config = run.config
    if role_of(config) != "base":
        raise UserError(f"{run.path} is for {role_of(config)}: give a base model")
    whole = replace(config.train, micro_batches=1)
    objective = Denoising(replace(config, train=whole))
    params = run.weights()
    validate = jax.jit(objective.validate)

    indices = (i for i in count() if all_differs(make(arguments.split, i)[0]))
    chosen = list(islice(indices, arguments.n))
    batches = []
    for number, first in enumerate(range(0, len(chosen), BATCH)):
        part = chosen[first : first + BATCH]
        filled = (part * BATCH)[:BATCH]  # so that one program serves the last batch too
        scenes = [make(arguments.split, i)[0] for i in filled]
        files = (encoded_scene(arguments.split, i).image for i in filled)
        images = np.stack([load_pixels(f, config.denoiser.resolution_px) for f in files])
        key = jax.random.fold_in(jax.random.key(arguments.seed), number)
        found = {}
        for name, say in ({"right": caption} | WRONG).items():
            texts = [say(scene) for scene in scenes]
            tokens, token_mask = run.tokenizer.encode(texts, config.denoiser.text.length)
            batch = {"image": to_float(images), "tokens": tokens, "token_mask": token_mask}
            result = jax.device_get(validate(params, {}, jax.tree.map(jnp.asarray, batch), key))
            found["t"], found[name] = result.t[: len(part)], result.values["loss"][: len(part)]
        batches.append(found)
    losses = {name: np.concatenate([found[name] for found in batches]) for name in batches[0]}
    return losses.pop("t"), losses, objective.timestep_count


if __name__ == "__main__":
    with exit_on_user_error():
        main(tyro.cli(Arguments, prog="python -m glide_jax.evaluation.scenes.attribute_binding"))
